-- Deferral: where delayed messages and retries wait. Nothing here is updated or deleted one by one.
--
--   deferred_<q>_<g>   what came, as it came; read once, in windows like the log
--   timer_<q>_<g>      who is due when, by lane; written only by the promoter, so the only one that may look behind the cursor
--   promotion_<q>_<g>  the promoter's cursors: the newest row of each lane; that of lane 0 has the arrivals', too
--
-- Promotion runs while a block is opened, under a lock of its own. It copies new arrivals into timers, then takes what
-- is due in the block's lane, in order of time, to be born into the block. An arrival that is due before the cursor's time (its transaction
-- took long to commit) gets the cursor's time plus a microsecond. So the cursor only moves forward, the index is read
-- only behind it, and no uncommitted or consumed row is ever in the way.
--
-- There are two sets, g = 0 and 1. When most of the open one is consumed, arrivals go to the other, what still waits
-- is moved there too, and the old set is truncated: _rotate_deferral.
create or replace function mq._create_deferral(queue_id int) returns void
language plpgsql set search_path = pg_catalog, pg_temp set default_tablespace = '' set default_table_access_method = 'heap' as $f$
begin
    for v_generation in 0 .. 1 loop
        execute replace($x$
        create table mq.deferred_{d} (
            msg_id      bigint not null,
            xid         xid8 not null default pg_current_xact_id(),
            due_at      timestamptz not null,
            enqueued_at timestamptz not null default clock_timestamp(),
            attempt     smallint not null default 1,
            payload     jsonb not null,
            headers     jsonb,
            extra       jsonb,
            lane        smallint not null default 0
        ) with (autovacuum_enabled = false, toast.autovacuum_enabled = false);
        create index deferred_{d}_order on mq.deferred_{d} (xid, msg_id);
        create index deferred_{d}_schedule on mq.deferred_{d} (((extra ->> 's')::bigint), due_at) where extra ? 's';
        create table mq.timer_{d} (
            lane   smallint not null,
            due_at timestamptz not null,
            xid    xid8 not null,
            msg_id bigint not null,
            constraint timer_{d}_pkey primary key (lane, due_at, xid, msg_id)
        ) with (autovacuum_enabled = false);
        create table mq.promotion_{d} (
            lane     smallint not null,
            no       bigint not null,
            prev     pg_snapshot not null,      -- in lane 0: all arrivals visible here have timers
            cur      pg_snapshot,               -- the window it stopped inside, and where; null: the window is used up
            next_xid xid8,
            next_id  bigint,
            due_at   timestamptz not null,      -- every timer of the lane up to (due_at, due_xid, due_id) was taken
            due_xid  xid8 not null,
            due_id   bigint not null,
            taken    bigint not null,           -- how many so far
            constraint promotion_{d}_pkey primary key (lane, no)
        ) with (autovacuum_enabled = false);
        create trigger sealed before insert on mq.deferred_{d} for each row execute function mq._redirect_deferred();
        alter table mq.deferred_{d} enable always trigger sealed;
        $x$, '{d}', _create_deferral.queue_id || '_' || v_generation);
    end loop;
    perform mq._create_deferral_functions(_create_deferral.queue_id);
end $f$;

create or replace function mq._create_deferral_functions(queue_id int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $f$
begin
    for v_generation in 0 .. 1 loop
        execute replace(replace($x$
        -- Whether _promote would find something of a lane: a timer or one of the next p_most arrivals without a timer is due.
        -- Null: none of those, but there are more.
        create or replace function mq._is_due_{d}(p_lane smallint, p_most int) returns boolean language plpgsql as $$
        declare
            v_now timestamptz := clock_timestamp();
            p     record;
            c     record;
            r     record;
        begin
            if not exists (select from mq.deferred_{d} as x order by x.xid, x.msg_id limit 1) then
                return false;
            end if;
            select * into p from mq.promotion_{d} as x where x.lane = 0 order by x.lane desc, x.no desc limit 1;
            c := p;
            if p_lane <> 0 then
                select * into c from mq.promotion_{d} as x where x.lane = p_lane order by x.lane desc, x.no desc limit 1;
            end if;
            if p.no is not null and exists (
                       select from mq.timer_{d} as x
                       where x.lane = p_lane and x.due_at <= v_now
                         and (x.due_at, x.xid, x.msg_id) > (coalesce(c.due_at, '-infinity'), coalesce(c.due_xid, '0'), coalesce(c.due_id, 0))
                       order by x.lane, x.due_at, x.xid, x.msg_id limit 1) then
                return true;
            end if;
            r := mq._ranges_ahead(p.prev, p.cur, p.next_xid, p.next_id);
            return (
                select case when bool_or(m.due_at <= v_now and m.lane = p_lane) then true when count(*) < p_most then false end
                from (select x.due_at, x.lane from unnest(r.lo_xids, r.lo_ids, r.hi_xids) as u (lo_xid, lo_id, hi_xid)
                      cross join lateral (
                        select y.due_at, y.lane from mq.deferred_{d} as y
                        where (y.xid, y.msg_id) >= (u.lo_xid, u.lo_id) and y.xid <= u.hi_xid
                        order by y.xid, y.msg_id limit p_most) as x
                      limit p_most) as m);
        end $$;

        -- Up to p_max messages of a lane that are due by p_now, oldest first, after p_arrivals got their timers, whatever their
        -- lane. The caller holds the promotion lock.
        create or replace function mq._promote_{d}(p_lane smallint, p_max int, p_now timestamptz, p_arrivals int) returns setof mq._taken language plpgsql as $$
        declare
            p      record;
            c      record;          -- the cursor of the lane
            r      record;
            v_prev pg_snapshot;
            v_cur  pg_snapshot;
            v_xid  xid8;
            v_id   bigint;
            a_due  timestamptz[];   a_xid xid8[];   a_id bigint[];      a_lane smallint[];
            t_due  timestamptz[];   t_xid xid8[];   t_id bigint[];
        begin
            select * into p from mq.promotion_{d} as x where x.lane = 0 order by x.lane desc, x.no desc limit 1;
            v_prev := coalesce(p.prev, '1:1:');
            v_cur := coalesce(p.cur, mq._snapshot());
            r := mq._ranges(v_prev, v_cur, coalesce(p.next_xid, '0'), coalesce(p.next_id, 0));
            select array_agg(m.due_at), array_agg(m.xid), array_agg(m.msg_id), array_agg(m.lane) into a_due, a_xid, a_id, a_lane
            from (select x.* from unnest(r.lo_xids, r.lo_ids, r.hi_xids) as u (lo_xid, lo_id, hi_xid)
                  cross join lateral (
                    select y.due_at, y.xid, y.msg_id, y.lane from mq.deferred_{d} as y
                    where (y.xid, y.msg_id) >= (u.lo_xid, u.lo_id) and y.xid <= u.hi_xid
                    order by y.xid, y.msg_id limit p_arrivals + 1) as x
                  limit p_arrivals + 1) as m;
            if cardinality(a_id) > p_arrivals then
                v_xid := a_xid[p_arrivals + 1];
                v_id := a_id[p_arrivals + 1];
            else
                v_prev := v_cur;
                v_cur := null;
            end if;
            p.due_at := coalesce(p.due_at, '-infinity');
            p.due_xid := coalesce(p.due_xid, '0');
            p.due_id := coalesce(p.due_id, 0);
            insert into mq.timer_{d} (lane, due_at, xid, msg_id)
            select u.lane, case when (u.due_at, u.xid, u.msg_id) > (o.due_at, o.due_xid, o.due_id) then u.due_at
                                else o.due_at + interval '1 microsecond' end, u.xid, u.msg_id
            from unnest(a_due[:p_arrivals], a_xid[:p_arrivals], a_id[:p_arrivals], a_lane[:p_arrivals]) as u (due_at, xid, msg_id, lane)
            left join lateral (
                select x.due_at, x.due_xid, x.due_id from mq.promotion_{d} as x
                where x.lane = u.lane and u.lane <> 0 order by x.lane desc, x.no desc limit 1) as l on true
            cross join lateral (
                select coalesce(l.due_at, case u.lane when 0 then p.due_at end, '-infinity') as due_at,
                       coalesce(l.due_xid, case u.lane when 0 then p.due_xid end, '0') as due_xid,
                       coalesce(l.due_id, case u.lane when 0 then p.due_id end, 0) as due_id) as o;
            c := p;
            if p_lane <> 0 then
                select * into c from mq.promotion_{d} as x where x.lane = p_lane order by x.lane desc, x.no desc limit 1;
                c.due_at := coalesce(c.due_at, '-infinity');
                c.due_xid := coalesce(c.due_xid, '0');
                c.due_id := coalesce(c.due_id, 0);
            end if;
            select array_agg(x.due_at), array_agg(x.xid), array_agg(x.msg_id) into t_due, t_xid, t_id
            from (select * from mq.timer_{d} as y
                  where y.lane = p_lane and (y.due_at, y.xid, y.msg_id) > (c.due_at, c.due_xid, c.due_id) and y.due_at <= p_now
                  order by y.lane, y.due_at, y.xid, y.msg_id limit p_max) as x;
            if a_id is not null and p_lane <> 0 then
                insert into mq.promotion_{d} (lane, no, prev, cur, next_xid, next_id, due_at, due_xid, due_id, taken)
                values (0, coalesce(p.no, 0) + 1, v_prev, v_cur, v_xid, v_id, p.due_at, p.due_xid, p.due_id, coalesce(p.taken, 0));
            end if;
            if t_id is null and (a_id is null or p_lane <> 0) then
                return;
            end if;
            insert into mq.promotion_{d} (lane, no, prev, cur, next_xid, next_id, due_at, due_xid, due_id, taken)
            values (p_lane, coalesce(c.no, 0) + 1, v_prev, v_cur, v_xid, v_id,
                    coalesce(t_due[cardinality(t_due)], c.due_at), coalesce(t_xid[cardinality(t_xid)], c.due_xid),
                    coalesce(t_id[cardinality(t_id)], c.due_id), coalesce(c.taken, 0) + coalesce(cardinality(t_id), 0));
            return query
                select m.msg_id, m.enqueued_at, m.attempt::int, m.payload, m.headers, m.extra, null::text, m.due_at, m.lane
                from unnest(t_xid, t_id) as u (xid, msg_id)
                cross join lateral (
                    select * from mq.deferred_{d} as y where y.xid = u.xid and y.msg_id = u.msg_id
                    order by y.xid, y.msg_id limit 1) as m;
        end $$;

        -- When the next message of this set is due. Of arrivals without timers, the first 10000 are looked at.
        create or replace function mq._next_due_{d}() returns timestamptz language plpgsql as $$
        declare
            p record;
            r record;
        begin
            select * into p from mq.promotion_{d} as x where x.lane = 0 order by x.lane desc, x.no desc limit 1;
            r := mq._ranges_ahead(p.prev, p.cur, p.next_xid, p.next_id);
            return least(
                (select min(t.due_at)
                 from unnest(mq._lanes({q})) as l (lane)
                 left join lateral (
                    select x.due_at, x.due_xid, x.due_id from mq.promotion_{d} as x
                    where x.lane = l.lane order by x.lane desc, x.no desc limit 1) as c on true
                 cross join lateral (
                    select x.due_at from mq.timer_{d} as x
                    where x.lane = l.lane and (x.due_at, x.xid, x.msg_id)
                        > (coalesce(c.due_at, '-infinity'), coalesce(c.due_xid, '0'), coalesce(c.due_id, 0))
                    order by x.lane, x.due_at, x.xid, x.msg_id limit 1) as t),
                (select min(m.due_at)
                 from (select x.due_at from unnest(r.lo_xids, r.lo_ids, r.hi_xids) as u (lo_xid, lo_id, hi_xid)
                       cross join lateral (
                         select y.due_at from mq.deferred_{d} as y
                         where (y.xid, y.msg_id) >= (u.lo_xid, u.lo_id) and y.xid <= u.hi_xid
                         order by y.xid, y.msg_id limit 10000) as x
                       limit 10000) as m));
        end $$;

        -- What waits in this set, for peek, message_status and the statistics; but the ticks of schedules that are gone.
        create or replace function mq._waiting_{d}()
        returns table (due_at timestamptz, msg_id bigint, enqueued_at timestamptz, attempt int, payload jsonb, headers jsonb, extra jsonb, lane smallint)
        language plpgsql stable as $$
        declare
            p record;
            r record;
        begin
            select * into p from mq.promotion_{d} as x where x.lane = 0 order by x.lane desc, x.no desc limit 1;
            r := mq._ranges(coalesce(p.prev, '1:1:'), coalesce(p.cur, mq._snapshot()), coalesce(p.next_xid, '0'), coalesce(p.next_id, 0));
            return query select * from (
                select x.due_at, x.msg_id, m.enqueued_at, m.attempt::int, m.payload, m.headers, m.extra, x.lane
                from unnest(mq._lanes({q})) as l (lane)
                left join lateral (
                    select y.due_at, y.due_xid, y.due_id from mq.promotion_{d} as y
                    where y.lane = l.lane order by y.lane desc, y.no desc limit 1) as c on true
                cross join lateral (
                    select * from mq.timer_{d} as y
                    where y.lane = l.lane and (y.due_at, y.xid, y.msg_id)
                        > (coalesce(c.due_at, '-infinity'), coalesce(c.due_xid, '0'), coalesce(c.due_id, 0))
                    order by y.lane, y.due_at, y.xid, y.msg_id) as x
                cross join lateral (
                    select * from mq.deferred_{d} as y where y.xid = x.xid and y.msg_id = x.msg_id
                    order by y.xid, y.msg_id limit 1) as m
                union all
                select m.due_at, m.msg_id, m.enqueued_at, m.attempt::int, m.payload, m.headers, m.extra, m.lane
                from unnest(r.lo_xids, r.lo_ids, r.hi_xids) as u (lo_xid, lo_id, hi_xid)
                cross join lateral (
                    select * from mq.deferred_{d} as y
                    where (y.xid, y.msg_id) >= (u.lo_xid, u.lo_id) and y.xid <= u.hi_xid
                    order by y.xid, y.msg_id) as m
                union all
                -- one cut inside a window leaves the rest of what is visible now
                select m.due_at, m.msg_id, m.enqueued_at, m.attempt::int, m.payload, m.headers, m.extra, m.lane
                from mq.deferred_{d} as m
                where p.cur is not null and not pg_visible_in_snapshot(m.xid, p.cur)) as w (due_at, msg_id, enqueued_at, attempt, payload, headers, extra, lane)
            where (w.extra ? 's') is not true or exists (select from mq.timetable as s where s.generation = (w.extra ->> 's')::bigint);
        end $$;
        $x$, '{d}', _create_deferral_functions.queue_id || '_' || v_generation), '{q}', _create_deferral_functions.queue_id::text);
    end loop;

    execute replace(replace($x$
    -- Of arrivals without timers it looks at 10000, and now and then at as many as a promotion sorts, so that what is due
    -- behind many is found, too.
    create or replace function mq._is_due_{q}(p_lane smallint, p_most int default case when random() < 0.05 then 200000 else 10000 end)
    returns boolean language plpgsql as $$
    declare
        v_register bigint := pg_sequence_last_value('mq.register_{q}');
    begin
        return case when (v_register >> 32) & 1 = 0 then mq._is_due_{q}_0(p_lane, p_most) else mq._is_due_{q}_1(p_lane, p_most) end
            or (v_register >> 33) & 1 = 1
               and case when (v_register >> 32) & 1 = 0 then mq._is_due_{q}_1(p_lane, p_most) else mq._is_due_{q}_0(p_lane, p_most) end
            or p_lane >= 10 and case when mq._uses_order({q}) then mq._is_key_ready_{q}(p_lane) else false end;
    end $$;

    -- Up to p_max of what is due in a lane, after the first 256 arrivals got their timers; if there is none, after more of them, in up
    -- to p_passes, for who has nothing else to do. Ticks of schedules, the only ones with an outcome, may come back to be skipped.
    create or replace function mq._promote_{q}(p_lane smallint, p_max int, p_passes int) returns setof mq._taken language plpgsql as $$
    declare
        v_register bigint := pg_sequence_last_value('mq.register_{q}');
        v_count    int := 0;
        v_rows     int;
        v_arrivals int := 256;
    begin
        if not pg_try_advisory_xact_lock({class}, mq._lock_key({q}, -2)) then
            return;             -- somebody else promotes: what is due goes into their block
        end if;
        for v_pass in 1 .. p_passes loop
            if (v_register >> 32) & 1 = 1 or (v_register >> 33) & 1 = 1 then
                return query select m.msg_id, m.enqueued_at, m.attempt, m.payload, m.headers, case when m.extra ? 's' then null else m.extra end,
                                    case when m.extra ? 's' then mq._take_tick({q}, m.msg_id, (m.extra ->> 's')::bigint, m.due_at) end, m.due_at, m.lane
                             from mq._promote_{q}_1(p_lane, p_max, clock_timestamp(), v_arrivals) as m;
                get diagnostics v_count = row_count;
            end if;
            if v_count <= p_max and ((v_register >> 32) & 1 = 0 or (v_register >> 33) & 1 = 1) then
                return query select m.msg_id, m.enqueued_at, m.attempt, m.payload, m.headers, case when m.extra ? 's' then null else m.extra end,
                                    case when m.extra ? 's' then mq._take_tick({q}, m.msg_id, (m.extra ->> 's')::bigint, m.due_at) end, m.due_at, m.lane
                             from mq._promote_{q}_0(p_lane, p_max - v_count, clock_timestamp(), v_arrivals) as m;
                get diagnostics v_rows = row_count;
                v_count := v_count + v_rows;
            end if;
            exit when v_count > 0
                or not exists (select from mq.promotion_{q}_0 as p where p.lane = 0 and p.cur is not null and p.no = (select max(x.no) from mq.promotion_{q}_0 as x where x.lane = 0))
                   and not exists (select from mq.promotion_{q}_1 as p where p.lane = 0 and p.cur is not null and p.no = (select max(x.no) from mq.promotion_{q}_1 as x where x.lane = 0))
                   and mq._is_due_{q}_0(p_lane, 200000) is not true and mq._is_due_{q}_1(p_lane, 200000) is not true;
            v_arrivals := 10000;
        end loop;
    end $$;
    $x$, '{q}', _create_deferral_functions.queue_id::text),
        '{class}', $$('mq.queue'::regclass::oid::bigint & 2147483647)::int$$);
    perform mq._shut('_' || _create_deferral_functions.queue_id);
    perform mq._shut('_' || _create_deferral_functions.queue_id || '_0');
    perform mq._shut('_' || _create_deferral_functions.queue_id || '_1');
end $f$;

-- The cursors of a deferral set: the newest row of each lane.
create or replace function mq._promotions(queue_id int, generation int) returns table (lane smallint, due_at timestamptz, due_xid xid8, due_id bigint, taken bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    return query execute format(
        'select c.* from unnest(mq._lanes(%1$s)) as l (lane) cross join lateral ('
        ' select x.lane, x.due_at, x.due_xid, x.due_id, x.taken from mq.promotion_%1$s_%2$s as x'
        ' where x.lane = l.lane order by x.lane desc, x.no desc limit 1) as c', _promotions.queue_id, _promotions.generation);
end $f$;

-- Puts messages aside until they are due; those with an ordering key that are due come back to their key. Their transaction
-- never receives them itself.
create or replace function mq._defer(queue_id int, register regclass, messages mq._taken[], due_at timestamptz[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_now constant timestamptz := clock_timestamp();
    v_has_keys constant boolean := exists (select from unnest(_defer.messages) as m where m.extra ? 'k');
begin
    execute 'insert into mq.deferred_' || _defer.queue_id || '_' || ((pg_sequence_last_value(_defer.register) >> 32) & 1)
        || ' (msg_id, due_at, enqueued_at, attempt, payload, headers, extra, lane)'
        || ' select m.msg_id, d, m.enqueued_at, m.attempt, m.payload, m.headers, m.extra, m.lane'
        || ' from rows from (unnest($1), unnest($2)) as m (msg_id, enqueued_at, attempt, payload, headers, extra, outcome, due_at, lane, d)'
        || case when v_has_keys then ' where d > $3 or not coalesce(m.extra ? ''k'', false)' else '' end
        using _defer.messages, _defer.due_at, v_now;
    if v_has_keys then
        perform mq._park(_defer.queue_id, array(
            select (_defer.messages)[i] from generate_subscripts(_defer.messages, 1) as i where (_defer.due_at)[i] <= v_now));
    end if;
end $$;

-- Gives arrivals their timers, so that consumers need not.
create or replace function mq._absorb_arrivals(queue_id int, register regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_value bigint := pg_sequence_last_value(_absorb_arrivals.register);
begin
    if pg_try_advisory_xact_lock(mq._lock_class(), mq._lock_key(_absorb_arrivals.queue_id, -2)) then
        execute format('select from mq._promote_%s_%s(0::smallint, 0, clock_timestamp(), 100000)', _absorb_arrivals.queue_id, (v_value >> 32) & 1);
    end if;
end $$;

-- Changes over to the other set when most of the open one is consumed, and empties the old one: what still waits there
-- moves over, a part per call, then it is truncated. So each message is copied once per four times its size consumed.
-- Returns what was done. The register is not undone by a rollback, so each call does one step and the next call sees
-- whether it is there.
create or replace function mq._rotate_deferral(queue_id int, register regclass) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $f$
declare
    v_value bigint := pg_sequence_last_value(_rotate_deferral.register);
    v_open  text := _rotate_deferral.queue_id || '_' || ((v_value >> 32) & 1);
    v_old   text := _rotate_deferral.queue_id || '_' || (1 - ((v_value >> 32) & 1));
    v_rows  bigint;
    v_taken bigint;
    v_ahead boolean;
    v_lane  smallint;
begin
    if (v_value >> 33) & 1 = 0 then
        -- The cursor of a clock that was wrong would hold up what comes until that time.
        execute format('select bool_or(p.due_at > clock_timestamp() + interval ''1 second'') from mq._promotions(%s, %s) as p', _rotate_deferral.queue_id, (v_value >> 32) & 1)
            into v_ahead;
        if v_ahead then
            perform mq._write_register(_rotate_deferral.queue_id, _rotate_deferral.register, 3::bigint << 32, (~v_value & (1::bigint << 32)) | (1::bigint << 33));
            return 'changed over, as its cursor is in the future';
        end if;
        if pg_relation_size(('mq.deferred_' || v_open)::regclass) < 4194304 then
            return null;
        end if;
        execute format('select (select count(*) from mq.deferred_%1$s_%2$s), (select coalesce(sum(p.taken), 0) from mq._promotions(%1$s, %2$s) as p)',
                       _rotate_deferral.queue_id, (v_value >> 32) & 1) into v_rows, v_taken;
        if v_taken < v_rows * 3 / 4 then
            return null;
        end if;
        perform mq._write_register(_rotate_deferral.queue_id, _rotate_deferral.register, 3::bigint << 32, (~v_value & (1::bigint << 32)) | (1::bigint << 33));
        return 'changed over';
    end if;
    -- Nobody may add to the old set, nor promote from it, while it is moved.
    if not pg_try_advisory_xact_lock(mq._lock_class(), mq._lock_key(_rotate_deferral.queue_id, -2)) then
        return null;
    end if;
    perform mq._fence('deferred_' || v_old);
    execute format('select count(*) from (select from mq.deferred_%s limit 1) as x', v_old) into v_rows;
    if v_rows = 0 then
        -- Not in the transaction that truncated it: were it rolled back, what waits there would be forgotten.
        if exists (select from pg_locks as l where l.pid = pg_backend_pid() and l.relation = ('mq.deferred_' || v_old)::regclass
                   and l.mode = 'AccessExclusiveLock' and l.database = (select d.oid from pg_database as d where d.datname = current_database())) then
            return null;
        end if;
        perform mq._write_register(_rotate_deferral.queue_id, _rotate_deferral.register, 1::bigint << 33, 0);
        return 'the old set is empty';
    end if;
    foreach v_lane in array mq._lanes(_rotate_deferral.queue_id) loop
        execute format('insert into mq.deferred_%s (msg_id, due_at, enqueued_at, attempt, payload, headers, extra, lane)'
                       ' select m.msg_id, m.due_at, m.enqueued_at, m.attempt, m.payload, m.headers, m.extra, m.lane'
                       ' from mq._promote_%s($1, 10000, ''infinity'', 10000) as m', v_open, v_old) using v_lane;
        get diagnostics v_rows = row_count;
        if v_rows > 0 then
            return format('moved %s messages', v_rows);
        end if;
    end loop;
    execute format('select count(*) from (select from mq._waiting_%s() limit 1) as x', v_old) into v_rows;
    if v_rows > 0 then
        return null;            -- more arrivals than one call gives timers to
    end if;
    -- Waited for: consumers look into it all the time. Its fence, an instant old, is in hand.
    perform mq._take_tables(array['deferred_' || v_old, 'timer_' || v_old, 'promotion_' || v_old], true, '^deferred_' || v_old || '$');
    execute format('truncate mq.deferred_%1$s, mq.timer_%1$s, mq.promotion_%1$s', v_old);
    return 'truncated the old set';
end $f$;
