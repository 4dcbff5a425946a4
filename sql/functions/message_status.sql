create or replace function mq.message_status(queue text, msg_id bigint) returns mq.message_state
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
declare
    q mq.queue := mq._queue(message_status.queue);
begin
    return mq._message_state(q, message_status.msg_id);
end $$;

comment on function mq.message_status(text, bigint) is
'Says what became of one message. Reads the whole queue: for people, not for programs.
queue: its name. msg_id: as enqueue returned it.
Returns: state (ready, deferred, leased, completed, cancelled, dead), attempt, enqueued_at, due_at, leased_until, settled_at, reason, priority, progress (as last reported), result; null once forgotten: its segment, its dead letter and its result are gone. Of a result that outlives its segment, attempt, enqueued_at and priority are null.
Raises: MQ001 no such queue.
Role: mq_producer, mq_consumer.';
