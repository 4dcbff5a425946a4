create or replace function mq.message_status(queue text, msg_id bigint) returns mq.message_state
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set jit = off as $$
declare
    q       mq.queue := mq._queue(message_status.queue);
    m       record;
    v_slot  int;
begin
    select d.attempts, d.enqueued_at, d.died_at, d.reason into m
    from mq.dead_letter as d where d.queue_id = q.queue_id and d.msg_id = message_status.msg_id;
    if found then
        return ('dead', m.attempts, m.enqueued_at, null, null, m.died_at, m.reason)::mq.message_state;
    end if;
    select x.* into m from mq._messages(q) as x where x.msg_id = message_status.msg_id
    order by x.attempt desc limit 1;
    if found then
        return (m.state, m.attempt, m.enqueued_at, m.due_at, m.leased_until, null, null)::mq.message_state;
    end if;
    -- Acknowledged, and its segment still there? What was given up and purged, or redriven to elsewhere, is forgotten.
    for v_slot in
        select s.slot from mq.segment as s where s.queue_id = q.queue_id
        union select (pg_sequence_last_value(q.register) & 65535)::int
    loop
        select f.attempt, f.enqueued_at, f.settled_at into m
        from mq._fates(q.queue_id, v_slot) as f where f.msg_id = message_status.msg_id and f.state = 'completed';
        if found then
            return ('completed', m.attempt, m.enqueued_at, null, null, m.settled_at, null)::mq.message_state;
        end if;
    end loop;
    return null;
end $$;

comment on function mq.message_status(text, bigint) is
'Says what became of one message. Reads the whole queue: for people, not for programs.
queue: its name. msg_id: as enqueue returned it.
Returns: state (ready, deferred, leased, completed, dead), attempt, enqueued_at, due_at, leased_until, settled_at, reason; null once forgotten: its segment or its dead letter is gone. settled_at is known of dead letters.
Raises: MQ001 no such queue.
Role: mq_producer, mq_consumer.';
