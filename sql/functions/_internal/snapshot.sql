-- The current snapshot, in which the caller's own transaction is still running: pg_current_snapshot() leaves it out,
-- and what this transaction enqueues after a dequeue would count as seen.
create or replace function mq._snapshot() returns pg_snapshot
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_now pg_snapshot := pg_current_snapshot();
    v_own xid8 := pg_current_xact_id_if_assigned();
begin
    if v_own is null or v_own >= pg_snapshot_xmax(v_now) then
        return v_now;
    end if;
    return (select format('%s:%s:%s', least(pg_snapshot_xmin(v_now), v_own), pg_snapshot_xmax(v_now),
                          string_agg(x.xid::text, ',' order by x.xid))
            from (select pg_snapshot_xip(v_now) as xid union select v_own) as x)::pg_snapshot;
end $$;

-- The parts of the window (prev, cur) from position (at_xid, at_id) on, in the order of the log: first the stragglers,
-- transactions that ran in prev and are visible in cur; then the gaps between the transactions that run in cur. In
-- none of them can a row appear or vanish any more, and no row of a running transaction is ever read.
create or replace function mq._ranges(prev pg_snapshot, cur pg_snapshot, at_xid xid8, at_id bigint,
                                      out lo_xids xid8[], out lo_ids bigint[], out hi_xids xid8[])
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_xid   xid8;
    v_lo    bigint := pg_snapshot_xmax(prev)::text::bigint;
    v_lo_id bigint := 0;
    v_hi    bigint;
begin
    if at_xid >= pg_snapshot_xmax(prev) then
        v_lo := at_xid::text::bigint;
        v_lo_id := at_id;
    elsif pg_snapshot_xmin(prev) < pg_snapshot_xmax(prev) then
        for v_xid in
            select x from pg_snapshot_xip(prev) as x
            where x >= at_xid and pg_visible_in_snapshot(x, cur) order by x
        loop
            lo_xids := lo_xids || v_xid;
            lo_ids := lo_ids || case when v_xid = at_xid then at_id else 0 end;
            hi_xids := hi_xids || v_xid;
        end loop;
    end if;
    if pg_snapshot_xmin(cur) < pg_snapshot_xmax(cur) then
        for v_hi in
            select x::text::bigint from pg_snapshot_xip(cur) as x where x::text::bigint >= v_lo order by x
        loop
            if v_hi > v_lo then
                lo_xids := lo_xids || v_lo::text::xid8;
                lo_ids := lo_ids || v_lo_id;
                hi_xids := hi_xids || (v_hi - 1)::text::xid8;
            end if;
            v_lo := v_hi + 1;
            v_lo_id := 0;
        end loop;
    end if;
    v_hi := pg_snapshot_xmax(cur)::text::bigint - 1;
    if v_hi >= v_lo then
        lo_xids := lo_xids || v_lo::text::xid8;
        lo_ids := lo_ids || v_lo_id;
        hi_xids := hi_xids || v_hi::text::xid8;
    end if;
end $$;

-- The same for a cursor that may have stopped inside its window: the rest of it, and what came since.
create or replace function mq._ranges_ahead(prev pg_snapshot, cur pg_snapshot, at_xid xid8, at_id bigint,
                                            out lo_xids xid8[], out lo_ids bigint[], out hi_xids xid8[])
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_now constant pg_snapshot := mq._snapshot();       -- one: each expression has a newer one
    r     record;
begin
    -- Where nobody was, or is, in the middle of anything, it is all one part.
    if pg_snapshot_xmin(v_now) = pg_snapshot_xmax(v_now) and pg_snapshot_xmin(prev) = pg_snapshot_xmax(prev)
        and (pg_snapshot_xmin(cur) = pg_snapshot_xmax(cur)) is not false
    then
        lo_xids := array[greatest(at_xid, pg_snapshot_xmax(prev))];
        lo_ids := array[case when at_xid >= pg_snapshot_xmax(prev) then at_id else 0 end];
        hi_xids := array[(pg_snapshot_xmax(v_now)::text::bigint - 1)::text::xid8];
        return;
    end if;
    r := mq._ranges(coalesce(prev, '1:1:'), coalesce(cur, v_now), coalesce(at_xid, '0'), coalesce(at_id, 0));
    lo_xids := r.lo_xids;
    lo_ids := r.lo_ids;
    hi_xids := r.hi_xids;
    if cur is not null then
        r := mq._ranges(cur, v_now, '0', 0);
        lo_xids := lo_xids || r.lo_xids;
        lo_ids := lo_ids || r.lo_ids;
        hi_xids := hi_xids || r.hi_xids;
    end if;
end $$;

-- The gate of a lane, for its opener: closed until the transaction ends. Those who pass hold it for an instant.
create or replace function mq._enter_lane(class int, key int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
begin
    perform pg_advisory_xact_lock(class, key);
    return true;
exception
    when lock_not_available then
        return false;
end $$;

-- For those who wait: at most 50 ms, or as told, until the gate opens. Nothing is kept.
create or replace function mq._wait_for_lane(class int, key int, patience text) returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
begin
    if patience is not null then
        perform set_config('lock_timeout', patience, true);
    end if;
    perform pg_advisory_xact_lock_shared(class, key);
    raise exception using errcode = 'MQ0ZZ';    -- gives the lock back: an empty poll must leave none behind
exception
    when sqlstate 'MQ0ZZ' or lock_not_available then
        null;
end $$;
