create or replace function mq.pause_queue(queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
declare
    q mq.queue := mq._queue(pause_queue.queue, false);
begin
    update mq.queue as x set paused = true where x.queue_id = q.queue_id and not x.paused;
    if not found and not exists (select from mq.queue as x where x.queue_id = q.queue_id) then
        perform mq._queue_not_found(pause_queue.queue);
    end if;
end $$;

comment on function mq.pause_queue(text) is
'Stops deliveries of a queue: dequeue returns nothing until resume_queue. Enqueue, ack, nack and extend go on; leases still run out.
queue: its name.
Raises: MQ001 no such queue; 55P03 another transaction is changing or dropping it.
Role: mq_admin.';
