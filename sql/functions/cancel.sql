create or replace function mq.cancel(queue text, msg_id bigint) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform mq._queue(cancel.queue);
    perform mq._not_yet('cancel');
    return false;
end $$;

comment on function mq.cancel(text, bigint) is
'Removes a message that was not delivered yet. Comes with a later version.
queue: its name. msg_id: as enqueue returned it.
Raises: MQ001 no such queue; 0A000 always, in this version.
Role: mq_producer.';
