create or replace function mq.listen(queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    q       mq.queue := mq._queue(listen.queue);
    c_class constant int := mq._lock_class();
    v_key   int := mq._lock_key(q.queue_id, -4);
begin
    execute format('listen %I', 'mq_' || q.name);
    -- Held once, however often it is called.
    if not exists (select from pg_locks as l where l.pid = pg_backend_pid() and l.locktype = 'advisory' and l.classid = c_class::oid
                   and l.objid = v_key::oid and l.objsubid = 2 and l.database = (select d.oid from pg_database as d where d.datname = current_database())) then
        perform pg_advisory_lock_shared(c_class, v_key);
    end if;
    -- After the lock: whoever resets it holds the exclusive one.
    if pg_sequence_last_value(('mq.waiting_' || q.queue_id)::regclass) <> 2 then
        perform setval(('mq.waiting_' || q.queue_id)::regclass, 2);
    end if;
end $$;

comment on function mq.listen(text) is
'Listens for new messages of a queue (channel mq_<queue>, empty payload) and tells producers that this session waits, so that with notify => ''auto'' it is notified of each. Takes effect at commit. Then drain the queue once more before waiting, and poll until pg_snapshot_xmin(pg_current_snapshot()) has passed a transaction id of one''s own: a message that was being enqueued meanwhile is not announced. Needs a session: not through a transaction-pooling proxy.
queue: its name.
Raises: MQ001 no such queue.
Role: mq_consumer.';
