create or replace function mq.ack(
    queue text,
    receipt text,
    msg_ids bigint[] default null,
    strict boolean default false,
    result jsonb default null
) returns int
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off
set lock_timeout = '2s' as $$
declare
    v_id       int;
    v_home     text;
    v_register bigint;
    v_key      bigint;
    v_count    int;
    v_settled  mq._taken[];
    v_is_limited boolean;
begin
    -- The common case, in few expressions, as in dequeue: all of a lease of the oldest segment or of the open one (others may
    -- be gone) that nothing has happened to yet.
    select case when x.max_in_flight is null and x.home = 'mq.queue'::regclass::oid::text || '.' || current_setting('mq.system', true) and ack.msg_ids is null and ack.result is null
                     and ack.receipt ~ '^[0-9]+[.][0-9]+[.]1[.]0[.][0-9]+[.][0-9]+[.][0-9]+[.][1-9][0-9]*[.][0-9]+$'
                then x.queue_id::bigint * 65536
                     + case when starts_with(ack.receipt, concat(x.queue_id, '.', (x.content >> 16) & 32767, '.')) then (x.content >> 16) & 32767
                            when starts_with(ack.receipt, concat(x.queue_id, '.', x.content & 65535, '.')) then x.content & 65535 end end
      into v_key
    from (select q.queue_id, q.home, q.max_in_flight, pg_sequence_last_value(q.register) as content from mq.queue as q where q.name = ack.queue offset 0) as x;
    if v_key is not null then
        v_count := mq._ack_0(v_key, ack.receipt);
        if v_count is not null then
            return v_count;
        end if;
    end if;

    select q.queue_id, q.home, pg_sequence_last_value(q.register), q.max_in_flight is not null into v_id, v_home, v_register, v_is_limited
    from mq.queue as q where q.name = ack.queue;
    if not mq._is_at_home(v_home) then
        perform mq._repair(v_id);       -- a copy: its receipts are void
    elsif v_register is null then
        perform mq._queue_not_found(ack.queue);
    end if;
    if ack.msg_ids is null and ack.result is null then
        v_count := mq._ack(ack.queue, v_id, ack.receipt);
    else
        v_settled := mq._settle(ack.queue, v_id, ack.receipt, 'acked', ack.msg_ids);
        v_count := cardinality(v_settled);
        -- Only of what this very call settled: of a lease that was lost no result is left.
        if ack.result is not null then
            insert into mq.note (queue_id, msg_id, kind, value) select v_id, x.msg_id, 'result', ack.result from unnest(v_settled) as x;
        end if;
    end if;
    if v_is_limited and v_count > 0 then
        perform mq._tell_of_room(v_id);
    end if;
    if strict and v_count < coalesce(cardinality(ack.msg_ids), 1) then
        if ack.msg_ids is null or v_count < (select count(distinct x) from unnest(ack.msg_ids) as x) then
            perform mq._lease_lost(ack.queue);
        end if;
    end if;
    return v_count;
end $$;

comment on function mq.ack(text, text, bigint[], boolean, jsonb) is
'Settles messages: they are done and will not be delivered again.
queue: its name.
receipt: of the dequeue that leased them. In a queue of mode transaction nothing changes: the commit of that dequeue settles.
msg_ids: which of them; default all that are left.
strict: raise instead of returning less than was asked for, so that a transaction that acknowledges together with its own writes rolls back as a whole; default false.
result: kept with each of them for the result_retention of the queue, for mq.wait_for and mq.message_status; ''null''::jsonb is one, an SQL null (default) is none.
Returns: how many were settled by this call; 0: the lease was lost, or they were settled before.
Raises: MQ001 no such queue; MQ003 strict and the lease is lost; MQ004 a malformed receipt; 22004 a null receipt; 55P03 somebody else''s open transaction is settling the same lease; 40001 in REPEATABLE READ when the lease is newer than the snapshot.
Role: mq_consumer.';
