-- The lock of who opens blocks of lane 0 of a slot, as _open_<q>_<k> has it.
create or replace function mq._lane_key(queue_id int, slot int) returns int
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return (hashint8extended(-1, _lane_key.queue_id::bigint * 16777216 + slot * 256 + 1) & 2147483647)::int;
end $$;

-- Whether a block could be opened there now: else a sweep would be for nothing.
create or replace function mq._is_lane_free(queue_id int, slot int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_key constant int := mq._lane_key(_is_lane_free.queue_id, _is_lane_free.slot);
begin
    return pg_try_advisory_lock(mq._lock_class(), c_key) and pg_advisory_unlock(mq._lock_class(), c_key);
end $$;

-- Delivers messages that the caller's own sweep took back: they are born in the next block, opened here, and leased
-- from it; what does not fit is deferred, due at once. Nothing, where somebody else has the lane.
create or replace function mq._redeliver(queue text, open_slot int, again mq._taken[], n int, vt interval)
returns setof mq.delivery language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    q        mq.queue;
    v_free   boolean;
    v_fit    int := least(64 * _redeliver.n, cardinality(_redeliver.again));
    v_opened boolean := false;
begin
    select * into q from mq.queue as x where x.name = _redeliver.queue;
    begin
        if pg_try_advisory_xact_lock(mq._lock_class(), mq._lane_key(q.queue_id, open_slot)) then
            -- Somebody may have opened a block since this call found nothing: what is free in it would be holes behind a
            -- newer one. Then it is delivered instead, below, without the lane.
            execute replace(
                'select exists (select from mq.block_{t} as b'
                ' cross join lateral mq._gather_{t}(1::smallint, 0::smallint, b.block_no, null, false, $1, $2)'
                ' where b.subscription = 1 and b.lane = 0 and b.block_no >= mq._current_{t}(1::smallint, 0::smallint))',
                '{t}', q.queue_id || '_' || open_slot) into v_free using _redeliver.n, _redeliver.vt;
            if not v_free then
                execute 'select mq._open_' || q.queue_id || '_' || open_slot || '(1::smallint, 0::smallint, $1, false, true, $2, false)'
                    into v_opened using _redeliver.n, _redeliver.again[:v_fit];
            end if;
        end if;
        if not v_opened then
            raise exception using errcode = 'MQ000';        -- gives the lane back
        end if;
    exception
        when sqlstate 'MQ000' then
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
            || '(null, 1::smallint, 0::smallint, $1, $2, true, true, true, clock_timestamp())' using _redeliver.n, _redeliver.vt;
    end if;
end $$;
