-- Lanes: a queue's strands, each with cursors of its own, in the tables of its segments. Lane 0 has plain messages; lane
-- 10 + p what has priority p, or, with p = 4, which is that of lane 0 as well, any other option that consumers have to mind.
-- Messages that are born in a block are in the log as lane -1 - lane of that block, where no window reads them.
--
-- lanes_<q>, a register, has a bit for each lane that was ever used, but for lane 0, and bit 10 for a ttl,
-- bit 11 for what was cancelled, bit 12 for a dedup key that its message's end sets free, bit 13 for ordering keys, bit 14 for limits (_internal/limit.sql); bit 31 of register_<q> says that there
-- are any, so that nobody else pays. Both are set, without a transaction, before anything is written there, and never taken
-- back: what had committed before a dequeue began, that dequeue looks for.
create or replace function mq._lane_of(priority int, is_plain boolean default true) returns smallint
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    if _lane_of.priority not between 0 and 9 then
        perform mq._invalid('priority', format('%s is not between 0 and 9.', _lane_of.priority), '9 is delivered first; 4 is the default.');
    end if;
    return case when is_plain and coalesce(_lane_of.priority, 4) = 4 then 0 else 10 + coalesce(_lane_of.priority, 4) end;
end $$;

create or replace function mq._priority_of(lane smallint) returns int
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return case lane when 0 then 4 else lane - 10 end;
end $$;

-- Those in use, the highest priority first; 14 after 0.
create or replace function mq._lanes(queue_id int) returns smallint[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_used bigint := pg_sequence_last_value(to_regclass('mq.lanes_' || _lanes.queue_id));
begin
    if v_used is null then
        return '{0}'::smallint[];
    end if;
    return array(select x from unnest('{19,18,17,16,15,0,14,13,12,11,10}'::smallint[]) as x where x = 0 or v_used & (1::bigint << x - 10) <> 0);
end $$;

-- Sets bits of lanes_<q>, unless they are set.
create or replace function mq._use(queue_id int, lanes regclass, bits bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if coalesce(pg_sequence_last_value(_use.lanes), 0) & _use.bits <> _use.bits then
        perform mq._write_register(_use.queue_id, _use.lanes, 0, _use.bits);
    end if;
end $$;

-- Before anything is written to a lane. The lane, and what its messages may have, before the bit that says to look for lanes.
create or replace function mq._use_lane(queue_id int, register regclass, lanes regclass, lane smallint, has_ttl boolean default false, has_key boolean default false,
                                        has_order boolean default false) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_bits constant bigint := case when lane >= 10 then (1::bigint << (lane - 10)) | (coalesce(has_ttl, false)::int << 10) | (coalesce(has_key, false)::int << 12)
                                                           | (coalesce(has_order, false)::int << 13) end;
begin
    perform mq._use(_use_lane.queue_id, _use_lane.lanes, v_bits);
    if v_bits is not null and mq._has_lanes(pg_sequence_last_value(_use_lane.register)) is not true then      -- null: a copy that came without
        perform mq._write_register(_use_lane.queue_id, _use_lane.register, 0, 1::bigint << 31);
    end if;
end $$;

-- Whether there ever was a message with a ttl.
create or replace function mq._uses_ttl(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return pg_sequence_last_value(to_regclass('mq.lanes_' || _uses_ttl.queue_id)) & 1024 <> 0;
end $$;

create or replace function mq._has_lanes(register bigint) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return _has_lanes.register & (1::bigint << 31) <> 0;
end $$;

-- Lanes in the order in which they have their turn: by priority, of two that have the same the one with the older message
-- first. With ageing a lane's priority is one more for each time that passed since its oldest message was enqueued (or, if
-- that is deferred, became due).
create or replace function mq._lanes_in_turn(queue_id int, ageing interval, slots int[], lanes smallint[]) returns smallint[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_now  constant timestamptz := clock_timestamp();
    a_ages float8[] := '{}'::float8[];
begin
    for i in 1 .. cardinality(lanes) loop
        a_ages := a_ages || coalesce(extract(epoch from greatest(v_now - least(
            (select min(mq._oldest_ready(_lanes_in_turn.queue_id, x, lanes[i])) from unnest(slots) as x),
            mq._oldest_due(_lanes_in_turn.queue_id, lanes[i]), mq._oldest_of_keys(_lanes_in_turn.queue_id, lanes[i])), '0')), 0)::float8;
    end loop;
    return array(
        select u.lane from unnest(lanes, a_ages) as u (lane, age)
        order by mq._priority_of(u.lane) + coalesce(u.age / extract(epoch from _lanes_in_turn.ageing)::float8, 0) desc, u.age desc, u.lane);
end $$;

-- Which of these lanes is the first in which there might be something, in any of these slots.
create or replace function mq._first_ready(queue_id int, slots int[], lanes smallint[]) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_slot int;
    v_at   int;
begin
    foreach v_slot in array slots loop
        execute 'select least($2, mq._first_ready_' || _first_ready.queue_id || '_' || v_slot || '(1::smallint, $1))' into v_at using lanes, v_at;
    end loop;
    return v_at;
end $$;

-- Leases up to n messages of the lane whose turn it is: nothing of another is looked at before a look at that one, newer
-- than the call, found nothing. Within a lane the oldest segment first.
create or replace function mq._take_by_priority(queue_id int, ageing interval, open_slot int, n int, vt interval, begun boolean, give_up timestamptz)
returns setof mq.delivery language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_slot  int;
    a_lanes smallint[] := mq._lanes(_take_by_priority.queue_id);
    a_slots constant int[] := array(
        select s.slot from mq.segment as s
        where s.queue_id = _take_by_priority.queue_id and s.exhausted_at is null and s.drained_at is null and s.slot <> _take_by_priority.open_slot
        order by s.queue_id, s.segment) || _take_by_priority.open_slot;
begin
    if ageing is not null then
        a_lanes := mq._lanes_in_turn(_take_by_priority.queue_id, ageing, a_slots, a_lanes);
    end if;
    loop
        a_lanes := a_lanes[mq._first_ready(_take_by_priority.queue_id, a_slots, a_lanes):];
        exit when cardinality(a_lanes) > 0 is not true;
        -- These two have the same priority: where there is something in both, the older one counts.
        if ageing is null and a_lanes[1:2] = '{0,14}' and mq._first_ready(_take_by_priority.queue_id, a_slots, '{14}') = 1 then
            a_lanes := mq._lanes_in_turn(_take_by_priority.queue_id, null, a_slots, '{0,14}') || a_lanes[3:];
        end if;
        foreach v_slot in array a_slots loop
            return query execute 'select * from mq._take_' || _take_by_priority.queue_id || '_' || v_slot || '(null, 1::smallint, $1, $2, $3, true, $4, $5, $6)'
                using a_lanes[1], _take_by_priority.n, vt, v_slot = _take_by_priority.open_slot, begun, give_up;
            if found then
                return;
            end if;
        end loop;
        a_lanes := a_lanes[2:];      -- others have it
    end loop;
end $$;
