-- Transaction mode: the slots of a queue whose consumers begin, dequeue, work and commit. A message is consumed if and when
-- that transaction commits; nothing that others need is ever in the hands of one that is still open.
--
--   log_<slot>     as in any other slot
--   taken_<slot>   what was consumed: rows appended by the consumer's transaction, so they are there when it commits
--   mark_<slot>    statements that are true for ever: of a window (see _internal/snapshot.sql), everything before a position
--                  is in taken_, but for the messages that it holds out. Anybody may append one. The newest one tells where
--                  to begin; an older one, or none, only makes the way longer.
--
-- A walk goes over what a mark holds out, then over what is behind it, the oldest first, and passes what is taken. Each
-- message has an advisory lock, only ever tried: who got it looks again, in a statement with a snapshot newer than the lock,
-- and so sees what the one before him committed. He locks the row, too, which nobody waits for: that writes his transaction
-- into it, where it stays. So of a message that is free and not taken, xmax tells whether anybody had it before and rolled
-- back: then it is a suspect, and its attempts are counted in _internal/strike.sql.
create or replace function mq._template_transaction() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return replace(replace($x$
-- As _take_ of other slots. Up to p_n messages that nobody had before, the oldest first; or one suspect alone, if it comes first,
-- so that what a poison takes down with it is itself. p_had and the others do not matter here.
create or replace function mq._take_{t}(p_ticket bigint, p_sub smallint, p_lane smallint, p_n int, p_vt interval, p_fresh boolean, p_due boolean, p_had boolean, p_give_up timestamptz)
returns setof mq.delivery language plpgsql as $$
declare
    v_left      constant int := case when coalesce(current_setting('mq.claims', true), '') = '' then 1000 else mq._claims_left() end;
    v_most      constant int := least(p_n, v_left);
    v_call      constant bigint := {token};
    m           record;
    r           record;
    c           record;
    k           record;
    s           record;
    a_xids      xid8[];
    a_ids       bigint[];
    a_struck    text[];         -- the suspects that can be delivered; null: any
    v_strikes   int;
    v_count     int;
    v_max       int;
begin
    for v_round in 1 .. 100 loop
        select x.* into m from mq.mark_{t} as x where x.lane = p_lane order by x.lane desc, x.no desc limit 1;
        r := mq._ranges_ahead(m.prev, m.cur, m.next_xid, m.next_id);
        select w.xid, w.msg_id, w.is_suspect, w.passed, w.no into c
        from (select x.*, row_number() over () as no, count(*) filter (where x.is_taken) over (rows unbounded preceding) as passed from ({walk}) as x offset 0) as w
        where case when w.is_taken or w.is_suspect and concat(w.xid, '.', w.msg_id) = any (a_struck) is false then false
                   else pg_try_advisory_xact_lock(('mq.segment'::regclass::oid::bigint & 2147483647)::int, (hashint8extended(w.msg_id, {q}) & 2147483647)::int) end
        limit 1;
        exit when not found;
        a_xids := array[c.xid];
        a_ids := array[c.msg_id];
        if v_most > 1 and not c.is_suspect then
            select array_agg(y.xid), array_agg(y.msg_id) into a_xids, a_ids
            from (select w.xid, w.msg_id from (select x.* from ({walk}) as x offset 0) as w
                  where case when w.is_taken or w.is_suspect then false else pg_try_advisory_xact_lock(('mq.segment'::regclass::oid::bigint & 2147483647)::int, (hashint8extended(w.msg_id, {q}) & 2147483647)::int) end
                  limit v_most) as y;
        end if;
        v_strikes := null;
        loop
            -- Now that they are locked, look again. v_strikes: of a suspect; null: they are none.
            return query
                with won as materialized (
                    select l.xid, l.msg_id, l.attempt + coalesce(v_strikes, 0) as attempt, l.enqueued_at, l.payload, l.headers
                    from unnest(a_xids, a_ids) as u (xid, msg_id)
                    cross join lateral (
                        select * from mq.log_{t} as z
                        where z.lane = p_lane and z.xid = u.xid and z.msg_id = u.msg_id
                          and (z.xmax <> '0'::xid) = (v_strikes is not null)
                          and not exists (select from mq.taken_{t} as y where y.xid = z.xid and y.msg_id = z.msg_id offset 0)
                          and (v_strikes is not null or z.extra is null or ((z.extra ->> 'e')::bigint <= mq._microseconds(clock_timestamp())) is not true)
                        limit 1 for update) as l),
                took as (
                    insert into mq.taken_{t} (xid, msg_id, lane, attempt, call)
                    select w.xid, w.msg_id, p_lane, w.attempt, v_call from won as w)
                select w.msg_id, concat('{q}.{k}.0.', p_lane, '.0.0.0.', pg_current_xact_id(), '.', v_call), w.attempt,
                       w.enqueued_at, {never}, w.payload, w.headers from won as w;
            get diagnostics v_count = row_count;
            if v_count > 0 then
                perform set_config('mq.claims', (1000 - v_left + v_count)::text, true);
                -- An ordering key is free when this commits.
                if p_lane >= 10 and pg_sequence_last_value('mq.lanes_{q}') & 8192 <> 0 then
                    insert into mq.parked_{q} (event, ordering_key, settled)
                    select (1::bigint << 62) + l.msg_id, l.extra ->> 'k', 1
                    from unnest(a_xids, a_ids) as u (xid, msg_id)
                    cross join lateral (
                        select z.msg_id, z.extra from mq.log_{t} as z where z.lane = p_lane and z.xid = u.xid and z.msg_id = u.msg_id limit 1) as l
                    where l.extra ? 'k'
                      and exists (select from mq.taken_{t} as t where t.xid = u.xid and t.msg_id = u.msg_id and t.no = 0 and t.call = v_call offset 0);
                end if;
                perform mq._answered('mq.notified_{q}') where pg_sequence_last_value('mq.notified_{q}') % 2 = 0;
                -- The more there is to pass, the more likely somebody makes it shorter for the others.
                if random() * 16 < c.passed + v_count - 8 then
                    perform mq._mark_{t}(p_sub, p_lane, c.no::int + 2 * v_count);
                end if;
                return;
            end if;
            exit when v_strikes is not null;

            select l.xmax <> '0'::xid as is_suspect, l.attempt into k from mq.log_{t} as l
            where l.lane = p_lane and l.xid = c.xid and l.msg_id = c.msg_id
              and not exists (select from mq.taken_{t} as y where y.xid = l.xid and y.msg_id = l.msg_id offset 0);
            exit when not found;        -- taken since the walk began
            if not k.is_suspect then
                perform mq._bury_expired_{t}(p_lane, a_xids, a_ids);
                exit;
            end if;
            v_max := (select q.max_attempts from mq.queue as q where q.queue_id = {q});
            s := mq._find_strikes({q}, c.xid, c.msg_id);
            if k.attempt + s.strikes >= v_max then
                perform mq._bury_suspect_{t}(p_lane, c.xid, c.msg_id, s.strikes, v_max);
                exit;
            end if;
            s.register := coalesce(s.register, mq._free_register({q}));
            if s.register is null then
                a_struck := mq._struck({q});        -- it has to wait until another one is dead or done
                exit;
            end if;
            v_strikes := s.strikes + 1;
            perform mq._strike({q}, s.register, c.xid, c.msg_id, v_strikes);
            a_xids := array[c.xid];
            a_ids := array[c.msg_id];
        end loop;
    end loop;
end $$;

-- The first of the lanes that may have something: whether it has, only the walk tells.
create or replace function mq._first_ready_{t}(p_sub smallint, p_lanes smallint[]) returns int
language plpgsql as $$
begin
    return case when cardinality(p_lanes) > 0 then 1 end;
end $$;

-- Appends a mark that says what is taken as far as this transaction knows, what it took itself included: they are there
-- together, or not at all. It goes on in the window of the newest one, or begins the next, and ends behind the last message
-- that is taken, of p_most that it looks at, with at most 1024 held out.
create or replace function mq._mark_{t}(p_sub smallint, p_lane smallint, p_most int default 4096) returns void
language plpgsql as $$
declare
    m      record;
    r      record;
    w      record;
    v_prev pg_snapshot;
    v_cur  pg_snapshot;
begin
    select x.* into m from mq.mark_{t} as x where x.lane = p_lane order by x.lane desc, x.no desc limit 1;
    v_prev := coalesce(m.prev, '1:1:');
    v_cur := coalesce(m.cur, mq._snapshot());
    -- What is held out comes first: he who saw no more than that would take the window for used up.
    p_most := p_most + coalesce(cardinality(m.held_ids), 0);
    r := mq._ranges(v_prev, v_cur, coalesce(m.next_xid, '0'), coalesce(m.next_id, 0));
    with walk as materialized (
        select x.xid, x.msg_id, x.is_taken, x.is_held, row_number() over () as no,
               count(*) filter (where not x.is_taken) over (rows unbounded preceding) as untaken
        from (select * from ({walk}) as y limit p_most + 1) as x),
    last as (
        select coalesce(max(x.no) filter (where x.is_taken and x.untaken <= 1024 and x.no <= p_most), 0) as no, count(*) as n from walk as x)
    select count(*) filter (where x.is_taken and x.no <= l.no) as passed,
           coalesce(array_agg(x.xid order by x.no) filter (where not x.is_taken and (x.is_held or x.no < l.no)), '{}') as xids,
           coalesce(array_agg(x.msg_id order by x.no) filter (where not x.is_taken and (x.is_held or x.no < l.no)), '{}') as ids,
           (array_agg(x.xid order by x.no) filter (where not x.is_held and x.no > l.no))[1] as next_xid,
           (array_agg(x.msg_id order by x.no) filter (where not x.is_held and x.no > l.no))[1] as next_id
      into w from walk as x cross join last as l;
    if coalesce(w.passed, 0) = 0 then
        return;
    end if;
    if w.next_xid is null then
        v_prev := v_cur;        -- used up
        v_cur := null;
    end if;
    insert into mq.mark_{t} (lane, no, prev, cur, next_xid, next_id, held_xids, held_ids)
    values (p_lane, nextval('mq.mark_no_{t}'), v_prev, v_cur, w.next_xid, w.next_id, w.xids, w.ids);
end $$;

-- When the first message was enqueued that is not taken; p_any: even if an open transaction has it, or one rolled back had.
create or replace function mq._first_{t}(p_lane smallint, p_any boolean) returns timestamptz
language plpgsql as $$
declare
    m record;
    r record;
begin
    select x.* into m from mq.mark_{t} as x where x.lane = p_lane order by x.lane desc, x.no desc limit 1;
    r := mq._ranges_ahead(m.prev, m.cur, m.next_xid, m.next_id);
    return (
        select l.enqueued_at
        from (select x.* from ({walk}) as x where not x.is_taken and (p_any or not x.is_suspect) limit 1) as w
        cross join lateral (select * from mq.log_{t} as z where z.lane = p_lane and z.xid = w.xid and z.msg_id = w.msg_id limit 1) as l);
end $$;

-- Those that are locked and expired undelivered become dead letters.
create or replace function mq._bury_expired_{t}(p_lane smallint, p_xids xid8[], p_ids bigint[]) returns void
language plpgsql as $$
begin
    with late as materialized (
        select l.* from unnest(p_xids, p_ids) as u (xid, msg_id)
        cross join lateral (select z.*, z.xmax from mq.log_{t} as z where z.lane = p_lane and z.xid = u.xid and z.msg_id = u.msg_id limit 1) as l
        where l.xmax = '0'::xid and (l.extra ->> 'e')::bigint <= mq._microseconds(clock_timestamp())
          and not exists (select from mq.taken_{t} as y where y.xid = u.xid and y.msg_id = u.msg_id offset 0)),
    took as (
        insert into mq.taken_{t} (xid, msg_id, lane, attempt, outcome) select x.xid, x.msg_id, p_lane, x.attempt, 'expired' from late as x),
    freed as (
        insert into mq.parked_{q} (event, ordering_key, settled) select (1::bigint << 62) + x.msg_id, x.extra ->> 'k', 1 from late as x where x.extra ? 'k')
    insert into mq.dead_letter (queue_id, msg_id, enqueued_at, attempts, reason, history, payload, headers, lane, ordering_key)
    select {q}, x.msg_id, x.enqueued_at, x.attempt - 1, 'expired', coalesce(x.extra -> 'h', '[]'), x.payload, x.headers, p_lane, x.extra ->> 'k' from late as x
    on conflict do nothing;
end $$;

-- A suspect that is locked, not taken, and out of attempts.
create or replace function mq._bury_suspect_{t}(p_lane smallint, p_xid xid8, p_id bigint, p_strikes int, p_max int) returns void
language plpgsql as $$
declare
    v_taken mq._taken;
begin
    insert into mq.taken_{t} (xid, msg_id, lane, attempt, outcome)
    select l.xid, l.msg_id, p_lane, l.attempt + p_strikes, 'rolled back' from mq.log_{t} as l
    where l.lane = p_lane and l.xid = p_xid and l.msg_id = p_id;
    v_taken := (select (l.msg_id, l.enqueued_at, l.attempt + p_strikes, l.payload, l.headers, l.extra, 'rolled back', null, p_lane)::mq._taken
                from mq.log_{t} as l where l.lane = p_lane and l.xid = p_xid and l.msg_id = p_id);
    perform mq._take_back({q}, p_max, null, array[v_taken], 'rolled back', true);
end $$;

-- For upkeep: buries suspects that are out of attempts, in a transaction that will commit. Returns how many.
create or replace function mq._bury_{t}(p_lane smallint) returns int
language plpgsql as $$
declare
    v_max    constant int := (select q.max_attempts from mq.queue as q where q.queue_id = {q});
    a_struck constant text[] := mq._struck({q});
    m        record;
    r        record;
    c        record;
    s        record;
    v_count  int := 0;
begin
    select x.* into m from mq.mark_{t} as x where x.lane = p_lane order by x.lane desc, x.no desc limit 1;
    r := mq._ranges_ahead(m.prev, m.cur, m.next_xid, m.next_id);
    for c in
        select w.xid, w.msg_id, w.attempt from (select * from ({walk}) as x limit 10000) as w
        where w.is_suspect and not w.is_taken and (w.attempt >= v_max or concat(w.xid, '.', w.msg_id) = any (a_struck))
        limit 1000
    loop
        s := mq._find_strikes({q}, c.xid, c.msg_id);
        continue when c.attempt + s.strikes < v_max or not pg_try_advisory_xact_lock(('mq.segment'::regclass::oid::bigint & 2147483647)::int, (hashint8extended(c.msg_id, {q}) & 2147483647)::int);
        continue when exists (select from mq.taken_{t} as y where y.xid = c.xid and y.msg_id = c.msg_id);
        s := mq._find_strikes({q}, c.xid, c.msg_id);
        perform mq._bury_suspect_{t}(p_lane, c.xid, c.msg_id, s.strikes, v_max);
        v_count := v_count + 1;
    end loop;
    return v_count;
end $$;
    $x$, '{never}', $$'9999-12-31 00:00:00+00'::timestamptz$$), '{walk}', $x$
            select l.xid, l.msg_id, l.attempt, l.xmax <> '0'::xid as is_suspect, true as is_held,
                   exists (select from mq.taken_{t} as y where y.xid = l.xid and y.msg_id = l.msg_id offset 0) as is_taken
            from unnest(m.held_xids, m.held_ids) as u (xid, msg_id)
            cross join lateral (
                select z.xid, z.msg_id, z.attempt, z.xmax from mq.log_{t} as z
                where z.lane = p_lane and z.xid = u.xid and z.msg_id = u.msg_id limit 1) as l
            union all
            select l.xid, l.msg_id, l.attempt, l.xmax <> '0'::xid, false,
                   exists (select from mq.taken_{t} as y where y.xid = l.xid and y.msg_id = l.msg_id offset 0)
            from unnest(r.lo_xids, r.lo_ids, r.hi_xids) as u (lo_xid, lo_id, hi_xid)
            cross join lateral (
                select z.xid, z.msg_id, z.attempt, z.xmax from mq.log_{t} as z
                where z.lane = p_lane and (z.xid, z.msg_id) >= (u.lo_xid, u.lo_id) and z.xid <= u.hi_xid
                order by z.lane, z.xid, z.msg_id) as l$x$);
end $f$;
