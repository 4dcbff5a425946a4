-- Registers: sequences that hold one number of a queue each. They are read without a snapshot (a transaction of any
-- age sees the newest value), cost a microsecond, leave no dead versions, and are not undone by a rollback: what is
-- written there must be true whether or not the writer commits.
--
-- register_<q> says where messages go and come from, written only under the queue's upkeep lock:
--   bits  0-15  slot of the open segment: producers append there
--   bits 16-31  slot of the oldest segment that may have something to claim
--   bit  32     which of the two deferral sets is open
--   bit  33     the other deferral set still holds something
--   bits 34-62  a hash of the home that enqueue may rely on: that of another place, where a row came from there; its
--               own again once upkeep saw that the row says so
-- waiting_<q> is 2 while somebody may wait for a notification, else 1.
-- notified_<q> is when an unregistered listener was last notified, in half milliseconds, an even number; once somebody
-- has opened a block since, 101 ms earlier and odd (see _internal/notify.sql).

create or replace function mq._set_register(register regclass, open_slot int, head_slot int, generation int, old_alive boolean, home_bits bigint)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform setval(_set_register.register,
                   open_slot::bigint | (head_slot::bigint << 16) | (generation::bigint << 32)
                   | (old_alive::int::bigint << 33) | home_bits);
end $$;

create or replace function mq._home_bits(home text) returns bigint
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return (hashtext(_home_bits.home) & 536870911)::bigint << 34;
end $$;

-- Rows may come without the functions and the sequences: a restore of the data alone, or logical replication.
create or replace function mq._notice_foreign_row() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if not mq._is_at_home(new.home) then
        perform mq._set_home_bits(new.register, new.home);
    end if;
    return null;
end $$;

-- Made once: it takes a lock that those wait for who hold the lock of the generated functions, which an upgrade takes later.
do $$
begin
    if not exists (select from pg_catalog.pg_trigger as t where t.tgrelid = 'mq.queue'::pg_catalog.regclass and t.tgname = 'foreign_row' and t.tgenabled = 'A') then
        create or replace trigger foreign_row after insert or update of home on mq.queue
            for each row execute function mq._notice_foreign_row();
        alter table mq.queue enable always trigger foreign_row;
    end if;
end $$;

create or replace function mq._set_home_bits(register regclass, home text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_value bigint := pg_sequence_last_value(_set_home_bits.register);
begin
    if v_value & (-1::bigint << 34) <> mq._home_bits(_set_home_bits.home) then
        perform setval(_set_home_bits.register, v_value & ~(-1::bigint << 34) | mq._home_bits(_set_home_bits.home));
    end if;
end $$;

-- By upkeep, once a row is one of here: a repair may be rolled back, and registers are not. A row that somebody is
-- bringing just now is locked.
create or replace function mq._mend_home_bits(queue_id int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if exists (select from mq.queue as q where q.queue_id = _mend_home_bits.queue_id
               and pg_sequence_last_value(q.register) & (-1::bigint << 34) <> mq._home_bits(q.home))
    then
        perform mq._set_home_bits(q.register, q.home)
        from (select x.register, x.home from mq.queue as x where x.queue_id = _mend_home_bits.queue_id for no key update skip locked) as q;
    end if;
end $$;

-- The head that a register has to have once another slot opens. It may be that very slot, as it was before a repair, or since
-- one that was rolled back: then it is the one that was open.
create or replace function mq._head_besides(value bigint, slot int) returns int
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return case when (value >> 16) & 65535 = slot then value & 65535 else (value >> 16) & 65535 end;
end $$;

-- The key of an advisory lock of ours, for the two-integer form whose first integer is mq._lock_class(). no >= 0 is
-- a slice; -1 a lane, -2 promotion, -3 upkeep, -5 "somebody notifies", -6 the sweep, -7 the generated functions. Who waits
-- has a class of its own (_internal/notify.sql).
create or replace function mq._lock_class() returns int
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return ('mq.queue'::regclass::oid::bigint & 2147483647)::int;
end $$;

-- The class of those who wait in listen. Of its own: that lock may be kept for days, and keys of lanes are hashes.
create or replace function mq._waiters_class() returns int
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return ('mq.subscription'::regclass::oid::bigint & 2147483647)::int;
end $$;

create or replace function mq._lock_key(queue_id int, no int) returns int
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return (hashint8extended(_lock_key.no, _lock_key.queue_id::bigint * 16777216) & 2147483647)::int;
end $$;
