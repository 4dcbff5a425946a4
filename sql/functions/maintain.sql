create or replace function mq.maintain(queue text default null) returns setof mq.upkeep
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
set lock_timeout = '50ms' as $$
declare
    q        mq.queue;
    s        mq.segment;
    v_count  int;
    v_again  mq._taken[];
begin
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        perform mq._wrong_isolation('maintain');
    end if;
    if maintain.queue is not null then
        perform mq._queue(maintain.queue);
    end if;
    perform mq._empty_inbox();
    for q in select * from mq.queue as x where maintain.queue is null or x.name = maintain.queue order by x.queue_id loop
        if not pg_try_advisory_xact_lock(mq._lock_class(), mq._lock_key(q.queue_id, -3)) then
            return next (q.name, 'busy', 'another session maintains this queue')::mq.upkeep;
            continue;
        end if;
        -- Somebody may have dropped it, or rotated, before we had the lock.
        continue when not exists (select from mq.queue as x where x.queue_id = q.queue_id);
        if q.home_relation <> 'mq.queue'::regclass::oid or q.home_system not in (0, mq._system_identifier()) then
            perform mq._repair(q.queue_id);
            return next (q.name, 'repaired', 'this is a copy of another database: what was unsettled was appended anew')::mq.upkeep;
        end if;
        perform mq._mend_segments(q.queue_id, q.register);

        v_again := mq._sweep(q.queue_id, q.max_attempts, 10000);
        if cardinality(v_again) > 0 then
            perform mq._defer(q.queue_id, q.register, v_again, array_fill(clock_timestamp(), array[cardinality(v_again)]));
            perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
            return next (q.name, 'swept', format('%s messages', cardinality(v_again)))::mq.upkeep;
        end if;

        begin
            v_count := mq._make_spare_slot(q.queue_id);
            if v_count is not null then
                return next (q.name, 'prepared', format('slot %s', v_count))::mq.upkeep;
            end if;
            if mq._wants_rotation(q.queue_id) and mq._rotate(q.queue_id) then
                return next (q.name, 'rotated', format('segment %s is open', (select max(x.segment) from mq.segment as x where x.queue_id = q.queue_id)))::mq.upkeep;
            end if;
            -- What is open works without the fence, only faster.
            perform mq._unfence(format('log_%s_%s', q.queue_id, pg_sequence_last_value(q.register) & 65535));
            perform mq._unfence(format('deferred_%s_%s', q.queue_id, (pg_sequence_last_value(q.register) >> 32) & 1));
        exception
            when lock_not_available then
                return next (q.name, 'busy', 'rotation: a lock is taken')::mq.upkeep;
        end;

        -- Each step keeps locks to the end of the transaction: a few per call.
        v_count := 0;
        for s in select * from mq.segment as x where x.queue_id = q.queue_id and x.closed_at is not null order by x.queue_id, x.segment loop
            exit when v_count >= 8;
            if s.sealed_at is null then
                begin
                    perform mq._seal(q.queue_id, s.slot);
                    s.sealed_at := clock_timestamp();
                    v_count := v_count + 1;
                    return next (q.name, 'sealed', format('segment %s', s.segment))::mq.upkeep;
                exception
                    when lock_not_available then
                        return next (q.name, 'busy', format('segment %s: somebody still writes to it', s.segment))::mq.upkeep;
                        continue;
                end;
            end if;
            if s.exhausted_at is null and mq._is_exhausted(q.queue_id, s.slot) then
                update mq.segment as x set exhausted_at = clock_timestamp() where x.queue_id = s.queue_id and x.segment = s.segment;
                s.exhausted_at := clock_timestamp();
                return next (q.name, 'exhausted', format('segment %s', s.segment))::mq.upkeep;
            end if;
            if s.exhausted_at < clock_timestamp() - q.segment_age and s.drained_at is null then
                if mq._move_survivors(q.queue_id, s.slot) > 0 then
                    return next (q.name, 'moved', format('long leases of segment %s', s.segment))::mq.upkeep;
                end if;
            end if;
            if s.exhausted_at is not null and s.drained_at is null and mq._is_drained(q.queue_id, s.slot) then
                update mq.segment as x set drained_at = clock_timestamp() where x.queue_id = s.queue_id and x.segment = s.segment;
                s.drained_at := clock_timestamp();
                return next (q.name, 'drained', format('segment %s', s.segment))::mq.upkeep;
            end if;
            if s.drained_at is not null then
                begin
                    perform mq._free(q.queue_id, s.slot);
                    v_count := v_count + 1;
                    return next (q.name, 'dropped', format('segment %s', s.segment))::mq.upkeep;
                exception
                    when lock_not_available then
                        return next (q.name, 'busy', format('segment %s: somebody still reads it', s.segment))::mq.upkeep;
                end;
            end if;
        end loop;
        perform mq._advance_head(q.queue_id, q.register);

        perform mq._absorb_arrivals(q.queue_id, q.register);
        begin
            return query select q.name, 'deferral'::text, x from mq._rotate_deferral(q.queue_id, q.register) as x where x is not null;
            for v_count in
                select g.slot from mq.slot as g
                where g.queue_id = q.queue_id and g.freed_at < clock_timestamp() - interval '1 hour' - q.segment_age
                  and not exists (select from mq.segment as y where y.queue_id = g.queue_id and y.slot = g.slot)
                order by g.slot desc
                limit greatest(0, least(2, (select count(*) - 1 from mq.slot as f where f.queue_id = q.queue_id
                                and not exists (select from mq.segment as y where y.queue_id = f.queue_id and y.slot = f.slot))))
            loop
                perform mq._drop_slot(q.queue_id, v_count);
                return next (q.name, 'removed', format('idle slot %s', v_count))::mq.upkeep;
            end loop;
        exception
            when lock_not_available then
                return next (q.name, 'busy', 'deferral: a lock is taken')::mq.upkeep;
        end;
    end loop;
end $$;

comment on function mq.maintain(text) is
'All upkeep: takes back leases that ran out, begins new segments, seals and drops old ones. Call it now and then, in a transaction of its own: every few seconds or minutes; the client and mqctl maintain --loop do. Never waits; what is busy is left for the next call.
queue: its name; default all queues.
Returns: queue, action, detail: what was done.
Raises: MQ001 no such queue; 0A000 not in READ COMMITTED.
Role: mq_consumer.';
