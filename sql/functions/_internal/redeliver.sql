-- The key of a lock of a lane of a slot, as the functions of the slot have it: no is -1 for who opens blocks, block_no * 65536 +
-- slice for who claims a slice.
create or replace function mq._slot_key(queue_id int, slot int, lane smallint, no bigint) returns int
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return (hashint8extended(_slot_key.no, _slot_key.queue_id::bigint * 16777216 + slot * 256 + 1 + lane) & 2147483647)::int;
end $$;

-- Whether a block of lane 0 could be opened there now: else a sweep would be for nothing.
create or replace function mq._is_lane_free(queue_id int, slot int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_key constant int := mq._slot_key(_is_lane_free.queue_id, _is_lane_free.slot, 0::smallint, -1);
begin
    return pg_try_advisory_lock(mq._lock_class(), c_key) and pg_advisory_unlock(mq._lock_class(), c_key);
end $$;

-- Delivers messages that the caller's own sweep took back: those of the highest priority are born in the next block of
-- their lane, opened here, and leased from it; what does not fit is deferred, due at once. Nothing, where somebody else has
-- the lane.
create or replace function mq._redeliver(queue text, open_slot int, again mq._taken[], n int, vt interval)
returns setof mq.delivery language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    q        mq.queue;
    v_free   boolean;
    v_lane   smallint;
    v_fit    int;
    v_opened boolean := false;
begin
    again := array(select x from unnest(_redeliver.again) as x order by mq._priority_of(x.lane) desc, x.lane, x.msg_id);
    v_lane := again[1].lane;
    v_fit := (select least(64 * _redeliver.n, count(*)) from unnest(again) as x where x.lane = v_lane);
    select * into q from mq.queue as x where x.name = _redeliver.queue;
    begin
        if pg_try_advisory_xact_lock(mq._lock_class(), mq._slot_key(q.queue_id, open_slot, v_lane, -1)) then
            -- Somebody may have opened a block since this call found nothing: what is free in it would be holes behind a
            -- newer one. Then it is delivered instead, below, without the lane.
            execute replace(
                'select exists (select from mq.block_{t} as b'
                ' cross join lateral mq._gather_{t}(1::smallint, $3, b.block_no, null, false, $1, $2)'
                ' where b.subscription = 1 and b.lane = $3 and b.block_no >= (select mq._current_{t}(1::smallint, $3)))',
                '{t}', q.queue_id || '_' || open_slot) into v_free using _redeliver.n, _redeliver.vt, v_lane;
            if not v_free then
                execute 'select mq._open_' || q.queue_id || '_' || open_slot || '(1::smallint, $1, $2, false, true, $3, false)'
                    into v_opened using v_lane, _redeliver.n, again[:v_fit];
            end if;
        end if;
        if not v_opened then
            raise exception using errcode = 'MQ0ZZ';        -- gives the lane back
        end if;
    exception
        when sqlstate 'MQ0ZZ' then
            v_fit := 0;
    end;
    if not v_opened and v_free is not true then
        return;         -- the caller undoes the sweep
    end if;
    if v_fit < cardinality(again) then
        perform mq._defer(q.queue_id, q.register, again[v_fit + 1:], array_fill(clock_timestamp(), array[cardinality(again) - v_fit]));
        perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    end if;
    if v_opened or v_free then
        return query execute 'select * from mq._take_' || q.queue_id || '_' || open_slot
            || '(null, 1::smallint, $1, $2, $3, true, true, true, clock_timestamp())' using v_lane, _redeliver.n, _redeliver.vt;
    end if;
end $$;
