-- Attempts that rolled back. Nothing that a transaction writes survives its rollback, but for two things: who locked a row
-- last (xmax), which tells suspects from messages that nobody had before; and sequences. A suspect is delivered alone, and
-- only with a strike counted in a register, which is a pair of sequences, before it is delivered:
--
--   strike_<q>_<i>      msg_id << 15 | how often it was delivered as a suspect; msg_id 0: it is being taken over
--   strike_xid_<q>_<i>  the transaction that appended it: with msg_id the name of a row of the log
--
-- A message has a register until it is taken. There are 16, which are as many suspects as can be tried at a time; the
-- others wait for their turn. So deliveries never exceed max_attempts, except that a crash of the server may lose what was
-- counted in its last moments, and a VACUUM that freezes, which upkeep never needs, who was the last to roll back: one more each.
--
-- The register of a message that is not taken is written only by who has that message locked. One whose message is taken
-- may be taken over by anybody, under the register's own lock, which is only tried.
create or replace function mq._create_strikes(queue_id int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    for i in 1 .. 16 loop
        execute format('create sequence mq.strike_%1$s_%2$s; create sequence mq.strike_xid_%1$s_%2$s', _create_strikes.queue_id, i);
        perform mq._shut(format('_%s_%s', _create_strikes.queue_id, i));
    end loop;
end $$;

-- The register of a message, null if it has none, and how many strikes it has.
create or replace function mq._find_strikes(queue_id int, xid xid8, msg_id bigint, out register int, out strikes int)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_value bigint;
begin
    strikes := 0;
    for i in 1 .. 16 loop
        v_value := mq._read_strikes(_find_strikes.queue_id, i);
        -- The second time it is still the same: nobody is taking it over.
        if v_value >> 15 = _find_strikes.msg_id
            and pg_sequence_last_value(format('mq.strike_xid_%s_%s', _find_strikes.queue_id, i)::regclass)::text::xid8 = _find_strikes.xid
            and v_value = mq._read_strikes(_find_strikes.queue_id, i)
        then
            register := i;
            strikes := v_value & 32767;
            return;
        end if;
    end loop;
end $$;

-- A register that nobody needs, locked; null: there is none. Looked at before it is locked, as that lasts to the end of the
-- transaction, and again behind the lock.
create or replace function mq._free_register(queue_id int) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    for i in 1 .. 16 loop
        if mq._is_register_free(_free_register.queue_id, i)
            and pg_try_advisory_xact_lock(mq._message_class(), -_free_register.queue_id * 16 - i)
            and mq._is_register_free(_free_register.queue_id, i)
        then
            return i;
        end if;
    end loop;
    return null;
end $$;

create or replace function mq._strike(queue_id int, register int, xid xid8, msg_id bigint, strikes int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_strikes constant regclass := format('mq.strike_%s_%s', _strike.queue_id, _strike.register)::regclass;
begin
    perform setval(v_strikes, 1) where strikes = 1;
    perform setval(format('mq.strike_xid_%s_%s', _strike.queue_id, _strike.register)::regclass, xid::text::bigint) where strikes = 1;
    perform setval(v_strikes, msg_id << 15 | strikes);
end $$;

create or replace function mq._read_strikes(queue_id int, register int) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return coalesce(pg_sequence_last_value(format('mq.strike_%s_%s', _read_strikes.queue_id, _read_strikes.register)::regclass), 1);
end $$;

-- Whether the message of a register is taken, or gone with its segment. Not by this transaction, which may yet roll back.
create or replace function mq._is_register_free(queue_id int, register int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_msg_id constant bigint := mq._read_strikes(_is_register_free.queue_id, _is_register_free.register) >> 15;
    v_xid    constant text := pg_sequence_last_value(format('mq.strike_xid_%s_%s', _is_register_free.queue_id, _is_register_free.register)::regclass)::text;
    v_slot   int;
    v_waits  boolean := false;
begin
    for v_slot in select s.slot from mq.slot as s where s.queue_id = _is_register_free.queue_id and v_msg_id > 0 loop
        execute replace($x$
            select exists (select from mq.log_{t} as l where l.lane = any ($1) and l.xid = $2::xid8 and l.msg_id = $3)
               and not exists (select from mq.taken_{t} as t where t.xid = $2::xid8 and t.msg_id = $3
                                  and t.taker is distinct from pg_current_xact_id_if_assigned())
            $x$, '{t}', _is_register_free.queue_id || '_' || v_slot) into v_waits using mq._lanes(_is_register_free.queue_id), v_xid, v_msg_id;
        exit when v_waits;
    end loop;
    return not v_waits;
end $$;

-- The messages that have a register, as xid.msg_id.
create or replace function mq._struck(queue_id int) returns text[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return array(
        select concat(pg_sequence_last_value(format('mq.strike_xid_%s_%s', _struck.queue_id, i)::regclass), '.', mq._read_strikes(_struck.queue_id, i) >> 15)
        from generate_series(1, 16) as i);
end $$;
