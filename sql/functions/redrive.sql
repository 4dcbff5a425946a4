create or replace function mq.redrive(
    queue text,
    msg_ids bigint[] default null,
    to_queue text default null,
    max_messages int default null
) returns int
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    q       mq.queue := mq._queue(redrive.queue);
    t       mq.queue := mq._queue(coalesce(redrive.to_queue, redrive.queue));
    v_taken mq._taken[];
begin
    if redrive.max_messages < 0 then
        perform mq._invalid('max_messages', 'It is negative.', 'Leave it out for all.');
    end if;
    -- A row that another redrive has is skipped: each dead letter comes back once.
    with chosen as (
        select d.queue_id, d.msg_id from mq.dead_letter as d
        where d.queue_id = q.queue_id and (redrive.msg_ids is null or d.msg_id = any (redrive.msg_ids))
        order by d.died_at, d.msg_id limit redrive.max_messages for update skip locked),
    gone as (
        delete from mq.dead_letter as d using chosen as c
        where d.queue_id = c.queue_id and d.msg_id = c.msg_id returning d.*)
    select array_agg((case when t.queue_id = q.queue_id then g.msg_id else nextval(t.msg_ids) end,
                      g.enqueued_at, 1, g.payload, g.headers,
                      g.history || jsonb_build_object('outcome', 'redriven', 'at', clock_timestamp()), null, null)::mq._taken order by g.msg_id)
      into v_taken from gone as g;
    if v_taken is null then
        return 0;
    end if;
    perform mq._defer(t.queue_id, t.register, v_taken, array_fill(clock_timestamp(), array[cardinality(v_taken)]));
    perform mq._notify(t.queue_id, t.name, t.notify, t.notified);
    return cardinality(v_taken);
end $$;

comment on function mq.redrive(text, bigint[], text, int) is
'Puts dead letters back into a queue, with their attempts counted from 1 again and their history kept. Within the queue they keep their msg_id.
queue: where they are. msg_ids: which; default all.
to_queue: where they go; default the same queue. max_messages: at most so many, the oldest death first.
Returns: how many.
Raises: MQ001 no such queue; 22023 a negative max_messages.
Role: mq_admin.';
