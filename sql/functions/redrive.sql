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
    v_count int;
begin
    if redrive.max_messages < 0 then
        perform mq._invalid('max_messages', 'It is negative.', 'Leave it out for all.');
    end if;
    perform mq._use_lane(t.queue_id, t.register, t.lanes, x.lane, has_order => x.has_order)
    from (select distinct d.lane, d.ordering_key is not null as has_order from mq.dead_letter as d where d.queue_id = q.queue_id) as x where x.lane <> 0;
    -- A row that another redrive has is skipped: each dead letter comes back once.
    execute 'with chosen as (
            select d.queue_id, d.msg_id from mq.dead_letter as d
            where d.queue_id = $1 and ($2 is null or d.msg_id = any ($2))
            order by d.died_at, d.msg_id limit $3 for update skip locked),
        gone as (
            delete from mq.dead_letter as d using chosen as c
            where d.queue_id = c.queue_id and d.msg_id = c.msg_id returning d.*),
        moved as (
        insert into mq.deferred_' || t.queue_id || '_' || ((pg_sequence_last_value(t.register) >> 32) & 1) || ' (msg_id, due_at, enqueued_at, attempt, payload, headers, extra, lane)
        select case when $4 is null then g.msg_id else nextval($4) end, clock_timestamp(), g.enqueued_at, 1, g.payload, g.headers,
               case when g.ordering_key is null then ''{}'' else jsonb_build_object(''k'', g.ordering_key) end || jsonb_build_object(''h'', g.history || jsonb_build_object(''outcome'', ''redriven'', ''at'', clock_timestamp())), g.lane
        from (select * from gone order by msg_id) as g)
        select count(*) from gone'
        into v_count using q.queue_id, redrive.msg_ids, redrive.max_messages, case when t.queue_id <> q.queue_id then t.msg_ids end;
    -- An administrator's act is not refused; but it uses up the room of others.
    if t.max_depth is not null then
        perform mq._enter(t.queue_id, v_count);
    end if;
    if v_count > 0 then
        perform mq._notify(t.queue_id, t.name, t.notify, t.notified);
    end if;
    return v_count;
end $$;

comment on function mq.redrive(text, bigint[], text, int) is
'Puts dead letters back into a queue, with their attempts counted from 1 again and their history kept. Within the queue they keep their msg_id. One with an ordering_key comes behind those that have it.
queue: where they are. msg_ids: which; default all.
to_queue: where they go; default the same queue. max_messages: at most so many, the oldest death first.
Returns: how many.
They come whatever max_depth says; only new messages do not, then.
Raises: MQ001 no such queue; 22023 a negative max_messages; 55P03 it is being counted for max_depth, for long.
Role: mq_admin.';
