create or replace function mq.nack(
    queue text,
    receipt text,
    msg_ids bigint[] default null,
    delay interval default null,
    reason text default null,
    dead boolean default false,
    count_attempt boolean default true
) returns int
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off
set lock_timeout = '2s' as $$
declare
    q       mq.queue := mq._queue(nack.queue);
    v_taken mq._taken[];
    v_again mq._taken[];
    v_count int := 0;
    v_is_again boolean := false;
begin
    if delay < '0' or delay > '100 years' then
        perform mq._invalid('delay', format('%s is not between 0 and 100 years.', delay), 'Leave it out for the backoff of the queue.');
    end if;
    if dead and not count_attempt then
        perform mq._invalid('count_attempt', 'Both dead and count_attempt => false are given.', 'Give one of them: a dead letter is not tried again.');
    end if;
    loop
        v_taken := mq._settle(nack.queue, q.queue_id, nack.receipt, case when dead then 'rejected' else 'nacked' end, nack.msg_ids);
        v_count := v_count + (select count(*) from unnest(v_taken) as m where m.outcome <> 'returned');
        exit when cardinality(v_taken) = 0;
        v_again := mq._take_back(q.queue_id, q.max_attempts, q.max_depth, v_taken, nack.reason, coalesce(dead, false), not coalesce(count_attempt, true));
        if cardinality(v_again) > 0 then
            perform mq._defer(q.queue_id, q.register, v_again,
                array(select clock_timestamp() + case when m.outcome = 'returned' then '0' else coalesce(nack.delay, mq._backoff(q, m.attempt - coalesce(count_attempt, true)::int)) end
                      from unnest(v_again) as m));
            v_is_again := true;
        end if;
        -- Big messages come in parts.
        exit when not mq._is_enough(v_taken);
    end loop;
    if v_is_again then
        perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    end if;
    return v_count;
end $$;

comment on function mq.nack(text, text, bigint[], interval, text, boolean, boolean) is
'Gives messages back: they are delivered again later, or become dead letters when max_attempts is used up.
queue: its name.
receipt: of the dequeue that leased them; in a queue of mode transaction, of this transaction.
msg_ids: which of them; default all that are left. What stands behind one of them, by its ordering_key, goes back with it, with no attempt counted; dead letters leave it.
delay: when to try again, from now; default what the queue''s retry_policy says.
reason: kept in the history that a dead letter shows; default none.
dead: true makes them dead letters at once; default false.
count_attempt: false puts them off without using up an attempt, as often as you like, and without a note in the history; default true.
Returns: how many of those that were asked for were given back by this call; 0: the lease was lost, or they were settled before.
Raises: MQ001 no such queue; MQ004 a malformed receipt; 22004 a null receipt; 22023 a negative delay, or dead with count_attempt => false; 55P03 somebody else''s open transaction is settling the same lease; 40001 in REPEATABLE READ when the lease is newer than the snapshot.
Role: mq_consumer.';
