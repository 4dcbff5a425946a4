create or replace function mq.next_due(queue text) returns timestamptz
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off as $$
declare
    q       mq.queue := mq._queue(next_due.queue);
    v_value bigint := pg_sequence_last_value(q.register);
    v_due   timestamptz;
    v_old   timestamptz;
begin
    if num_nonnulls(q.max_in_flight, q.rate_limit) > 0 and mq._allowed(q, 1) = 0 then
        -- Whatever is due: full, nobody knows for how long.
        return coalesce(mq._rate_back_at(q), clock_timestamp() + interval '1 second');
    end if;
    execute format('select mq._next_due_%s_%s()', q.queue_id, (v_value >> 32) & 1) into v_due;
    if (v_value >> 33) & 1 = 1 then
        execute format('select mq._next_due_%s_%s()', q.queue_id, 1 - ((v_value >> 32) & 1)) into v_old;
    end if;
    return least(v_due, v_old);
end $$;

comment on function mq.next_due(text) is
'When the next delayed message or retry is due, so that a waiting consumer knows when to wake up. While the rate_limit of the queue is used up: when it lets something through again; while max_in_flight is: in a second.
queue: its name.
Returns: a time, in the past if something is due already; null: nothing is deferred.
Raises: MQ001 no such queue.
Role: mq_consumer.';
