-- _gather_<slot>: one lease over parts of several slices, or over part of a slice that is bigger than n. Takes the
-- given slices in order, as far as their locks are free; each is looked at with a snapshot newer than its lock. No
-- slices given: first from p_from, or the last one that was begun, as a consumer of small pieces goes on in
-- order; if nothing is free there, all that are not leased to their end.
create or replace function mq._template_gather() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
-- Whether the message there, born in a block of the lane, has an ordering key: then all of its slice has one.
create or replace function mq._is_run_{t}(p_lane smallint, p_xid xid8, p_id bigint) returns boolean
language plpgsql as $$
begin
    return exists (select from mq.log_{t} as x where x.lane = -1 - p_lane and x.xid = p_xid and x.msg_id = p_id and x.extra ? 'k'
                   order by x.lane, x.xid, x.msg_id limit 1);
end $$;

create or replace function mq._gather_{t}(p_sub smallint, p_lane smallint, p_block_no bigint, p_slices int[], p_had boolean, p_n int, p_vt interval, p_from int default null)
returns setof mq.delivery language plpgsql as $$
declare
    c_class  constant int := {class};
    b        record;
    l        record;
    g        int;
    v_left   int;
    v_all    boolean;
    v_take   int;
    v_xid    xid8;
    v_id     bigint;
    v_free   int;
    v_rest   record;
    v_token  bigint;
    v_until  timestamptz;
    v_receipt text;
    a_slice  int[];     a_part  int[];      a_n      int[];
    a_rest   int[];     a_xid   xid8[];     a_id     bigint[];
    a_rest_xid xid8[];  a_rest_id bigint[];
    a_late   bigint[];              -- expired
    v_expired boolean := false;     -- so have all that _expire_ found
    v_begun  int;                   -- the slice that is left with a rest
    v_late   mq._taken[];
    v_next   bigint;
    v_fit    int;                   -- messages in whole runs of ordering keys
    v_split  int;                   -- a slice that began with a run that is longer than what is wanted,
    v_back   int;                   -- and by how much
begin
    select x.born, x.first_xids, x.first_ids, x.counts, x.xid is not distinct from pg_current_xact_id_if_assigned() as is_own into b from mq.block_{t} as x
    where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no;
    if not found then
        return;
    end if;
    loop
        v_left := p_n;
        v_token := {token};
        v_begun := null;
        v_split := null;
        a_slice := null;    a_part := null;     a_n := null;        a_rest := null;
        a_xid := null;      a_id := null;       a_rest_xid := null; a_rest_id := null;
        a_late := '{}';
        v_all := p_slices is null;
        if v_all then
            -- What expired is leased to nobody, in no order.
            select least(p_from, x.slice) into g from mq.lease_{t} as x
            where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no and (p_lane = 0 or x.leased_until > '-infinity')
            order by x.subscription desc, x.lane desc, x.block_no desc, x.slice desc, x.part desc limit 1;
            p_slices := array(select generate_series(coalesce(g, 0), cardinality(b.counts) - 1));
        end if;
        for v_pass in 1 .. 2 loop
            foreach g in array p_slices loop
                exit when v_left = 0;
                -- What is born may be runs of ordering keys, which are not cut for what is lacking.
                continue when p_lane > 0 and g < b.born and a_slice is not null and b.counts[g + 1] > v_left;
                -- Look before locking, so as not to keep the lock of what is done.
                if v_all then
                    select x.rest into l from mq.lease_{t} as x
                    where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no and x.slice = g
                    order by x.subscription desc, x.lane desc, x.block_no desc, x.slice desc, x.part desc limit 1;
                    continue when l.rest = 0;
                end if;
                continue when not b.is_own and not pg_try_advisory_xact_lock(c_class, (hashint8extended(p_block_no * 65536 + g, {seed} + p_lane) & 2147483647)::int);
                select x.part, x.rest, x.rest_xid, x.rest_id into l from mq.lease_{t} as x
                where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no and x.slice = g
                order by x.subscription desc, x.lane desc, x.block_no desc, x.slice desc, x.part desc limit 1;
                continue when l.rest = 0;
                if p_had and not b.is_own and g is distinct from p_from then     -- which has it locked already
                    perform mq._count_claim();
                end if;
                v_free := coalesce(l.rest, b.counts[g + 1]);
                v_xid := coalesce(l.rest_xid, b.first_xids[g + 1]);
                v_id := coalesce(l.rest_id, b.first_ids[g + 1]);
                v_take := least(v_left, v_free);
                v_rest := null;
                if v_take < v_free then
                    v_begun := g;
                    select x.xid, x.msg_id into v_rest from mq.log_{t} as x
                    where x.lane = case when g < b.born then -1 - p_lane else p_lane end and (x.xid, x.msg_id) >= (v_xid, v_id)
                    order by x.lane, x.xid, x.msg_id offset v_take limit 1;
                    -- A run has an xid of its own. A key is not shared: as many whole runs as there is room for; or else the front of the
                    -- first, and what is left of that goes back.
                    if p_lane > 0 and g < b.born and mq._is_run_{t}(p_lane, v_xid, v_id) then
                        select count(*) filter (where x.xid < v_rest.xid), count(*) filter (where x.xid = v_rest.xid), min(x.msg_id) filter (where x.xid = v_rest.xid)
                          into v_fit, v_back, v_next
                        from mq.log_{t} as x where x.lane = -1 - p_lane and (x.xid, x.msg_id) >= (v_xid, v_id) and x.xid <= v_rest.xid;
                        if v_fit > 0 then
                            v_take := v_fit;
                            v_rest.msg_id := v_next;
                        else
                            v_split := g;
                            v_back := v_back - v_take;
                        end if;
                    end if;
                    a_rest_xid := a_rest_xid || v_rest.xid;
                    a_rest_id := a_rest_id || v_rest.msg_id;
                else
                    a_rest_xid := a_rest_xid || null::xid8;
                    a_rest_id := a_rest_id || null::bigint;
                end if;
                a_slice := a_slice || g;
                a_part := a_part || coalesce(l.part + 1, 0);
                a_n := a_n || v_take;
                a_rest := a_rest || (v_free - v_take);
                a_xid := a_xid || v_xid;
                a_id := a_id || v_id;
                v_left := v_left - v_take;
            end loop;
            exit when a_slice is not null or not v_all;
            -- As many leases as slices, and each to the end: nothing is left. Where slices were taken in parts, ask each.
            exit when v_pass = 2 or cardinality(b.counts) is not distinct from (
                select count(*)::int from (
                    select x.rest from mq.lease_{t} as x
                    where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no
                    order by x.subscription, x.lane, x.block_no, x.slice, x.part limit cardinality(b.counts)) as y
                where y.rest = 0);
            p_slices := array(select generate_series(0, cardinality(b.counts) - 1));
        end loop;
        if a_slice is null then
            return;
        end if;
        -- For the session's next call: where it goes on.
        if v_begun is not null or current_setting('mq.begun_{t}', true) <> '' then
            perform set_config('mq.begun_{t}', case when v_begun is not null then concat_ws('.', p_sub, p_lane, p_block_no, v_begun) else '' end, false);
        end if;
        v_until := clock_timestamp() + p_vt;
        v_receipt := '{q}.{k}.' || p_sub || '.' || p_lane || '.' || p_block_no || '.' || a_slice[1] || '.' || a_part[1] || '.'
            || pg_current_xact_id()::text || '.' || v_token::text;
        insert into mq.lease_{t} (subscription, lane, block_no, slice, part, head_slice, head_part, n, total, rest,
                                  first_id, rest_id, first_xid, rest_xid, leased_until, token)
        select p_sub, p_lane, p_block_no, u.slice, u.part, a_slice[1], a_part[1], u.n, p_n - v_left, u.rest,
               u.id, u.rest_id, u.xid, u.rest_xid, v_until, v_token
        from unnest(a_slice, a_part, a_n, a_rest, a_xid, a_id, a_rest_xid, a_rest_id) as u (slice, part, n, rest, xid, id, rest_xid, rest_id);
        if v_split is not null then
            perform mq._cancel_slice(x, {k}, p_lane, p_block_no, v_split, '{}', v_back) from mq.queue as x where x.queue_id = {q};
        end if;
        if p_lane > 0 and mq._uses_ttl({q}) then
            a_late := array(
                select m.msg_id
                from unnest(a_slice, a_n, a_xid, a_id) as u (slice, n, xid, id)
                cross join lateral (
                    select * from mq.log_{t} as x
                    where x.lane = case when u.slice < b.born then -1 - p_lane else p_lane end and (x.xid, x.msg_id) >= (u.xid, u.id)
                    order by x.lane, x.xid, x.msg_id limit u.n) as m
                where (m.extra ->> 'e')::bigint <= mq._microseconds(clock_timestamp()));
            if cardinality(a_late) > 0 then
                loop        -- big ones come in parts
                    v_late := array(select x from mq._settle_{t}(p_sub, p_lane, p_block_no, a_slice[1], a_part[1], v_token, 'undelivered', a_late) as x);
                    exit when cardinality(v_late) = 0;
                    perform mq._bury_undelivered({q}, v_late);
                end loop;
                perform mq._expire_{t}(p_sub, p_lane, p_block_no) where not v_expired;      -- that reads all of the block
                v_expired := true;
            end if;
        end if;
        exit when cardinality(a_late) < p_n - v_left;
        -- All of it had expired: the next instead.
        p_slices := null;
        p_from := a_slice[1];
    end loop;
    return query
        select m.msg_id, v_receipt, m.attempt::int, m.enqueued_at, v_until, m.payload, m.headers
        from unnest(a_slice, a_n, a_xid, a_id) as u (slice, n, xid, id)
        cross join lateral (
            select * from mq.log_{t} as x
            where x.lane = case when u.slice < b.born then -1 - p_lane else p_lane end and (x.xid, x.msg_id) >= (u.xid, u.id)
            order by x.lane, x.xid, x.msg_id limit u.n) as m
        where m.msg_id <> all (a_late);
end $$;
    $x$;
end $f$;
