-- Registers: sequences that hold one number of a queue each. They are read without a snapshot (a transaction of any
-- age sees the newest value), cost a microsecond, leave no dead versions, and are not undone by a rollback: what is
-- written there must be true whether or not the writer commits.
--
-- register_<q> says where messages go and come from. Bits 0-30, 32 and 33 are written only under the queue's upkeep lock, the others
-- only with its row locked, or replaced; each writer leaves the bits of the other as they are (_write_register).
--   bits  0-15  slot of the open segment: producers append there
--   bits 16-30  slot of the oldest segment that may have something to claim
--   bit  31     there are other lanes than 0 (_internal/lane.sql); once set it stays
--   bit  32     which of the two deferral sets is open
--   bit  33     the other deferral set still holds something
--   bits 34-62  a hash of the queue's home: enqueue may rely on what it knows of the queue; 0: it may not, for the row came,
--               went, or was moved or named anew since
-- waiting_<q> is 2 while somebody may wait for a notification, else 1.
-- lanes_<q> says which lanes were ever used.
-- room_<q> is minus the messages that may still come before what waits is counted again (see _internal/depth.sql),
-- counted_<q> how often it was.
-- notified_<q> is when an unregistered listener was last notified, in half milliseconds, an even number; once somebody
-- has opened a block since, 101 ms earlier and odd (see _internal/notify.sql).

-- Gives some bits of a register a new value: those that the mask has. Whoever brings a row has it locked, so he cannot wait
-- for the upkeep lock, which comes before. So this has a lock of its own, kept for two statements: a subtransaction that is
-- undone gives it back, and leaves what was written. Nobody waits with it in hand: the sequence was locked before.
create or replace function mq._write_register(queue_id int, register regclass, mask bigint, bits bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_value bigint := pg_sequence_last_value(_write_register.register);
begin
    perform pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(_write_register.queue_id, -8));
    v_value := coalesce(pg_sequence_last_value(_write_register.register), 0);
    perform setval(_write_register.register, v_value & ~_write_register.mask | _write_register.bits);
    raise exception using errcode = 'MQ0ZZ';
exception
    when sqlstate 'MQ0ZZ' then
        null;
end $$;

-- All of it but bit 31; without home_bits all but those, too.
create or replace function mq._set_register(queue_id int, register regclass, open_slot int, head_slot int, generation int, old_alive boolean, home_bits bigint)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform mq._write_register(_set_register.queue_id, _set_register.register, case when home_bits is null then ~(-1::bigint << 34) else -1 end & ~(1::bigint << 31),
                               open_slot::bigint | (head_slot::bigint << 16) | (generation::bigint << 32)
                               | (old_alive::int::bigint << 33) | coalesce(home_bits, 0));
end $$;

create or replace function mq._home_bits(home text) returns bigint
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return greatest(hashtext(_home_bits.home) & 536870911, 1)::bigint << 34;
end $$;

-- By the register's name: a row that was replicated in binary has the oid of another. None: nothing appends there. One that
-- is null is that of a queue that was dropped, and stays so; to know it, we wait for who is dropping it.
create or replace function mq._set_home_bits(queue_id int, home_bits bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_register regclass := to_regclass('mq.register_' || _set_home_bits.queue_id);
begin
    if pg_sequence_last_value(v_register) & (-1::bigint << 34) <> home_bits then
        perform mq._write_register(_set_home_bits.queue_id, v_register, -1::bigint << 34, home_bits);
    end if;
end $$;

-- What enqueue knows of a queue was made for a row, and rows may come or change without the functions and the sequences: by
-- a restore of the data alone, by logical replication, by hand. So whatever brings a row in, or changes where it is at home,
-- its name or its number, makes enqueue distrust what it knows until upkeep made it anew: the row says so (append_home is no
-- home), and, for those who do not read the row, the register.
create or replace function mq._forget_literals() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    new.append_home := '';
    return new;
end $$;

-- Behind the row's lock, which _mend_home_bits takes too, so after the row is there: who waits for that of a queue that is
-- being dropped must not have its register. Nor need he be allowed to write registers. A drop that is rolled back leaves
-- its mark as well: messages go the long way until the next upkeep.
create or replace function mq._distrust_row() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform mq._set_home_bits(old.queue_id, 0);
    perform mq._set_home_bits(new.queue_id, 0) where new.queue_id is distinct from old.queue_id;
    return null;
end $$;

-- The table is locked: what is there is what a new snapshot shows, and only that.
create or replace function mq._distrust_rows() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform mq._check_isolation('truncate');
    perform mq._set_home_bits(q.queue_id, 0) from mq.queue as q;
    return null;
end $$;

-- Made once: it takes a lock that those wait for who hold the lock of the generated functions, which an upgrade takes later.
do $$
begin
    if (select count(*) from pg_catalog.pg_trigger as t where t.tgrelid = 'mq.queue'::pg_catalog.regclass and t.tgenabled = 'A'
            and (t.tgname, t.tgtype) in (('forget_literals', 23), ('distrust_row', 29), ('distrust_rows', 34))) < 3 then
        create or replace trigger forget_literals before insert or update of queue_id, name, home on mq.queue
            for each row execute function mq._forget_literals();
        create or replace trigger distrust_row after insert or update of queue_id, name, home or delete on mq.queue
            for each row execute function mq._distrust_row();
        create or replace trigger distrust_rows before truncate on mq.queue
            for each statement execute function mq._distrust_rows();
        alter table mq.queue enable always trigger forget_literals, enable always trigger distrust_row,
            enable always trigger distrust_rows;
    end if;
end $$;

-- By upkeep, once an earlier transaction made enqueue's literals for the row as it is, and said so there (append_home): in one
-- transaction it could be rolled back, and registers are not. A row that somebody is changing just now is locked; one that
-- he changed is looked at again. True: it did.
create or replace function mq._mend_home_bits(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_bits bigint;
begin
    select mq._home_bits(q.home) into v_bits from mq.queue as q
    where q.queue_id = _mend_home_bits.queue_id and q.append_home = q.home
      and pg_sequence_last_value(q.register) & (-1::bigint << 34) <> mq._home_bits(q.home)
    for no key update skip locked;
    if found then
        perform mq._set_home_bits(_mend_home_bits.queue_id, v_bits);
        return true;
    end if;
    return false;
end $$;

-- The head that a register has to have once another slot opens. It may be that very slot, as it was before a repair, or since
-- one that was rolled back: then it is the one that was open.
create or replace function mq._head_besides(value bigint, slot int) returns int
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return case when (value >> 16) & 32767 = slot then value & 65535 else (value >> 16) & 32767 end;
end $$;

-- The key of an advisory lock of ours, for the two-integer form whose first integer is mq._lock_class(). no >= 0 is
-- a slice; -1 a lane, -2 promotion, -3 upkeep, -5 "somebody notifies", -6 the sweep, -7 the generated functions, -8 a
-- register that is being written, -9 "somebody leases" in a queue with a limit (_internal/limit.sql), -10 "what waits is being added to" (_internal/depth.sql), -11 max_depth is being changed. Who waits has a class of its own (_internal/notify.sql).
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

-- Of messages in transaction mode, by _message_key, and, below 0, of registers of strikes. Of its own, so that pg_locks tells
-- which messages open transactions have.
create or replace function mq._message_class() returns int
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return ('mq.segment'::regclass::oid::bigint & 2147483647)::int;
end $$;

create or replace function mq._message_key(queue_id int, msg_id bigint) returns int
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return (hashint8extended(_message_key.msg_id, _message_key.queue_id) & 2147483647)::int;
end $$;

create or replace function mq._lock_key(queue_id int, no int) returns int
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return (hashint8extended(_lock_key.no, _lock_key.queue_id::bigint * 16777216) & 2147483647)::int;
end $$;

-- Whether this transaction has one of those locks.
create or replace function mq._has_lock(queue_id int, no int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return exists (
        select from pg_locks as l
        where l.pid = pg_backend_pid() and l.locktype = 'advisory' and l.objsubid = 2 and l.mode = 'ExclusiveLock'
          and l.classid = mq._lock_class()::oid and l.objid = mq._lock_key(_has_lock.queue_id, _has_lock.no)::oid
          and l.database = (select d.oid from pg_database as d where d.datname = current_database()));
end $$;
