create or replace function mq.cancel(queue text, msg_id bigint) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    q           mq.queue := mq._queue(cancel.queue);
    v_cancelled boolean;
begin
    perform mq._check_isolation('cancel');
    if cancel.msg_id is null then
        perform mq._null_argument('msg_id');
    end if;
    v_cancelled := mq._cancel(q, cancel.msg_id);
    perform mq._forget_holder(q.queue_id, cancel.msg_id) where v_cancelled;
    return v_cancelled;
end $$;

comment on function mq.cancel(text, bigint) is
'Cancels a message that waits: once this commits it is not delivered any more, and its dedup_key is free. Commit soon: until then others may not get at what waits with it. Reads the whole queue: for people, not for programs.
queue: its name. msg_id: as enqueue returned it.
Returns: true: it waited, for its first attempt or for another; false: it is leased, settled, dead, cancelled before, or not there (yet).
Raises: MQ001 no such queue; 22004 a null msg_id; 55P03 others do not let go of where it is; 0A000 not in READ COMMITTED.
Role: mq_producer.';
