create or replace function mq.dead_letters(queue text, n int default 100) returns setof mq.dead_message
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    q mq.queue := mq._queue(dead_letters.queue);
begin
    if dead_letters.n < 0 then
        perform mq._invalid('n', 'It is negative.', 'Ask for 0 or more.');
    end if;
    return query
        select d.msg_id, d.enqueued_at, d.died_at, d.attempts, d.reason, d.history, d.payload, d.headers
        from mq.dead_letter as d where d.queue_id = q.queue_id
        order by d.died_at, d.msg_id limit dead_letters.n;
end $$;

comment on function mq.dead_letters(text, int) is
'Lists messages that were given up, the oldest death first.
queue: its name. n: at most so many, default 100.
Returns: msg_id, enqueued_at, died_at, attempts, reason, history (one object per attempt: attempt, outcome, reason, at), payload, headers.
Raises: MQ001 no such queue; 22023 a negative n.
Role: mq_consumer.';
