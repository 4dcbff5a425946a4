create or replace function mq.resume_queue(queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    q mq.queue := mq._queue(resume_queue.queue);
begin
    update mq.queue as x set paused = false where x.queue_id = q.queue_id and x.paused;
    if found then
        perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    end if;
end $$;

comment on function mq.resume_queue(text) is
'Ends a pause, and wakes consumers that wait.
queue: its name.
Raises: MQ001 no such queue.
Role: mq_admin.';
