-- max_depth: of messages that wait (ready or deferred) no new one makes more than that, as committed, in any snapshot.
--
-- Nothing that changes with each message is stored: what waits is counted now and then, and what it is short of the limit is
-- room, which producers use up without counting. The register room_<q> stands at minus the room: nextval gives a place if
-- it is not above 0. Whoever adds to what waits, be it a new message or one that comes back, holds the lock -10 shared
-- from before he draws until he commits; who counts has it alone: so he sees every message that was drawn for, and nobody draws
-- meanwhile. What is drawn and then rolled back, or delivered again at once, is room lost until the next count.
--
-- It is counted only when the room is used up. So far from the limit that is once for as many messages as there was room;
-- at the limit, once for what consumers have taken since. For who sees an old snapshot there is no counting: he has what
-- others have found. While a setting is being changed (lock -11) there is none either.

-- Draws places for n messages that are to wait; returns how many of them there were. Who counts is waited for.
create or replace function mq._enter(queue_id int, n bigint) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
declare
    v_room constant regclass := format('mq.room_%s', _enter.queue_id)::regclass;
begin
    perform pg_advisory_xact_lock_shared(mq._lock_class(), mq._lock_key(_enter.queue_id, -10));
    return (select count(*) filter (where nextval(v_room) <= 0) from generate_series(1, _enter.n));
end $$;

-- Finds room for n new messages, or raises. The caller then adds them, in the same transaction.
create or replace function mq._admit(queue_id int, n bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    q         mq.queue;
    v_room    constant regclass := format('mq.room_%s', _admit.queue_id)::regclass;
    v_missing bigint;
    v_depth   bigint;
    v_is_full boolean := false;
    v_give_up constant timestamptz := clock_timestamp() + interval '100 milliseconds';
begin
    if n = 0 then
        return;         -- they take the places of others
    end if;
    -- The common case, in few expressions: so far from the limit nobody draws in vain.
    if -pg_sequence_last_value(v_room) > n + 1000 and mq._enter(_admit.queue_id, n) = n then
        return;
    end if;
    select * into q from mq.queue as x where x.queue_id = _admit.queue_id;
    while n <= q.max_depth loop
        if -pg_sequence_last_value(v_room) >= n or v_is_full and q.overflow <> 'reject' then
            -- Drawn in vain: the subtransaction gives the lock back. Two who kept it would both wait for the other to count.
            begin
                v_missing := n - mq._enter(q.queue_id, n);
                -- As many go as come, in one commit: that needs no room.
                if v_missing = 0 or v_is_full and q.overflow <> 'reject' and mq._drop_oldest(q, v_missing) then
                    return;
                end if;
                raise exception using errcode = 'MQ0ZZ';
            exception
                when sqlstate 'MQ0ZZ' then
                    null;
            end;
        end if;
        exit when v_is_full;
        v_depth := mq._recount(q.queue_id, n);
        -- Where others have counted, or keep us from it, we look again, for a while.
        v_is_full := coalesce(v_depth + n > q.max_depth, mq._is_stale_snapshot() or clock_timestamp() > v_give_up);
    end loop;
    perform mq._queue_full(q.name, q.max_depth, v_depth, n);
end $$;

-- Counts what waits, unless there is room for n by now, and sets the room; returns the depth. Null: it did not. The
-- subtransaction that is undone gives the locks back and leaves what was set. Waits at most 100 ms for those who have drawn and
-- not yet committed. Of many who come to a full queue one counts: what was counted since this call began (the register
-- counted_<q> is another) holds for it, too.
create or replace function mq._recount(queue_id int, n bigint) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms' as $$
declare
    v_room    constant regclass := format('mq.room_%s', _recount.queue_id)::regclass;
    v_counts  constant regclass := format('mq.counted_%s', _recount.queue_id)::regclass;
    v_counted constant bigint := pg_sequence_last_value(v_counts);
    v_max     bigint;
    v_depth   bigint;
begin
    if mq._is_stale_snapshot() or mq._has_emptied(_recount.queue_id) then
        return null;
    end if;
    perform pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(_recount.queue_id, -10));
    if (-pg_sequence_last_value(v_room) >= n) is not true and pg_try_advisory_xact_lock_shared(mq._lock_class(), mq._lock_key(_recount.queue_id, -11)) then
        -- Statements of their own, with snapshots newer than the locks.
        select x.max_depth into v_max from mq.queue as x where x.queue_id = _recount.queue_id;
        if v_counted is not distinct from pg_sequence_last_value(v_counts) then
            perform nextval(v_counts);      -- first: who comes from here on must not rely on this count
            perform setval(v_room, mq._depth(_recount.queue_id) - v_max);
        end if;
        v_depth := v_max + pg_sequence_last_value(v_room);
    end if;
    raise exception using errcode = 'MQ0ZZ';
exception
    when sqlstate 'MQ0ZZ' then
        return v_depth;
    when lock_not_available or deadlock_detected then      -- he who has drawn before, too, wants to count
        return null;
end $$;

-- Whether this transaction has emptied tables of the queue (purge_queue): it sees room that a rollback takes back.
create or replace function mq._has_emptied(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return exists (
        select from pg_locks as l
        where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.mode = 'AccessExclusiveLock'
          and l.relation = to_regclass(format('mq.promotion_%s_0', _has_emptied.queue_id))
          and l.database = (select d.oid from pg_database as d where d.datname = current_database()));
end $$;

-- Takes the n oldest messages that are ready, of the lowest priority there is, as a consumer does, and settles them; false if there
-- are not so many that can be had: then the caller undoes it. Where the dead letters are to have them, they do. No delivery is counted.
create or replace function mq._drop_oldest(q mq.queue, n bigint) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
set lock_timeout = '2s' as $$
declare
    v_open    constant int := pg_sequence_last_value(q.register) & 65535;
    v_give_up constant timestamptz := clock_timestamp() + interval '50 milliseconds';
    v_left    bigint := n;
    v_slot    int;
    v_lane    smallint;
    v_receipt text;
begin
    perform mq._check_isolation(format('enqueue with overflow "%s"', q.overflow));
    for v_lane, v_slot in
        select u.lane, s.slot
        from unnest(mq._lanes(q.queue_id)) with ordinality as u (lane, no)
        cross join (select x.segment, x.slot from mq.segment as x where x.queue_id = q.queue_id and x.exhausted_at is null and x.slot <> v_open
                    union all select 9223372036854775807, v_open) as s
        order by u.no desc, s.segment
    loop
        while v_left > 0 loop
            -- One call, one receipt.
            execute 'select min(d.receipt) from mq._take_' || q.queue_id || '_' || v_slot
                || '(null, 1::smallint, $4, $1, ''1 minute'', true, $2, true, $3) as d'
                into v_receipt using least(v_left, 10000)::int, v_slot = v_open, v_give_up, v_lane;
            exit when v_receipt is null;
            v_left := v_left - mq._drop(q, v_receipt);
        end loop;
    end loop;
    insert into mq.tally (queue_id, delivered, settled) values (q.queue_id, v_left - n, 0);
    return v_left = 0;
end $$;

-- Settles what was just leased; big messages come in parts.
create or replace function mq._drop(q mq.queue, receipt text) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_taken mq._taken[];
    v_count bigint := 0;
begin
    loop
        v_taken := mq._settle(q.name, q.queue_id, _drop.receipt, 'dropped', null);
        exit when cardinality(v_taken) = 0;
        v_count := v_count + cardinality(v_taken);
        insert into mq.dead_letter (queue_id, msg_id, enqueued_at, attempts, reason, history, payload, headers, lane, ordering_key)
        select q.queue_id, t.msg_id, t.enqueued_at, t.attempt - 1, 'overflow',
               coalesce(t.extra -> 'h', '[]') || jsonb_build_object('outcome', 'overflow', 'at', clock_timestamp()), t.payload, t.headers, t.lane, t.extra ->> 'k'
        from unnest(v_taken) as t where q.overflow = 'dead_letter'
        on conflict do nothing;
        exit when not mq._is_enough(v_taken);
    end loop;
    return v_count;
end $$;

-- How many messages wait, in one snapshot (so it is stable, with all that it calls), the caller's own among them. What the
-- caller's own transaction takes out still waits: were it room, others would fill it, and a rollback put it back besides. (So
-- does what others took out since that transaction has its number: until the next count.) Not by reading them all, but for those that
-- wait for their ordering key: what was appended is counted from the newest mark on; of blocks, only those that may hold something free
-- are looked at. Blocks of a lane are numbered in the order in which they become visible. What was cancelled does not wait, though it may be
-- there still; what expired does until somebody buries it.
create or replace function mq._depth(queue_id int) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off as $f$
declare
    v_part  int;        -- a slot, or one of the two deferral sets
    v_lane  smallint;
    v_count bigint;
    c_own   constant xid := pg_current_xact_id_if_assigned()::xid;
    v_sum   bigint := -(select count(*) from mq.cancelled as c where c.queue_id = _depth.queue_id and (age(c.xmin) <= age(c_own)) is not true);
begin
    for v_part, v_lane in select x, u.lane from mq._live_slots(_depth.queue_id) as x cross join unnest(mq._lanes(_depth.queue_id)) as u (lane) loop
        execute replace($x$
            select a.rows - a.in_blocks + coalesce(f.n, 0) + (select count(*) from mq.log_{t} as l where l.lane = $3 and l.xid = $1)
            from mq._appended($2, 'log_{t}', $3) as a
            left join lateral (
                select sum(o.n - coalesce(e.n, 0)) as n
                from (select b.low_block, b.laggards from mq.block_{t} as b where b.subscription = 1 and b.lane = $3
                      order by b.subscription desc, b.lane desc, b.block_no desc limit 1) as c
                cross join lateral (
                    select b.block_no, b.counts from mq.block_{t} as b where b.subscription = 1 and b.lane = $3 and b.block_no >= c.low_block
                    union all
                    select b.block_no, b.counts from unnest(c.laggards) as y
                    join mq.block_{t} as b on b.subscription = 1 and b.lane = $3 and b.block_no = y) as m
                cross join lateral (select sum(x) as n from unnest(m.counts) as x) as o
                cross join lateral (
                    select sum(x.n) as n from mq.lease_{t} as x
                    where x.subscription = 1 and x.lane = $3 and x.block_no = m.block_no and (age(x.xmin) <= age($4)) is not true) as e) as f on true
            $x$, '{t}', _depth.queue_id || '_' || v_part) into v_count using pg_current_xact_id_if_assigned(), _depth.queue_id, v_lane, c_own;
        v_sum := v_sum + v_count;
    end loop;
    for v_part in 0 .. 1 loop
        execute replace($x$
            select a.rows - (select coalesce(sum(p.taken), 0) from mq._promotions($2, $3) as p)
                + (select count(*) from mq.deferred_{d} as x where x.xid = $1)
            from mq._appended($2, 'deferred_{d}', null) as a
            $x$, '{d}', _depth.queue_id || '_' || v_part) into v_count using pg_current_xact_id_if_assigned(), _depth.queue_id, v_part;
        v_sum := v_sum + v_count;
    end loop;
    execute format('select count(*) from mq.parked_%s as p where p.lane is not null', _depth.queue_id) into v_count;
    return v_sum + v_count;
end $f$;

-- The rows that were appended to a lane of a log, or to a deferral set (null), without the caller's own, and of those of a lane how
-- many its blocks took up.
create or replace function mq._appended(queue_id int, relation text, lane smallint, out file oid, out rows bigint, out at pg_snapshot, out block_no bigint, out in_blocks bigint)
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off as $f$
declare
    m       mq.depth_mark;
    r       record;
    v_rows  bigint;
    v_count bigint;
begin
    -- Once the table was truncated, its file is another, and the mark is void.
    file := pg_relation_filenode(('mq.' || relation)::regclass);
    at := mq._snapshot();
    select * into m from mq.depth_mark as x where x.queue_id = _appended.queue_id and x.file = _appended.file and x.lane = coalesce(_appended.lane, -1)
    order by x.queue_id desc, x.file desc, x.lane desc, x.rows desc limit 1;
    r := mq._ranges(coalesce(m.at, '1:1:'), at, '0', 0);
    execute format($x$
        select coalesce(sum(c.n), 0) from unnest($1, $2, $3) as u (lo_xid, lo_id, hi_xid)
        cross join lateral (
            select count(*) as n from mq.%I as l
            where %s (l.xid, l.msg_id) >= (u.lo_xid, u.lo_id) and l.xid <= u.hi_xid) as c
        $x$, relation, case when lane is not null then 'l.lane = $4 and' end)
        into v_rows using r.lo_xids, r.lo_ids, r.hi_xids, lane;
    rows := coalesce(m.rows, 0) + v_rows;
    in_blocks := coalesce(m.in_blocks, 0);
    block_no := coalesce(m.block_no, 0);
    if lane is not null then
        execute format($x$
            select max(b.block_no), sum((select sum(x) from unnest(b.counts[b.born + 1:]) as x))
            from mq.%I as b where b.subscription = 1 and b.lane = $2 and b.block_no > $1
            $x$, replace(relation, 'log', 'block')) into v_rows, v_count using block_no, lane;
        block_no := coalesce(v_rows, block_no);
        in_blocks := in_blocks + coalesce(v_count, 0);
    end if;
end $f$;

-- By upkeep: marks from which to count on, where 10,000 rows have come since the last. The newest row is the mark; older ones
-- go, and those of files that are gone.
create or replace function mq._mark_depth(queue_id int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    a_files    oid[];
    v_relation text;
    v_lane     smallint;
    a          record;
begin
    for v_relation, v_lane in
        select format('log_%s_%s', _mark_depth.queue_id, x), u.lane
        from mq._live_slots(_mark_depth.queue_id) as x cross join unnest(mq._lanes(_mark_depth.queue_id)) as u (lane)
        union all select format('deferred_%s_%s', _mark_depth.queue_id, x), null from generate_series(0, 1) as x
    loop
        select * into a from mq._appended(_mark_depth.queue_id, v_relation, v_lane);
        a_files := a_files || a.file;
        insert into mq.depth_mark (queue_id, file, lane, rows, at, block_no, in_blocks)
        select _mark_depth.queue_id, a.file, coalesce(v_lane, -1), a.rows, a.at, a.block_no, a.in_blocks
        where a.rows >= 10000 + coalesce((select max(x.rows) from mq.depth_mark as x where x.queue_id = _mark_depth.queue_id and x.file = a.file and x.lane = coalesce(v_lane, -1)), 0);
        if found then
            delete from mq.depth_mark as x where x.queue_id = _mark_depth.queue_id and x.file = a.file and x.lane = coalesce(v_lane, -1) and x.rows < a.rows;
        end if;
    end loop;
    delete from mq.depth_mark as x where x.queue_id = _mark_depth.queue_id and x.file <> all (a_files);
end $$;
