-- max_in_flight: how many messages of a queue may be leased, and not settled, at a time. rate_limit: how many may be delivered in
-- any time of rate_period. Both are exact, for there is one who leases at a time, and he counts:
--
-- Whoever leases in a queue with a limit has its lock -9 from before he counts until his transaction ends. His statements are newer
-- than the lock, so he sees each lease that was made before; one that is settled and not committed still counts. Nothing that
-- changes with each message is stored for max_in_flight, so nothing leaks when a consumer dies, and a limit may be set
-- while messages are out. For the rate there is mq.meter, of which nothing is ever updated.
--
-- Order of locks: the queue's row (alter_queue); -9; then lanes and their gates, slices, promotion (-2), the sweep (-6). dequeue only
-- tries -9, for 250 ms at most, so it is part of no deadlock. Where nothing is delivered it is given back, with all that was done.
--
-- That there are limits say the row and bit 14 of lanes_<q>, and bit 31 of register_<q>, which sends dequeue this way. They are
-- never taken back, so where a limit was removed -9 is taken shared: who sets the next one has it alone.

-- From low_block on, and of the laggards: what was leased less what was settled. (What is leased to nobody is settled at once, and
-- what moved to mq.survivor is settled here.) One statement; it and all that calls it are stable, so one snapshot.
create or replace function mq._template_limit() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
create or replace function mq._in_flight_{t}(p_lanes smallint[]) returns bigint
language plpgsql stable as $$
begin
    return (
        select sum(
            coalesce((select sum(e.n) from mq.lease_{t} as e
                      where e.subscription = 1 and e.lane = u.lane and e.block_no >= b.low_block), 0)
            - coalesce((select sum(s.n) from mq.settlement_{t} as s
                        where s.subscription = 1 and s.lane = u.lane and s.block_no >= b.low_block), 0)
            + coalesce((
                select sum((select sum(e.n) from mq.lease_{t} as e
                            where e.subscription = 1 and e.lane = u.lane and e.block_no = y.no)
                           - coalesce((select sum(s.n) from mq.settlement_{t} as s
                                       where s.subscription = 1 and s.lane = u.lane and s.block_no = y.no), 0))
                from unnest(b.laggards) as y (no)), 0))
        from unnest(p_lanes) as u (lane)
        cross join lateral (
            select x.low_block, x.laggards from mq.block_{t} as x where x.subscription = 1 and x.lane = u.lane
            order by x.subscription desc, x.lane desc, x.block_no desc limit 1) as b);
end $$;
    $x$;
end $f$;

-- How many messages of a queue are leased and not settled, whether or not their leases ran out.
create or replace function mq._in_flight(queue_id int) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_slot  int;
    v_count bigint;
    v_sum   bigint := (select count(*) from mq.survivor as s where s.queue_id = _in_flight.queue_id);
begin
    for v_slot in select x from mq._live_slots(_in_flight.queue_id) as x loop
        execute 'select mq._in_flight_' || _in_flight.queue_id || '_' || v_slot || '($1)' into v_count using mq._lanes(_in_flight.queue_id);
        v_sum := v_sum + coalesce(v_count, 0);
    end loop;
    return v_sum;
end $$;

-- What counts for the rate: rate_period, and a little more, as those who get the messages have other clocks. In seconds, for
-- a day is not always as long.
create or replace function mq._rate_window(q mq.queue) returns interval
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
    v_seconds constant float8 := extract(epoch from q.rate_period);
begin
    return make_interval(secs => v_seconds + least(v_seconds / 100, 0.05));
end $$;

-- How many were delivered in the last rate_period, and when that one of them was which leaves it first. Two look-ups, however many
-- there are: each row has the sum of all before it, and its own.
create or replace function mq._metered(q mq.queue, out delivered bigint, out first_at timestamptz)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_now   constant timestamptz := clock_timestamp();
    c_since constant timestamptz := c_now - mq._rate_window(q);
    f mq.meter;
    l mq.meter;
begin
    select * into f from mq.meter as m where m.queue_id = q.queue_id and m.at > c_since
    order by m.queue_id, m.at, m.total limit 1;
    select * into l from mq.meter as m where m.queue_id = q.queue_id
    order by m.queue_id desc, m.at desc, m.total desc limit 1;
    delivered := case when l.at > c_now then 0 else coalesce(l.total - f.total + f.n, 0) end;        -- see _mend_meter
    first_at := f.at;
end $$;

-- How many of n messages may be delivered now.
create or replace function mq._allowed(q mq.queue, n int) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return greatest(0, least(n,
        case when q.max_in_flight is not null then q.max_in_flight - mq._in_flight(q.queue_id) end,
        case when q.rate_limit is not null then q.rate_limit - (mq._metered(q)).delivered end));
end $$;

-- When the rate lets something through again; null: it does.
create or replace function mq._rate_back_at(q mq.queue) returns timestamptz
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    m record;
begin
    if q.rate_limit is not null then
        m := mq._metered(q);
        if m.delivered >= q.rate_limit then
            return m.first_at + mq._rate_window(q);
        end if;
    end if;
    return null;
end $$;

-- What was delivered just now. After the leases, as the look was before them: the time between two rows is never more than that between
-- two deliveries. Behind the lock, so the newest row is the last; at is never before it, though the clock may be.
create or replace function mq._count_delivered(q mq.queue, n int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    insert into mq.meter (queue_id, at, total, n)
    select q.queue_id, greatest(clock_timestamp(), l.at), coalesce(l.total, 0) + _count_delivered.n, _count_delivered.n
    from (select 1) as one
    left join lateral (
        select m.at, m.total from mq.meter as m where m.queue_id = q.queue_id
        order by m.queue_id desc, m.at desc, m.total desc limit 1) as l on true;
end $$;

-- Behind the lock: where the clock was set back, what was delivered later than now was delivered now, for all we know.
create or replace function mq._mend_meter(q mq.queue) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_now constant timestamptz := clock_timestamp();
begin
    update mq.meter as m set at = c_now where m.queue_id = q.queue_id and m.at > c_now;
end $$;

-- By upkeep: what no rate looks at any more. It is in front of the rows that are looked at, in the order of the index, so those who look never walk over what an
-- old snapshot keeps.
create or replace function mq._forget_delivered(q mq.queue) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    -- The row as this statement sees it: a rate may just have been set.
    delete from mq.meter as m using mq.queue as x
    where m.queue_id = q.queue_id and x.queue_id = m.queue_id
      and (x.rate_limit is null or m.at < clock_timestamp() - mq._rate_window(x) - interval '1 minute');
end $$;

-- Whether dequeue has to go the way below, if the bits say so. Where there is no limit any more, none is set until this transaction ends.
create or replace function mq._is_limited(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    -- The row behind the lock, in a statement that is newer.
    return mq._has_limit(_is_limited.queue_id)
        or not pg_try_advisory_xact_lock_shared(mq._lock_class(), mq._lock_key(_is_limited.queue_id, -9))
        or mq._has_limit(_is_limited.queue_id);
end $$;

create or replace function mq._has_limit(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return exists (select from mq.queue as q where q.queue_id = _has_limit.queue_id and num_nonnulls(q.max_in_flight, q.rate_limit) > 0);
end $$;

-- Leases up to n messages, as many as the limits allow. In a queue that is full what ran out is taken back first, for it counts.
-- acked: so many the caller has acknowledged in this transaction; if it does not make use of them, somebody else may.
create or replace function mq._take_within_limits(queue_id int, open_slot int, n int, vt interval, begun boolean, acked int, give_up timestamptz)
returns setof mq.delivery language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_wrote constant boolean := pg_current_xact_id_if_assigned() is not null;
    q       mq.queue;
    v_most  int;
    v_count int := 0;
    v_again mq._taken[];
    v_taken int;
begin
    begin
        if mq._enter_limit(_take_within_limits.queue_id, n, begun) then
            -- Each statement from here on is newer than the lock.
            select * into q from mq.queue as x where x.queue_id = _take_within_limits.queue_id;
            perform mq._mend_meter(q) where q.rate_limit is not null;
            v_most := mq._allowed(q, n);
            if v_most > 0 then
                return query select * from mq._take_allowed(q, open_slot, v_most, vt, begun, give_up);
                get diagnostics v_count = row_count;
            end if;
            if v_count = 0 and mq._may_sweep(q, open_slot, begun) then
                select x.again, x.taken into v_again, v_taken from mq._sweep(q.queue_id, q.max_attempts, 100) as x;
                v_most := mq._allowed(q, n);
                if v_most = 0 then
                    -- More are out than may be: it waits with the others.
                    perform mq._defer(q.queue_id, q.register, v_again, array_fill(clock_timestamp(), array[cardinality(v_again)])) where cardinality(v_again) > 0;
                elsif cardinality(v_again) > 0 then
                    return query select * from mq._redeliver(q.name, open_slot, v_again, v_most, vt);
                    get diagnostics v_count = row_count;
                    if v_count = 0 then
                        raise exception using errcode = 'MQ0ZZ';
                    end if;
                elsif v_taken > 0 then
                    return query select * from mq._take_allowed(q, open_slot, v_most, vt, begun, give_up);
                    get diagnostics v_count = row_count;
                end if;
            end if;
            if v_count > 0 and q.rate_limit is not null then
                perform mq._count_delivered(q, v_count);
            end if;
        end if;
        -- What was only buried, or skipped, stays so.
        if v_count = 0 and (c_wrote or pg_current_xact_id_if_assigned() is null) then
            raise exception using errcode = 'MQ0ZZ';
        end if;
    exception
        when sqlstate 'MQ0ZZ' then
            null;       -- gives the locks back
    end;
    perform mq._tell_of_room(_take_within_limits.queue_id) where acked > v_count;
end $$;

-- Takes the lock -9. Where somebody has it, look before waiting: for a queue that is full nobody waits. It is only tried, now and
-- then, by whoever happens to run: were it handed on in turn, each would have to be woken first, and on a busy machine that takes
-- several times as long as what is done with the lock in hand.
create or replace function mq._enter_limit(queue_id int, n int, begun boolean) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_key     constant int := mq._lock_key(_enter_limit.queue_id, -9);
    c_give_up constant timestamptz := clock_timestamp() + interval '250 milliseconds';
    v_pause   float8 := 0.001;
    q         mq.queue;
begin
    if pg_try_advisory_xact_lock(mq._lock_class(), c_key) then
        return true;
    end if;
    select * into q from mq.queue as x where x.queue_id = _enter_limit.queue_id;
    if mq._allowed(q, n) = 0 and not mq._may_sweep(q, (pg_sequence_last_value(q.register) & 65535)::int, begun) then
        return false;
    end if;
    while clock_timestamp() < c_give_up loop
        if pg_try_advisory_xact_lock(mq._lock_class(), c_key) then
            return true;
        end if;
        perform pg_sleep(v_pause * (0.5 + random()));
        v_pause := least(v_pause * 2, 0.016);
    end loop;
    return false;
end $$;

-- Whether there is something to take back, and its taker could deliver it. (dequeue sweeps in no transaction that wrote before.)
create or replace function mq._may_sweep(q mq.queue, open_slot int, begun boolean) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return not begun and mq._rate_back_at(q) is null and mq._is_stale(q.queue_id, open_slot, mq._lanes(q.queue_id));
end $$;

-- Leases n messages: the short way of dequeue where there are neither priorities nor several segments, else the general one.
create or replace function mq._take_allowed(q mq.queue, open_slot int, n int, vt interval, begun boolean, give_up timestamptz)
returns setof mq.delivery language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_key   constant bigint := q.queue_id::bigint * 65536 + open_slot;
    v_one   mq.delivery;
    v_claim mq._claim;
begin
    if not begun and pg_sequence_last_value(q.lanes) & 1023 = 0 and (pg_sequence_last_value(q.register) >> 16) & 32767 = open_slot then
        if n = 1 then
            v_one := mq._take_one_0(c_key, vt);
            if v_one.msg_id is not null then
                return next v_one;
                return;
            end if;
        else
            v_claim := mq._claim_0(c_key, n, vt);
            if v_claim.n > 0 then
                return query select * from mq._read_0(c_key, v_claim);
                return;
            end if;
        end if;
    end if;
    return query select * from mq._take_by_priority(q.queue_id, q.priority_ageing, open_slot, n, vt, begun, give_up);
end $$;

-- Messages of a queue with max_in_flight were settled: consumers that found it full may come.
create or replace function mq._tell_of_room(queue_id int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform mq._notify(q.queue_id, q.name, q.notify, q.notified) from mq.queue as q
    where q.queue_id = _tell_of_room.queue_id and q.max_in_flight is not null;
end $$;

-- Sends dequeue this way from now on, whether or not the caller commits.
create or replace function mq._mind_limits(q mq.queue) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform mq._use(q.queue_id, q.lanes, 16384);
    perform mq._write_register(q.queue_id, q.register, 0, 1::bigint << 31);
end $$;

-- For who sets the first limit, with the row locked: afterwards nobody has leased, and not committed, without the lock. Who read the register
-- before its bit was set may have; he has a lock on it until his transaction ends. All others come this way, and to -9.
create or replace function mq._begin_limits(q mq.queue) returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
declare
    c_give_up constant timestamptz := clock_timestamp() + interval '10 seconds';
    c_is_new  constant boolean := pg_sequence_last_value(q.lanes) & 16384 <> 0 is not true;
    a_readers text[];
begin
    perform mq._mind_limits(q);
    perform pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(q.queue_id, -9));
    if c_is_new then
        a_readers := array(select x from mq._readers(q.register) as x);
        while a_readers && array(select x from mq._readers(q.register) as x) loop
            if clock_timestamp() > c_give_up then
                perform mq._in_use();
            end if;
            perform pg_sleep(0.005);
        end loop;
    end if;
end $$;

-- The other transactions that have read a register.
create or replace function mq._readers(register regclass) returns setof text
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return query
        select l.virtualtransaction from pg_locks as l
        where l.locktype = 'relation' and l.relation = _readers.register and l.granted and l.pid is distinct from pg_backend_pid()     -- null: a prepared transaction
          and l.database = (select d.oid from pg_database as d where d.datname = current_database());
end $$;

-- The same in seconds, for who waits in dequeue.
create or replace function mq._rate_back_in(queue_id int) returns float8
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return (select greatest(extract(epoch from mq._rate_back_at(q) - clock_timestamp()), 0.001) from mq.queue as q where q.queue_id = _rate_back_in.queue_id);
end $$;
