create or replace function mq.sweep_stale(queue text default null) returns int
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off as $$
declare
    q       mq.queue;
    v_again mq._taken[];
    v_taken int;
    v_sum   int := 0;
begin
    perform mq._check_isolation('sweep_stale');
    if sweep_stale.queue is not null then
        perform mq._queue(sweep_stale.queue);
    end if;
    for q in select * from mq.queue as x where (sweep_stale.queue is null or x.name = sweep_stale.queue) and pg_sequence_last_value(x.register) > 0
        and mq._is_at_home(x.home) order by x.queue_id
    loop
        if q.mode = 'transaction' then
            v_sum := v_sum + (select x.joined + x.buried from mq._tend(q) as x);
            continue;
        end if;
        select x.again, x.taken into v_again, v_taken from mq._sweep(q.queue_id, q.max_attempts, 10000) as x;
        v_sum := v_sum + v_taken;
        if cardinality(v_again) > 0 then
            perform mq._defer(q.queue_id, q.register, v_again, array_fill(clock_timestamp(), array[cardinality(v_again)]));
            perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
        end if;
    end loop;
    return v_sum;
end $$;

comment on function mq.sweep_stale(text) is
'Takes back messages whose lease ran out: they are delivered again at once, or become dead letters when max_attempts is used up. Up to 10000 a queue and call. A consumer that finds nothing does this by itself. In a queue of mode transaction, where nothing runs out: what is due joins the others, so does one message of each ordering_key of which none is there (what is due and has one takes two calls), and what rolled back max_attempts times becomes a dead letter. There a consumer that finds nothing calls it, in a transaction of its own.
queue: its name; default all queues.
Returns: how many messages were taken back, or joined the others or were buried.
Raises: MQ001 no such queue; 0A000 not in READ COMMITTED.
Role: mq_consumer.';
