create or replace function mq.unlisten(queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    q       mq.queue := mq._queue(unlisten.queue);
begin
    execute format('unlisten %I', 'mq_' || q.name);
    if mq._is_waiting(q.queue_id) then
        perform pg_advisory_unlock_shared(mq._waiters_class(), q.queue_id);
    end if;
end $$;

comment on function mq.unlisten(text) is
'Undoes listen: while a consumer is busy, producers need not notify it.
queue: its name.
Raises: MQ001 no such queue.
Role: mq_consumer.';
