create or replace function mq.enqueue_batch(
    queue text,
    payloads jsonb[],
    headers jsonb[] default null,
    delay interval default null,
    deliver_at timestamptz default null,
    priority int default null,
    ordering_key text default null,
    dedup_key text default null,
    ttl interval default null,
    on_duplicate text default null,
    dedup_keys text[] default null,
    ordering_keys text[] default null
) returns setof bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    q          record;
    v_register bigint;
    v_due_at   timestamptz;
    v_lane     smallint := 0;
    v_extra    jsonb;
    a_ids      bigint[];
    v_count    int := cardinality(enqueue_batch.payloads);
begin
    if enqueue_batch.payloads is null then
        perform mq._null_argument('payloads');
    elsif array_ndims(enqueue_batch.payloads) > 1 then
        perform mq._invalid('payloads', 'It is an array of arrays.', 'Give an array of JSON values.');
    elsif array_position(enqueue_batch.payloads, null) is not null then
        perform mq._null_argument('payloads[' || array_position(enqueue_batch.payloads, null) || ']');
    end if;
    if cardinality(enqueue_batch.headers) <> v_count then
        perform mq._invalid('headers', format('%s headers for %s payloads.', cardinality(enqueue_batch.headers), v_count),
                            'Give one for each payload (null for none), or leave headers out.');
    end if;
    -- As in enqueue: no function is called in vain.
    if num_nonnulls(priority, ordering_key, ordering_keys, dedup_key, dedup_keys, ttl, on_duplicate) > 0 then
        perform mq._check_dedup(num_nonnulls(dedup_key, dedup_keys) > 0, on_duplicate);
        if num_nonnulls(dedup_key, dedup_keys, ordering_key, ordering_keys) > 0 then
            return query select mq._enqueue_once(x, payloads, headers, mq._due_at(delay, deliver_at), priority, ttl,
                                                 mq._keys_of_batch('dedup_key', v_count, dedup_key, dedup_keys), on_duplicate,
                                                 mq._keys_of_batch('ordering_key', v_count, ordering_key, ordering_keys))
                         from mq._queue(enqueue_batch.queue) as x;
            return;
        end if;
        v_lane := mq._lane_of(priority, ttl is null);
    end if;
    select x.queue_id, x.msg_ids, x.register, x.lanes, x.notify, x.notified, x.home, x.max_depth into q from mq.queue as x where x.name = enqueue_batch.queue;
    if not mq._is_at_home(q.home) then
        perform mq._repair(q.queue_id);
    end if;
    v_register := pg_sequence_last_value(q.register);
    if v_register is null then
        perform mq._queue_not_found(enqueue_batch.queue);
    end if;
    v_due_at := mq._due_at(delay, enqueue_batch.deliver_at);
    if ttl is not null then
        v_extra := mq._extra(ttl, v_due_at, null);
    end if;
    if v_count = 0 then
        return;
    end if;
    if v_lane <> 0 then
        perform mq._use_lane(q.queue_id, q.register, q.lanes, v_lane, ttl is not null);
    end if;
    if q.max_depth is not null then
        perform mq._admit(q.queue_id, v_count);
    end if;
    if v_due_at is null then
        execute 'select mq._append_batch_' || q.queue_id || '_' || (v_register & 65535) || '($1, $2, $3, $4)'
            into a_ids using enqueue_batch.payloads, enqueue_batch.headers, v_lane, v_extra;
        return query select unnest(a_ids);
    else
        return query execute
            'with m as materialized (select nextval($1) as msg_id, p, h from rows from (unnest($2), unnest($3)) as u (p, h)),'
            ' i as (insert into mq.deferred_' || q.queue_id || '_' || ((v_register >> 32) & 1)
            || ' (msg_id, due_at, lane, payload, headers, extra) select msg_id, $4, $5, p, h, $6 from m)'
            ' select msg_id from m'
            using q.msg_ids, enqueue_batch.payloads, enqueue_batch.headers, v_due_at, v_lane, v_extra;
    end if;
    perform mq._notify(q.queue_id, enqueue_batch.queue, q.notify, q.notified);
end $$;

comment on function mq.enqueue_batch(text, jsonb[], jsonb[], interval, timestamptz, int, text, text, interval, text, text[], text[]) is
'Puts many messages into a queue: all of them or, when anything is wrong, none.
queue: its name.
payloads: JSON values, none of them null. headers: as many, or null for none.
delay, deliver_at and the other options: as for enqueue, for all of them.
dedup_keys: one for each payload, or null for none; equal ones make one message, the first, or with on_duplicate ''replace'' the last. dedup_key, the same for all, makes one of all.
ordering_keys: one for each payload, or null for none. ordering_key is the same for all.
Returns: their msg_ids, in the order of payloads; where another message has the key, of that.
Raises: MQ001 no such queue; MQ008 it is full, or would be; MQ009 on_duplicate is ''reject'', and a message has one of the keys; 22004 a null payload; 22023 as many headers or keys as payloads are needed, or a bad delay or key; 40001, 40P01 as enqueue; 0A000 ''replace'' or an overflow that removes others outside READ COMMITTED.
Role: mq_producer.';
