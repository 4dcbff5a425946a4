create or replace function mq.resume_queue(queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
declare
    q mq.queue := mq._queue(resume_queue.queue, false);
begin
    update mq.queue as x set paused = false where x.queue_id = q.queue_id and x.paused;
    if found then
        perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    elsif not exists (select from mq.queue as x where x.queue_id = q.queue_id) then
        perform mq._queue_not_found(resume_queue.queue);
    end if;
end $$;

comment on function mq.resume_queue(text) is
'Ends a pause, and wakes consumers that wait.
queue: its name.
Raises: MQ001 no such queue; 55P03 another transaction is changing or dropping it.
Role: mq_admin.';
