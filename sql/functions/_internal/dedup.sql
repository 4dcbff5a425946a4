-- Deduplication. An entry of mq.dedup says which message has a key, and until when; the newest row of a key (by no) is its
-- state. Nothing is updated, so no dead version is ever in front of the newest row, whatever snapshot is held.
--
-- The primary key is the lock. Whoever finds a key free inserts row no + 1: of several one does, and the others wait for
-- the end of that transaction, then look again, with a newer snapshot. If it rolled back, one of them goes on.
--
-- An entry ends when its time is over, or, where the window is 0, with its message: then until is infinity, the message has
-- the key in its extra (d) and is in a lane from 10 on, where who settles it looks, and appends a row without msg_id. Retries,
-- redrive and leases that run out never look here.

-- The newest row of a key: its number, and the message that has the key now, or null.
create or replace function mq._key_holder(queue_id int, dedup_key text, out no int, out msg_id bigint)
language plpgsql set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off as $$
begin
    select d.no, case when d.until > clock_timestamp() then d.msg_id end into no, msg_id
    from mq.dedup as d where d.queue_id = _key_holder.queue_id and d.dedup_key = _key_holder.dedup_key
    order by d.queue_id desc, d.dedup_key desc, d.no desc limit 1;
end $$;

create or replace function mq._check_key(argument text, key text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if octet_length(key) not between 1 and 512 then
        perform mq._invalid(argument, format('It has %s bytes, not 1 to 512.', octet_length(key)), 'Of something longer use a hash, such as md5(…).');
    end if;
end $$;

-- Whether all of these may be given together.
create or replace function mq._check_dedup(is_keyed boolean, on_duplicate text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if on_duplicate not in ('keep', 'replace', 'reject') then
        perform mq._invalid('on_duplicate', format('"%s" is none of its values.', left(on_duplicate, 100)), 'Use ''keep'', ''replace'' or ''reject''.');
    elsif on_duplicate is not null and not is_keyed then
        perform mq._invalid('on_duplicate', 'It is given without a dedup_key.', 'Give a dedup_key, too, or leave it out.');
    elsif on_duplicate = 'replace' then
        perform mq._check_isolation('enqueue with on_duplicate "replace"');
    end if;
end $$;

-- Gives a key to a message, its number drawn here unless it is given. Returns the message that has it: that one (is_new), or
-- another. With "replace" it is always that one; the other is cancelled if it waits, and leaves its place (takes_place), once the
-- key is had: two who replace wait for each other there, with nothing else of mq in hand.
create or replace function mq._enter_key(q mq.queue, dedup_key text, on_duplicate text, new_id bigint default null,
                                         out msg_id bigint, out is_new boolean, out takes_place boolean)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    h record;
begin
    loop
        h := mq._key_holder(q.queue_id, _enter_key.dedup_key);
        if h.msg_id is not null and on_duplicate is distinct from 'replace' then
            if on_duplicate = 'reject' then
                perform mq._duplicate(q.name, h.msg_id);
            end if;
            msg_id := h.msg_id;
            is_new := false;
            takes_place := false;
            return;
        end if;
        -- In an older snapshot than that of a statement the newest row may be hidden. Then row no + 1 is taken, by one that is
        -- hidden, too, and ON CONFLICT raises 40001; unless that is old enough to have been deleted (_forget_keys).
        if mq._is_stale_snapshot() and now() < clock_timestamp() - interval '10 minutes' then
            perform mq._key_unknown();
        end if;
        new_id := coalesce(new_id, nextval(q.msg_ids));
        insert into mq.dedup (queue_id, dedup_key, no, msg_id, until)
        values (q.queue_id, _enter_key.dedup_key, coalesce(h.no, 0) + 1, new_id,
                case when q.dedup_window = '0' then 'infinity' else clock_timestamp() + q.dedup_window end)
        on conflict do nothing;
        exit when found;
    end loop;
    takes_place := h.msg_id is not null and mq._cancel(q, h.msg_id);
    msg_id := new_id;
    is_new := true;
end $$;

-- The same for many at once, some perhaps without a key. Of equal keys the first one counts; with "replace" the last. Numbers are drawn in the order of
-- the messages; keys are taken in an order of their own, so that two batches never wait for each other. Says, too, how many places the new
-- ones need.
create or replace function mq._enter_keys(q mq.queue, dedup_keys text[], on_duplicate text, out ids bigint[], out are_new boolean[], out places int)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    a_at    int[];      -- where that one is which counts
    v_i     int;
    v_taken int := 0;   -- places of messages that are replaced
    e       record;
begin
    select array_agg(x.at order by x.i) into a_at
    from (select u.i, case when u.key is null then u.i
                           when on_duplicate = 'replace' then max(u.i) over (partition by u.key)
                           else min(u.i) over (partition by u.key) end::int as at
          from unnest(dedup_keys) with ordinality as u (key, i)) as x;
    for i in 1 .. cardinality(dedup_keys) loop
        are_new[i] := false;
        continue when a_at[i] <> i;
        ids[i] := case when dedup_keys[i] is not null then (mq._key_holder(q.queue_id, dedup_keys[i])).msg_id end;
        if ids[i] is null or on_duplicate = 'replace' then
            ids[i] := nextval(q.msg_ids);
            are_new[i] := true;
        elsif on_duplicate = 'reject' then
            perform mq._duplicate(q.name, ids[i]);
        end if;
    end loop;
    for v_i in
        select u.i from unnest(dedup_keys, are_new) with ordinality as u (key, is_new, i)
        where u.is_new and u.key is not null order by u.key collate "C"
    loop
        e := mq._enter_key(q, dedup_keys[v_i], on_duplicate, ids[v_i]);
        ids[v_i] := e.msg_id;
        are_new[v_i] := e.is_new;
        v_taken := v_taken + e.takes_place::int;
    end loop;
    for i in 1 .. cardinality(dedup_keys) loop
        ids[i] := ids[a_at[i]];
    end loop;
    places := (select count(*) from unnest(are_new) as x where x) - v_taken;
end $$;

-- The keys of a batch, one for each of its messages: the one, or the ones, that the argument (and that with an s) gave.
create or replace function mq._keys_of_batch(argument text, messages int, one text, many text[]) returns text[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if num_nulls(one, many) = 0 then
        perform mq._invalid(argument || 's', format('Both %1$s and %1$ss are given.', argument), 'Give one of them.');
    elsif array_ndims(many) > 1 or cardinality(many) <> messages then
        perform mq._invalid(argument || 's', format('%s keys for %s payloads.', cardinality(many), messages), 'Give one for each payload (null for none).');
    end if;
    perform mq._check_key(argument, one);
    perform mq._check_key(format('%ss[%s]', argument, u.i), u.key) from unnest(many) with ordinality as u (key, i);
    return case when many is null then array_fill(one, array[messages])
                else array(select u.key from unnest(many) as u (key)) end;      -- counted from 1
end $$;

-- enqueue_batch with keys, of either kind.
create or replace function mq._enqueue_once(q mq.queue, payloads jsonb[], headers jsonb[], due_at timestamptz, priority int, ttl interval,
                                            dedup_keys text[], on_duplicate text, ordering_keys text[])
returns setof bigint language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_ends     constant boolean := q.dedup_window = '0';
    e          record := mq._enter_keys(q, dedup_keys, on_duplicate);
    v_register bigint;
begin
    if true = any (e.are_new) then
        if q.max_depth is not null then
            perform mq._admit(q.queue_id, e.places);
        end if;
        perform mq._use_lane(q.queue_id, q.register, q.lanes, x.lane, ttl is not null, x.has_key, x.has_order)
        from (select mq._lane_of(priority, ttl is null and not y.has_key and not y.has_order) as lane, y.has_key, y.has_order
              from (select distinct c_ends and u.key is not null as has_key, u.ordering_key is not null as has_order
                    from unnest(dedup_keys, ordering_keys) as u (key, ordering_key)) as y) as x
        where x.lane <> 0;
        v_register := pg_sequence_last_value(q.register);
        execute 'insert into mq.'
            || case when due_at is null then 'log_' || q.queue_id || '_' || (v_register & 65535) || ' (msg_id, lane, payload, headers, extra)'
                    else 'deferred_' || q.queue_id || '_' || (v_register >> 32 & 1) || ' (msg_id, lane, payload, headers, extra, due_at)' end
            || ' select u.id, mq._lane_of($1, num_nonnulls($2, u.key, u.ordering_key) = 0), u.payload, u.header, mq._extra($2, $3, u.key, u.ordering_key)'
            || case when due_at is null then '' else ', $3' end
            || ' from unnest($4, $5, $6, $7, $8, $9) as u (id, is_new, key, payload, header, ordering_key) where u.is_new'
            || case when due_at is null then ' and u.ordering_key is null' else '' end
            using priority, ttl, due_at, e.ids, e.are_new, case when c_ends then dedup_keys end, payloads, headers, ordering_keys;
        if due_at is null then
            execute 'insert into mq.parked_' || q.queue_id || ' (event, ordering_key, lane, payload, headers, extra)'
                ' select u.id, u.ordering_key, mq._lane_of($1, false), u.payload, u.header, mq._extra($2, null, u.key, u.ordering_key)'
                ' from unnest($3, $4, $5, $6, $7, $8) as u (id, is_new, key, payload, header, ordering_key) where u.is_new and u.ordering_key is not null'
                using priority, ttl, e.ids, e.are_new, case when c_ends then dedup_keys end, payloads, headers, ordering_keys;
        end if;
        perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    end if;
    return query select unnest(e.ids);
end $$;

-- Ends the entries of messages that are settled for good. One that another message has since stays.
create or replace function mq._release_keys(queue_id int, msg_ids bigint[], dedup_keys text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off as $$
begin
    insert into mq.dedup (queue_id, dedup_key, no, until)
    select _release_keys.queue_id, h.dedup_key, h.no + 1, clock_timestamp()
    from unnest(_release_keys.msg_ids, _release_keys.dedup_keys) as r (msg_id, key)
    cross join lateral (
        select d.dedup_key, d.no, d.msg_id from mq.dedup as d where d.queue_id = _release_keys.queue_id and d.dedup_key = r.key
        order by d.queue_id desc, d.dedup_key desc, d.no desc limit 1) as h
    where h.msg_id = r.msg_id
    order by h.dedup_key
    on conflict do nothing;
end $$;

-- The same for a message that was cancelled, whatever the window. There is no index: who cancels reads everything in any case.
create or replace function mq._forget_holder(queue_id int, msg_id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform mq._release_keys(d.queue_id, array[d.msg_id], array[d.dedup_key])
    from mq.dedup as d where d.queue_id = _forget_holder.queue_id and d.msg_id = _forget_holder.msg_id;
end $$;

-- Deletes what is over since ten minutes, with what came before it of the same key; up to 50000 rows. A bit later than it might,
-- so that a key that is used again soon goes on counting: where an old snapshot keeps what is deleted, it is behind the newest
-- row. For the same reason the search goes on where the last one ended: at the newest row of the key '', which nobody can
-- have. Now and then it begins at the beginning, for what was committed late.
create or replace function mq._forget_keys(queue_id int) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_until constant timestamptz := clock_timestamp() - interval '10 minutes';
    m       mq.dedup;
    v_until timestamptz;
    v_count int;
begin
    select * into m from mq.dedup as d where d.queue_id = _forget_keys.queue_id and d.dedup_key = ''
    order by d.queue_id desc, d.dedup_key desc, d.no desc limit 1;
    with over as materialized (
        select d.dedup_key, d.no, d.until from mq.dedup as d
        where d.queue_id = _forget_keys.queue_id and d.dedup_key <> '' and d.until < c_until
          and d.until >= case when m.no % 256 <> 0 then m.until else '-infinity' end
        order by d.queue_id, d.until limit 50000),
    gone as (
        delete from mq.dedup as d using (select o.dedup_key, max(o.no) as no from over as o group by o.dedup_key) as o
        where d.queue_id = _forget_keys.queue_id and d.dedup_key = o.dedup_key and d.no <= o.no)
    select count(*), max(o.until) into v_count, v_until from over as o;
    if v_count > 0 or m.no % 256 = 0 then
        insert into mq.dedup (queue_id, dedup_key, no, until)
        values (_forget_keys.queue_id, '', coalesce(m.no, 0) + 1, coalesce(v_until, m.until));
        delete from mq.dedup as d where d.queue_id = _forget_keys.queue_id and d.dedup_key = '' and d.no <= m.no;
    end if;
    return v_count;
end $$;
