-- Where a message waits, expired ones aside: in a free slice of a block; behind a lane's cursor (no block); or deferred
-- (no slot). None: it does not wait, or is cancelled; or it is in a log of mode transaction. One statement a slot, each of which reads the whole log.
create or replace function mq._locate(queue_id int, msg_id bigint)
returns table (slot int, lane smallint, block_no bigint, slice int, due_at timestamptz, extra jsonb)
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = on set enable_sort = on as $f$
declare
    v_slot int;
begin
    if exists (select from mq.cancelled as c where c.queue_id = _locate.queue_id and c.msg_id = _locate.msg_id) then
        return;
    end if;
    -- What is deferred first: a message that goes from there to the log meanwhile is found there, and one that comes from the
    -- log was leased in between.
    for v_generation in 0 .. 1 loop
        -- What this transaction deferred itself is in no window yet.
        return query execute replace($x$
            select null::int, w.lane, null::bigint, null::int, w.due_at, w.extra
            from (select y.lane, y.due_at, y.extra from mq._waiting_{d}() as y where y.msg_id = $1
                  union
                  select y.lane, y.due_at, y.extra from mq.deferred_{d} as y where y.xid = pg_current_xact_id_if_assigned() and y.msg_id = $1) as w
            where mq._expired_at(w.extra) is null
            $x$, '{d}', _locate.queue_id || '_' || v_generation) using _locate.msg_id;
        if found then
            return;
        end if;
    end loop;
    return query execute format('select null::int, p.lane, null::bigint, null::int, null::timestamptz, p.extra from mq.parked_%s as p'
                                ' where p.event = $1 and mq._expired_at(p.extra) is null', _locate.queue_id) using _locate.msg_id;
    if found then
        return;
    end if;
    for v_slot in select x from mq._live_slots(_locate.queue_id) as x where not mq._is_transactional(_locate.queue_id) loop
        -- Slices are runs of the log that do not overlap: it can only be in that which begins last before it, or at it.
        return query execute replace($x$
            select $2, m.lane, case when s.is_in then s.block_no end, case when s.is_in then s.slice end, null::timestamptz, m.extra
            from (select x.lane as strand, case when x.lane < 0 then -1 - x.lane else x.lane end::smallint as lane, x.xid, x.msg_id, x.extra
                  from mq.log_{t} as x where x.msg_id = $1) as m
            left join lateral (
                select r.block_no, r.slice, r.n >= (
                    select count(*) from mq.log_{t} as x
                    where x.lane = m.strand and (x.xid, x.msg_id) >= (r.xid, r.id) and (x.xid, x.msg_id) <= (m.xid, m.msg_id)) as is_in
                from (select b.block_no, (u.no - 1)::int as slice, u.xid, u.id, b.counts[u.no] as n
                      from mq.block_{t} as b cross join lateral unnest(b.first_xids, b.first_ids) with ordinality as u (xid, id, no)
                      where b.subscription = 1 and b.lane = m.lane and (u.no <= b.born) = (m.strand < 0) and (u.xid, u.id) <= (m.xid, m.msg_id)
                      order by u.xid desc, u.id desc limit 1) as r) as s on true
            left join lateral (
                select e.rest, e.rest_xid, e.rest_id from mq.lease_{t} as e
                where e.subscription = 1 and e.lane = m.lane and e.block_no = s.block_no and e.slice = s.slice
                order by e.part desc limit 1) as e on true
            where (s.is_in is not true or e.rest is null or e.rest > 0 and (m.xid, m.msg_id) >= (e.rest_xid, e.rest_id)) and mq._expired_at(m.extra) is null
            $x$, '{t}', _locate.queue_id || '_' || v_slot) using _locate.msg_id, v_slot;
        exit when found;
    end loop;
end $f$;

-- Takes messages out of a slice that nobody has: what is free of it (or only so many of the first) is leased to nobody, they are
-- settled, and the others are deferred, due at once. False: somebody was faster.
create or replace function mq._cancel_slice(q mq.queue, slot int, lane smallint, block_no bigint, slice int, msg_ids bigint[], most int default null) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $f$
declare
    v_part  int;
    v_token bigint;
    v_taken mq._taken[];
    v_again mq._taken[];
begin
    -- Waited for, while somebody claims it; then a new statement looks. He who opens a block has it to himself.
    perform pg_advisory_xact_lock(mq._lock_class(), mq._slot_key(q.queue_id, _cancel_slice.slot, _cancel_slice.lane, _cancel_slice.block_no * 65536 + _cancel_slice.slice));
    execute replace($x$
        insert into mq.lease_{t} (subscription, lane, block_no, slice, part, head_slice, head_part, n, total, rest, first_id, rest_id, first_xid, rest_xid, leased_until)
        select 1, $1, $2, $3, f.part, $3, f.part, f.n, f.n, f.free - f.n, f.id, r.msg_id, f.xid, r.xid, '-infinity'
        from (select coalesce(e.part + 1, 0) as part, coalesce(e.rest, b.counts[$3 + 1]) as free, least(coalesce(e.rest, b.counts[$3 + 1]), $4) as n,
                     coalesce(e.rest_id, b.first_ids[$3 + 1]) as id, coalesce(e.rest_xid, b.first_xids[$3 + 1]) as xid,
                     case when $3 < b.born then -1 - $1 else $1 end as strand
              from mq.block_{t} as b
              left join lateral (
                select x.part, x.rest, x.rest_id, x.rest_xid from mq.lease_{t} as x
                where x.subscription = 1 and x.lane = $1 and x.block_no = $2 and x.slice = $3
                order by x.part desc limit 1) as e on true
              where b.subscription = 1 and b.lane = $1 and b.block_no = $2 and coalesce(e.rest, 1) > 0) as f
        left join lateral (
            select x.xid, x.msg_id from mq.log_{t} as x
            where f.n < f.free and x.lane = f.strand and (x.xid, x.msg_id) >= (f.xid, f.id)
            order by x.lane, x.xid, x.msg_id offset f.n limit 1) as r on true
        returning part, token
        $x$, '{t}', q.queue_id || '_' || _cancel_slice.slot)
        into v_part, v_token using _cancel_slice.lane, _cancel_slice.block_no, _cancel_slice.slice, _cancel_slice.most;
    if v_part is null then
        return false;
    end if;
    execute format('select array_agg(x) from mq._settle_%s_%s(1::smallint, $1, $2, $3, $4, $5, ''cancelled'', $6) as x', q.queue_id, _cancel_slice.slot)
        into v_taken using _cancel_slice.lane, _cancel_slice.block_no, _cancel_slice.slice, v_part, v_token, _cancel_slice.msg_ids;
    perform mq._release(q.queue_id, v_taken, false) where v_taken is not null;
    loop        -- big ones come in parts
        execute format('select array_agg(x) from mq._settle_%s_%s(1::smallint, $1, $2, $3, $4, $5, ''hole'', null) as x', q.queue_id, _cancel_slice.slot)
            into v_again using _cancel_slice.lane, _cancel_slice.block_no, _cancel_slice.slice, v_part, v_token;
        exit when v_again is null;
        v_again := mq._take_back(q.queue_id, q.max_attempts, q.max_depth, v_again, null);
        perform mq._defer(q.queue_id, q.register, v_again, array_fill(clock_timestamp(), array[cardinality(v_again)]));
        perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    end loop;
    return v_taken is not null;         -- else a part of it that had it was leased since it was looked for
end $f$;

-- Cancels a message, if it waits.
create or replace function mq._cancel(q mq.queue, msg_id bigint) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set jit = off set lock_timeout = '2s' as $$
declare
    l record;
    m record;
begin
    -- Where it waits is found first, for that may take long, and again behind the lock of whoever could move it from there,
    -- which is kept: a block is opened, and what is deferred is promoted, under those. So an opener either was before us, and
    -- it is found in his block, or he comes after us, and finds that it is cancelled.
    for v_try in 1 .. 5 loop
        select * into l from mq._locate(q.queue_id, _cancel.msg_id) as x;
        if not found then
            -- In transaction mode what waits in the log is looked for now: it comes from where we looked before.
            return q.mode = 'transaction' and mq._cancel_taken(q.queue_id, _cancel.msg_id);
        elsif l.block_no is not null then
            if mq._cancel_slice(q, l.slot, l.lane, l.block_no, l.slice, array[_cancel.msg_id]) then
                return true;
            end if;
        else
            perform pg_advisory_xact_lock(mq._lock_class(), case when l.slot is null and l.due_at is null then mq._lock_key(q.queue_id, -12)
                when l.slot is null then mq._lock_key(q.queue_id, -2) else mq._slot_key(q.queue_id, l.slot, l.lane, -1) end);
            select * into m from mq._locate(q.queue_id, _cancel.msg_id) as x;
            if m = l then
                perform mq._use(q.queue_id, q.lanes, 2048);
                insert into mq.cancelled (queue_id, msg_id, due_at, generation) values (q.queue_id, _cancel.msg_id, l.due_at, (l.extra ->> 's')::bigint) on conflict do nothing;
                if found and l.due_at is not null and l.extra ? 'o' then
                    perform mq._abandon(q, _cancel.msg_id, l.extra ->> 'k');
                    return true;
                end if;
                return found;
            end if;
        end if;
    end loop;
    perform mq._in_use();
    return false;
end $$;

-- For who is about to open a block, from these slices: what was cancelled behind the cursor, or while it was deferred, gets
-- slices of its own, so that the others stay together. Of as many as a block has room for: a row of it has to fit into a page.
create or replace function mq._cut_out_cancelled(queue_id int, slot int, lane smallint, inout born int, inout xids xid8[], inout ids bigint[], inout counts int[])
language plpgsql set search_path = pg_catalog, pg_temp as $f$
begin
    if not exists (select from mq.cancelled as c where c.queue_id = _cut_out_cancelled.queue_id) then
        return;
    end if;
    execute replace($x$
        with m as materialized (
            select g, m.no, m.xid, m.msg_id, c.msg_id is not null as is_cancelled, count(c.msg_id) over (order by g, m.no) as so_far
            from generate_series(1, cardinality($4)) as g
            cross join lateral (
                select x.xid, x.msg_id, row_number() over (order by x.lane, x.xid, x.msg_id) as no
                from (select * from mq.log_{t} as y
                      where y.lane = case when g <= $5 then -1 - $6 else $6 end and (y.xid, y.msg_id) >= (($2)[g], ($3)[g])
                      order by y.lane, y.xid, y.msg_id limit ($4)[g]) as x) as m
            left join mq.cancelled as c on c.queue_id = $1 and c.msg_id = m.msg_id),
        runs as (
            select y.g, min(y.no) as no, (array_agg(y.xid order by y.no))[1] as xid, (array_agg(y.msg_id order by y.no))[1] as msg_id, count(*)::int as n
            from (select x.*, x.no - row_number() over (partition by x.g, x.is_cancelled and x.so_far <= 50 order by x.no) as run from m as x) as y
            group by y.g, y.is_cancelled and y.so_far <= 50, y.run)
        select count(*) filter (where r.g <= $5), array_agg(r.xid order by r.g, r.no), array_agg(r.msg_id order by r.g, r.no), array_agg(r.n order by r.g, r.no)
        from runs as r
        $x$, '{t}', _cut_out_cancelled.queue_id || '_' || _cut_out_cancelled.slot)
        into born, xids, ids, counts using _cut_out_cancelled.queue_id, xids, ids, counts, born, _cut_out_cancelled.lane;
end $f$;

-- For who has opened it: settles them.
create or replace function mq._drop_cancelled(queue_id int, slot int, lane smallint, block_no bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $f$
declare
    q       mq.queue;
    v_slice int;
    a_ids   bigint[];
begin
    if not exists (select from mq.cancelled as c where c.queue_id = _drop_cancelled.queue_id) then
        return;
    end if;
    select * into q from mq.queue as x where x.queue_id = _drop_cancelled.queue_id;
    for v_slice, a_ids in execute replace($x$
        select g, array_agg(m.msg_id)
        from mq.block_{t} as b
        cross join lateral generate_series(0, cardinality(b.counts) - 1) as g
        cross join lateral (
            select x.msg_id from mq.log_{t} as x
            where x.lane = case when g < b.born then -1 - b.lane else b.lane end and (x.xid, x.msg_id) >= (b.first_xids[g + 1], b.first_ids[g + 1])
            order by x.lane, x.xid, x.msg_id limit b.counts[g + 1]) as m
        join mq.cancelled as c on c.queue_id = $1 and c.msg_id = m.msg_id
        where b.subscription = 1 and b.lane = $2 and b.block_no = $3
        group by g
        $x$, '{t}', _drop_cancelled.queue_id || '_' || _drop_cancelled.slot) using _drop_cancelled.queue_id, _drop_cancelled.lane, _drop_cancelled.block_no
    loop
        perform mq._cancel_slice(q, _drop_cancelled.slot, _drop_cancelled.lane, _drop_cancelled.block_no, v_slice, a_ids);
        delete from mq.cancelled as c where c.queue_id = _drop_cancelled.queue_id and c.msg_id = any (a_ids);
    end loop;
end $f$;
