create or replace function mq.listen(queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
declare
    q       mq.queue := mq._queue(listen.queue);
begin
    execute format('listen %I', 'mq_' || q.name);
    -- Held once, however often it is called.
    if not mq._is_waiting(q.queue_id) then
        perform pg_advisory_lock_shared(mq._waiters_class(), q.queue_id);
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
