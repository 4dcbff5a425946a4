-- Ordering keys. Messages of one key are delivered in the order of the queue, under one lease at a time. That is decided by
-- whoever opens a block (with lock -12, to the end of his transaction): he admits the next few messages of keys that are free, a run
-- each, which become a slice of the block, and from there on they are like all others. All the rest only append:
--
--   parked_<q>  what happens: a message that came, or came back (with its place); or a release (no payload): so many messages
--               of a key are settled, so many of them returned, to come back when they are due. Read once, in windows like
--               the log; a message stays until it is admitted
--   line_<q>    where messages of a key stand, those that are not admitted yet
--   key_<q>     the newest row of a key is its state; a key without a row has nothing going on (upkeep deletes those of ten minutes
--               ago: were they gone at once, the next look would walk over what a snapshot keeps of them). It is ready (at is not null) if
--               nothing of it is outstanding (admitted and not released), nothing returned and not back yet, and
--               something waits; at says when it has its turn
--   turn_<q>    the cursors, the newest row of each: of the window (lane 0), and of the keys that had their turn (by lane)
--
-- Why no two leases of a key: a key is only ready with nothing outstanding, and a message is outstanding from before it can be
-- leased, in the same transaction that puts it into a block, until a release of it is visible, which commits with the
-- settlement. Why none is forgotten: what makes a key ready are events, each of which is read exactly once; counts are sums of
-- events, so it does not matter in which order, or in which windows, they are read; and a key that becomes ready gets a
-- place behind the cursor, which only moves forward. Rows go as they are used up, but where a row is looked for, a lower bound or
-- a newer row is in front of what went: so what an old snapshot keeps of them is in nobody's way.
create or replace function mq._create_keys(queue_id int) returns void
language plpgsql set search_path = pg_catalog, pg_temp set default_tablespace = '' set default_table_access_method = 'heap' as $f$
begin
    execute replace($x$
        create table mq.parked_{q} (
            xid          xid8 not null default pg_current_xact_id(),
            event        bigint not null,           -- a message: its msg_id; a release: 2^62 more than that of one of its messages; 3 * 2^61 more: it was cancelled while it was deferred
            ordering_key text collate "C" not null,
            place        bigint,                    -- of what comes back
            settled      int not null default 0,
            returned     int not null default 0,
            enqueued_at  timestamptz not null default clock_timestamp(),
            lane         smallint,
            attempt      smallint not null default 1,
            payload      jsonb,
            headers      jsonb,
            extra        jsonb,
            constraint parked_{q}_pkey primary key (xid, event)
        );
        create table mq.line_{q} (
            ordering_key text collate "C" not null,
            place        bigint not null,
            event        bigint not null,
            xid          xid8 not null,
            lane         smallint not null,
            constraint line_{q}_pkey primary key (ordering_key, place, event)
        );
        create table mq.key_{q} (
            ordering_key text collate "C" not null,
            no           bigint not null,
            outstanding  int not null,
            returned     int not null,
            next_place   bigint not null,           -- nothing waits in front of it
            lane         smallint,                  -- of a ready one: that of its first message
            at           bigint,
            since        timestamptz not null default clock_timestamp(),
            constraint key_{q}_pkey primary key (ordering_key, no)
        );
        create index key_{q}_ready on mq.key_{q} (lane, at, ordering_key) where at is not null;
        create table mq.turn_{q} (
            lane         smallint not null,
            no           bigint not null,
            prev         pg_snapshot,               -- of the window, as of blocks
            cur          pg_snapshot,
            next_xid     xid8,
            next_event   bigint,
            at           bigint,
            ordering_key text collate "C",
            constraint turn_{q}_pkey primary key (lane, no)
        );
        $x$, '{q}', _create_keys.queue_id::text);
    perform mq._create_key_functions(_create_keys.queue_id);
end $f$;

create or replace function mq._create_key_functions(queue_id int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $f$
begin
    execute replace($x$
    -- Whether the next key of a lane could have its turn: one is ready, behind the cursor.
    create or replace function mq._has_turn_{q}(p_lane smallint) returns boolean language plpgsql as $$
    declare
        c record;
    begin
        select x.at, x.ordering_key into c from mq.turn_{q} as x where x.lane = p_lane order by x.lane desc, x.no desc limit 1;
        return exists (
            select from mq.key_{q} as k
            where k.lane = p_lane and k.at is not null and (k.at, k.ordering_key) > (coalesce(c.at, 0), coalesce(c.ordering_key, ''))
            order by k.lane, k.at, k.ordering_key limit 1);
    end $$;

    -- Whether a key of a lane is ready, or would be once the next 64 events are read; or there are more than that, which are worth
    -- reading in any case: what was read of them stays read.
    create or replace function mq._is_key_ready_{q}(p_lane smallint) returns boolean language plpgsql as $$
    declare
        w       record;
        r       record;
        v_ready boolean;
    begin
        if mq._has_turn_{q}(p_lane) then
            return true;
        end if;
        select x.prev, x.cur, x.next_xid, x.next_event into w from mq.turn_{q} as x where x.lane = 0 order by x.lane desc, x.no desc limit 1;
        r := mq._ranges_ahead(w.prev, w.cur, w.next_xid, w.next_event);
        with e as materialized (
            select y.* from unnest(r.lo_xids, r.lo_ids, r.hi_xids) as u (lo_xid, lo_event, hi_xid)
            cross join lateral (
                select x.event, x.ordering_key, x.place, x.settled, x.returned, x.lane from mq.parked_{q} as x
                where (x.xid, x.event) >= (u.lo_xid, u.lo_event) and x.xid <= u.hi_xid
                order by x.xid, x.event limit 65) as y
            union all
            select x.event, x.ordering_key, x.place, x.settled, x.returned, x.lane from mq.parked_{q} as x
            where x.xid = pg_current_xact_id_if_assigned() and x.lane is null
            limit 65),
        touched as materialized (
            select x.ordering_key, sum(x.settled) as settled, sum(x.returned) - count(x.place) as returned,
                   min(coalesce(x.place, 9223372036854775807)) filter (where x.lane is not null) as place,
                   (array_agg(x.lane order by x.place) filter (where x.lane is not null))[1] as lane
            from e as x group by x.ordering_key)
        select case when (select count(*) from e) > 64 then true else (
            select bool_or(coalesce(k.outstanding, 0) <= t.settled and coalesce(k.returned, 0) + t.returned = 0
                           and case when l.place <= coalesce(t.place, l.place) then l.lane else t.lane end = p_lane)
            from touched as t
            left join lateral (
                select x.outstanding, x.returned, x.next_place from mq.key_{q} as x
                where x.ordering_key = t.ordering_key order by x.ordering_key desc, x.no desc limit 1) as k on true
            left join lateral (
                select x.place, x.lane from mq.line_{q} as x where x.ordering_key = t.ordering_key and x.place >= k.next_place
                order by x.ordering_key, x.place limit 1) as l on true) end into v_ready;
        return coalesce(v_ready, false);
    end $$;

    -- Reads events, until a key of the lane is ready or there are no more, a few at first, then many, in up to p_passes, for a tenth of a
    -- second: he who is cancelled has read for nothing. Returns how many there were. The caller holds lock -12. Besides, the releases of this transaction: what is admitted instead
    -- commits with them, or not at all.
    create or replace function mq._fold_{q}(p_lane smallint, p_passes int) returns int language plpgsql as $$
    declare
        w        record;
        r        record;
        v_no     bigint;
        v_most   int := 1024;
        v_sum    int := 0;
        v_fair   boolean := (select x.fair from mq.queue as x where x.queue_id = {q});
        v_give_up constant timestamptz := clock_timestamp() + interval '100 milliseconds';
        a_xid    xid8[];    a_event  bigint[];   a_key  text[];     a_place bigint[];
        a_settled int[];    a_returned int[];    a_lane smallint[];
    begin
        for v_pass in 1 .. p_passes loop
            select x.* into w from mq.turn_{q} as x where x.lane = 0 order by x.lane desc, x.no desc limit 1;
            v_no := coalesce(w.no, 0) + 2;      -- an admission numbers in between
            w.prev := coalesce(w.prev, '1:1:');
            w.cur := coalesce(w.cur, mq._snapshot());
            r := mq._ranges(w.prev, w.cur, coalesce(w.next_xid, '0'), coalesce(w.next_event, 0));
            select array_agg(e.xid), array_agg(e.event), array_agg(e.ordering_key), array_agg(e.place), array_agg(e.settled), array_agg(e.returned), array_agg(e.lane)
              into a_xid, a_event, a_key, a_place, a_settled, a_returned, a_lane
            from (select y.* from unnest(r.lo_xids, r.lo_ids, r.hi_xids) as u (lo_xid, lo_event, hi_xid)
                  cross join lateral (
                    select x.xid, x.event, x.ordering_key, x.place, x.settled, x.returned, x.lane from mq.parked_{q} as x
                    where (x.xid, x.event) >= (u.lo_xid, u.lo_event) and x.xid <= u.hi_xid
                    order by x.xid, x.event limit v_most + 1) as y
                  limit v_most + 1) as e;
            w.next_xid := a_xid[v_most + 1];        -- null: that is all of the window
            w.next_event := a_event[v_most + 1];
            select a_xid[:v_most] || array_agg(x.xid), a_event[:v_most] || array_agg(x.event), a_key[:v_most] || array_agg(x.ordering_key),
                   a_place[:v_most] || array_agg(x.place), a_settled[:v_most] || array_agg(x.settled), a_returned[:v_most] || array_agg(x.returned),
                   a_lane[:v_most] || array_agg(x.lane)
              into a_xid, a_event, a_key, a_place, a_settled, a_returned, a_lane
            from mq.parked_{q} as x where x.xid = pg_current_xact_id_if_assigned() and x.lane is null;
            exit when a_event is null;
            v_sum := v_sum + cardinality(a_event);
            with e as materialized (
                -- Fresh messages stand behind all that came before; those that came back where they were.
                select u.*, coalesce(u.place, v_no << 20 | u.no) as stands
                from unnest(a_xid, a_event, a_key, a_place, a_settled, a_returned, a_lane) with ordinality as u (xid, event, ordering_key, place, settled, returned, lane, no)),
            spent as (
                delete from mq.parked_{q} as p using e where p.xid = e.xid and p.event = e.event and e.lane is null),
            lined as (
                insert into mq.line_{q} (ordering_key, place, event, xid, lane)
                select e.ordering_key, e.stands, e.event, e.xid, e.lane from e where e.lane is not null),
            touched as materialized (
                select e.ordering_key, sum(e.settled) as settled, sum(e.returned) - count(e.place) as returned,
                       min(e.stands) filter (where e.lane is not null) as place,
                       (array_agg(e.lane order by e.stands) filter (where e.lane is not null))[1] as lane
                from e group by e.ordering_key),
            old as materialized (
                select t.ordering_key, k.no, k.at, k.lane as ready_lane, k.since < clock_timestamp() - interval '9 minutes' and k.outstanding = 0 and k.returned = 0 and k.at is null as is_idle,
                       greatest(coalesce(k.outstanding, 0) - t.settled, 0) as outstanding,
                       coalesce(k.returned, 0) + t.returned as returned,
                       coalesce(least(k.next_place, t.place), 0) as next_place,
                       least(l.place, t.place) as place,
                       case when l.place <= coalesce(t.place, l.place) then l.lane else t.lane end as lane
                from touched as t
                left join lateral (
                    select x.* from mq.key_{q} as x where x.ordering_key = t.ordering_key order by x.ordering_key desc, x.no desc limit 1) as k on true
                left join lateral (
                    select x.place, x.lane from mq.line_{q} as x where x.ordering_key = t.ordering_key and x.place >= k.next_place
                    order by x.ordering_key, x.place limit 1) as l on true),
            gone as (       -- but for those that upkeep may have in hand: it is not waited for
                delete from mq.key_{q} as k using old as o where k.ordering_key = o.ordering_key and k.no = o.no and o.is_idle is not true)
            insert into mq.key_{q} (ordering_key, no, outstanding, returned, next_place, lane, at)
            select o.ordering_key, v_no, o.outstanding, o.returned, o.next_place, s.lane,
                   -- Its turn comes by its first message's place; where it is fair, behind all that are ready now. Never before
                   -- that of a key that had it.
                   case when s.lane is null then null when o.at is not null then o.at
                        else greatest(case when v_fair then v_no << 20 else o.place end, coalesce(t.at, 0) + 1) end
            from old as o
            cross join lateral (
                select case when o.at is not null then o.ready_lane when o.outstanding = 0 and o.returned = 0 then o.lane end as lane) as s
            left join lateral (
                select x.at from mq.turn_{q} as x where x.lane = s.lane order by x.lane desc, x.no desc limit 1) as t on true;
            insert into mq.turn_{q} (lane, no, prev, cur, next_xid, next_event)
            values (0, v_no, case when w.next_xid is null then w.cur else w.prev end, case when w.next_xid is not null then w.cur end, w.next_xid, w.next_event);
            delete from mq.turn_{q} as x where x.lane = 0 and x.no = w.no;
            exit when w.next_xid is null or clock_timestamp() > v_give_up or mq._has_turn_{q}(p_lane);
            v_most := 4096;
        end loop;
        return v_sum;
    end $$;

    -- Admits a run of each of the keys that are ready, the next in turn first, to be born in a block, in up to p_most slices of up to
    -- p_n messages: a slice has as many runs as fit. A run has at most p_n messages, of one lane, in the order of msg_id, as the log has it.
    -- What was cancelled in front of it, up to 100, is a run and a slice of its own, so that what stands behind it need not wait for another
    -- call. The caller holds lock -12.
    create or replace function mq._admit_keys_{q}(p_lane smallint, p_n int, p_most int)
    returns table (slice int, run int, msg_id bigint, enqueued_at timestamptz, attempt smallint, payload jsonb, headers jsonb, extra jsonb) language plpgsql as $$
    declare
        c_most  constant int := 1024;       -- messages, as all others wait for us; and a block has numbers for 4095 runs
        c       record;
        q       record;
        w       record;
        v_run   int;
        v_more  int;                -- of what was cancelled
        v_sum   int := 0;
        v_in    int := 0;           -- messages of the slice
        v_slice int := 1;
        a_key   text[] := '{}'::text[];     a_no    bigint[] := '{}'::bigint[];
        a_next  bigint[] := '{}'::bigint[]; a_slice int[] := '{}'::int[];
    begin
        select x.no, coalesce(x.at, 0) as at, coalesce(x.ordering_key, '') as ordering_key into c
        from (select 1) as one left join lateral (
            select * from mq.turn_{q} as y where y.lane = p_lane order by y.lane desc, y.no desc limit 1) as x on true;
        select x.fair, x.max_in_flight_per_key as per_key into q from mq.queue as x where x.queue_id = {q};
        -- Where it is fair, each has its share of a lease, if so many are ready.
        v_run := least(p_n, q.per_key, c_most, case when q.fair then greatest(p_n / greatest((
            select count(*) from (
                select from mq.key_{q} as x
                where x.lane = p_lane and x.at is not null and (x.at, x.ordering_key) > (c.at, c.ordering_key)
                order by x.lane, x.at, x.ordering_key limit p_n) as y), 1), 1) end);
        v_more := case when exists (select from mq.cancelled as m where m.queue_id = {q}) then 100 else 0 end;
        for w in
            select x.ordering_key, x.no, x.at, x.next_place, l.n, l.is_mixed
            from mq.key_{q} as x
            cross join lateral (
                select count(*)::int as n, coalesce(bool_or(exists (
                    select from mq.cancelled as m where v_more > 0 and m.queue_id = {q} and m.msg_id = y.event offset 0)), false) as is_mixed
                from (select z.event from mq.line_{q} as z where z.ordering_key = x.ordering_key and z.place >= x.next_place
                      order by z.ordering_key, z.place limit v_run) as y) as l
            where x.lane = p_lane and x.at is not null and (x.at, x.ordering_key) > (c.at, c.ordering_key)
            order by x.lane, x.at, x.ordering_key
        loop
            if v_in > 0 and (w.is_mixed or v_in + w.n > p_n) then
                v_slice := v_slice + 1;
                v_in := 0;
            end if;
            exit when v_slice + w.is_mixed::int > p_most or v_sum >= c_most;
            a_key := a_key || w.ordering_key;
            a_no := a_no || w.no;
            a_next := a_next || w.next_place;
            a_slice := a_slice || v_slice;
            c.at := w.at;
            c.ordering_key := w.ordering_key;
            v_sum := v_sum + w.n;
            v_in := v_in + w.n;
            if w.is_mixed then
                v_slice := v_slice + 2;
                v_in := 0;
            end if;
        end loop;
        if cardinality(a_key) = 0 then
            return;
        end if;
        insert into mq.turn_{q} (lane, no, at, ordering_key) values (p_lane, coalesce(c.no, 0) + 1, c.at, c.ordering_key);
        delete from mq.turn_{q} as x where x.lane = p_lane and x.no = c.no;
        return query
            with next as materialized (
                select u.key_no, u.ordering_key, l.place, l.event, l.xid, m.msg_id is not null as is_cancelled, row_number() over of_key as i,
                       l.lane <> p_lane or l.event < lag(l.event) over of_key as is_other, m.msg_id is not null <> lag(m.msg_id is not null) over of_key as is_turn
                from unnest(a_key, a_next) with ordinality as u (ordering_key, next_place, key_no)
                cross join lateral (
                    select x.* from mq.line_{q} as x where x.ordering_key = u.ordering_key and x.place >= u.next_place
                    order by x.ordering_key, x.place limit v_run + v_more) as l
                left join mq.cancelled as m on m.queue_id = {q} and m.msg_id = l.event
                window of_key as (partition by u.key_no order by l.place)),
            cut as materialized (
                select x.*, count(*) filter (where x.is_other and x.i > 1) over of_key as others,
                       count(*) filter (where x.is_turn) over of_key as turns,
                       first_value(x.is_cancelled) over of_key as begins_cancelled
                from next as x window of_key as (partition by x.key_no order by x.i)),
            chosen as materialized (
                select y.*, dense_rank() over (order by y.key_no, y.turns)::int as run, a_slice[y.key_no] + y.turns::int as slice
                from (select x.*, row_number() over (partition by x.key_no, x.turns order by x.i) as no
                      from cut as x where x.others = 0 and x.turns <= x.begins_cancelled::int) as y
                where y.is_cancelled or y.no <= v_run),
            left_line as (
                delete from mq.line_{q} as l using chosen as x where l.ordering_key = x.ordering_key and l.place = x.place and l.event = x.event),
            old as (
                delete from mq.key_{q} as k using unnest(a_key, a_no) as u (ordering_key, no) where k.ordering_key = u.ordering_key and k.no = u.no),
            new as (
                insert into mq.key_{q} (ordering_key, no, outstanding, returned, next_place)
                select x.ordering_key, a_no[x.key_no] + 1, count(*), 0, max(x.place) + 1 from chosen as x group by x.ordering_key, x.key_no),
            left_park as (
                delete from mq.parked_{q} as p using chosen as x where p.xid = x.xid and p.event = x.event
                returning x.slice, x.run, p.event, p.enqueued_at, p.attempt, p.payload, p.headers,
                          coalesce(p.extra, '{}') || jsonb_build_object('k', x.ordering_key, 'o', x.place))
            select * from left_park;
    end $$;

    -- Says of messages with an ordering key that they are under lease no more.
    create or replace function mq._release_{q}(p_messages mq._taken[], p_are_returned boolean) returns void language plpgsql as $$
    begin
        insert into mq.parked_{q} (event, ordering_key, settled, returned)
        select (1::bigint << 62) + min(m.msg_id), m.extra ->> 'k', count(*), case when p_are_returned then count(*) else 0 end
        from unnest(p_messages) as m where m.extra ? 'k' group by m.extra ->> 'k';
    end $$;
    $x$, '{q}', _create_key_functions.queue_id::text);
    perform mq._shut('_' || _create_key_functions.queue_id);
end $f$;

-- Whether there ever was a message with an ordering key.
create or replace function mq._uses_order(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return coalesce(pg_sequence_last_value(to_regclass('mq.lanes_' || _uses_order.queue_id)) & 8192 <> 0, false);
end $$;

-- Whether there ever was a message whose end sets something free: a dedup key, or an ordering key.
create or replace function mq._minds_ends(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return coalesce(pg_sequence_last_value(to_regclass('mq.lanes_' || _minds_ends.queue_id)) & 12288 <> 0, false);
end $$;

-- For messages that are done for good: sets free what they had.
create or replace function mq._end(queue_id int, messages mq._taken[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform mq._release_keys(_end.queue_id, array_agg(m.msg_id), array_agg(m.extra ->> 'd'))
    from unnest(_end.messages) as m where m.extra ? 'd' having count(*) > 0;
    perform mq._release(_end.queue_id, _end.messages, false);
end $$;

-- Says that messages with an ordering key are not under lease any more. Those that are returned come back as they are
-- due (_defer), and until then hold up their key. Who waits is woken, if others may go on.
create or replace function mq._release(queue_id int, messages mq._taken[], are_returned boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from unnest(_release.messages) as m where m.extra ? 'k') then
        return;
    end if;
    execute format('select mq._release_%s($1, $2)', _release.queue_id) using _release.messages, _release.are_returned;
    if not _release.are_returned then
        perform mq._notify(q.queue_id, q.name, q.notify, q.notified) from mq.queue as q where q.queue_id = _release.queue_id;
    end if;
end $$;

-- Says that a message with an ordering key, which was to come back to it once it is due, is cancelled: it holds up nobody any more. When
-- it is due it comes behind the others, and is dropped. (Its transaction may have released it, too: so another event.)
create or replace function mq._abandon(q mq.queue, msg_id bigint, ordering_key text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    execute 'insert into mq.parked_' || q.queue_id || ' (event, ordering_key, returned) values ((3::bigint << 61) + $1, $2, -1)'
        using _abandon.msg_id, _abandon.ordering_key;
    perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
end $$;

-- In a copy, where all else of the keys is gone: what had a place, be it there already or deferred, to be tried again, comes in
-- that order in front of what lines up anew, which waits for all of it; but for what is cancelled.
create or replace function mq._hold_up(queue_id int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $f$
begin
    execute replace($x$
        with placed as materialized (
            select p.ordering_key, p.event as msg_id, p.place, false as is_deferred from mq.parked_{q} as p where p.place is not null
            union all
            select d.extra ->> 'k', d.msg_id, (d.extra ->> 'o')::bigint, true from mq.deferred_{q}_0 as d
            where d.extra ? 'o' and not exists (select from mq.cancelled as c where c.queue_id = {q} and c.msg_id = d.msg_id)),
        ranked as materialized (
            select x.*, -row_number() over (partition by x.ordering_key order by x.place desc) as new_place from placed as x),
        there as (
            update mq.parked_{q} as p set place = r.new_place from ranked as r where not r.is_deferred and p.event = r.msg_id),
        to_come as (
            update mq.deferred_{q}_0 as d
            set extra = d.extra - 'o' || case when r.msg_id is null then '{}' else jsonb_build_object('o', r.new_place) end
            from mq.deferred_{q}_0 as x left join ranked as r on r.is_deferred and r.msg_id = x.msg_id
            where x.ctid = d.ctid and x.extra ? 'o')
        insert into mq.key_{q} (ordering_key, no, outstanding, returned, next_place)
        select r.ordering_key, 1, 0, count(*), min(r.new_place) from ranked as r group by r.ordering_key
        $x$, '{q}', _hold_up.queue_id::text);
end $f$;

-- Puts messages with an ordering key where they stood, or, where they were not in the line yet, behind the others; returns the rest.
create or replace function mq._park(queue_id int, messages mq._taken[]) returns mq._taken[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from unnest(_park.messages) as m where m.extra ? 'k') then
        return _park.messages;
    end if;
    execute 'insert into mq.parked_' || _park.queue_id || ' (event, ordering_key, place, enqueued_at, lane, attempt, payload, headers, extra)'
        ' select m.msg_id, m.extra ->> ''k'', (m.extra ->> ''o'')::bigint, m.enqueued_at, m.lane, m.attempt, m.payload, m.headers, m.extra - ''o'''
        ' from unnest($1) as m where m.extra ? ''k'''
        using _park.messages;
    return coalesce((select array_agg(m) from unnest(_park.messages) as m where not coalesce(m.extra ? 'k', false)), '{}');
end $$;

-- When the oldest message of a lane was enqueued that a key has to give now, as far as that is known: the first of those that are ready.
create or replace function mq._oldest_of_keys(queue_id int, lane smallint) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_oldest timestamptz;
begin
    if not mq._uses_order(_oldest_of_keys.queue_id) then
        return null;
    end if;
    execute replace($x$
        select min(m.enqueued_at) from (
            (select p.enqueued_at
             from (select k.ordering_key, k.next_place from mq.key_{q} as k
                   where k.lane = $1 and k.at is not null and (k.at, k.ordering_key) > (
                       select coalesce(max(t.at), 0), coalesce((array_agg(t.ordering_key))[1], '')
                       from (select x.at, x.ordering_key from mq.turn_{q} as x where x.lane = $1 order by x.lane desc, x.no desc limit 1) as t)
                   order by k.lane, k.at, k.ordering_key limit 1) as k
             cross join lateral (
                select x.xid, x.event from mq.line_{q} as x where x.ordering_key = k.ordering_key and x.place >= k.next_place
                order by x.ordering_key, x.place limit 1) as l
             join mq.parked_{q} as p on p.xid = l.xid and p.event = l.event)
            union all
            -- or the next event, if it is a message
            (select e.enqueued_at
             from (select t.prev, t.cur, t.next_xid, t.next_event
                   from (select 1) as one left join lateral (
                       select * from mq.turn_{q} as x where x.lane = 0 order by x.lane desc, x.no desc limit 1) as t on true) as w
             cross join lateral mq._ranges_ahead(w.prev, w.cur, w.next_xid, w.next_event) as r
             cross join lateral unnest(r.lo_xids, r.lo_ids, r.hi_xids) as u (lo_xid, lo_event, hi_xid)
             cross join lateral (
                select x.enqueued_at from mq.parked_{q} as x
                where (x.xid, x.event) >= (u.lo_xid, u.lo_event) and x.xid <= u.hi_xid and x.lane = $1
                order by x.xid, x.event limit 1) as e
             limit 1)) as m
        $x$, '{q}', _oldest_of_keys.queue_id::text) into v_oldest using _oldest_of_keys.lane;
    return v_oldest;
end $f$;

-- By upkeep: lays out what is next of keys, in each lane where nothing is free, and something is due or has happened. Consumers who wrote before they
-- dequeue give back what they read and promote of keys, unless they get something at once, so as not to keep it from others to the end of
-- their transactions: were there only such ones, nobody would have it. Not while upkeep keeps others from tables: this may take long.
create or replace function mq._lay_out_keys(queue_id int, register regclass, until timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off as $f$
declare
    v_lane smallint;
begin
    if mq._uses_order(_lay_out_keys.queue_id) and not exists (
        select from pg_locks as l
        where l.locktype = 'relation' and l.pid = pg_backend_pid() and l.mode in ('ShareRowExclusiveLock', 'AccessExclusiveLock')
          and l.database = (select d.oid from pg_database as d where d.datname = current_database()))
    then
        foreach v_lane in array mq._lanes(_lay_out_keys.queue_id) loop
            continue when v_lane = 0;
            exit when clock_timestamp() > _lay_out_keys.until;
            execute format('select mq._lay_out_%s_%s($1)', _lay_out_keys.queue_id, pg_sequence_last_value(_lay_out_keys.register) & 65535) using v_lane;
        end loop;
    end if;
end $f$;

-- By upkeep: keys with which nothing is going on since ten minutes.
create or replace function mq._forget_idle_keys(queue_id int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if mq._uses_order(_forget_idle_keys.queue_id) then
        execute format('delete from mq.key_%1$s as k where k.ctid = any (array(select x.ctid from mq.key_%1$s as x'
                       ' where x.outstanding = 0 and x.returned = 0 and x.at is null and x.since < clock_timestamp() - interval ''10 minutes'''
                       ' limit 50000 for update skip locked))', _forget_idle_keys.queue_id);
    end if;
end $$;
