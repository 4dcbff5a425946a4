-- NOTIFY takes a lock of the whole cluster at commit, so mq sends as few as will do.
--
-- A consumer that waits holds a shared session lock, and then sets the register waiting_<q> to 2 (mq.listen). A producer
-- reads the register after its insert. If it is 2, it tests the lock by trying the exclusive one: who waits is notified;
-- if it gets the lock, nobody waits any more, and with the lock still held, so that nobody can just be registering, it
-- sets the register back to 1. So where nobody waits, producers share no lock.
--
-- A consumer that registered polls until every transaction that may have read the register before is over: their xids
-- are older than one that it takes then. So no wake-up is lost.
--
-- Where nobody registered, there may still be a plain LISTEN. It is notified at most every 100 ms, until somebody has
-- opened a block since (so it is awake and drained what was there): then the next message notifies again, unless a
-- concurrent transaction is about to.
create or replace function mq._notify(queue_id int, queue text, mode text, notified regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_class   constant int := ('mq.queue'::regclass::oid::bigint & 2147483647)::int;
    c_waiters constant int := mq._waiters_class();
    v_waiting regclass;
    v_last    bigint;
    v_now     bigint;
begin
    if _notify.mode = 'never' then
        return;
    elsif _notify.mode = 'auto' then
        v_waiting := ('mq.waiting_' || _notify.queue_id)::regclass;
        -- With the lock held nothing is called that a cancel can end: it would stay behind. Our own shared lock would not
        -- be in the way, so that is looked for, in between.
        if pg_sequence_last_value(v_waiting) = 1
            or pg_try_advisory_lock(c_waiters, _notify.queue_id) and pg_advisory_unlock(c_waiters, _notify.queue_id)
               and not mq._is_waiting(_notify.queue_id)
               and pg_try_advisory_lock(c_waiters, _notify.queue_id) and setval(v_waiting, 1) = 1 and pg_advisory_unlock(c_waiters, _notify.queue_id)
        then
            v_last := pg_sequence_last_value(_notify.notified);
            v_now := (extract(epoch from clock_timestamp()) * 1000)::bigint;
            if abs(v_now - v_last / 2 - v_last % 2 * 101) < 100
                and (v_last % 2 = 0 or not pg_try_advisory_xact_lock(c_class, mq._lock_key(_notify.queue_id, -5)))
            then
                return;
            end if;
            perform setval(_notify.notified, v_now * 2);
        end if;
    end if;
    perform pg_notify('mq_' || _notify.queue, '');
end $$;

-- Whether this session is registered as one that waits.
create or replace function mq._is_waiting(queue_id int) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return exists (
        select from pg_locks as l
        where l.pid = pg_backend_pid() and l.locktype = 'advisory' and l.objsubid = 2
          and l.mode = 'ShareLock' and l.classid = mq._waiters_class()::oid and l.objid = _is_waiting.queue_id::oid
          and l.database = (select d.oid from pg_database as d where d.datname = current_database()));
end $$;

create or replace function mq._answered(notified regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_last bigint := pg_sequence_last_value(_answered.notified);
begin
    if v_last % 2 = 0 then
        perform setval(_answered.notified, greatest(v_last - 201, 1));
    end if;
end $$;
