create or replace function mq.wait_for(
    queue text,
    msg_id bigint,
    timeout interval default '20 seconds'
) returns jsonb
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off as $$
declare
    q         mq.queue;
    v_note    mq.note;
    v_state   mq.message_state;
    v_is_seen boolean := false;
    v_is_last boolean;
    v_until   timestamptz;
    v_begun   timestamptz := clock_timestamp();
    v_look_at timestamptz := v_begun + interval '1 second';
    v_pause   float8 := 0.005;
begin
    perform mq._check_isolation('wait_for');
    q := mq._queue(wait_for.queue);
    if wait_for.msg_id is null then
        perform mq._null_argument('msg_id');
    elsif wait_for.timeout is null then
        perform mq._null_argument('timeout');
    elsif wait_for.msg_id < 1 or wait_for.msg_id > coalesce(pg_sequence_last_value(q.msg_ids), 0) then
        perform mq._invalid('msg_id', format('%s was never given out in this queue.', wait_for.msg_id), 'Give what mq.enqueue returned, and the same queue.');
    end if;
    perform mq._check_wait('timeout', wait_for.timeout);
    if mq._is_own(q, wait_for.msg_id) then
        perform mq._invalid('msg_id', format('%s was enqueued by this transaction: nobody can work on it before that commits.', wait_for.msg_id),
                            'Commit first, then wait.');
    end if;
    v_until := v_begun + wait_for.timeout;
    -- Every statement has a snapshot of its own, so this sees what others commit meanwhile.
    loop
        -- First what is found by an index.
        v_note := mq._newest_note(q.queue_id, wait_for.msg_id, 'result');
        if v_note.no is not null then
            return v_note.value;
        end if;
        perform mq._message_dead(wait_for.queue, d.msg_id, d.reason)
        from mq.dead_letter as d where d.queue_id = q.queue_id and d.msg_id = wait_for.msg_id;
        -- That it was done without a result is found by reading the whole queue. That takes the longer the bigger the queue
        -- is: so not at once, for most are answered before, then at most for a tenth of the time, and at the end.
        v_is_last := clock_timestamp() >= v_until;
        if v_is_last or clock_timestamp() >= v_look_at then
            v_begun := clock_timestamp();
            v_state := mq._look_at(q, wait_for.msg_id);
            v_look_at := clock_timestamp() + greatest(interval '1 second', 10 * (clock_timestamp() - v_begun));
            if v_state.state = 'completed' then
                return coalesce(v_state.result, 'null');
            elsif v_state.state in ('dead', 'cancelled') then       -- also what expired, and nobody has buried yet
                perform mq._message_dead(wait_for.queue, wait_for.msg_id, coalesce(v_state.reason, v_state.state));
            elsif v_state.state is null and (v_is_seen or v_is_last) then
                -- Null would say: ask again. One that was not seen yet may be in a transaction that is still to commit.
                perform mq._invalid('msg_id', format('There is no message %s: it is forgotten, or its transaction was rolled back or is not over.', wait_for.msg_id),
                                    'Ask before result_retention is over, and after the commit of who enqueued it.');
            end if;
            v_is_seen := v_state.state is not null;
        end if;
        exit when v_is_last;
        perform pg_sleep(least(v_pause, extract(epoch from v_until - clock_timestamp())));
        v_pause := least(v_pause * 2, 0.1);
    end loop;
    return null;
end $$;

comment on function mq.wait_for(text, bigint, interval) is
'Waits until a message is done, and returns its result: a request and its reply. It holds a snapshot meanwhile, and cannot see a message that its own transaction enqueued: commit first.
queue: its name.
msg_id: as enqueue returned it.
timeout: at most so long, 0 to 20 seconds; default 20 seconds.
Returns: the result that ack was given; ''null'' if it was done without one (that may be noticed seconds later); an SQL null: it is not done yet, ask again.
Raises: MQ001 no such queue; MQ010 the message is dead, its reason is the DETAIL, or cancelled; 22004 a null argument; 22023 a bad timeout, a msg_id that was never given out, is forgotten or was enqueued by this very transaction; 0A000 not in READ COMMITTED.
Role: mq_producer, mq_consumer.';
