-- The life of a segment: open, closed (a newer one is open), sealed (insert fence on), exhausted (nothing left to
-- claim), drained (nothing left to settle), gone (its slot truncated and free). All under the queue's upkeep lock, in
-- small steps with a short lock_timeout; a step that finds a lock taken is tried again next time.

-- A slot that the next segment can use: free, and made, or emptied, by a transaction that is over; null: none.
create or replace function mq._free_slot(queue_id int) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_slot int;
begin
    select s.slot into v_slot from mq.slot as s
    where s.queue_id = _free_slot.queue_id and s.made_by <> pg_current_xact_id()
      and s.slot <> (select pg_sequence_last_value(q.register) & 65535 from mq.queue as q where q.queue_id = _free_slot.queue_id)
      and not exists (select from mq.segment as g where g.queue_id = s.queue_id and g.slot = s.slot)
    order by s.slot limit 1;
    return v_slot;
end $$;

-- Makes a slot ahead, where none is free, and returns it.
create or replace function mq._make_spare_slot(queue_id int) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if exists (select from mq.slot as s where s.queue_id = _make_spare_slot.queue_id
               and not exists (select from mq.segment as g where g.queue_id = s.queue_id and g.slot = s.slot)) then
        return null;
    end if;
    return mq._make_slot(_make_spare_slot.queue_id);
end $$;

-- Makes another slot; null if another transaction makes queues, or is an upgrade: then later.
create or replace function mq._make_slot(queue_id int) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_slot int;
begin
    if not pg_try_advisory_xact_lock(mq._lock_class(), mq._lock_key(0, -7)) then
        return null;
    end if;
    select min(x) into v_slot from generate_series(1, 32767) as x
    where not exists (select from mq.slot as s where s.queue_id = _make_slot.queue_id and s.slot = x);
    perform mq._create_slot(_make_slot.queue_id, v_slot);
    if not mq._is_stale_snapshot() then
        perform mq._create_dispatchers();       -- else upkeep will: what has no statement there goes the long way
    end if;
    return v_slot;
end $$;

-- Opens the next segment. The register is not transactional: from here on producers write to the new slot, whether or
-- not this transaction commits; _mend_segments makes the catalogue say so if it does not.
create or replace function mq._rotate(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    q        mq.queue;
    v_slot   int := mq._free_slot(_rotate.queue_id);
    v_value  bigint;
begin
    if v_slot is null then
        return false;
    end if;
    select * into q from mq.queue as x where x.queue_id = _rotate.queue_id;
    v_value := pg_sequence_last_value(q.register);
    -- Once a transaction: were it rolled back, nobody would know that producers wrote to the slot in between.
    if (select s.made_by from mq.slot as s where s.queue_id = q.queue_id and s.slot = v_value & 65535) = pg_current_xact_id() then
        return false;
    end if;
    insert into mq.segment (queue_id, segment, slot)
    select _rotate.queue_id, coalesce(max(s.segment), 0) + 1, v_slot from mq.segment as s where s.queue_id = _rotate.queue_id;
    update mq.segment as s set closed_at = clock_timestamp()
    where s.queue_id = _rotate.queue_id and s.slot <> v_slot and s.closed_at is null;
    update mq.slot as s set freed_at = null, made_by = pg_current_xact_id() where s.queue_id = _rotate.queue_id and s.slot = v_slot;
    perform mq._write_register(q.queue_id, q.register, 2147483647, (mq._head_besides(v_value, v_slot)::bigint << 16) | v_slot);
    return true;
end $$;

-- After a rotation that was rolled back, the register is ahead of the catalogue.
create or replace function mq._mend_segments(queue_id int, register regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_open int := (pg_sequence_last_value(_mend_segments.register) & 65535)::int;
begin
    if exists (select from mq.segment as s where s.queue_id = _mend_segments.queue_id and s.slot = v_open) then
        return;
    end if;
    insert into mq.segment (queue_id, segment, slot)
    select _mend_segments.queue_id, coalesce(max(s.segment), 0) + 1, v_open from mq.segment as s where s.queue_id = _mend_segments.queue_id;
    update mq.segment as s set closed_at = clock_timestamp()
    where s.queue_id = _mend_segments.queue_id and s.slot <> v_open and s.closed_at is null;
    update mq.slot as s set freed_at = null, made_by = pg_current_xact_id() where s.queue_id = _mend_segments.queue_id and s.slot = v_open;
end $$;

-- The lock waits for writers that are still in flight. After it, no transaction can add a row to this segment.
create or replace function mq._seal(queue_id int, slot int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform mq._fence(format('log_%s_%s', _seal.queue_id, _seal.slot));
    update mq.segment as s set sealed_at = clock_timestamp() where s.queue_id = _seal.queue_id and s.slot = _seal.slot;
end $$;

-- Nothing left to claim in any lane: sealed, so that the window cannot grow; the cursor at its end; every slice of the current
-- block, and of one that was opened ahead, leased. It stays so once this transaction has committed; were it rolled back, the fence would be gone, too.
create or replace function mq._is_exhausted(queue_id int, slot int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_done boolean;
begin
    if mq._is_transactional(_is_exhausted.queue_id) then
        return mq._is_consumed(_is_exhausted.queue_id, _is_exhausted.slot);
    end if;
    execute replace($x$
        select bool_and(not coalesce(mq._look_{t}(u.lane, b.prev, b.cur), true)
           and not exists (
                select from mq.block_{t} as x
                where x.subscription = 1 and x.lane = u.lane and x.block_no >= mq._current_{t}(1::smallint, u.lane)
                  and cardinality(x.counts) > (select count(*) from mq.lease_{t} as l
                        where l.subscription = 1 and l.lane = u.lane and l.block_no = x.block_no and l.rest = 0)))
        from unnest($1) as u (lane)
        left join lateral (select * from mq.block_{t} as x where x.subscription = 1 and x.lane = u.lane
                           order by x.subscription desc, x.lane desc, x.block_no desc limit 1) as b on true
        $x$, '{t}', _is_exhausted.queue_id || '_' || _is_exhausted.slot) into v_done using mq._lanes(_is_exhausted.queue_id);
    return v_done;
end $$;

-- Nothing left to settle. Asked only when exhausted: then no new block and no new lease can appear.
create or replace function mq._is_drained(queue_id int, slot int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_done boolean;
begin
    if mq._is_transactional(_is_drained.queue_id) then
        return mq._is_consumed(_is_drained.queue_id, _is_drained.slot);
    end if;
    execute replace($x$
        select not exists (
            select from unnest($1) as u (lane)
            cross join lateral (select x.block_no, x.low_block, x.laggards from mq.block_{t} as x where x.subscription = 1 and x.lane = u.lane
                                order by x.subscription desc, x.lane desc, x.block_no desc limit 1) as b
            cross join lateral (select unnest(b.laggards) as no union all select generate_series(b.low_block, b.block_no)) as y
            where not mq._is_settled_{t}(1::smallint, u.lane, y.no))
        $x$, '{t}', _is_drained.queue_id || '_' || _is_drained.slot) into v_done using mq._lanes(_is_drained.queue_id);
    return v_done;
end $$;

-- What is still leased, long after all else is done, moves out of the segment with its receipts.
create or replace function mq._move_survivors(queue_id int, slot int) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_count int;
begin
    if mq._is_transactional(_move_survivors.queue_id) then
        return 0;       -- no transaction can be moved
    end if;
    execute replace($x$
        insert into mq.survivor (queue_id, token, msg_id, leased_until, enqueued_at, attempt, payload, headers, extra, lane)
        select $1, l.token, m.msg_id, m.due_at, m.enqueued_at, m.attempt, m.payload, m.headers, m.extra, m.lane
        from (
            select x.lane, x.block_no, x.slice, x.part, x.token
            from unnest($2) as u (lane)
            cross join lateral (select x.block_no, x.low_block, x.laggards from mq.block_{t} as x where x.subscription = 1 and x.lane = u.lane
                                order by x.subscription desc, x.lane desc, x.block_no desc limit 1) as b
            cross join lateral (select unnest(b.laggards) as no union all select generate_series(b.low_block, b.block_no)) as y
            cross join lateral (select * from mq.lease_{t} as e where e.subscription = 1 and e.lane = u.lane and e.block_no = y.no) as x
            where x.slice = x.head_slice and x.part = x.head_part
              and not exists (select from mq.settlement_{t} as s where s.subscription = 1 and s.lane = x.lane and s.block_no = x.block_no
                                and s.slice = x.slice and s.part = x.part and s.final)
            limit 1000) as l
        -- The deadline that holds when it is settled: an extend may be granted until then.
        cross join lateral mq._settle_{t}(1::smallint, l.lane, l.block_no, l.slice, l.part, l.token, 'moved', null) as m
        $x$, '{t}', _move_survivors.queue_id || '_' || _move_survivors.slot) using _move_survivors.queue_id, mq._lanes(_move_survivors.queue_id);
    get diagnostics v_count = row_count;
    return v_count;
end $$;

-- The totals of a slot to which nothing is added any more, and of what was settled outside of segments.
create or replace function mq._add_to_tally(queue_id int, slot int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_delivered bigint;
    v_settled   bigint;
    v_undelivered bigint;
begin
    if mq._is_transactional(_add_to_tally.queue_id) then
        execute format('select count(*) filter (where t.no = 0 and t.outcome is null), count(*) filter (where t.no = 0 and t.outcome is null) - count(*) filter (where t.no = 1)'
                       ' from mq.taken_%1$s_%2$s as t', _add_to_tally.queue_id, _add_to_tally.slot) into v_delivered, v_settled;
    else
        execute format('select sum(l.n) filter (where l.leased_until > ''-infinity'') from mq.lease_%1$s_%2$s as l', _add_to_tally.queue_id, _add_to_tally.slot)
            into v_delivered;
        execute format('select sum(s.n) filter (where s.outcome = ''acked''), sum(s.n) filter (where s.outcome = ''undelivered'' and s.msg_ids is not null)'
                       ' from mq.settlement_%1$s_%2$s as s', _add_to_tally.queue_id, _add_to_tally.slot) into v_settled, v_undelivered;
    end if;
    with old as (delete from mq.tally as y where y.queue_id = _add_to_tally.queue_id returning y.*)
    insert into mq.tally (queue_id, delivered, settled, forgotten_until, forgotten_id)
    select _add_to_tally.queue_id, coalesce(sum(o.delivered), 0) + coalesce(v_delivered, 0) - coalesce(v_undelivered, 0), coalesce(sum(o.settled), 0) + coalesce(v_settled, 0),
           max(o.forgotten_until), max(o.forgotten_id)
    from old as o;
end $$;

-- Remembers that messages up to these are being dropped, for rewind: in the transaction that drops them, so that neither is
-- there without the other. Without arguments, all that there were until now.
create or replace function mq._forget(queue_id int, forgotten_until timestamptz default clock_timestamp(), forgotten_id bigint default null) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    insert into mq.tally (queue_id, delivered, settled, forgotten_until, forgotten_id)
    select q.queue_id, 0, 0, _forget.forgotten_until, coalesce(_forget.forgotten_id, pg_sequence_last_value(q.msg_ids), 0)
    from mq.queue as q where q.queue_id = _forget.queue_id;
end $$;

-- What a slot holds is about to be dropped. Only where something is kept it is worth a look at each message: without retention
-- all that came until now counts as forgotten, in case that somebody sets it later.
create or replace function mq._forget_slot(queue_id int, slot int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_until timestamptz;
    v_id    bigint;
begin
    if exists (select from mq.queue as q where q.queue_id = _forget_slot.queue_id and q.retention = '0') then
        perform mq._forget(_forget_slot.queue_id);
        return;
    end if;
    execute format('select max(l.enqueued_at), max(l.msg_id) from mq.log_%s_%s as l', _forget_slot.queue_id, _forget_slot.slot) into v_until, v_id;
    if v_id is not null then
        perform mq._forget(_forget_slot.queue_id, v_until, v_id);
    end if;
end $$;

-- Drops what was kept outside of segments for longer than the retention.
create or replace function mq._forget_kept(queue_id int, retention interval) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    m record;
begin
    with gone as (
        delete from mq.kept as k where k.queue_id = _forget_kept.queue_id and k.settled_at < now() - _forget_kept.retention
        returning k.enqueued_at, k.msg_id)
    select max(g.enqueued_at) as enqueued_at, max(g.msg_id) as msg_id into m from gone as g;
    if m.msg_id is not null then
        perform mq._forget(_forget_kept.queue_id, m.enqueued_at, m.msg_id);
    end if;
end $$;

-- Gives the slot back, never that of the open segment, unless somebody (a dump, a report) still reads it.
create or replace function mq._free(queue_id int, slot int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if _free.slot = (select pg_sequence_last_value(q.register) & 65535 from mq.queue as q where q.queue_id = _free.queue_id) then
        return;
    end if;
    perform mq._take_slot(_free.queue_id, _free.slot);
    perform mq._forget_slot(_free.queue_id, _free.slot);
    execute 'truncate ' || mq._slot_tables(_free.queue_id, _free.slot);
    delete from mq.segment as s where s.queue_id = _free.queue_id and s.slot = _free.slot;
    update mq.slot as s set freed_at = clock_timestamp(), made_by = pg_current_xact_id() where s.queue_id = _free.queue_id and s.slot = _free.slot;
end $$;

-- A slot that was free for long, where another is free besides.
create or replace function mq._idle_slot(queue_id int) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return (
        select max(s.slot) filter (where s.freed_at < clock_timestamp() - interval '1 hour' - q.segment_age)
        from mq.queue as q join mq.slot as s on s.queue_id = q.queue_id
        where q.queue_id = _idle_slot.queue_id and s.slot <> pg_sequence_last_value(q.register) & 65535
          and not exists (select from mq.segment as g where g.queue_id = s.queue_id and g.slot = s.slot)
          and pg_relation_size(to_regclass(format('mq.log_%s_%s', s.queue_id, s.slot))) = 0   -- never hidden messages
        having count(*) > 1);
end $$;

-- Locks the tables of a slot. Their readers are few, and go: none is waited for.
create or replace function mq._take_slot(queue_id int, slot int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    execute format('lock table %s in access exclusive mode nowait', mq._slot_tables(_take_slot.queue_id, _take_slot.slot));
end $$;

-- LOCK takes no sequences, so the drop waits for who drew a ticket there, but for an instant only.
create or replace function mq._drop_slot(queue_id int, slot int) returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '1ms' as $$
declare
    v_routine regprocedure;
begin
    perform mq._take_slot(_drop_slot.queue_id, _drop_slot.slot);
    execute format('drop table %s cascade', mq._slot_tables(_drop_slot.queue_id, _drop_slot.slot));
    execute format(case when mq._is_transactional(_drop_slot.queue_id) then 'drop sequence mq.mark_no_%1$s_%2$s cascade'
                        else 'drop sequence mq.ticket_%1$s_%2$s, mq.last_ticket_%1$s_%2$s cascade' end, _drop_slot.queue_id, _drop_slot.slot);
    for v_routine in select x from mq._generated(_drop_slot.queue_id, _drop_slot.slot) as x loop
        execute format('drop function %s cascade', v_routine);
    end loop;
    delete from mq.slot as s where s.queue_id = _drop_slot.queue_id and s.slot = _drop_slot.slot;
end $$;

create or replace function mq._wants_rotation(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    q       mq.queue;
    v_slot  int;
    v_since timestamptz;
    v_rows  boolean;
begin
    select * into q from mq.queue as x where x.queue_id = _wants_rotation.queue_id;
    select s.slot, s.opened_at into v_slot, v_since from mq.segment as s
    where s.queue_id = q.queue_id and s.closed_at is null order by s.segment desc limit 1;
    execute format('select exists (select from mq.log_%s_%s)', q.queue_id, v_slot) into v_rows;
    return v_rows and (v_since < clock_timestamp() - q.segment_age
        or (select sum(pg_total_relation_size(to_regclass(format('mq.%s_%s_%s', t, q.queue_id, v_slot))))
            from unnest(array['log', 'block', 'lease', 'settlement', 'taken', 'mark']) as t) > q.segment_bytes);
end $$;

-- Lets consumers skip segments that have nothing left to claim, as far as an earlier transaction found: the register is not
-- undone by a rollback, but the fence that keeps late producers out is.
create or replace function mq._advance_head(queue_id int, register regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_value bigint := pg_sequence_last_value(_advance_head.register);
    v_head  int;
begin
    select s.slot into v_head from mq.segment as s
    where s.queue_id = _advance_head.queue_id and (s.exhausted_at is null or s.exhausted_at >= now()) and s.slot <> v_value & 65535
    order by s.segment limit 1;
    v_head := coalesce(v_head, (v_value & 65535)::int);
    if v_head <> (v_value >> 16) & 32767 then
        perform mq._write_register(_advance_head.queue_id, _advance_head.register, 32767::bigint << 16, v_head::bigint << 16);
    end if;
end $$;
