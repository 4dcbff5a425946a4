create or replace function mq.maintain(queue text default null) returns setof mq.upkeep
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
set lock_timeout = '50ms' as $$
declare
    q         mq.queue;
    s         mq.segment;
    v_slot    int;
    v_table   text;
    v_unfenced boolean := false;
    v_freed   int := 0;
    v_taken   int;
    v_again   mq._taken[];
    v_copy    int;
    v_until   timestamptz;
    a_ids     int[];
begin
    perform mq._check_isolation('maintain');
    -- A fence does not keep out its own transaction, and a window does not show it what it wrote: a segment with rows of
    -- ours would pass for empty.
    if pg_current_xact_id_if_assigned() is not null then
        return next (maintain.queue, 'busy', 'this transaction wrote before: call maintain in one of its own')::mq.upkeep;
        return;
    end if;
    if maintain.queue is not null and not exists (select from mq.queue as x where x.name = maintain.queue) then
        perform mq._queue_not_found(maintain.queue);
    end if;
    -- A copy of another database: one a call, and before all else, for its tables are locked to the end of the transaction;
    -- and nothing else with it, as above.
    select x.queue_id into v_copy from mq.queue as x
    where (maintain.queue is null or x.name = maintain.queue)
      and mq._is_copy(x.queue_id, x.home)
    order by random() limit 1;
    if pg_try_advisory_xact_lock(mq._lock_class(), mq._lock_key(v_copy, -3)) then
        begin
            -- Again, behind the lock: it may be dropped, or repaired.
            select x.* into q from mq.queue as x
            where x.queue_id = v_copy and mq._is_copy(x.queue_id, x.home);
            -- A slot made in the same transaction would be gone, were that rolled back, but not what the register says.
            if mq._empty_slot(q.queue_id) is not null then
                perform mq._repair(q.queue_id, '1 second');
                return next (q.name, 'repaired', 'this is a copy of another database: what was unsettled was appended anew')::mq.upkeep;
                return;
            elsif q.queue_id is not null and mq._make_slot(q.queue_id) is not null then
                return next (q.name, 'prepared', 'this is a copy of another database: the next call repairs it')::mq.upkeep;
                return;
            end if;
        exception
            when lock_not_available then
                null;           -- said below
            when others then
                if maintain.queue is not null then
                    raise;
                end if;
                return next (q.name, 'failed', sqlerrm)::mq.upkeep;
        end;
    end if;
    perform mq._remove_old_registers();

    for q in select * from mq.queue as x where maintain.queue is null or x.name = maintain.queue order by x.queue_id loop
        begin
            if not pg_try_advisory_xact_lock(mq._lock_class(), mq._lock_key(q.queue_id, -3)) then
                return next (q.name, 'busy', 'another session maintains this queue')::mq.upkeep;
                continue;
            end if;
            -- Somebody may have dropped it, or rotated, before we had the lock.
            continue when not exists (select from mq.queue as x where x.queue_id = q.queue_id);
            if mq._is_copy(q.queue_id, q.home) then
                return next (q.name, 'busy', 'this is a copy of another database, to be repaired when nobody uses it')::mq.upkeep;
                continue;
            end if;
            a_ids := a_ids || q.queue_id;
            perform mq._mend_segments(q.queue_id, q.register);
            if mq._mend_home_bits(q.queue_id) then
                return next (q.name, 'prepared', 'enqueue relies on what it knows of the queue')::mq.upkeep;
            end if;

            if q.max_depth is not null then
                perform mq._mark_depth(q.queue_id);
                -- For who cannot count himself.
                perform mq._recount(q.queue_id, 1);
            end if;
            select x.again, x.taken into v_again, v_taken from mq._sweep(q.queue_id, q.max_attempts, 10000) as x;
            if v_taken > 0 then
                return next (q.name, 'swept', format('%s messages', v_taken))::mq.upkeep;
            end if;
            if cardinality(v_again) > 0 then
                perform mq._defer(q.queue_id, q.register, v_again, array_fill(clock_timestamp(), array[cardinality(v_again)]));
                perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
            end if;

            v_taken := mq._forget_keys(q.queue_id);
            if v_taken > 0 then
                return next (q.name, 'forgot', format('%s dedup keys that are over', v_taken))::mq.upkeep;
            end if;
            if mq._wants_rotation(q.queue_id) and mq._rotate(q.queue_id) then
                return next (q.name, 'rotated', format('segment %s is open', (select max(x.segment) from mq.segment as x where x.queue_id = q.queue_id)))::mq.upkeep;
            end if;
            begin
                v_slot := mq._make_spare_slot(q.queue_id);
                if v_slot is not null then
                    return next (q.name, 'prepared', format('slot %s', v_slot))::mq.upkeep;
                end if;
            exception
                when lock_not_available then
                    return next (q.name, 'busy', 'a slot is being made by another session')::mq.upkeep;
            end;

            if q.retention > '0' and mq._is_left_out(q.queue_id) and pg_try_advisory_xact_lock(mq._lock_class(), mq._lock_key(0, -7)) then
                perform mq._create_dispatchers();
                return next (q.name, 'prepared', 'a slot that was kept can be used again')::mq.upkeep;
            end if;

            for s in
                select * from mq.segment as x
                where x.queue_id = q.queue_id and x.exhausted_at < clock_timestamp() - q.segment_age and x.drained_at is null
                order by x.queue_id, x.segment
            loop
                begin
                    if mq._move_survivors(q.queue_id, s.slot) > 0 then
                        return next (q.name, 'moved', format('long leases of segment %s', s.segment))::mq.upkeep;
                    end if;
                exception
                    when lock_not_available then
                        return next (q.name, 'busy', format('segment %s: somebody is settling a lease', s.segment))::mq.upkeep;
                end;
            end loop;
            v_taken := mq._forget_notes(q, case when random() < 0.01 then '-infinity'::timestamptz end);
            if v_taken > 0 then
                return next (q.name, 'forgot', format('%s results and reports', v_taken))::mq.upkeep;
            end if;
        exception
            when others then        -- one queue's trouble is not to stop the upkeep of the others
                if maintain.queue is not null then
                    raise;
                end if;
                a_ids := array_remove(a_ids, q.queue_id);
                return next (q.name, 'failed', sqlerrm)::mq.upkeep;
        end;
    end loop;

    -- Last, as these locks keep others out until the end of this call: a few of each kind. One queue after the other in an
    -- order of chance, for who comes late does not wait for them: _take_tables.
    for q in select * from mq.queue as x where x.queue_id = any (a_ids) order by random() loop
        begin
            for s in select * from mq.segment as x where x.queue_id = q.queue_id and x.closed_at is not null order by x.queue_id, x.segment loop
                if s.sealed_at is null then
                    begin
                        perform mq._seal(q.queue_id, s.slot);
                        s.sealed_at := clock_timestamp();
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
                if s.exhausted_at < now() and s.drained_at is null and mq._is_drained(q.queue_id, s.slot) then
                    update mq.segment as x set drained_at = clock_timestamp() where x.queue_id = s.queue_id and x.segment = s.segment;
                    perform mq._add_to_tally(q.queue_id, s.slot);
                    return next (q.name, 'drained', format('segment %s', s.segment))::mq.upkeep;
                end if;
            end loop;
            perform mq._advance_head(q.queue_id, q.register);
        exception
            when others then
                if maintain.queue is not null then
                    raise;
                end if;
                return next (q.name, 'failed', sqlerrm)::mq.upkeep;
        end;
    end loop;
    for q in select * from mq.queue as x where x.queue_id = any (a_ids) order by random() loop
        begin
            -- Behind the sealing, as what joins is ours: see above.
            if q.mode = 'transaction' then
                return query
                    select q.name, u.action, format('%s messages', u.n)
                    from mq._tend(q) as x cross join lateral (values ('joined', x.joined), ('buried', x.buried)) as u (action, n) where u.n > 0;
            else
                perform mq._absorb_arrivals(q.queue_id, q.register);
            end if;
            v_taken := mq._promote_ticks(q);
            if v_taken > 0 then
                return next (q.name, 'scheduled', format('%s messages', v_taken))::mq.upkeep;
            end if;
            perform mq._forget_kept(q.queue_id, q.retention);
            perform mq._forget_delivered(q);
            perform mq._forget_idle_keys(q.queue_id);
            -- What an earlier call drained: by now nobody looks there for anything, but rewind and history, as long as it is kept.
            for s in
                select * from mq.segment as x
                where x.queue_id = q.queue_id and x.drained_at < now()
                  and (x.drained_at < now() - q.retention or pg_relation_size(format('mq.log_%s_%s', x.queue_id, x.slot)::regclass) = 0)
                order by x.queue_id, x.segment
            loop
                exit when v_freed >= 8;      -- of all queues: each takes a dozen locks
                begin
                    perform mq._free(q.queue_id, s.slot);
                    v_freed := v_freed + 1;
                    return next (q.name, 'dropped', format('segment %s', s.segment))::mq.upkeep;
                exception
                    when lock_not_available then
                        return next (q.name, 'busy', format('segment %s: somebody still reads it', s.segment))::mq.upkeep;
                end;
            end loop;
            begin
                return query select q.name, 'deferral'::text, x from mq._rotate_deferral(q.queue_id, q.register) as x where x is not null;
            exception
                when lock_not_available then
                    return next (q.name, 'busy', 'deferral: a lock is taken')::mq.upkeep;
            end;
            begin
                v_slot := mq._idle_slot(q.queue_id);
                if v_slot is not null and pg_try_advisory_xact_lock(mq._lock_class(), mq._lock_key(0, -7)) then
                    perform mq._drop_slot(q.queue_id, v_slot);
                    perform mq._create_dispatchers();
                    return next (q.name, 'removed', format('idle slot %s', v_slot))::mq.upkeep;
                end if;
            exception
                when lock_not_available then
                    return next (q.name, 'busy', 'an idle slot is in use')::mq.upkeep;
            end;
            for v_slot in select x from mq._live_slots(q.queue_id) as x loop
                execute format('select mq._mark_%s_%s(1::smallint, u.lane) from unnest($1) as u (lane)', q.queue_id, v_slot) using mq._lanes(q.queue_id);
            end loop;
            -- What is open works without the fence, only faster.
            foreach v_table in array array['log_' || q.queue_id || '_' || (pg_sequence_last_value(q.register) & 65535),
                                           'deferred_' || q.queue_id || '_' || ((pg_sequence_last_value(q.register) >> 32) & 1)] loop
                begin
                    -- Who waits for a sealed log read the register before that was closed; for an open one anybody may.
                    if mq._is_fenced(v_table) then
                        perform mq._unfence(v_table, case when not v_unfenced then '^(log|deferred)_' end);
                        v_unfenced := true;
                    end if;
                exception
                    when lock_not_available then
                        null;           -- next time
                end;
            end loop;
        exception
            when others then
                if maintain.queue is not null then
                    raise;
                end if;
                return next (q.name, 'failed', sqlerrm)::mq.upkeep;
        end;
    end loop;
    -- What enqueue knows of rows that were repaired, or brought, or changed by hand: until then, and until the next call, which
    -- mends their registers, messages go the long way. Marked first: what changes meanwhile is made again. Who is changing
    -- a queue is left alone. It is for all queues, so what is wrong with it undoes the upkeep of none.
    begin
        if exists (select from mq.queue as x where x.append_home <> x.home) then
            if pg_try_advisory_xact_lock(mq._lock_class(), mq._lock_key(0, -7)) then
                update mq.queue as x set append_home = x.home
                from (select y.queue_id from mq.queue as y where y.append_home <> y.home for no key update skip locked) as z
                where x.queue_id = z.queue_id;
                if found then
                    perform mq._generate(0, null);
                    return next (null, 'prepared', 'enqueue knows of the queues as they are')::mq.upkeep;
                end if;
            else
                return next (null, 'busy', 'another session makes what enqueue knows')::mq.upkeep;
            end if;
        end if;
    exception
        when lock_not_available then
            return next (null, 'busy', 'what enqueue knows is in use')::mq.upkeep;
        when others then
            return next (null, 'failed', sqlerrm)::mq.upkeep;
    end;
    -- Consumers of these keys are kept out from here on: so not for long.
    v_until := clock_timestamp() + interval '300 milliseconds';
    for q in select * from mq.queue as x where x.queue_id = any (a_ids) and x.mode = 'lease' and not x.paused order by random() loop
        exit when clock_timestamp() > v_until;
        begin
            perform mq._lay_out_keys(q.queue_id, q.register, v_until);
        exception
            when others then
                if maintain.queue is not null then
                    raise;
                end if;
                return next (q.name, 'failed', sqlerrm)::mq.upkeep;
        end;
    end loop;
    perform mq._empty_inbox();
end $$;

comment on function mq.maintain(text) is
'All upkeep: takes back leases that ran out, begins new segments, seals and drops old ones, forgets old results, delivers what schedules put aside where nobody dequeues, lays out what is next of ordering keys. Call it now and then, in a transaction of its own: every few seconds or minutes; the client and mqctl maintain --loop do. Never waits for long; what is busy is left for the next call, and all of it in a transaction that wrote before.
queue: its name; default all queues.
Returns: queue, action, detail: what was done; queue is null where it is for all queues.
Raises: MQ001 no such queue; 0A000 not in READ COMMITTED.
Role: mq_consumer.';
