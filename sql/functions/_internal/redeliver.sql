-- Delivers messages that the caller's own sweep took back: they are born in the next block, opened here, and leased
-- from it. Where the block cannot be opened they are deferred, due at once.
create or replace function mq._redeliver(queue_id int, open_slot int, register regclass, again mq._taken[], n int, vt interval)
returns setof mq.delivery language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_opened boolean := false;
begin
    if pg_try_advisory_xact_lock(mq._lock_class(),
        (hashint8extended(-1, _redeliver.queue_id::bigint * 16777216 + open_slot * 256 + 1) & 2147483647)::int)
    then
        execute 'select mq._open_' || _redeliver.queue_id || '_' || open_slot || '(1::smallint, 0::smallint, $1, false, true, $2)'
            into v_opened using _redeliver.n, _redeliver.again;
    end if;
    if not v_opened then
        perform mq._defer(_redeliver.queue_id, _redeliver.register, _redeliver.again,
                          array_fill(clock_timestamp(), array[cardinality(_redeliver.again)]));
        return;
    end if;
    return query execute 'select * from mq._take_' || _redeliver.queue_id || '_' || open_slot || '(null, 1::smallint, 0::smallint, $1, $2, true, true, clock_timestamp())'
        using _redeliver.n, _redeliver.vt;
end $$;
