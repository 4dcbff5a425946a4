-- Without SET search_path, which costs a tenth of an enqueue (on PostgreSQL 15 it looks through all settings, twice): so here,
-- and in _append_0, every name and every operator says its schema, and nothing looks an operator up that is not written
-- (=, in "case x when", "in", "between", "is distinct from"). What is not the common case has a function of its own.
create or replace function mq.enqueue(
    queue text,
    payload jsonb,
    headers jsonb default null,
    delay interval default null,
    deliver_at timestamptz default null,
    priority int default null,
    ordering_key text default null,
    dedup_key text default null,
    ttl interval default null
) returns bigint
language plpgsql security definer as $$
declare
    v_msg_id bigint;
begin
    -- In few expressions: each is made ready anew in every transaction.
    if enqueue.payload is not null
        and pg_catalog.num_nonnulls(enqueue.delay, enqueue.deliver_at, enqueue.priority, enqueue.ordering_key, enqueue.dedup_key, enqueue.ttl)
            operator(pg_catalog.=) 0
    then
        v_msg_id := mq._append_0(enqueue.queue, enqueue.payload, enqueue.headers);
        if v_msg_id is not null then
            return v_msg_id;
        end if;
    end if;
    return mq._enqueue(enqueue.queue, enqueue.payload, enqueue.headers, enqueue.delay, enqueue.deliver_at,
                       enqueue.priority, enqueue.ordering_key, enqueue.dedup_key, enqueue.ttl);
end $$;

create or replace function mq._enqueue(queue text, payload jsonb, headers jsonb, delay interval, deliver_at timestamptz,
                                       priority int, ordering_key text, dedup_key text, ttl interval) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    q        mq.queue;
    v_msg_id bigint;
    v_due_at timestamptz;
begin
    if _enqueue.payload is null then
        perform mq._null_argument('payload');
    end if;
    perform mq._check_options(_enqueue.priority, _enqueue.ordering_key, _enqueue.dedup_key, _enqueue.ttl);
    q := mq._queue(_enqueue.queue);
    v_due_at := mq._due_at(_enqueue.delay, _enqueue.deliver_at);
    v_msg_id := nextval(q.msg_ids);
    if v_due_at is null then
        execute 'insert into mq.log_' || q.queue_id || '_' || (pg_sequence_last_value(q.register) & 65535)
            || ' (msg_id, payload, headers) values ($1, $2, $3)' using v_msg_id, _enqueue.payload, _enqueue.headers;
    else
        execute 'insert into mq.deferred_' || q.queue_id || '_' || (pg_sequence_last_value(q.register) >> 32 & 1)
            || ' (msg_id, due_at, payload, headers) values ($1, $2, $3, $4)' using v_msg_id, v_due_at, _enqueue.payload, _enqueue.headers;
    end if;
    perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    return v_msg_id;
end $$;

comment on function mq.enqueue(text, jsonb, jsonb, interval, timestamptz, int, text, text, interval) is
'Puts a message into a queue. It is there when the transaction commits, and never was when it rolls back.
queue: its name.
payload: any JSON value; ''null''::jsonb is one, an SQL null is not.
headers: more JSON for the consumer, default null.
delay: deliver not before so long from now; deliver_at: not before that time. At most one of the two; default at once.
priority, ordering_key, dedup_key, ttl: of later versions, null.
Returns: the message''s msg_id, counted per queue from 1.
Raises: MQ001 no such queue; 22004 null payload; 22023 a negative delay or both; 0A000 an option of a later version.
Role: mq_producer.';
