-- Whether a slot is there, whatever the snapshot: a late ack after it was dropped is 0, not an error.
create or replace function mq._has_slot(queue_id int, slot int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return to_regclass('mq.settlement_' || _has_slot.queue_id || '_' || _has_slot.slot) is not null;
end $$;

-- What a REPEATABLE READ transaction does not find may be newer than its snapshot, or truncated or dropped since: then it
-- must not be told that the lease is lost. It sees the table as pg_class had it; functions tell what is there now. A
-- transaction id that is still to come (the receipt is of another cluster) is lost in any case.
create or replace function mq._check_snapshot(queue_id int, slot int, xid xid8) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable')
        and _check_snapshot.xid is distinct from pg_current_xact_id_if_assigned()
        and (not pg_visible_in_snapshot(_check_snapshot.xid, pg_current_snapshot())
             or exists (select from pg_class as c
                        where c.relnamespace = 'mq'::regnamespace and c.relname = 'lease_' || _check_snapshot.queue_id || '_' || _check_snapshot.slot
                          and c.relfilenode is distinct from pg_relation_filenode(c.oid)))
    then
        perform pg_xact_status(_check_snapshot.xid);
        perform mq._snapshot_too_old();
    end if;
exception
    when invalid_parameter_value then       -- it is in the future
        null;
end $$;

-- Settles what is left of a lease that outlived its segment, or the given messages of it, and returns them; null: there are
-- none. As in _settle_<slot>, what is acknowledged comes without payloads, and of what is taken back at most about 64 MB
-- come, for it becomes one array, and the rest by another call.
create or replace function mq._settle_survivors(queue_id int, token bigint, outcome text, msg_ids bigint[]) returns mq._taken[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_ids   bigint[];
    v_taken mq._taken[];
begin
    if _settle_survivors.outcome = 'acked' then
        with gone as (
            delete from mq.survivor as s
            where s.queue_id = _settle_survivors.queue_id and s.token = _settle_survivors.token
              and (_settle_survivors.msg_ids is null or s.msg_id = any (_settle_survivors.msg_ids))
            returning s.*),
        kept as (
            insert into mq.kept (queue_id, msg_id, enqueued_at, attempt, payload, headers, extra, lane)
            select g.queue_id, g.msg_id, g.enqueued_at, g.attempt, g.payload, g.headers, g.extra, g.lane
            from gone as g join mq.queue as x on x.queue_id = g.queue_id and x.retention > '0')
        select array_agg((g.msg_id, null, null, null, null, g.extra, 'acked', null, null)::mq._taken) into v_taken from gone as g;
        if v_taken is not null then
            insert into mq.tally (queue_id, delivered, settled) values (_settle_survivors.queue_id, 0, cardinality(v_taken));
        end if;
        return v_taken;
    end if;
    -- Locked first: what somebody else is settling is gone then, and takes no room.
    select array_agg(y.msg_id) filter (where y.bytes_before < 67108864) into v_ids
    from (select x.msg_id, coalesce(sum(x.bytes) over (order by x.msg_id rows between unbounded preceding and 1 preceding), 0) as bytes_before
          from (select s.msg_id, pg_column_size(s.payload) + coalesce(pg_column_size(s.headers), 0) as bytes
                from mq.survivor as s
                where s.queue_id = _settle_survivors.queue_id and s.token = _settle_survivors.token
                  and (_settle_survivors.msg_ids is null or s.msg_id = any (_settle_survivors.msg_ids))
                order by s.queue_id, s.token, s.msg_id for update) as x) as y;
    with gone as (
        delete from mq.survivor as s
        where s.queue_id = _settle_survivors.queue_id and s.token = _settle_survivors.token and s.msg_id = any (v_ids)
        returning s.*)
    select array_agg((g.msg_id, g.enqueued_at, g.attempt, g.payload, g.headers, g.extra, _settle_survivors.outcome, null, g.lane)::mq._taken)
      into v_taken from gone as g;
    return v_taken;
end $$;

-- Settles a lease, or some messages of it, and returns them; an empty array: the lease is lost or was settled before.
create or replace function mq._settle(queue text, queue_id int, receipt text, outcome text, msg_ids bigint[]) returns mq._taken[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    r       record;
    v_taken mq._taken[];
begin
    r := mq._parse_receipt(_settle.queue, _settle.queue_id, _settle.receipt);
    if r.subscription = 0 then
        return mq._settle_taken(_settle.queue_id, r.slot, r.token, _settle.outcome, _settle.msg_ids);
    end if;
    if mq._has_slot(_settle.queue_id, r.slot) then
        execute 'select array_agg(x) from mq._settle_' || _settle.queue_id || '_' || r.slot || '($1, $2, $3, $4, $5, $6, $7, $8) as x'
            into v_taken using r.subscription, r.lane, r.block_no, r.slice, r.part, r.token, _settle.outcome, _settle.msg_ids;
    end if;
    if v_taken is null then
        v_taken := mq._settle_survivors(_settle.queue_id, r.token, _settle.outcome, _settle.msg_ids);
    end if;
    if v_taken is null then
        perform mq._check_snapshot(_settle.queue_id, r.slot, r.xid);
    elsif r.lane >= 10 and mq._minds_ends(_settle.queue_id) then
        if outcome in ('acked', 'dropped') then
            perform mq._end(_settle.queue_id, v_taken);
        elsif outcome = 'nacked' and msg_ids is not null and mq._uses_order(_settle.queue_id) then
            v_taken := v_taken || mq._settle_behind(_settle.queue_id, r.slot, r.subscription, r.lane, r.block_no, r.slice, r.part, r.token, v_taken);
        end if;
    end if;
    return coalesce(v_taken, '{}'::mq._taken[]);
end $$;

-- What stands behind these messages of a lease, by their ordering keys, is given back with them (outcome "returned"): it has not
-- been tried, and must not be before them.
create or replace function mq._settle_behind(queue_id int, slot int, subscription smallint, lane smallint, block_no bigint, slice int, part int, token bigint, taken mq._taken[])
returns mq._taken[] language plpgsql set search_path = pg_catalog, pg_temp as $f$
declare
    c_behind constant text := $x$
        join (select m.extra ->> 'k' as ordering_key, min((m.extra ->> 'o')::bigint) as place from unnest($1) as m where m.extra ? 'k' group by m.extra ->> 'k') as f
        on l.extra ->> 'k' = f.ordering_key and (l.extra ->> 'o')::bigint > f.place
        $x$;
    a_ids   bigint[];
    v_taken mq._taken[];
    v_all   mq._taken[] := '{}'::mq._taken[];
begin
    if mq._has_slot(_settle_behind.queue_id, _settle_behind.slot) then
        execute format('select array_agg(l.msg_id) from mq._leased_%s_%s($2, $3, $4, $5, $6) as l', _settle_behind.queue_id, _settle_behind.slot) || c_behind
            into a_ids using taken, subscription, lane, block_no, slice, part;
        while a_ids is not null loop        -- big ones come in parts
            execute format('select array_agg(x) from mq._settle_%s_%s($1, $2, $3, $4, $5, $6, ''returned'', $7) as x', _settle_behind.queue_id, _settle_behind.slot)
                into v_taken using subscription, lane, block_no, slice, part, token, a_ids;
            exit when v_taken is null;
            v_all := v_all || v_taken;
        end loop;
    end if;
    execute 'select array_agg(l.msg_id) from (select s.* from mq.survivor as s where s.queue_id = $2 and s.token = $3) as l' || c_behind
        into a_ids using taken, _settle_behind.queue_id, token;
    while a_ids is not null loop
        v_taken := mq._settle_survivors(_settle_behind.queue_id, token, 'returned', a_ids);
        exit when v_taken is null;
        v_all := v_all || v_taken;
    end loop;
    return v_all;
end $f$;

-- Acknowledges a whole lease; returns how many messages. What sets something free as it ends is read after that.
create or replace function mq._ack(queue text, queue_id int, receipt text) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    r       record;
    v_count int;
    v_ends  mq._taken[];
begin
    r := mq._parse_receipt(_ack.queue, _ack.queue_id, _ack.receipt);
    if r.subscription = 1 and mq._has_slot(_ack.queue_id, r.slot) then
        execute 'select mq._ack_' || _ack.queue_id || '_' || r.slot || '($1)' into v_count using string_to_array(_ack.receipt, '.');
        if v_count is not null and r.lane >= 10 and mq._minds_ends(_ack.queue_id) then
            execute 'select array_agg((l.msg_id, null, null, null, null, l.extra, null, null, null)::mq._taken) from mq._leased_'
                || _ack.queue_id || '_' || r.slot || '($1, $2, $3, $4, $5) as l where l.extra ?| ''{d,k}'''
                into v_ends using r.subscription, r.lane, r.block_no, r.slice, r.part;
            perform mq._end(_ack.queue_id, v_ends) where v_ends is not null;
        end if;
        if v_count is not null then
            return v_count;
        end if;
    end if;
    return cardinality(mq._settle(_ack.queue, _ack.queue_id, _ack.receipt, 'acked', null));
end $$;

-- What becomes of messages that were taken back: those that may be tried again are returned, with the attempt counted
-- and the history longer by one; the others are buried. A hole was never delivered, and who snoozes has not tried: nothing is
-- counted, nor noted, for it may be done without end; nor for what is returned as it stands behind what failed.
create or replace function mq._take_back(queue_id int, max_attempts int, max_depth bigint, taken mq._taken[], reason text, bury boolean default false, snooze boolean default false)
returns mq._taken[] language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_again mq._taken[];
    v_dead  mq._taken[];    -- of these those whose end sets something free
    v_count bigint;
    v_has_keys boolean;
begin
    with t as materialized (
        select x.*, x.outcome in ('hole', 'returned') or _take_back.snooze as hole,
               x.outcome not in ('hole', 'returned') and not _take_back.snooze and (_take_back.bury or x.attempt >= _take_back.max_attempts) as is_dead,
               coalesce(x.extra -> 'h', '[]') || jsonb_strip_nulls(jsonb_build_object(
                   'attempt', x.attempt, 'outcome', x.outcome, 'reason', _take_back.reason, 'at', clock_timestamp())) as longer
        from unnest(_take_back.taken) as x),
    dead as (
        insert into mq.dead_letter (queue_id, msg_id, enqueued_at, attempts, reason, history, payload, headers, lane, ordering_key)
        select _take_back.queue_id, t.msg_id, t.enqueued_at, t.attempt,
               coalesce(_take_back.reason, case when _take_back.bury then 'rejected' when t.outcome = 'expired' then 'lease expired' else 'out of attempts' end),
               t.longer, t.payload, t.headers, t.lane, t.extra ->> 'k'
        from t where t.is_dead
        on conflict do nothing)
    select array_agg((t.msg_id, t.enqueued_at, t.attempt + (not t.hole)::int, t.payload, t.headers,
                      case when t.outcome in ('hole', 'returned') then t.extra when t.hole then nullif(t.extra - 'e', '{}')
                           else coalesce(t.extra - 'e', '{}') || jsonb_build_object('h', t.longer) end,
                      case when t.outcome = 'returned' then t.outcome end, null, t.lane)::mq._taken) filter (where not t.is_dead),
           array_agg((t.msg_id, null, null, null, null, t.extra, null, null, null)::mq._taken) filter (where t.is_dead and t.extra ?| '{d,k}'),
           bool_or(not t.is_dead and t.extra ? 'k')
      into v_again, v_dead, v_has_keys
    from t;
    if v_dead is not null then
        perform mq._end(_take_back.queue_id, v_dead);
    end if;
    if v_has_keys then
        perform mq._release(_take_back.queue_id, v_again, true);
    end if;
    if pg_sequence_last_value(to_regclass('mq.lanes_' || _take_back.queue_id)) & 16384 <> 0 then
        perform mq._tell_of_room(_take_back.queue_id);
    end if;
    -- They wait again. Nobody refuses them, but new messages have less room.
    if _take_back.max_depth is not null then
        v_count := coalesce(cardinality(v_again), 0) - (select count(*) from unnest(_take_back.taken) as t where t.outcome = 'hole');     -- which waited all the time
        perform mq._enter(_take_back.queue_id, v_count) where v_count > 0;
    end if;
    return coalesce(v_again, '{}'::mq._taken[]);
end $$;

-- How long to wait after attempt number n, with a part of it (the jitter) at random, so that what failed together does not come
-- back together. A list is meant as it is, so it has no maximum.
create or replace function mq._backoff(q mq.queue, attempt int) returns interval
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_share constant float8 := 1 - q.retry_jitter * random();
begin
    return v_share * case q.retry_policy
        when 'fixed' then least(q.retry_backoff_max, q.retry_backoff)
        when 'linear' then least(q.retry_backoff_max, q.retry_backoff * _backoff.attempt)
        when 'exponential' then least(q.retry_backoff_max, q.retry_backoff * power(2::float8, least(_backoff.attempt - 1, 40)))
        when 'list' then q.retry_delays[least(_backoff.attempt, cardinality(q.retry_delays))] end;
exception
    when datetime_field_overflow or numeric_value_out_of_range then     -- 2^40 times a long interval
        return q.retry_backoff_max * v_share;
end $$;
