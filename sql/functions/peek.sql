create or replace function mq.peek(queue text, n int default 10) returns setof mq.peeked_message
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
declare
    q mq.queue := mq._queue(peek.queue);
begin
    if peek.n < 0 then
        perform mq._invalid('n', 'It is negative.', 'Ask for 0 or more.');
    end if;
    return query
        select m.msg_id, m.state, m.attempt, m.enqueued_at, m.due_at, m.payload, m.headers, m.priority
        from mq._messages(q) as m where m.expired_at is null order by m.msg_id limit peek.n;
end $$;

comment on function mq.peek(text, int) is
'Shows messages that are not settled, without leasing them, by msg_id. Reads the whole queue: for people, not for programs.
queue: its name. n: at most so many, default 10.
Returns: msg_id, state (ready, deferred, leased), attempt, enqueued_at, due_at (of deferred ones), payload, headers, priority.
Raises: MQ001 no such queue; 22023 a negative n.
Role: mq_consumer.';
