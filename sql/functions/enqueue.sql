create or replace function mq.enqueue(
    queue text,
    payload jsonb,
    headers jsonb default null,
    delay interval default null,
    deliver_at timestamptz default null,
    priority int default null,
    ordering_key text default null,
    dedup_key text default null,
    ttl interval default null,
    on_duplicate text default null
) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    q        mq.queue;
    v_msg_id bigint;
    v_due_at timestamptz;
    v_lane   smallint := 0;
    v_extra  jsonb;
    v_ending text;          -- the key, if it is free again when the message is settled
    v_places int := 1;
    e        record;
begin
    -- The common case, in few expressions: each is made ready anew in every transaction.
    if enqueue.payload is not null
        and num_nonnulls(enqueue.delay, enqueue.deliver_at, enqueue.priority, enqueue.ordering_key, enqueue.dedup_key, enqueue.ttl, enqueue.on_duplicate) = 0
    then
        v_msg_id := mq._append_0(enqueue.queue, enqueue.payload, enqueue.headers);
        if v_msg_id is not null then
            return v_msg_id;
        end if;
    end if;

    if enqueue.payload is null then
        perform mq._null_argument('payload');
    end if;
    q := mq._queue(enqueue.queue);
    v_due_at := mq._due_at(enqueue.delay, enqueue.deliver_at);
    -- What few messages have. A function with a setting of its own costs tens of thousands of instructions, so none is called in vain.
    if num_nonnulls(enqueue.priority, enqueue.ordering_key, enqueue.dedup_key, enqueue.ttl, enqueue.on_duplicate) > 0 then
        perform mq._check_dedup(enqueue.dedup_key is not null, enqueue.on_duplicate);
        perform mq._check_key('dedup_key', enqueue.dedup_key), mq._check_key('ordering_key', enqueue.ordering_key);
        v_ending := case when q.dedup_window = '0' then enqueue.dedup_key end;
        v_lane := mq._lane_of(enqueue.priority, num_nonnulls(enqueue.ttl, v_ending, enqueue.ordering_key) = 0);
        v_extra := mq._extra(enqueue.ttl, v_due_at, v_ending, enqueue.ordering_key);
    end if;
    if enqueue.dedup_key is not null then
        e := mq._enter_key(q, enqueue.dedup_key, enqueue.on_duplicate);
        v_msg_id := e.msg_id;
        if not e.is_new then
            return v_msg_id;
        end if;
        v_places := 1 - e.takes_place::int;
    end if;
    if q.max_depth is not null then
        perform mq._admit(q.queue_id, v_places);
    end if;
    v_msg_id := coalesce(v_msg_id, nextval(q.msg_ids));
    if v_lane <> 0 then
        perform mq._use_lane(q.queue_id, q.register, q.lanes, v_lane, enqueue.ttl is not null, v_ending is not null, enqueue.ordering_key is not null);
    end if;
    if v_due_at is null and enqueue.ordering_key is not null then
        execute 'insert into mq.parked_' || q.queue_id || ' (event, ordering_key, lane, payload, headers, extra) values ($1, $2, $3, $4, $5, $6)'
            using v_msg_id, enqueue.ordering_key, v_lane, enqueue.payload, enqueue.headers, v_extra;
    elsif v_due_at is null then
        execute 'insert into mq.log_' || q.queue_id || '_' || (pg_sequence_last_value(q.register) & 65535)
            || ' (msg_id, lane, payload, headers, extra) values ($1, $2, $3, $4, $5)' using v_msg_id, v_lane, enqueue.payload, enqueue.headers, v_extra;
    else
        execute 'insert into mq.deferred_' || q.queue_id || '_' || (pg_sequence_last_value(q.register) >> 32 & 1)
            || ' (msg_id, due_at, lane, payload, headers, extra) values ($1, $2, $3, $4, $5, $6)'
            using v_msg_id, v_due_at, v_lane, enqueue.payload, enqueue.headers, v_extra;
    end if;
    perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    return v_msg_id;
end $$;

comment on function mq.enqueue(text, jsonb, jsonb, interval, timestamptz, int, text, text, interval, text) is
'Puts a message into a queue. It is there when the transaction commits, and never was when it rolls back.
queue: its name.
payload: any JSON value; ''null''::jsonb is one, an SQL null is not.
headers: more JSON for the consumer, default null.
delay: deliver not before so long from now; deliver_at: not before that time. At most one of the two; default at once.
priority: 0 to 9, 9 is delivered first; default 4. Within a priority the oldest is first.
ttl: if it is not delivered so long from now, it becomes a dead letter, with the reason ''expired'', and is never delivered; default null: it waits for ever.
ordering_key: 1 to 512 bytes. Messages of a queue that have the same are delivered in its order (what was committed before another transaction began comes first), under one lease at a time: what failed or is still under lease holds up those behind it, and no others; default null. A delayed one comes behind those that are there when it is due.
dedup_key: 1 to 512 bytes. While a message has it, which is for the dedup_window of the queue, no other is enqueued with it; default null. Somebody else''s open transaction that enqueues the same key is waited for.
on_duplicate: ''keep'' returns the msg_id of the message that has the key, ''reject'' raises, ''replace'' cancels that message, if it waits, and enqueues this one in its place; default ''keep''. For replace read what cancel says.
Returns: the message''s msg_id, counted per queue from 1.
Raises: MQ001 no such queue; MQ008 it is full; MQ009 with on_duplicate ''reject'', a message has the dedup_key; 55P03 with ''replace'', others do not let go of where that is; 22004 null payload; 22023 a negative delay or both, no such priority, a ttl that ends before the delay, or a bad key; 40001 outside READ COMMITTED, somebody else took the dedup_key; 40P01 two transactions wait for keys of each other; 0A000 ''replace'' or an overflow that removes others outside READ COMMITTED.
Role: mq_producer.';
