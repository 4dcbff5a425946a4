-- The slots that hold something, the oldest first. After a rotation that was rolled back the open one has no segment yet.
create or replace function mq._live_slots(queue_id int) returns setof int
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return query
        select x.slot
        from (select s.slot, s.segment from mq.segment as s where s.queue_id = _live_slots.queue_id and s.drained_at is null
              union all
              select (pg_sequence_last_value(q.register) & 65535)::int, 9223372036854775807 from mq.queue as q
              where q.queue_id = _live_slots.queue_id
                and not exists (select from mq.segment as s
                                where s.queue_id = q.queue_id and s.drained_at is null and s.slot = pg_sequence_last_value(q.register) & 65535)) as x
        order by x.segment;
end $$;

-- Whether messages are as big as what a call takes back at most, 64 MB: arrays of more than 1 GB cannot be.
create or replace function mq._is_enough(taken mq._taken[]) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return coalesce((select sum(pg_column_size(x.payload) + coalesce(pg_column_size(x.headers), 0)) from unnest(taken) as x) >= 67108864, false);
end $$;

-- One sweeper at a time. Its lock is the session's, and given back at once: a consumer may sit in its transaction.
create or replace function mq._sweep(queue_id int, max_attempts int, most int, out again mq._taken[], out taken int)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_key constant int := mq._lock_key(_sweep.queue_id, -6);
    v_locked boolean := false;
    v_count  int;
begin
    again := '{}'::mq._taken[];
    taken := 0;
    if mq._is_transactional(_sweep.queue_id) then
        return;         -- it has no leases
    end if;
    begin
        v_locked := pg_try_advisory_lock(mq._lock_class(), c_key);
        if v_locked then
            select x.again, x.taken into again, taken from mq._sweep_slots(_sweep.queue_id, _sweep.max_attempts, _sweep.most) as x;
            v_locked := not pg_advisory_unlock(mq._lock_class(), c_key);
            v_count := cardinality(again);
            again := mq._park(_sweep.queue_id, again);       -- back to their keys
            perform mq._notify(q.queue_id, q.name, q.notify, q.notified) from mq.queue as q where q.queue_id = _sweep.queue_id and cardinality(again) < v_count;
        end if;
    exception
        when query_canceled or others then
            perform pg_advisory_unlock(mq._lock_class(), c_key) where v_locked;
            raise;
    end;
end $$;

-- Takes back a lease that outlived its segment and ran out, as much of it as fits; null: it was extended, or somebody is
-- settling a part of it. What is left is lost to its consumer, too: it goes on under a token that nobody has.
create or replace function mq._sweep_survivors(queue_id int, token bigint) returns mq._taken[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_until timestamptz;
    v_token constant bigint := (random() * 4e18 + date_part('epoch', clock_timestamp()) * 1e9)::bigint;
    v_taken mq._taken[];
begin
    select max(x.leased_until) into v_until
    from (select s.leased_until from mq.survivor as s
          where s.queue_id = _sweep_survivors.queue_id and s.token = _sweep_survivors.token for update nowait) as x;
    if v_until < clock_timestamp() then
        v_taken := mq._settle_survivors(_sweep_survivors.queue_id, _sweep_survivors.token, 'expired', null);
        update mq.survivor as s set token = v_token
        where s.queue_id = _sweep_survivors.queue_id and s.token = _sweep_survivors.token;
    end if;
    return v_taken;
exception
    when lock_not_available then
        return null;
end $$;

-- Takes back what ran out, in all segments of a queue, at most about "most" messages; returns those to deliver again.
-- Never called with a lane locked.
create or replace function mq._sweep_slots(queue_id int, max_attempts int, most int, out again mq._taken[], out taken int)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_slot   int;
    v_lane   smallint;
    v_token  bigint;
    v_taken  mq._taken[];
    v_all    mq._taken[] := '{}'::mq._taken[];
    v_leases int := 0;
begin
    for v_slot, v_lane in
        select x, u.lane from mq._live_slots(_sweep_slots.queue_id) as x cross join unnest(mq._lanes(_sweep_slots.queue_id)) as u (lane)
    loop
        begin
            execute 'select array_agg(x) from mq._sweep_' || _sweep_slots.queue_id || '_' || v_slot || '(1::smallint, $1, $2) as x'
                into v_taken using v_lane, _sweep_slots.most - cardinality(v_all);
        exception
            when lock_not_available then
                v_taken := null;        -- it is being emptied, or purged: another time
        end;
        v_all := v_all || v_taken;
        exit when cardinality(v_all) >= _sweep_slots.most or mq._is_enough(v_all);
    end loop;
    -- Leases that outlived their segment: one at least, whatever the segments gave, if there is room for it.
    for v_token in
        select x.token from mq.survivor as x where x.queue_id = _sweep_slots.queue_id and x.leased_until < clock_timestamp()
        group by x.queue_id, x.token order by x.queue_id, x.token
    loop
        exit when v_leases >= 64 or v_leases > 0 and cardinality(v_all) >= _sweep_slots.most or mq._is_enough(v_all);
        v_taken := mq._sweep_survivors(_sweep_slots.queue_id, v_token);
        v_all := v_all || v_taken;
        v_leases := v_leases + (v_taken is not null)::int;
    end loop;
    taken := cardinality(v_all);
    again := case when taken = 0 then v_all else mq._take_back(_sweep_slots.queue_id, _sweep_slots.max_attempts,
        (select x.max_depth from mq.queue as x where x.queue_id = _sweep_slots.queue_id), v_all, null) end;
end $$;

-- Whether a sweep would find a lease that ran out, or, behind the open slot, a hole: those of the open one a consumer takes
-- itself. Looks at a bounded number, writes nothing. Every empty poll asks here. So the caller says which lanes there are: to
-- find that out is a function more, with a setting of its own, which costs tens of thousands of instructions. And what is executed is
-- a single call, for it is planned each time.
create or replace function mq._is_stale(queue_id int, open_slot int, lanes smallint[]) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_slot  int;
    v_stale boolean;
begin
    for v_slot in select x from mq._live_slots(_is_stale.queue_id) as x loop
        execute 'select mq._is_stale_' || _is_stale.queue_id || '_' || v_slot || '(1::smallint, $1, $2)'
            into v_stale using _is_stale.lanes, v_slot <> _is_stale.open_slot;
        if v_stale then
            return true;
        end if;
    end loop;
    return exists (select from mq.survivor as s where s.queue_id = _is_stale.queue_id and s.leased_until < clock_timestamp());
end $$;
