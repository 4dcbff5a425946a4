-- _look_<slot>, _open_<slot>: is there anything behind the cursor, and the block that moves the cursor over it.
create or replace function mq._template_open() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
-- Whether the window holds something. Null: transaction ids ran backwards, so this is a copy of another cluster's data.
create or replace function mq._look_{t}(p_lane smallint, p_prev pg_snapshot, p_cur pg_snapshot) returns boolean
language plpgsql as $$
declare
    v_cur pg_snapshot;
    r     record;
begin
    if p_cur is not null then
        return true;            -- the last block ended inside its window, before a message that is there
    end if;
    v_cur := mq._snapshot();
    if pg_snapshot_xmax(v_cur) < pg_snapshot_xmax(p_prev) then
        return null;
    end if;
    r := mq._ranges(coalesce(p_prev, '1:1:'), v_cur, '0', 0);
    return exists (
            select from unnest(r.lo_xids, r.lo_ids, r.hi_xids) as u (lo_xid, lo_id, hi_xid)
            cross join lateral (
                select from mq.log_{t} as l
                where l.lane = p_lane and (l.xid, l.msg_id) >= (u.lo_xid, u.lo_id) and l.xid <= u.hi_xid
                order by l.lane, l.xid, l.msg_id limit 1) as m);
end $$;

-- Opens the next block: up to 64 slices of p_n (128 small ones, 256 of one), first of what is due again, then of what the window holds. Where so
-- many consumers are at it that half of a block's tickets are drawn before its successor is begun, that gets twice as many slices, up to 256: else all
-- of them would wait for it. Called with the lane locked. p_given are messages to be born in this block besides; p_ahead: the last block still has tickets, and
-- this one's come behind them. False if there was nothing; true without a block if all that was due are ticks to be skipped: undone, they
-- would be in the way of the next call, too, and their schedules would never go on.
--
-- Each slice lies within one range of mq._ranges, so its first message and a count name it for good.
create or replace function mq._open_{t}(p_sub smallint, p_lane smallint, p_n int, p_fresh boolean, p_due boolean, p_given mq._taken[], p_ahead boolean) returns boolean
language plpgsql as $$
declare
    c_least    constant int := case when p_n = 1 then 256 when p_n < 16 then 128 else 64 end;
    c_most     constant int := greatest(c_least, least(256, 32768 / p_n));
    b          record;
    r          record;
    c          record;
    v_no       bigint;
    v_slices   int := c_least;
    v_drawn    bigint;
    v_born     int := 0;
    v_rows     int;
    v_moved    boolean := false;
    v_parked   int := 0;
    v_runs     int;
    v_prev     pg_snapshot;
    v_cur      pg_snapshot;
    v_xid      xid8;
    v_id       bigint;
    a_xids     xid8[];
    a_ids      bigint[];
    a_counts   int[];
    v_want     int;
    v_passes   int;
    v_first    bigint;
    v_low      bigint;
    v_laggards bigint[];
    v_check    bigint;
begin
    select x.* into b from mq.block_{t} as x where x.subscription = p_sub and x.lane = p_lane
    order by x.subscription desc, x.lane desc, x.block_no desc limit 1;
    v_no := coalesce(b.block_no, 0) + 1;

    -- Messages that are due again are appended to the log here, in a lane that windows do not read, under the number
    -- of this block. Only into the open segment: with its log locked against sealing, the register cannot be stale.
    if p_given is not null or p_due then
        lock table mq.log_{t} in row exclusive mode;
        if (pg_sequence_last_value('mq.register_{q}') & 65535) = {k} then
            -- Fresh messages do not wait until many arrivals are sorted.
            v_passes := case when p_given is null and not (p_fresh and coalesce(mq._look_{t}(p_lane, b.prev, b.cur), true)) then 23 else 1 end;        -- at least what _is_due_ looks at
            with due as materialized (
                select * from unnest(p_given) union all
                select * from mq._promote_{q}(p_lane, case when p_given is null then greatest(32 * p_n, 64) else 0 end, v_passes)),
            born as (
                insert into mq.log_{t} (msg_id, xid, enqueued_at, lane, attempt, payload, headers, extra)
                select m.msg_id, (v_no << 12)::text::xid8, m.enqueued_at, -1 - p_lane, m.attempt, m.payload, m.headers, m.extra
                from due as m where m.outcome is null and (m.extra ? 'k') is not true),
            parked as (     -- they have their turn when their key has
                insert into mq.parked_{q} (event, ordering_key, place, enqueued_at, lane, attempt, payload, headers, extra)
                select m.msg_id, m.extra ->> 'k', case when gone.msg_id is null then (m.extra ->> 'o')::bigint end, m.enqueued_at, m.lane, m.attempt, m.payload, m.headers, m.extra - 'o'
                from due as m left join mq.cancelled as gone on gone.queue_id = {q} and gone.msg_id = m.msg_id
                where m.outcome is null and m.extra ? 'k')
            select count(*) filter (where m.outcome is null and (m.extra ? 'k') is not true), count(*) filter (where m.extra ? 'k'), count(*) > 0
              into v_rows, v_parked, v_moved from due as m;
            if v_parked > 0 then
                perform mq._notify(x.queue_id, x.name, x.notify, x.notified) from mq.queue as x where x.queue_id = {q};
            end if;
            if v_rows > 0 then
                select array_agg(x.xid), array_agg(x.msg_id), array_agg(least(p_n, v_rows - x.rn + 1)::int), count(*)
                  into a_xids, a_ids, a_counts, v_born
                from (select l.xid, l.msg_id, row_number() over (order by l.lane, l.xid, l.msg_id) as rn from mq.log_{t} as l
                      where l.lane = -1 - p_lane and l.xid = (v_no << 12)::text::xid8) as x
                where (x.rn - 1) % p_n = 0;
            end if;
            -- Runs of messages with ordering keys. Who opens another lane is waited for, a little. What was read
            -- of events is kept where it was much.
            if p_lane >= 10 and p_given is null and mq._uses_order({q}) and mq._enter_lane({class}, mq._lock_key({q}, -12)) then
                -- Where something may be cancelled, one may become two slices; and a row of the block has to fit into a page.
                v_runs := case when p_n = 1 then 128 else 64 end >> (pg_sequence_last_value('mq.lanes_{q}') & 2048 <> 0)::int;
                v_moved := mq._fold_{q}(p_lane, v_passes) >= 64 or v_moved;
                with admitted as materialized (
                    select * from mq._admit_keys_{q}(p_lane, p_n, v_runs)),
                born as (
                    insert into mq.log_{t} (msg_id, xid, enqueued_at, lane, attempt, payload, headers, extra)
                    select m.msg_id, (v_no << 12 | m.run)::text::xid8, m.enqueued_at, -1 - p_lane, m.attempt, m.payload, m.headers, m.extra from admitted as m)
                select a_xids || array_agg((v_no << 12 | u.run)::text::xid8 order by u.run), a_ids || array_agg(u.first order by u.run),
                       a_counts || array_agg(u.n order by u.run), v_born + count(*)
                  into a_xids, a_ids, a_counts, v_born
                from (select min(m.run) as run, (array_agg(m.msg_id order by m.run, m.msg_id))[1] as first, count(*)::int as n
                      from admitted as m group by m.slice) as u;
            end if;
        elsif p_given is not null then
            return false;
        end if;
    end if;

    -- The window, one snapshot for all reads of it.
    v_prev := coalesce(b.prev, '1:1:');
    v_cur := b.cur;
    v_xid := b.next_xid;
    v_id := b.next_id;
    -- Not where more is due than this block takes: that would wait for longer.
    if p_ahead and b.size = p_n and b.cur is not null and cardinality(b.counts) >= c_least and v_born < 32 then
        v_slices := cardinality(b.counts);
        v_drawn := coalesce(pg_sequence_last_value('mq.ticket_{t}'), 0) - b.first_ticket + 1;
        v_slices := case when 2 * v_drawn >= v_slices then 2 * v_slices when 4 * v_drawn < v_slices then v_slices / 2 else v_slices end;
        v_slices := least(greatest(v_slices, c_least), c_most);
    end if;
    v_want := greatest(v_slices - v_born, 16);
    if p_fresh then
        if v_cur is null then
            v_cur := mq._snapshot();
            v_xid := '0';
            v_id := 0;
        end if;
        r := mq._ranges(v_prev, v_cur, v_xid, v_id);
        r := mq._slices_{t}(p_lane, p_n, v_want, greatest(256 - v_born, 16), r.lo_xids, r.lo_ids, r.hi_xids);
        a_xids := a_xids || r.xids;
        a_ids := a_ids || r.ids;
        a_counts := a_counts || r.counts;
        v_xid := r.next_xid;
        v_id := r.next_id;
        if v_xid is null then
            v_prev := v_cur;    -- used up
            v_cur := null;
        end if;
    end if;
    if a_counts is null then
        if v_moved and v_runs is not null then       -- there may be more in what was read, or behind it
            perform mq._notify(x.queue_id, x.name, x.notify, x.notified) from mq.queue as x where x.queue_id = {q};
        end if;
        return v_moved;
    end if;
    if pg_sequence_last_value('mq.lanes_{q}') & 2048 <> 0 then
        c := mq._cut_out_cancelled({q}, {k}, p_lane, v_born, a_xids, a_ids, a_counts);
        v_born := c.born;
        a_xids := c.xids;
        a_ids := c.ids;
        a_counts := c.counts;
    end if;

    -- Marks for the sweep: it need not look at blocks before low_block, laggards aside. One block behind, most
    -- leases are settled. A few checks a block keep up with the blocks.
    v_low := coalesce(b.low_block, 1);
    v_laggards := coalesce(b.laggards, '{}');
    if cardinality(v_laggards) > 0 then
        v_check := v_laggards[1];
        v_laggards := v_laggards[2:];
        if not mq._is_settled_{t}(p_sub, p_lane, v_check) then
            v_laggards := v_laggards || v_check;
        end if;
    end if;
    for v_round in 1 .. 2 loop
        exit when v_low >= v_no - 1;
        if not mq._is_settled_{t}(p_sub, p_lane, v_low) then
            exit when cardinality(v_laggards) >= 64;
            v_laggards := v_laggards || v_low;
        end if;
        v_low := v_low + 1;
    end loop;

    -- Only lane 0 has tickets. Of the others the newest block is always the current one.
    v_first := case when p_lane = 0 then greatest(coalesce(pg_sequence_last_value('mq.ticket_{t}'), 0) + 1, case when p_ahead then b.first_ticket + cardinality(b.counts) end) else 0 end;
    insert into mq.block_{t} (subscription, lane, block_no, xid, prev, cur, next_xid, next_id, first_ticket, size, born,
                              first_xids, first_ids, counts, low_block, laggards)
    values (p_sub, p_lane, v_no, pg_current_xact_id(), v_prev, v_cur, v_xid, v_id,
            v_first, p_n, v_born,
            a_xids, a_ids, a_counts, v_low, v_laggards);
    -- The hint for _claim_0: not where many slices are short, which are given out together.
    perform setval('mq.last_ticket_{t}', (v_first + cardinality(a_counts) - 1) << 14
                   | case when 4 * (select sum(x) from unnest(a_counts) as x) > 3 * (cardinality(a_counts) - 1) * p_n then p_n else 0 end) where p_lane = 0;
    perform mq._drop_cancelled({q}, {k}, p_lane, v_no) where pg_sequence_last_value('mq.lanes_{q}') & 2048 <> 0;
    perform mq._expire_{t}(p_sub, p_lane, v_no) where p_lane > 0 and mq._uses_ttl({q});
    perform mq._answered('mq.notified_{q}');
    return true;
end $$;

-- Opens the block after the newest while that still has tickets, if there is something to put into it.
create or replace function mq._open_ahead_{t}(p_sub smallint, p_lane smallint, p_n int, p_fresh boolean, p_due boolean) returns void
language plpgsql as $$
declare
    c_class constant int := {class};
    b       record;
    v_due   boolean := p_due and mq._is_due_{q}(p_lane);      -- null: perhaps; then a few arrivals are sorted on the way
begin
    select y.block_no, y.prev, y.cur, y.first_ticket into b from mq.block_{t} as y where y.subscription = p_sub and y.lane = p_lane
    order by y.subscription desc, y.lane desc, y.block_no desc limit 1;
    -- Who comes late finds that the next one is there, opened by who found nothing, and nobody has drawn from it yet.
    if b.first_ticket > coalesce(pg_sequence_last_value('mq.ticket_{t}'), 0) or not coalesce(v_due or p_fresh and mq._look_{t}(p_lane, b.prev, b.cur), false) then
        return;
    end if;
    -- As in _take_: look again behind the lock; where there is nothing it is given back.
    begin
        if pg_try_advisory_xact_lock(c_class, (hashint8extended(-1, {seed} + p_lane) & 2147483647)::int)
            and mq._enter_lane(c_class, (hashint8extended(-2 - b.block_no, {seed} + p_lane) & 2147483647)::int)
        then
            if exists (select from mq.block_{t} as x where x.subscription = p_sub and x.lane = p_lane and x.block_no > b.block_no) then
                raise exception using errcode = 'MQ0ZZ';
            end if;
            v_due := coalesce(v_due, true) and coalesce(mq._is_due_{q}(p_lane), true) and pg_try_advisory_xact_lock(c_class, mq._lock_key({q}, -2));
            if mq._open_{t}(p_sub, p_lane, p_n, p_fresh, v_due, null, true) then
                return;
            end if;
        end if;
        raise exception using errcode = 'MQ0ZZ';
    exception
        when sqlstate 'MQ0ZZ' or lock_not_available then
            null;           -- then it is opened when the tickets are used up
    end;
end $$;

-- Opens a block of a lane from 10 on for others, if in the newest one nothing is free that anybody could have. As in _take_: look again
-- behind the lock; where there is nothing it is given back.
create or replace function mq._lay_out_{t}(p_lane smallint) returns void
language plpgsql as $$
declare
    c_class constant int := {class};
    b       record;
    v_size  int;
begin
    if not mq._is_due_{q}(p_lane) then      -- null: perhaps
        return;
    end if;
    begin
        if pg_try_advisory_xact_lock(c_class, (hashint8extended(-1, {seed} + p_lane) & 2147483647)::int) then
            select y.block_no, y.counts into b from mq.block_{t} as y where y.subscription = 1 and y.lane = p_lane
            order by y.subscription desc, y.lane desc, y.block_no desc limit 1;
            if mq._enter_lane(c_class, (hashint8extended(-2 - coalesce(b.block_no, 0), {seed} + p_lane) & 2147483647)::int)
                and not exists (
                    select from generate_series(0, cardinality(b.counts) - 1) as g
                    where not exists (
                        select from mq.lease_{t} as e where e.subscription = 1 and e.lane = p_lane and e.block_no = b.block_no and e.slice = g and e.rest = 0)
                      and pg_try_advisory_lock(c_class, (hashint8extended(b.block_no * 65536 + g, {seed} + p_lane) & 2147483647)::int)
                      and pg_advisory_unlock(c_class, (hashint8extended(b.block_no * 65536 + g, {seed} + p_lane) & 2147483647)::int))
            then
                -- For consumers as the last one was; a mark has no slices.
                select y.size into v_size from mq.block_{t} as y where y.subscription = 1 and y.lane = p_lane and cardinality(y.counts) > 0
                order by y.subscription desc, y.lane desc, y.block_no desc limit 1;
                if mq._open_{t}(1::smallint, p_lane, least(coalesce(v_size, 10), 100), true, true, null, false) then
                    perform mq._notify(x.queue_id, x.name, x.notify, x.notified) from mq.queue as x where x.queue_id = {q};
                    return;
                end if;
            end if;
        end if;
        raise exception using errcode = 'MQ0ZZ';
    exception
        when sqlstate 'MQ0ZZ' or lock_not_available then
            null;
    end;
end $$;

-- Moves the marks where nobody opens blocks, so that empty polls need not look at what is settled: appends a block
-- without slices. Only where the newest block is fully leased, or its free slices would be holes.
create or replace function mq._mark_{t}(p_sub smallint, p_lane smallint) returns void
language plpgsql as $$
declare
    b          record;
    v_low      bigint;
    v_laggards bigint[] := '{}'::bigint[];
    v_no       bigint;
begin
    select x.* into b from mq.block_{t} as x where x.subscription = p_sub and x.lane = p_lane
    order by x.subscription desc, x.lane desc, x.block_no desc limit 1;
    if b.block_no is null or b.first_ticket > coalesce(pg_sequence_last_value('mq.ticket_{t}'), 0) + 1 or cardinality(b.counts) is distinct from (
        select count(*) from mq.lease_{t} as x
        where x.subscription = p_sub and x.lane = p_lane and x.block_no = b.block_no and x.rest = 0)
    then
        return;
    end if;
    foreach v_no in array b.laggards loop
        if not mq._is_settled_{t}(p_sub, p_lane, v_no) then
            v_laggards := v_laggards || v_no;
        end if;
    end loop;
    v_low := b.low_block;
    while v_low <= b.block_no loop
        if not mq._is_settled_{t}(p_sub, p_lane, v_low) then
            exit when cardinality(v_laggards) >= 64;
            v_laggards := v_laggards || v_low;
        end if;
        v_low := v_low + 1;
    end loop;
    -- Worth a block if it spares looking at a few.
    if v_low - b.low_block + cardinality(b.laggards) - cardinality(v_laggards) < 4 then
        return;
    end if;
    if not pg_try_advisory_xact_lock({class}, (hashint8extended(-1, {seed} + p_lane) & 2147483647)::int) then
        return;
    end if;
    -- A statement of its own, with a snapshot newer than the lock.
    if exists (select from mq.block_{t} as x where x.subscription = p_sub and x.lane = p_lane and x.block_no > b.block_no) then
        return;
    end if;
    insert into mq.block_{t} (subscription, lane, block_no, xid, prev, cur, next_xid, next_id, first_ticket, size, born,
                              first_xids, first_ids, counts, low_block, laggards)
    values (p_sub, p_lane, b.block_no + 1, pg_current_xact_id(), b.prev, b.cur, b.next_xid, b.next_id,
            case when p_lane = 0 then coalesce(pg_sequence_last_value('mq.ticket_{t}'), 0) + 1 else 0 end, 1, 0, '{}', '{}', '{}', v_low, v_laggards);
end $$;

-- Cuts ranges of the log into up to p_want slices of p_n messages, and says where to go on if there is more.
create or replace function mq._slices_{t}(p_lane smallint, p_n int, p_want int, p_most int, p_lo_xids xid8[], p_lo_ids bigint[], p_hi_xids xid8[],
    out xids xid8[], out ids bigint[], out counts int[], out next_xid xid8, out next_id bigint)
language plpgsql as $$
declare
    f       record;
    v_next  record;
    v_count int;
    v_max   constant int := p_want * p_n;
    v_sum   int := 0;
begin
    if p_n = 1 then
        select array_agg(m.xid), array_agg(m.msg_id), array_agg(1) into xids, ids, counts
        from (select l.xid, l.msg_id
              from unnest(p_lo_xids, p_lo_ids, p_hi_xids) as u (lo_xid, lo_id, hi_xid)
              cross join lateral (
                  select x.xid, x.msg_id from mq.log_{t} as x
                  where x.lane = p_lane and (x.xid, x.msg_id) >= (u.lo_xid, u.lo_id) and x.xid <= u.hi_xid
                  order by x.lane, x.xid, x.msg_id limit p_want + 1) as l
              limit p_want + 1) as m;
        if cardinality(ids) > p_want then
            next_xid := xids[p_want + 1];
            next_id := ids[p_want + 1];
            xids := xids[:p_want];
            ids := ids[:p_want];
            counts := counts[:p_want];
        end if;
        return;
    end if;
    for i in 1 .. coalesce(cardinality(p_lo_xids), 0) loop
        select x.xid, x.msg_id into f from mq.log_{t} as x
        where x.lane = p_lane and (x.xid, x.msg_id) >= (p_lo_xids[i], p_lo_ids[i]) and x.xid <= p_hi_xids[i]
        order by x.lane, x.xid, x.msg_id limit 1;
        while f.xid is not null loop
            -- Short slices, where many transactions run, may be more; a row of the block has to fit into a page.
            if v_sum >= v_max or cardinality(counts) >= p_most then
                next_xid := f.xid;
                next_id := f.msg_id;
                return;
            end if;
            select x.xid, x.msg_id into v_next from mq.log_{t} as x
            where x.lane = p_lane and (x.xid, x.msg_id) >= (f.xid, f.msg_id) and x.xid <= p_hi_xids[i]
            order by x.lane, x.xid, x.msg_id offset p_n limit 1;
            v_count := p_n;
            if not found then
                select count(*) into v_count from (
                    select from mq.log_{t} as x
                    where x.lane = p_lane and (x.xid, x.msg_id) >= (f.xid, f.msg_id) and x.xid <= p_hi_xids[i]
                    order by x.lane, x.xid, x.msg_id limit p_n) as x;
            end if;
            xids := xids || f.xid;
            ids := ids || f.msg_id;
            counts := counts || v_count;
            v_sum := v_sum + v_count;
            f := v_next;
        end loop;
    end loop;
end $$;
    $x$;
end $f$;
