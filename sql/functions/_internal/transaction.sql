-- Transaction mode, beside the hot path (_internal/template_transaction.sql): settling, looking, upkeep.

-- The deadline where there is none. Not infinity, which drivers cannot read (psycopg raises).
create or replace function mq._never() returns timestamptz
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return timestamptz '9999-12-31 00:00:00+00';
end $$;

-- Each message that a transaction takes keeps a lock: at most 1000 of them. How many it may take yet.
create or replace function mq._claims_left() returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_claims constant int := case when current_setting('mq.claims', true) ~ '^[0-9]{1,6}$' then current_setting('mq.claims', true) else '0' end::int;
begin
    if v_claims >= 1000 then
        perform mq._too_many_claims();
    end if;
    return 1000 - v_claims;
end $$;

-- Settles what a call of dequeue took, or some of it, as mq._settle does. It is acknowledged already: that only says which
-- are there, as far as they were not given back. To give back is for the transaction that took them.
create or replace function mq._settle_taken(queue_id int, slot int, call bigint, outcome text, msg_ids bigint[]) returns mq._taken[]
language plpgsql set search_path = pg_catalog, pg_temp as $f$
declare
    v_taken mq._taken[];
begin
    if to_regclass(format('mq.taken_%s_%s', _settle_taken.queue_id, _settle_taken.slot)) is null then
        return '{}'::mq._taken[];       -- gone, with all that was taken
    end if;
    execute replace(case when _settle_taken.outcome = 'acked' then $x$
        select array_agg((t.msg_id, null, t.attempt, null, null, null, 'acked', null, t.lane)::mq._taken order by t.msg_id)
        from mq.taken_{t} as t
        where t.call = $1 and t.no = 0 and ($2 is null or t.msg_id = any ($2))
          and not exists (select from mq.taken_{t} as b where b.xid = t.xid and b.msg_id = t.msg_id and b.no = 1 offset 0)
        $x$ else $x$
        with back as (
            insert into mq.taken_{t} (xid, msg_id, no, lane, attempt, outcome)
            select t.xid, t.msg_id, 1, t.lane, t.attempt, $3 from mq.taken_{t} as t
            where t.call = $1 and t.no = 0 and t.taker = pg_current_xact_id_if_assigned() and ($2 is null or t.msg_id = any ($2))
            on conflict do nothing returning xid, msg_id, lane, attempt)
        select array_agg((l.msg_id, l.enqueued_at, b.attempt, l.payload, l.headers, l.extra, $3, null, b.lane)::mq._taken order by l.msg_id)
        from back as b join mq.log_{t} as l on l.lane = b.lane and l.xid = b.xid and l.msg_id = b.msg_id
        $x$ end, '{t}', _settle_taken.queue_id || '_' || _settle_taken.slot)
        into v_taken using _settle_taken.call, _settle_taken.msg_ids, _settle_taken.outcome;
    -- They are not consumed after all. What becomes of their ordering keys, whoever takes them back says.
    if _settle_taken.outcome <> 'acked' and exists (select from unnest(v_taken) as x where x.extra ? 'k') then
        execute format('delete from mq.parked_%s as p using unnest($1) as x where p.xid = pg_current_xact_id() and p.event = (1::bigint << 62) + x.msg_id',
                       _settle_taken.queue_id) using v_taken;
    end if;
    return coalesce(v_taken, '{}'::mq._taken[]);
end $f$;

-- Whether this very transaction took a message, by a call of dequeue, and did not give it back.
create or replace function mq._has_taken(queue_id int, slot int, call bigint, msg_id bigint) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_has boolean := false;
begin
    if to_regclass(format('mq.taken_%s_%s', _has_taken.queue_id, _has_taken.slot)) is not null then
        execute replace($x$
            select exists (
                select from mq.taken_{t} as t
                where t.call = $1 and t.no = 0 and t.msg_id = $2 and t.taker = pg_current_xact_id_if_assigned()
                  and not exists (select from mq.taken_{t} as b where b.xid = t.xid and b.msg_id = t.msg_id and b.no = 1 offset 0))
            $x$, '{t}', _has_taken.queue_id || '_' || _has_taken.slot) into v_has using _has_taken.call, _has_taken.msg_id;
    end if;
    return v_has;
end $$;

-- Nothing is left that is not taken, for good. Asked of sealed segments, so nothing can be added.
create or replace function mq._is_consumed(queue_id int, slot int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_first timestamptz;
begin
    execute format('select min(mq._first_%s_%s(u.lane, true)) from unnest($1) as u (lane)', _is_consumed.queue_id, _is_consumed.slot)
        into v_first using mq._lanes(_is_consumed.queue_id);
    return v_first is null;
end $$;

-- Upkeep of a queue of mode transaction, in a transaction that soon commits: what is due joins the others as if it were new,
-- so does one message of each ordering key of which none is there, and suspects that are out of attempts are buried. Returns how many
-- of both. What is due and has a key is counted as it comes back to that, and again as it joins. Never part of dequeue: its
-- transaction may go on for long, and nobody else could do it meanwhile.
create or replace function mq._tend(q mq.queue, out joined int, out buried int)
language plpgsql set search_path = pg_catalog, pg_temp as $f$
declare
    v_lane  smallint;
    v_slot  int;
    v_count int;
    v_joined int;
    v_has_released boolean;
begin
    joined := 0;
    buried := 0;
    -- Who has taken something may yet give it back: then what he released is not done.
    execute format('select exists (select from mq.parked_%s as p where p.xid = pg_current_xact_id_if_assigned() and p.lane is null)', q.queue_id) into v_has_released;
    foreach v_lane in array mq._lanes(q.queue_id) loop
        for v_slot in select x from mq._live_slots(q.queue_id) as x loop
            execute format('select mq._bury_%s_%s($1)', q.queue_id, v_slot) into v_count using v_lane;
            buried := buried + v_count;
        end loop;
        for v_round in 1 .. 10 loop
            -- Each is appended by the promoter's transaction, who has a lock to himself, and takes its turn by that.
            execute replace(replace($x$
                with due as materialized (select * from mq._promote_{q}($1, 1000, 23)),
                gone as (delete from mq.cancelled as c using due as d where c.queue_id = {q} and c.msg_id = d.msg_id returning c.msg_id),
                parked as (
                    insert into mq.parked_{q} (event, ordering_key, place, enqueued_at, lane, attempt, payload, headers, extra)
                    select d.msg_id, d.extra ->> 'k', (d.extra ->> 'o')::bigint, d.enqueued_at, d.lane, d.attempt, d.payload, d.headers, d.extra - 'o' from due as d
                    where d.outcome is null and d.extra ? 'k' and d.msg_id not in (select g.msg_id from gone as g)),
                fresh as (
                    insert into mq.log_{t} (msg_id, enqueued_at, lane, attempt, payload, headers, extra)
                    select d.msg_id, d.enqueued_at, d.lane, d.attempt, d.payload, d.headers, d.extra from due as d
                    where d.outcome is null and (d.extra ? 'k') is not true and d.msg_id not in (select g.msg_id from gone as g))
                select count(*), count(*) filter (where d.outcome is null) - (select count(*) from gone) from due as d
                $x$, '{t}', q.queue_id || '_' || (pg_sequence_last_value(q.register) & 65535)), '{q}', q.queue_id::text) into v_count, v_joined using v_lane;
            joined := joined + v_joined;
            exit when v_count < 1000;
        end loop;
        if v_lane >= 10 and not v_has_released and mq._uses_order(q.queue_id) then
            joined := joined + mq._admit_to_log(q, v_lane);
        end if;
    end loop;
    if joined > 0 then
        perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    end if;
end $f$;

-- Admits messages with ordering keys (_internal/key.sql), one of a key, to the log. So of a key there is never more than one that can be taken: who
-- takes it says so by a release, which is there when he commits, and not when he rolls back. What was cancelled is dropped.
create or replace function mq._admit_to_log(q mq.queue, lane smallint) returns int
language plpgsql set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off as $f$
declare
    v_admitted int;
    v_count    int;
    v_sum      int := 0;
    v_read     int;
    c_give_up  constant timestamptz := clock_timestamp() + interval '300 milliseconds';
begin
    if not pg_try_advisory_xact_lock(mq._lock_class(), mq._lock_key(q.queue_id, -12)) then
        return 0;           -- somebody else does
    end if;
    for v_round in 1 .. 20 loop
        execute format('select mq._fold_%s($1, 23)', q.queue_id) into v_read using lane;
        execute replace(replace($x$
            with admitted as materialized (select * from mq._admit_keys_{q}($1, 1, 1000)),
            gone as (delete from mq.cancelled as c using admitted as a where c.queue_id = {q} and c.msg_id = a.msg_id returning c.msg_id),
            freed as (
                insert into mq.parked_{q} (event, ordering_key, settled)
                select (1::bigint << 62) + a.msg_id, a.extra ->> 'k', 1 from admitted as a join gone as g on g.msg_id = a.msg_id),
            joined as (
                insert into mq.log_{t} (msg_id, enqueued_at, lane, attempt, payload, headers, extra)
                select a.msg_id, a.enqueued_at, $1, a.attempt, a.payload, a.headers, a.extra from admitted as a
                where a.msg_id not in (select g.msg_id from gone as g))
            select count(*), count(*) - (select count(*) from gone) from admitted
            $x$, '{t}', q.queue_id || '_' || (pg_sequence_last_value(q.register) & 65535)), '{q}', q.queue_id::text) into v_admitted, v_count using lane;
        v_sum := v_sum + v_count;
        -- Behind what keys hold up there may be more.
        exit when v_admitted = 0 and (v_read < 64 or clock_timestamp() > c_give_up);
    end loop;
    if v_sum = 0 and v_read >= 64 then
        perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    end if;
    return v_sum;
end $f$;

-- For mq.cancel: takes a message of the log that waits, and that no open transaction has. False: it is not there, or somebody has it.
create or replace function mq._cancel_taken(queue_id int, msg_id bigint) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = on as $f$
declare
    v_slot  int;
    v_found boolean;
begin
    for v_slot in select x from mq._live_slots(_cancel_taken.queue_id) as x loop
        execute format('select true from mq.log_%1$s_%2$s as l where l.msg_id = $1'
                       ' and not exists (select from mq.taken_%1$s_%2$s as t where t.xid = l.xid and t.msg_id = l.msg_id)', _cancel_taken.queue_id, v_slot)
            into v_found using _cancel_taken.msg_id;
        continue when v_found is null;
        if not pg_try_advisory_xact_lock(mq._message_class(), mq._message_key(_cancel_taken.queue_id, _cancel_taken.msg_id)) then
            return false;
        end if;
        -- With it locked, look again. One that expired counts as dead.
        execute replace(replace($x$
            with took as (
                insert into mq.taken_{t} (xid, msg_id, lane, attempt, outcome)
                select l.xid, l.msg_id, l.lane, l.attempt, 'cancelled' from mq.log_{t} as l
                where l.msg_id = $1 and (l.xmax <> '0'::xid or mq._expired_at(l.extra) is null)
                  and not exists (select from mq.taken_{t} as t where t.xid = l.xid and t.msg_id = l.msg_id) returning xid, msg_id, lane),
            freed as (
                insert into mq.parked_{q} (event, ordering_key, settled)
                select (1::bigint << 62) + l.msg_id, l.extra ->> 'k', 1
                from took as t join mq.log_{t} as l on l.lane = t.lane and l.xid = t.xid and l.msg_id = t.msg_id where l.extra ? 'k')
            select exists (select from took)
            $x$, '{t}', _cancel_taken.queue_id || '_' || v_slot), '{q}', _cancel_taken.queue_id::text) into v_found using _cancel_taken.msg_id;
        return v_found;
    end loop;
    return false;
end $f$;

-- What became of every row of a slot, as mq._fates tells. Leased is what an open transaction has, to whose end it has it.
create or replace function mq._fates_of_taken(queue_id int, slot int)
returns table (msg_id bigint, state text, attempt int, enqueued_at timestamptz, leased_until timestamptz, settled_at timestamptz,
               payload jsonb, headers jsonb, extra jsonb, lane smallint)
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_nestloop = off set enable_sort = on set enable_seqscan = on set jit = off as $f$
begin
    return query execute replace($x$
        select l.msg_id,
               case when t.msg_id is null then case when k.key is not null then 'leased' else 'ready' end
                    when t.outcome = 'cancelled' then 'cancelled'
                    when t.outcome is null and b.msg_id is null then 'completed' else 'gone' end,
               coalesce(t.attempt, l.attempt)::int, l.enqueued_at, case when t.msg_id is null and k.key is not null then mq._never() end,
               t.at, l.payload, l.headers, case when l.xmax = '0'::xid then l.extra else nullif(l.extra - 'e', '{}') end, l.lane
        from mq.log_{t} as l
        left join mq.taken_{t} as t on t.xid = l.xid and t.msg_id = l.msg_id and t.no = 0
        left join mq.taken_{t} as b on b.xid = l.xid and b.msg_id = l.msg_id and b.no = 1
        left join (select y.key from mq._locked_messages() as y) as k on k.key = mq._message_key($1, l.msg_id)
        $x$, '{t}', _fates_of_taken.queue_id || '_' || _fates_of_taken.slot) using _fates_of_taken.queue_id;
end $f$;

create or replace function mq._locked_messages() returns table (key int)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return query
        select distinct l.objid::bigint::int from pg_locks as l
        where l.locktype = 'advisory' and l.objsubid = 2 and l.granted and l.classid = mq._message_class()::oid and l.objid::bigint <= 2147483647
          and l.database = (select d.oid from pg_database as d where d.datname = current_database());
end $$;
