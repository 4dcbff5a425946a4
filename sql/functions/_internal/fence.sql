-- The insert fences. Every log and every deferral set but the open one is fenced, from the sealing until it is open
-- again and upkeep takes the fence away: a producer that read the register long ago, even one that waited for the
-- TRUNCATE of what it was about to write to, is led to where messages go now. No producer ever fails for a rotation.
create or replace function mq._redirect_message() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_queue_id int := split_part(tg_table_name, '_', 2)::int;
    v_open     bigint := pg_sequence_last_value(('mq.register_' || v_queue_id)::regclass) & 65535;
begin
    -- What is born in a block (lane below 0) stays with it: its opener locked this log while it was the open one, so
    -- it is not sealed yet. What a logical copy brings stays too: it is no home of ours, and mended as a whole.
    if split_part(tg_table_name, '_', 3) = v_open::text or new.lane < 0 or not mq._is_home_of(v_queue_id) then
        return new;
    end if;
    execute 'insert into mq.log_' || v_queue_id || '_' || v_open || ' select ($1).*' using new;
    return null;
end $$;

create or replace function mq._redirect_deferred() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_queue_id int := split_part(tg_table_name, '_', 2)::int;
    v_open     bigint := (pg_sequence_last_value(('mq.register_' || v_queue_id)::regclass) >> 32) & 1;
begin
    if split_part(tg_table_name, '_', 3) = v_open::text or not mq._is_home_of(v_queue_id) then
        return new;
    end if;
    execute 'insert into mq.deferred_' || v_queue_id || '_' || v_open || ' select ($1).*' using new;
    return null;
end $$;

-- False while the queue is a copy from elsewhere that was not repaired yet.
create or replace function mq._is_home_of(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return exists (select from mq.queue as q where q.queue_id = _is_home_of.queue_id and mq._is_at_home(q.home));
end $$;

-- Puts a fence up, and waits for writers in flight: after it no transaction can add a row, for a row that passed the
-- fence while this was still the open one has a lock that is waited for here.
create or replace function mq._fence(fenced_table text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform mq._take_tables(array[fenced_table], false);
    if not mq._is_fenced(fenced_table) then
        execute format('alter table mq.%I enable always trigger sealed', fenced_table);
    end if;
end $$;

-- after: as in _take_tables.
create or replace function mq._unfence(fenced_table text, after text default null) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if mq._is_fenced(fenced_table) then
        perform mq._take_tables(array[fenced_table], false, after);
        execute format('alter table mq.%I disable trigger sealed', fenced_table);
    end if;
end $$;

create or replace function mq._is_fenced(fenced_table text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return exists (select from pg_trigger as t where t.tgrelid = ('mq.' || fenced_table)::regclass and t.tgname = 'sealed' and t.tgenabled <> 'D');
end $$;

-- How upkeep locks tables, so that nobody meets a deadlock for waiting for one. Upkeep gives up well before a deadlock would be
-- looked for, but who waits for it looks for one after a second, and is the one to fail if upkeep just then waits for him. So it
-- waits only with no table in hand that others wait for (or just made, or dropped: then the next call waits), and else raises
-- lock_not_available at once.
-- alone: keep readers out, too.
-- after: tables in hand that do not matter, a pattern: who takes one of those takes it before the ones asked for here, or
-- writes there only if he read the register before that changed.
create or replace function mq._take_tables(tables text[], alone boolean, after text default null) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_table  text;
    v_mode   text := case when alone then 'access exclusive mode' else 'share row exclusive mode' end;
    v_nowait text := '';
begin
    if exists (select from pg_locks as l left join pg_class as c on c.oid = l.relation
               where l.pid = pg_backend_pid() and l.locktype = 'relation'
                 and l.mode in ('ShareRowExclusiveLock', 'AccessExclusiveLock')
                 and (c.relname ~ _take_tables.after) is not true) then
        v_nowait := ' nowait';
    end if;
    foreach v_table in array tables loop
        execute format('lock table mq.%I in ', v_table) || v_mode || v_nowait;
        v_nowait := ' nowait';
    end loop;
end $$;
