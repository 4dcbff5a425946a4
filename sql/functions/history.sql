create or replace function mq.history(
    queue text,
    from_time timestamptz default null,
    to_time timestamptz default null,
    n int default 100
) returns setof mq.settled_message
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set jit = off as $$
declare
    q mq.queue := mq._queue(history.queue);
begin
    if history.n < 0 then
        perform mq._invalid('n', 'It is negative.', 'Ask for 0 or more.');
    end if;
    return query
        select x.msg_id, x.enqueued_at, x.settled_at, x.attempts, x.outcome, x.history, x.payload, x.headers
        from (select s.msg_id, s.enqueued_at, s.settled_at, s.attempt as attempts, 'acked' as outcome, coalesce(s.extra -> 'h', '[]') as history, s.payload, s.headers
              from mq._settled(q, history.from_time, null, null) as s where s.state = 'completed'
              union all
              select d.msg_id, d.enqueued_at, d.died_at, d.attempts, 'dead', d.history, d.payload, d.headers
              from mq.dead_letter as d where d.queue_id = q.queue_id and d.enqueued_at >= coalesce(history.from_time, '-infinity')) as x
        where x.enqueued_at < history.to_time or history.to_time is null
        order by x.enqueued_at, x.msg_id, x.settled_at limit history.n;
end $$;

comment on function mq.history(text, timestamptz, timestamptz, int) is
'Lists messages that are done and still kept, the oldest first: what was acknowledged, as long as its segment is there (see retention), and dead letters. Reads the kept segments whole: for people, not for programs.
queue: its name.
from_time, to_time: enqueued at or after the one, before the other; default all.
n: at most so many, default 100.
Returns: msg_id, enqueued_at, settled_at, attempts, outcome (acked, dead), history (one object per attempt before that failed, or rewind), payload, headers. A message that was rewound has a row for each time that it was acknowledged.
Raises: MQ001 no such queue; 22023 a negative n.
Role: mq_consumer.';
