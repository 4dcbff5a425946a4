create or replace function mq.purge_queue(queue text) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
set lock_timeout = '10s' as $$
declare
    q       mq.queue := mq._queue(purge_queue.queue, false);
    s       mq.segment;
    v_count bigint := 0;
    v_sum   bigint := 0;
begin
    perform mq._check_isolation('purge_queue');
    perform pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(q.queue_id, -3));
    perform mq._queue(purge_queue.queue);        -- dropped meanwhile?
    perform mq._mend_segments(q.queue_id, q.register);
    -- The tables locked first, all of them: then nobody is in the middle of anything.
    perform mq._lock_tables(q.queue_id);
    for s in select * from mq.segment as x where x.queue_id = q.queue_id and x.drained_at is null order by x.segment loop
        v_count := (select count(*) from mq._fates(q.queue_id, s.slot) as f where f.state in ('ready', 'leased'));
        v_sum := v_sum + v_count;
    end loop;
    execute format('select (select count(*) from mq._waiting_%1$s_0()) + (select count(*) from mq._waiting_%1$s_1())
                   + (select count(*) from mq.parked_%1$s as p where p.lane is not null)', q.queue_id) into v_count;
    v_sum := v_sum + v_count;
    -- They were counted, for they are where they waited.
    delete from mq.cancelled as x where x.queue_id = q.queue_id;
    get diagnostics v_count = row_count;
    v_sum := v_sum - v_count;
    delete from mq.dedup as x where x.queue_id = q.queue_id;
    delete from mq.survivor as x where x.queue_id = q.queue_id;
    get diagnostics v_count = row_count;
    v_sum := v_sum + v_count;
    delete from mq.note as x where x.queue_id = q.queue_id;
    for s in select * from mq.segment as x where x.queue_id = q.queue_id order by x.segment loop
        perform mq._add_to_tally(q.queue_id, s.slot) where s.drained_at is null;
        execute 'truncate ' || mq._slot_tables(q.queue_id, s.slot);
    end loop;
    execute replace('truncate mq.deferred_{q}_0, mq.timer_{q}_0, mq.promotion_{q}_0, mq.deferred_{q}_1, mq.timer_{q}_1, mq.promotion_{q}_1,'
                    ' mq.parked_{q}, mq.line_{q}, mq.key_{q}, mq.turn_{q}',
                    '{q}', q.queue_id::text);
    delete from mq.kept as x where x.queue_id = q.queue_id;
    perform mq._forget(q.queue_id);
    -- Schedules go on. With the tables locked, whoever changes one has either put its tick there before, or will.
    perform mq._put_tick(x, coalesce(mq._tick_after(x, clock_timestamp()), clock_timestamp() + interval '1 minute'), x.generation)
    from mq.timetable as x where x.queue_id = q.queue_id;
    return v_sum;
end $$;

comment on function mq.purge_queue(text) is
'Removes all messages of a queue, leased and delayed ones too, and what was kept of those that are done; dead letters stay, dedup keys are free, and schedules go on with the next time. Waits up to 10 seconds for transactions that use it.
queue: its name.
Returns: how many messages were not settled yet.
Raises: MQ001 no such queue; 55P03 it stayed in use, nothing was removed; 0A000 not in READ COMMITTED.
Role: mq_admin.';
