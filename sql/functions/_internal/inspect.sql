-- These are stable, all through: a statement that calls one sees one snapshot, in which each message is in one place.

-- What became of every row of a slot, for people and for repair; reads the whole slot. There are no statistics, so the
-- planner is kept from joining row by row.
--
-- Rows behind the cursor are ready; those of a block are ready until a lease covers them; those of a lease are leased
-- until a settlement names them or ends it: acked ones are completed, the others gone to where they are now.
create or replace function mq._fates(queue_id int, slot int)
returns table (msg_id bigint, state text, attempt int, enqueued_at timestamptz, leased_until timestamptz, settled_at timestamptz,
               payload jsonb, headers jsonb, extra jsonb, lane smallint)
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_nestloop = off set enable_sort = on set enable_seqscan = on set jit = off as $f$
begin
    if mq._is_transactional(_fates.queue_id) then
        return query select * from mq._fates_of_taken(_fates.queue_id, _fates.slot);
        return;
    end if;
    return query execute replace($x$
        with leased as materialized (
            select m.xid, m.msg_id, m.lane, l.lane as block_lane, l.block_no, l.head_slice, l.head_part, l.leased_until
            from mq.lease_{t} as l
            join mq.block_{t} as b using (subscription, lane, block_no)
            cross join lateral (
                select x.xid, x.msg_id, x.lane from mq.log_{t} as x
                where x.lane = case when l.slice < b.born then -1 - l.lane else l.lane end and (x.xid, x.msg_id) >= (l.first_xid, l.first_id)
                order by x.lane, x.xid, x.msg_id limit l.n) as m),
        extended as materialized (
            select s.lane, s.block_no, s.slice, s.part, (array_agg(s.leased_until order by s.seq desc))[1] as leased_until
            from mq.settlement_{t} as s where s.leased_until is not null group by s.lane, s.block_no, s.slice, s.part),
        whole as materialized (
            select s.lane, s.block_no, s.slice, s.part, s.outcome, s.settled_at from mq.settlement_{t} as s where s.final and s.msg_ids is null),
        single as materialized (
            select s.lane, s.block_no, s.slice, s.part, i as msg_id, s.outcome, s.settled_at
            from mq.settlement_{t} as s, unnest(s.msg_ids) as r, generate_series(lower(r), upper(r) - 1) as i)
        select g.msg_id,
               case when l.msg_id is null then 'ready'
                    when coalesce(w.outcome, o.outcome) is null then 'leased'
                    when coalesce(w.outcome, o.outcome) = 'acked' then 'completed'
                    when coalesce(w.outcome, o.outcome) = 'cancelled' then 'cancelled'
                    else 'gone' end,
               g.attempt::int, g.enqueued_at, coalesce(e.leased_until, l.leased_until), coalesce(w.settled_at, o.settled_at),
               g.payload, g.headers, g.extra, case when g.lane < 0 then -1 - g.lane else g.lane end::smallint
        from mq.log_{t} as g
        left join leased as l on l.lane = g.lane and l.xid = g.xid and l.msg_id = g.msg_id
        left join extended as e on e.lane = l.block_lane and e.block_no = l.block_no and e.slice = l.head_slice and e.part = l.head_part
        left join whole as w on w.lane = l.block_lane and w.block_no = l.block_no and w.slice = l.head_slice and w.part = l.head_part
        left join single as o on o.lane = l.block_lane and o.block_no = l.block_no and o.slice = l.head_slice and o.part = l.head_part and o.msg_id = l.msg_id
        $x$, '{t}', _fates.queue_id || '_' || _fates.slot);
end $f$;

-- When a message expired that was not delivered; null: it did not.
create or replace function mq._expired_at(extra jsonb) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return case when (_expired_at.extra ->> 'e')::bigint <= mq._microseconds(clock_timestamp())
                then to_timestamp((_expired_at.extra ->> 'e')::bigint / 1000000.0) end;
end $$;

-- All messages of a queue that are not settled, wherever they are. One that has expired_at is as good as dead: the next that
-- comes by buries it.
create or replace function mq._messages(q mq.queue)
returns table (msg_id bigint, state text, attempt int, enqueued_at timestamptz, due_at timestamptz, leased_until timestamptz, payload jsonb, headers jsonb,
               priority int, expired_at timestamptz)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_slot int;
begin
    for v_slot in
        select s.slot from mq.segment as s where s.queue_id = q.queue_id and s.drained_at is null
        union select (pg_sequence_last_value(q.register) & 65535)::int
    loop
        return query select u.msg_id, u.state, u.attempt, u.enqueued_at, null::timestamptz, u.leased_until, u.payload, u.headers, mq._priority_of(u.lane),
                            case when u.state = 'ready' then mq._expired_at(u.extra) end
                     from mq._fates(q.queue_id, v_slot) as u where u.state in ('ready', 'leased')
                       and not exists (select from mq.cancelled as c where c.queue_id = q.queue_id and c.msg_id = u.msg_id);
    end loop;
    for v_slot in 0 .. 1 loop
        return query execute format(
            'select w.msg_id, case when w.due_at <= clock_timestamp() then ''ready'' else ''deferred'' end, w.attempt, w.enqueued_at, w.due_at, '
            'null::timestamptz, w.payload, w.headers, mq._priority_of(w.lane), mq._expired_at(w.extra) from mq._waiting_%1$s_%2$s() as w'
            ' where not exists (select from mq.cancelled as c where c.queue_id = %1$s and c.msg_id = w.msg_id)', q.queue_id, v_slot);
    end loop;
    return query execute format('select p.event, ''ready''::text, p.attempt::int, p.enqueued_at, null::timestamptz, null::timestamptz, p.payload, p.headers,'
        ' mq._priority_of(p.lane), mq._expired_at(p.extra) from mq.parked_%1$s as p'
        ' where p.lane is not null and not exists (select from mq.cancelled as c where c.queue_id = %1$s and c.msg_id = p.event)', q.queue_id);
    return query select s.msg_id, 'leased'::text, s.attempt, s.enqueued_at, null::timestamptz, s.leased_until, s.payload, s.headers, mq._priority_of(s.lane), null::timestamptz
                 from mq.survivor as s where s.queue_id = q.queue_id;
end $$;

-- What became of the messages that are settled and still there, each time that they were delivered: completed, cancelled, or
-- gone to where they were next. Rows that were enqueued from from_time on, with numbers from first_id to last_id; null: all.
create or replace function mq._settled(q mq.queue, from_time timestamptz, first_id bigint, last_id bigint)
returns table (msg_id bigint, state text, attempt int, enqueued_at timestamptz, settled_at timestamptz, payload jsonb, headers jsonb, extra jsonb, lane smallint)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    c_from  constant timestamptz := coalesce(_settled.from_time, '-infinity');
    c_first constant bigint := coalesce(_settled.first_id, 0);
    c_last  constant bigint := coalesce(_settled.last_id, 9223372036854775807);
    v_slot  int;
begin
    for v_slot in
        -- A sealed one has nothing newer than its seal.
        select s.slot from mq.segment as s where s.queue_id = q.queue_id and (s.sealed_at is null or s.sealed_at >= c_from)
        union select (pg_sequence_last_value(q.register) & 65535)::int
    loop
        return query select f.msg_id, f.state, f.attempt, f.enqueued_at, f.settled_at, f.payload, f.headers, f.extra, f.lane
                     from mq._fates(q.queue_id, v_slot) as f
                     where f.settled_at is not null and f.enqueued_at >= c_from and f.msg_id between c_first and c_last;
    end loop;
    return query select k.msg_id, 'completed'::text, k.attempt, k.enqueued_at, k.settled_at, k.payload, k.headers, k.extra, k.lane
                 from mq.kept as k where k.queue_id = q.queue_id and k.enqueued_at >= c_from and k.msg_id between c_first and c_last;
end $$;

-- How much of everything is in a slot, without looking at each message: what was appended, less what was leased, is
-- ready; what was leased, less what was settled, is leased.
create or replace function mq._count_slot(queue_id int, slot int, out messages bigint, out leased bigint, out settled bigint,
                                          out delivered bigint, out acked bigint, out oldest timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = on set enable_bitmapscan = off set enable_sort = off as $f$
declare
    v_lane smallint;
begin
    if mq._is_transactional(_count_slot.queue_id) then
        -- What open transactions have counts as leased, like what was.
        execute replace($x$
            select count(*), count(*) filter (where t.msg_id is not null or k.key is not null), count(t.msg_id),
                   count(*) filter (where t.msg_id is not null and t.outcome is null), count(*) filter (where t.msg_id is not null and t.outcome is null and b.msg_id is null)
            from mq.log_{t} as l
            left join mq.taken_{t} as t on t.xid = l.xid and t.msg_id = l.msg_id and t.no = 0
            left join mq.taken_{t} as b on b.xid = l.xid and b.msg_id = l.msg_id and b.no = 1
            left join mq._locked_messages() as k on k.key = mq._message_key($1, l.msg_id)
            $x$, '{t}', _count_slot.queue_id || '_' || _count_slot.slot)
            into messages, leased, settled, delivered, acked using _count_slot.queue_id;
    else
        execute replace($x$
            select (select count(*) from mq.log_{t}), coalesce(l.n, 0), coalesce(s.n, 0), coalesce(l.delivered, 0) - coalesce(s.undelivered, 0), coalesce(s.acked, 0)
            from (select sum(x.n) as n, sum(x.n) filter (where x.leased_until > '-infinity') as delivered from mq.lease_{t} as x) as l,
                 (select sum(x.n) as n, sum(x.n) filter (where x.outcome = 'acked') as acked,
                         sum(x.n) filter (where x.outcome = 'undelivered' and x.msg_ids is not null) as undelivered from mq.settlement_{t} as x) as s
            $x$, '{t}', _count_slot.queue_id || '_' || _count_slot.slot)
            into messages, leased, settled, delivered, acked;
    end if;
    if messages <> leased then
        foreach v_lane in array mq._lanes(_count_slot.queue_id) loop
            oldest := least(oldest, mq._oldest_ready(_count_slot.queue_id, _count_slot.slot, v_lane));
        end loop;
    end if;
end $f$;

-- When the oldest message that is ready in a lane of a slot was enqueued: the first free slice of the current block, or what
-- comes after it.
create or replace function mq._oldest_ready(queue_id int, slot int, lane smallint) returns timestamptz
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = on set enable_bitmapscan = off set enable_sort = off as $f$
declare
    v_prev    pg_snapshot;
    v_cur     pg_snapshot;
    v_at_xid  xid8;
    v_at_id   bigint;
    v_xid     xid8;
    v_id      bigint;
    v_lane    smallint;
    v_lo_xids xid8[];
    v_lo_ids  bigint[];
    v_hi_xids xid8[];
    v_oldest  timestamptz;
begin
    if mq._is_transactional(_oldest_ready.queue_id) then
        execute format('select mq._first_%s_%s($1, false)', _oldest_ready.queue_id, _oldest_ready.slot) into v_oldest using _oldest_ready.lane;
        return v_oldest;
    end if;
    execute replace($x$
        select y.prev, y.cur, y.next_xid, y.next_id, f.xid, f.id, f.lane
        from mq.block_{t} as y
        left join lateral (
            select coalesce(e.rest_xid, y.first_xids[g + 1]) as xid, coalesce(e.rest_id, y.first_ids[g + 1]) as id,
                   (case when g < y.born then -1 - y.lane else y.lane end)::smallint as lane
            from generate_series(0, cardinality(y.counts) - 1) as g
            left join lateral (
                select x.rest, x.rest_xid, x.rest_id from mq.lease_{t} as x where x.subscription = 1 and x.lane = $1 and x.block_no = y.block_no and x.slice = g
                order by x.subscription desc, x.lane desc, x.block_no desc, x.slice desc, x.part desc limit 1) as e on true
            where coalesce(e.rest, 1) > 0
            limit 1) as f on true
        where y.subscription = 1 and y.lane = $1 and y.block_no >= (select mq._current_{t}(1::smallint, $1))
        order by f.id is null, y.block_no * case when f.id is null then -1 else 1 end limit 1
        $x$, '{t}', _oldest_ready.queue_id || '_' || _oldest_ready.slot)
        into v_prev, v_cur, v_at_xid, v_at_id, v_xid, v_id, v_lane using _oldest_ready.lane;
    if v_xid is null then
        select x.lo_xids, x.lo_ids, x.hi_xids into v_lo_xids, v_lo_ids, v_hi_xids
        from mq._ranges(coalesce(v_prev, '1:1:'), coalesce(v_cur, mq._snapshot()), coalesce(v_at_xid, '0'), coalesce(v_at_id, 0)) as x;
        v_lane := _oldest_ready.lane;
    else
        v_lo_xids := array[v_xid];
        v_lo_ids := array[v_id];
        v_hi_xids := array[v_xid];
    end if;
    execute replace($x$
        select min(m.enqueued_at) from unnest($1, $2, $3) as u (lo_xid, lo_id, hi_xid)
        cross join lateral (
            select l.enqueued_at from mq.log_{t} as l
            where l.lane = $4 and (l.xid, l.msg_id) >= (u.lo_xid, u.lo_id) and l.xid <= u.hi_xid
            order by l.lane, l.xid, l.msg_id limit 1) as m
        $x$, '{t}', _oldest_ready.queue_id || '_' || _oldest_ready.slot)
        into v_oldest using v_lo_xids, v_lo_ids, v_hi_xids, v_lane;
    return v_oldest;
end $f$;

-- Since when the first message of a lane that has a timer is due; null: none is.
create or replace function mq._oldest_due(queue_id int, lane smallint) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_due    timestamptz;
    v_oldest timestamptz;
begin
    for v_generation in 0 .. 1 loop
        execute replace($x$
            select t.due_at
            from (select 1) as one
            left join mq._promotions($2, $3) as c on c.lane = $1
            cross join lateral (
                select x.due_at from mq.timer_{d} as x
                where x.lane = $1 and (x.due_at, x.xid, x.msg_id) > (coalesce(c.due_at, '-infinity'), coalesce(c.due_xid, '0'), coalesce(c.due_id, 0))
                order by x.lane, x.due_at, x.xid, x.msg_id limit 1) as t
            $x$, '{d}', _oldest_due.queue_id || '_' || v_generation)
            into v_due using _oldest_due.lane, _oldest_due.queue_id, v_generation;
        v_oldest := least(v_oldest, v_due);
    end loop;
    return case when v_oldest <= clock_timestamp() then v_oldest end;
end $f$;

create or replace function mq._count_deferral(queue_id int, generation int, out waiting bigint, out due bigint, out oldest timestamptz)
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    execute replace($x$
        -- Where there are ticks, some may be of schedules that are gone.
        select case when exists (select from mq.deferred_{d} as x where x.extra ? 's' order by (x.extra ->> 's')::bigint limit 1)
                    then (select count(*) from mq._waiting_{d}())
                    else (select count(*) from mq.deferred_{d}) - (select coalesce(sum(p.taken), 0) from mq._promotions($1, $2) as p) end
        $x$, '{d}', _count_deferral.queue_id || '_' || _count_deferral.generation) into waiting using _count_deferral.queue_id, _count_deferral.generation;
    due := 0;
    if waiting > 0 then
        execute replace($x$
            select count(*), min(w.due_at) from mq._waiting_{d}() as w where w.due_at <= clock_timestamp()
            $x$, '{d}', _count_deferral.queue_id || '_' || _count_deferral.generation) into due, oldest;
    end if;
end $f$;

-- What became of one message, as the tables of its queue say.
create or replace function mq._message_place(q mq.queue, msg_id bigint) returns mq.message_state
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    m record;
begin
    select d.attempts, d.enqueued_at, d.died_at, d.reason, mq._priority_of(d.lane) as priority into m
    from mq.dead_letter as d where d.queue_id = q.queue_id and d.msg_id = _message_place.msg_id;
    if found then
        return ('dead', m.attempts, m.enqueued_at, null, null, m.died_at, m.reason, m.priority, null, null)::mq.message_state;
    end if;
    select x.* into m from mq._messages(q) as x where x.msg_id = _message_place.msg_id
    order by x.attempt desc limit 1;
    if m.expired_at is not null then
        return ('dead', m.attempt - 1, m.enqueued_at, null, null, m.expired_at, 'expired', m.priority, null, null)::mq.message_state;
    elsif found then
        return (m.state, m.attempt, m.enqueued_at, m.due_at, m.leased_until, null, null, m.priority, null, null)::mq.message_state;
    end if;
    if exists (select from mq.cancelled as c where c.queue_id = q.queue_id and c.msg_id = _message_place.msg_id) then
        return ('cancelled', null, null, null, null, null, null, null, null, null)::mq.message_state;
    end if;
    -- Acknowledged, and its segment still there? The last time counts, for it may have been rewound: what was given up and
    -- purged, or redriven to elsewhere, is forgotten.
    select x.* into m from mq._settled(q, null, _message_place.msg_id, _message_place.msg_id) as x order by x.settled_at desc limit 1;
    if m.state in ('completed', 'cancelled') then
        return (m.state, m.attempt, m.enqueued_at, null, null, m.settled_at, null, mq._priority_of(m.lane), null, null)::mq.message_state;
    end if;
    return null;
end $$;

-- What became of one message, with what its consumers noted of it, in one snapshot. A result outlives the segment: then the
-- message is not forgotten, but known to be completed, though no more than that.
create or replace function mq._message_state(q mq.queue, msg_id bigint) returns mq.message_state
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_state  mq.message_state := mq._message_place(q, _message_state.msg_id);
    v_result mq.note := mq._newest_note(q.queue_id, _message_state.msg_id, 'result');
begin
    if v_state.state is null and v_result.no is null then
        return null;
    elsif v_state.state is null then
        v_state.state := 'completed';
        v_state.settled_at := v_result.at;
    end if;
    v_state.progress := (mq._newest_note(q.queue_id, _message_state.msg_id, 'progress')).value;
    v_state.result := v_result.value;
    return v_state;
end $$;
