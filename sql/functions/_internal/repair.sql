-- After a restore, or a copy into another database or cluster, the stored transaction ids mean nothing: everything
-- that was not settled is appended anew, in order, with the receipts void; the registers are set again. Drained segments stay as
-- they are, if the queue keeps them: they gain no row, so their ids go on naming what they named; what was acknowledged in
-- the others is kept apart (mq.kept), for their tables are emptied.
--
-- The register is not undone by a rollback, so it is set last, and to a slot that is there already, if possible: until
-- then all goes on as before. Where none is there, one is made; only of a queue of which everybody sees that it is a copy
-- does the same call go on: others repair it before they read the register. False: it did not. Locks are taken in the
-- order of drop_queue; that of the generated functions comes before them there, so it is only tried.
create or replace function mq._repair(queue_id int, patience interval default '10 seconds') returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $f$
declare
    q      mq.queue;
    v_slot int;
    v_new  int;
    a_old  int[];
    v_last bigint;
    v_register bigint;
    v_give_up timestamptz := clock_timestamp() + _repair.patience;
begin
    perform set_config('lock_timeout', (extract(epoch from _repair.patience) * 1000)::int::text, true);       -- of this function
    begin
        perform pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(_repair.queue_id, -3));
        select * into q from mq.queue as x where x.queue_id = _repair.queue_id for no key update;
        if q.queue_id is null or not mq._is_copy(q.queue_id, q.home) then
            raise exception using errcode = 'MQ0ZZ';        -- somebody else was faster: gives the locks back
        end if;
    exception
        when sqlstate 'MQ0ZZ' then
            return true;
    end;
    v_new := mq._empty_slot(q.queue_id);
    while v_new is null loop
        if mq._is_at_home(q.home)
            and exists (select from mq.slot as s where s.queue_id = q.queue_id and s.made_by = pg_current_xact_id())
        then
            return false;       -- this transaction made one
        end if;
        v_new := mq._make_slot(q.queue_id);
        if v_new is not null and mq._is_at_home(q.home) then
            return false;
        elsif v_new is null and clock_timestamp() > v_give_up then
            perform mq._in_use();
        elsif v_new is null then
            perform pg_sleep(0.01);
        end if;
    end loop;
    perform mq._lock_tables(q.queue_id, false, _repair.patience);
    -- Every slot: after a rotation that was rolled back one may hold messages without a segment.
    select array_agg(x.slot order by coalesce(g.segment, 9223372036854775807), x.slot) into a_old
    from mq.slot as x left join mq.segment as g on g.queue_id = x.queue_id and g.slot = x.slot
    where x.queue_id = q.queue_id and x.slot <> v_new and g.drained_at is null;
    execute format('truncate %s; alter table mq.log_%s_%s disable trigger sealed', mq._slot_tables(q.queue_id, v_new), q.queue_id, v_new);
    foreach v_slot in array a_old loop
        perform mq._fence(format('log_%s_%s', q.queue_id, v_slot));
        execute format('insert into mq.log_%1$s_%2$s (msg_id, enqueued_at, attempt, payload, headers, extra, lane)'
                       ' select f.msg_id, f.enqueued_at, f.attempt, f.payload, f.headers, f.extra, f.lane from mq._fates(%1$s, %3$s) as f'
                       ' where f.state in (''ready'', ''leased'') order by f.msg_id', q.queue_id, v_new, v_slot);
        insert into mq.kept (queue_id, msg_id, settled_at, enqueued_at, attempt, payload, headers, extra, lane)
        select q.queue_id, f.msg_id, f.settled_at, f.enqueued_at, f.attempt, f.payload, f.headers, f.extra, f.lane
        from mq._fates(q.queue_id, v_slot) as f where f.state = 'completed' and q.retention > '0';
        perform mq._add_to_tally(q.queue_id, v_slot);
        execute 'truncate ' || mq._slot_tables(q.queue_id, v_slot);
    end loop;
    execute format('with gone as (delete from mq.survivor as x where x.queue_id = %1$s returning x.*)'
                   ' insert into mq.log_%1$s_%2$s (msg_id, enqueued_at, attempt, payload, headers, extra, lane)'
                   ' select g.msg_id, g.enqueued_at, g.attempt, g.payload, g.headers, g.extra, g.lane from gone as g order by g.msg_id', q.queue_id, v_new);
    execute format('insert into mq.log_%1$s_%2$s (msg_id, enqueued_at, attempt, payload, headers, extra, lane)'
                   ' select p.event, p.enqueued_at, p.attempt, p.payload, p.headers,'
                   ' case when p.place is null then p.extra else coalesce(p.extra, ''{}'') || jsonb_build_object(''o'', p.place) end, p.lane'
                   ' from mq.parked_%1$s as p where p.lane is not null', q.queue_id, v_new);
    execute replace('truncate mq.parked_{q}, mq.line_{q}, mq.key_{q}, mq.turn_{q}', '{q}', q.queue_id::text);
    execute format('alter table mq.log_%s_%s enable always trigger sealed', q.queue_id, v_new);
    delete from mq.segment as x where x.queue_id = q.queue_id and x.drained_at is null;
    insert into mq.segment (queue_id, segment, slot)
    select q.queue_id, coalesce(max(x.segment), 0) + 1, v_new from mq.segment as x where x.queue_id = q.queue_id;
    update mq.slot as x set made_by = pg_current_xact_id(),
        freed_at = case when not exists (select from mq.segment as g where g.queue_id = x.queue_id and g.slot = x.slot) then clock_timestamp() end
    where x.queue_id = q.queue_id;

    -- What is deferred, from set 0 to set 1 and all of it back, with transaction ids of today.
    perform mq._copy_deferred(q.queue_id, 0, 1);
    perform mq._copy_deferred(q.queue_id, 1, 0);

    -- Results stay. What else was noted is of leases that are void, and of numbers (note.no) that may be given out again.
    delete from mq.note as x where x.queue_id = q.queue_id and x.kind <> 'result';

    -- Sequences are not copied by logical replication: neither which lanes there are, and what is in them, nor which numbers were
    -- given. A new message must not have the number, and so the result, of an old one.
    execute format('select mq._use_lane($1, $2, $3, x.lane, bool_or(x.has_ttl), bool_or(x.has_key), bool_or(x.has_order))'
                   ' from (select l.lane, l.extra ? ''e'' as has_ttl, l.extra ? ''d'' as has_key, l.extra ? ''k'' as has_order from mq.log_%1$s_%2$s as l'
                   ' union all select d.lane, d.extra ? ''e'', d.extra ? ''d'', d.extra ? ''k'' from mq.deferred_%1$s_0 as d) as x where x.lane <> 0 group by x.lane', q.queue_id, v_new)
        using q.queue_id, q.register, q.lanes;
    perform mq._mind_limits(q) where num_nonnulls(q.max_in_flight, q.rate_limit) > 0;
    perform mq._use(q.queue_id, q.lanes, 2048) where exists (select from mq.cancelled as c where c.queue_id = q.queue_id);
    execute format('select greatest((select max(l.msg_id) from mq.log_%1$s_%2$s as l), (select max(l.msg_id) from mq.deferred_%1$s_0 as l),'
                   ' (select max(d.msg_id) from mq.dead_letter as d where d.queue_id = %1$s),'
                   ' (select max(n.msg_id) from mq.note as n where n.queue_id = %1$s),'
                   ' (select max(k.msg_id) from mq.kept as k where k.queue_id = %1$s))', q.queue_id, v_new) into v_last;
    for v_slot in select x.slot from mq.segment as x where x.queue_id = q.queue_id and x.slot <> v_new loop
        execute format('select greatest($1, max(l.msg_id)) from mq.log_%s_%s as l', q.queue_id, v_slot) into v_last using v_last;
    end loop;
    if v_last > coalesce(pg_sequence_last_value(q.msg_ids), 0) then
        perform setval(q.msg_ids, v_last);
    end if;
    -- Those with an ordering key line up anew: first those that had a place, in that order, then the others in order of msg_id. Nothing
    -- is under lease; what is to be tried again holds them up.
    execute format('with keyed as (delete from mq.log_%1$s_%2$s as l where l.extra ? ''k'' returning l.*)'
                   ' insert into mq.parked_%1$s (event, ordering_key, place, enqueued_at, lane, attempt, payload, headers, extra)'
                   ' select k.msg_id, k.extra ->> ''k'', (k.extra ->> ''o'')::bigint, k.enqueued_at, k.lane, k.attempt, k.payload, k.headers, k.extra - ''o'' from keyed as k', q.queue_id, v_new);
    perform mq._hold_up(q.queue_id);
    perform mq._forget(q.queue_id) where q.retention = '0';
    perform setval(q.notified, 1), setval(format('mq.room_%s', q.queue_id)::regclass, 1);
    delete from mq.depth_mark as x where x.queue_id = q.queue_id;
    update mq.queue as x set home = mq._home() where x.queue_id = q.queue_id;
    -- If this is rolled back, that stays: so the head is still the old one, both sets of what is deferred are read, and
    -- the home is none (_distrust_row): not the one that it was, either, for the data may go back there. Upkeep puts that right.
    v_register := coalesce(pg_sequence_last_value(q.register), 0);
    perform mq._set_register(q.queue_id, q.register, v_new, mq._head_besides(v_register, v_new), 0, true, null);
    perform mq._write_register(q.queue_id, q.register, 0, 1::bigint << 31) where q.mode = 'transaction';
    perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    return true;
end $f$;

-- A slot without a message, of no segment, and not made by this transaction. Not what _free_slot finds: a copy may have
-- messages where its segments do not say so. By its size, for which no lock is kept.
create or replace function mq._empty_slot(queue_id int) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return (
        select min(s.slot) from mq.slot as s
        where s.queue_id = _empty_slot.queue_id and s.made_by is distinct from pg_current_xact_id_if_assigned()
          and s.slot is distinct from (select pg_sequence_last_value(q.register) & 65535 from mq.queue as q where q.queue_id = s.queue_id)
          and not exists (select from mq.segment as g where g.queue_id = s.queue_id and g.slot = s.slot)
          and pg_relation_size(to_regclass(format('mq.log_%s_%s', s.queue_id, s.slot))) = 0);
end $$;

-- Moves what waits in one deferral set to the other, the first time with no transaction id, by which the second time knows
-- it: that is new already. Timers, not windows, tell what was taken.
create or replace function mq._copy_deferred(queue_id int, from_set int, to_set int) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_nestloop = off as $f$
begin
    execute replace(replace(replace($x$
        alter table mq.deferred_{b} disable trigger sealed;
        insert into mq.deferred_{b} (xid, msg_id, due_at, enqueued_at, attempt, payload, headers, extra, lane)
        select {xid}, x.msg_id, x.due_at, x.enqueued_at, x.attempt, x.payload, x.headers, x.extra, x.lane
        from mq.deferred_{a} as x
        left join mq.timer_{a} as t on t.xid = x.xid and t.msg_id = x.msg_id
        left join (select distinct on (y.lane) y.* from mq.promotion_{a} as y order by y.lane, y.no desc) as p on p.lane = x.lane
        where t.msg_id is null or p.no is null or (t.due_at, t.xid, t.msg_id) > (p.due_at, p.due_xid, p.due_id)
           or x.xid = '0';
        truncate mq.deferred_{a}, mq.timer_{a}, mq.promotion_{a};
        alter table mq.deferred_{b} enable always trigger sealed;
        $x$, '{xid}', case when to_set = 1 then '''0''' else 'pg_current_xact_id()' end), '{a}', _copy_deferred.queue_id || '_' || from_set), '{b}', _copy_deferred.queue_id || '_' || to_set);
end $f$;

-- Whether the newest block (or mark) of a live slot was made, or something was promoted, with a transaction id that this cluster has
-- not reached.
create or replace function mq._ran_backwards(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_slot int;
    v_lane smallint;
    v_prev pg_snapshot;
begin
    for v_slot, v_lane in
        select x, u.lane from mq._live_slots(_ran_backwards.queue_id) as x cross join unnest(mq._lanes(_ran_backwards.queue_id)) as u (lane)
    loop
        execute replace(case when mq._is_transactional(_ran_backwards.queue_id)
                             then 'select b.prev from mq.mark_{t} as b where b.lane = $1 order by b.lane desc, b.no desc limit 1'
                             else 'select b.prev from mq.block_{t} as b where b.subscription = 1 and b.lane = $1'
                                  ' order by b.subscription desc, b.lane desc, b.block_no desc limit 1' end, '{t}', _ran_backwards.queue_id || '_' || v_slot)
            into v_prev using v_lane;
        if pg_snapshot_xmax(v_prev) > pg_snapshot_xmax(pg_current_snapshot()) then
            return true;
        end if;
    end loop;
    for v_slot in 0 .. 1 loop
        execute format('select p.prev from mq.promotion_%s_%s as p where p.lane = 0 order by p.lane desc, p.no desc limit 1', _ran_backwards.queue_id, v_slot) into v_prev;
        if pg_snapshot_xmax(v_prev) > pg_snapshot_xmax(pg_current_snapshot()) then
            return true;
        end if;
    end loop;
    execute format('select t.prev from mq.turn_%s as t where t.lane = 0 order by t.lane desc, t.no desc limit 1', _ran_backwards.queue_id) into v_prev;
    if pg_snapshot_xmax(v_prev) > pg_snapshot_xmax(pg_current_snapshot()) then
        return true;
    end if;
    return false;
exception
    when lock_not_available or undefined_table then
        return false;       -- being emptied, or dropped: another time
end $$;
