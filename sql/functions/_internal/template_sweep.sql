-- _stale_<slot>, _sweep_<slot>: leases that ran out, and holes: slices whose consumer rolled back after the next block
-- had its turn. Only blocks from the newest block's low_block on are looked at, and its laggards.
create or replace function mq._template_sweep() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
-- The heads of leases that ran out and are not settled. p_most bounds how many leases are looked at; where there are
-- more, as many again from a random block on, so that those who look often find what is behind many live ones, too.
create or replace function mq._stale_{t}(p_sub smallint, p_lane smallint, p_most int, out block_no bigint, out slice int, out part int, out token bigint, out outcome text)
returns setof record language plpgsql as $$
declare
    v_now  timestamptz := clock_timestamp();
    b      record;
begin
    select x.low_block, x.laggards, x.low_block + floor(random() * (x.block_no - x.low_block + 1))::bigint as some_block into b
    from mq.block_{t} as x where x.subscription = p_sub and x.lane = p_lane
    order by x.subscription desc, x.lane desc, x.block_no desc limit 1;
    return query
        with near as materialized (
            select x.block_no, x.slice, x.part, x.token, x.leased_until, x.head_slice, x.head_part from mq.lease_{t} as x
            where x.subscription = p_sub and x.lane = p_lane and x.block_no >= b.low_block
            order by x.subscription, x.lane, x.block_no, x.slice, x.part limit p_most)
        select l.block_no, l.slice, l.part, l.token, case when l.leased_until = '-infinity' then 'hole' else 'expired' end
        from (
            (select e.* from unnest(b.laggards) as u (laggard)
             cross join lateral (
                select x.block_no, x.slice, x.part, x.token, x.leased_until, x.head_slice, x.head_part from mq.lease_{t} as x
                where x.subscription = p_sub and x.lane = p_lane and x.block_no = u.laggard
                order by x.subscription, x.lane, x.block_no, x.slice, x.part limit p_most) as e)
            union all
            select * from near
            union all
            (select x.block_no, x.slice, x.part, x.token, x.leased_until, x.head_slice, x.head_part from mq.lease_{t} as x
             where x.subscription = p_sub and x.lane = p_lane and x.block_no >= b.some_block and (select count(*) from near) >= p_most
             order by x.subscription, x.lane, x.block_no, x.slice, x.part limit p_most)) as l
        where l.leased_until < v_now and l.slice = l.head_slice and l.part = l.head_part
          and not exists (
            select from mq.settlement_{t} as s
            where s.subscription = p_sub and s.lane = p_lane and s.block_no = l.block_no and s.slice = l.slice and s.part = l.part
              and (s.final or s.leased_until >= v_now) offset 0);
end $$;

-- The block that the next ticket is of. Where a scan of blocks begins at it, in a (select …): once, not for each row. In older ones, what nobody leased is a hole; newer ones were opened ahead.
create or replace function mq._current_{t}(p_sub smallint, p_lane smallint) returns bigint
language plpgsql as $$
begin
    return (
        select x.block_no from mq.block_{t} as x
        where x.subscription = p_sub and x.lane = p_lane and x.first_ticket <= coalesce(pg_sequence_last_value('mq.ticket_{t}'), 0) + 1
        order by x.subscription desc, x.lane desc, x.block_no desc limit 1);
end $$;

-- An older block with a slice that nobody leased to its end, nor is about to; null: none. Takes no lock that stays.
create or replace function mq._hole_{t}(p_sub smallint, p_lane smallint) returns bigint
language plpgsql as $$
declare
    c_class constant int := {class};
    b       record;
    h       record;
begin
    select x.low_block, x.laggards, mq._current_{t}(p_sub, p_lane) as block_no into b
    from mq.block_{t} as x where x.subscription = p_sub and x.lane = p_lane
    order by x.subscription desc, x.lane desc, x.block_no desc limit 1;
    for h in
        select z.block_no, z.counts
        from (select unnest(b.laggards) as block_no union all select generate_series(b.low_block, least(b.block_no - 1, b.low_block + 63))) as y
        cross join lateral (
            -- each looked up by its key: offset 0 keeps the planner from joining with all blocks
            select x.block_no, x.counts from mq.block_{t} as x where x.subscription = p_sub and x.lane = p_lane and x.block_no = y.block_no offset 0) as z
        where cardinality(z.counts) > (
            select count(*) from mq.lease_{t} as e
            where e.subscription = p_sub and e.lane = p_lane and e.block_no = y.block_no and e.rest = 0)
    loop
        for g in 0 .. cardinality(h.counts) - 1 loop
            continue when exists (select from mq.lease_{t} as e where e.subscription = p_sub and e.lane = p_lane
                                    and e.block_no = h.block_no and e.slice = g and e.rest = 0);
            if pg_try_advisory_lock(c_class, (hashint8extended(h.block_no * 65536 + g, {seed} + p_lane) & 2147483647)::int)
                and pg_advisory_unlock(c_class, (hashint8extended(h.block_no * 65536 + g, {seed} + p_lane) & 2147483647)::int)
            then
                return h.block_no;
            end if;
        end loop;
    end loop;
    return null;
end $$;

-- Whether there is anything stale in one of these lanes, or, if that is asked, a hole.
create or replace function mq._is_stale_{t}(p_sub smallint, p_lanes smallint[], p_holes boolean) returns boolean
language plpgsql as $$
declare
    v_lane smallint;
begin
    foreach v_lane in array p_lanes loop
        if exists (select from mq._stale_{t}(p_sub, v_lane, 4096)) or p_holes and mq._hole_{t}(p_sub, v_lane) is not null then
            return true;
        end if;
    end loop;
    return false;
end $$;

-- Settles what ran out and what was never leased, at most about p_limit messages or 64 MB, and returns them. An ack that has
-- not committed yet holds a lease's next seq: that lease is left alone after 5 ms.
create or replace function mq._sweep_{t}(p_sub smallint, p_lane smallint, p_limit int) returns setof mq._taken
language plpgsql set lock_timeout = '5ms' as $$
declare
    c_class constant int := {class};
    l       record;
    h       record;
    b       record;
    v_part  int;
    v_taken mq._taken[];
    v_size  bigint;
    v_sum   int := 0;
    v_bytes bigint := 0;
    v_busy  int := 0;
    v_token bigint;
begin
    -- Leases that open transactions are settling must not hide the others: after ten of them, ten tries at random.
    for v_pass in 1 .. 2 loop
        v_busy := 0;
        for l in
            select x.* from mq._stale_{t}(p_sub, p_lane, 2147483647) as x
            order by case when v_pass = 2 then random() end, x.block_no, x.slice, x.part
        loop
            exit when v_sum >= p_limit or v_bytes >= 67108864 or v_busy >= 10;
            begin
                select array_agg(x), sum(pg_column_size(x.payload) + coalesce(pg_column_size(x.headers), 0)) into v_taken, v_size
                from mq._settle_{t}(p_sub, p_lane, l.block_no, l.slice, l.part, l.token, l.outcome, null) as x;
            exception
                when lock_not_available then
                    v_busy := v_busy + 1;
                    continue;
            end;
            return query select * from unnest(v_taken);
            v_sum := v_sum + coalesce(cardinality(v_taken), 0);
            v_bytes := v_bytes + coalesce(v_size, 0);
        end loop;
        exit when v_busy < 10;
    end loop;

    select x.low_block, x.laggards, mq._current_{t}(p_sub, p_lane) as block_no into b
    from mq.block_{t} as x where x.subscription = p_sub and x.lane = p_lane
    order by x.subscription desc, x.lane desc, x.block_no desc limit 1;
    for h in
        select x.block_no, s as slice
        from (select unnest(b.laggards) as block_no union all select generate_series(b.low_block, b.block_no - 1)) as y
        cross join lateral (
            select z.block_no, z.counts from mq.block_{t} as z
            where z.subscription = p_sub and z.lane = p_lane and z.block_no = y.block_no
              and cardinality(z.counts) > (select count(*) from mq.lease_{t} as e
                    where e.subscription = p_sub and e.lane = p_lane and e.block_no = y.block_no and e.rest = 0)) as x
        cross join lateral generate_series(0, cardinality(x.counts) - 1) as s
        where not exists (select from mq.lease_{t} as e
                          where e.subscription = p_sub and e.lane = p_lane and e.block_no = x.block_no and e.slice = s and e.rest = 0 offset 0)
    loop
        exit when v_sum >= p_limit or v_bytes >= 67108864;
        continue when not pg_try_advisory_xact_lock(c_class, (hashint8extended(h.block_no * 65536 + h.slice, {seed} + p_lane) & 2147483647)::int);
        -- With the slice locked, look again with a newer snapshot; then lease the rest of it to nobody.
        v_token := {token};
        insert into mq.lease_{t} (subscription, lane, block_no, slice, part, head_slice, head_part, n, total, rest,
                                  first_id, first_xid, leased_until, token)
        select p_sub, p_lane, h.block_no, h.slice, coalesce(e.part + 1, 0), h.slice, coalesce(e.part + 1, 0),
               coalesce(e.rest, x.counts[h.slice + 1]), coalesce(e.rest, x.counts[h.slice + 1]), 0,
               coalesce(e.rest_id, x.first_ids[h.slice + 1]), coalesce(e.rest_xid, x.first_xids[h.slice + 1]), '-infinity', v_token
        from mq.block_{t} as x
        left join lateral (
            select y.part, y.rest, y.rest_id, y.rest_xid from mq.lease_{t} as y
            where y.subscription = p_sub and y.lane = p_lane and y.block_no = h.block_no and y.slice = h.slice
            order by y.subscription desc, y.lane desc, y.block_no desc, y.slice desc, y.part desc limit 1) as e on true
        where x.subscription = p_sub and x.lane = p_lane and x.block_no = h.block_no and coalesce(e.rest, 1) > 0
        returning part into v_part;
        continue when not found;
        select array_agg(x), sum(pg_column_size(x.payload) + coalesce(pg_column_size(x.headers), 0)) into v_taken, v_size
        from mq._settle_{t}(p_sub, p_lane, h.block_no, h.slice, v_part, v_token, 'hole', null) as x;
        return query select * from unnest(v_taken);
        v_sum := v_sum + coalesce(cardinality(v_taken), 0);
        v_bytes := v_bytes + coalesce(v_size, 0);
    end loop;
end $$;
    $x$;
end $f$;
