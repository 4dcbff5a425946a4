-- The planner is pinned: without statistics, or with those of an empty segment, it would sort a backlog or scan it, and
-- a custom plan for each call costs more than the call. lock_timeout bounds what could wait for DDL of an upkeep.
create or replace function mq.dequeue(
    queue text,
    n int default 1,
    visibility_timeout interval default null,
    ack text default null,
    wait interval default null,
    subscription text default null
) returns setof mq.delivery
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
set lock_timeout = '2s' as $$
declare
    v_key      bigint;          -- of the slot that the short way tries
    v_other    bigint;          -- of that which it tries then
    v_is_plain boolean;
    v_is_common boolean;
    v_chance   float8;
    v_one      mq.delivery;
    v_claim    mq._claim;
    q          record;
    v_register bigint;
    v_open     int;
    v_has_lanes boolean;
    v_is_limited boolean;
    v_acked    int := 0;
    v_wrote    boolean;
    v_slot     int;
    v_count    int;
    v_vt       interval;
    v_until    timestamptz;
    v_pause    float8;
    v_give_up  timestamptz;
    v_begun    boolean;         -- the transaction had written before
    v_again    mq._taken[];
    v_taken    int;
    v_ticket   text;            -- drawn in vain by the short way
begin
    -- The common case, in few expressions: each is made ready anew in every transaction. What one slice holds, in a
    -- transaction of its own, from the oldest segment, and with it at most a plain receipt of that or of the open one. Which
    -- these are may be old news by then: what was emptied since has nothing to give, and what was opened again gives what is
    -- at its front. While a backlog of several segments lasts, a quarter of the calls tries the open one first, for into its
    -- blocks is born what is due again; a few go the general way, which looks whether there is anything due to open one for.
    -- A third tries it where the oldest has nothing ready: that may be used up, though upkeep has not said so yet. The others
    -- go the general way then, or nobody might open the next block of the oldest while more and more is due.
    select x.queue_id::bigint * 65536 + case when x.chance < 0.25 then x.open else x.head end,
           coalesce(dequeue.visibility_timeout, x.visibility_timeout), x.begun, x.chance, x.content,
           x.content & (1::bigint << 31) = 0 and x.home = 'mq.queue'::regclass::oid::text || '.' || current_setting('mq.system', true) and current_setting('transaction_isolation') in ('read committed', 'read uncommitted')
           and coalesce(dequeue.ack ~ concat('^', x.queue_id, '[.](', x.open, '|', x.head, ')[.]1[.]0[.][0-9]+[.][0-9]+[.][0-9]+[.][1-9][0-9]*[.][0-9]+$'), true),
           not x.begun and not x.paused and (x.head = x.open or x.chance >= 0.015)
           and dequeue.n between 1 and 10000 and coalesce(dequeue.visibility_timeout > '0' and dequeue.visibility_timeout <= '10 years', true)
           and coalesce(dequeue.subscription = 'default', true) and dequeue.wait is null
      into v_key, v_vt, v_begun, v_chance, v_register, v_is_plain, v_is_common
    from (select y.queue_id, y.visibility_timeout, y.paused, y.home, y.chance, y.content, y.content & 65535 as open, (y.content >> 16) & 32767 as head,
                 pg_current_xact_id_if_assigned() is not null as begun
          from (select z.queue_id, z.visibility_timeout, z.paused, z.home, random() as chance, pg_sequence_last_value(z.register) as content
                from mq.queue as z where z.name = dequeue.queue offset 0) as y) as x;
    if v_is_plain and dequeue.ack is not null then
        -- null: it is done
        dequeue.ack := case when mq._ack_0((v_key >> 16 << 16) + split_part(dequeue.ack, '.', 2)::int, dequeue.ack) is null then dequeue.ack end;
        v_is_plain := dequeue.ack is null;
    end if;
    loop
        if v_is_plain and v_is_common and dequeue.n > 1 then
            v_claim := mq._claim_0(v_key, dequeue.n, v_vt);
            if v_claim.n > 0 then
                return query select * from mq._read_0(v_key, v_claim);
                return;
            end if;
            v_ticket := v_claim.receipt;
        elsif v_is_plain and v_is_common then
            v_one := mq._take_one_0(v_key, v_vt);
            if v_one.msg_id is not null then
                return next v_one;
                return;
            end if;
            v_ticket := v_one.receipt;
        end if;
        exit when v_ticket is not null or v_other is not null or (v_is_plain and v_is_common and v_chance < 0.6) is not true;
        v_other := (v_key >> 16 << 16) + case when v_chance < 0.25 then (v_register >> 16) & 32767 else v_register & 65535 end;
        exit when (v_key <> v_other) is not true;
        -- There is something, but in slices of another size: the general way.
        exit when pg_sequence_last_value(to_regclass(format('mq.ticket_%s_%s', v_key >> 16, v_key & 65535)))
            < pg_sequence_last_value(to_regclass(format('mq.last_ticket_%s_%s', v_key >> 16, v_key & 65535))) >> 14;
        v_key := v_other;
    end loop;

    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        perform mq._wrong_isolation('dequeue');
    end if;
    if dequeue.n is null or dequeue.n not between 1 and 10000 then
        perform mq._invalid('n', format('%s is not between 1 and 10000.', coalesce(dequeue.n::text, 'null')), 'Ask for at most 10000 messages at a time.');
    end if;
    -- The register is null once the queue was dropped.
    select x.queue_id, x.mode, x.visibility_timeout, x.max_attempts, x.register, x.lanes, x.paused, x.home, x.priority_ageing, pg_sequence_last_value(x.register) as content
    into q from mq.queue as x where x.name = dequeue.queue;
    v_register := q.content;
    if not mq._is_at_home(q.home) then
        perform mq._repair(q.queue_id);
        if dequeue.ack is null then
            return;     -- what was repaired is for others, and for the next call
        end if;
        v_register := pg_sequence_last_value(q.register);
    elsif v_register is null then
        perform mq._queue_not_found(dequeue.queue);
    end if;
    v_vt := q.visibility_timeout;
    if dequeue.visibility_timeout is not null then
        perform mq._check_timeout(dequeue.visibility_timeout);
        v_vt := dequeue.visibility_timeout;
    end if;
    if dequeue.subscription <> 'default' then
        perform mq._invalid('subscription', format('"%s" is not a subscription of this queue.', left(dequeue.subscription, 100)), 'Leave it out, or use ''default''.');
    end if;
    if wait is not null then
        perform mq._check_wait('wait', dequeue.wait);
        v_until := clock_timestamp() + wait;
    end if;
    if dequeue.ack is not null and q.mode = 'transaction' then
        perform mq._parse_receipt(dequeue.queue, q.queue_id, dequeue.ack);      -- the commit is what acknowledges
    elsif dequeue.ack is not null then
        v_acked := mq._ack(dequeue.queue, q.queue_id, dequeue.ack);
        if v_acked = 0 then
            perform mq._lease_lost(dequeue.queue);
        end if;
    end if;

    v_pause := 0.005;
    loop
        v_give_up := clock_timestamp() + interval '50 milliseconds';
        v_open := v_register & 65535;
        v_is_limited := v_register & (1::bigint << 31) <> 0 and coalesce(pg_sequence_last_value(q.lanes) & 16384, 0) <> 0 and mq._is_limited(q.queue_id);
        if v_is_limited and not q.paused then
            v_wrote := pg_current_xact_id_if_assigned() is not null;
            return query select * from mq._take_within_limits(q.queue_id, v_open, dequeue.n, v_vt, v_begun, v_acked, v_give_up);
            get diagnostics v_count = row_count;
            if v_count > 0 or not v_wrote and pg_current_xact_id_if_assigned() is not null then
                return;
            end if;
            v_acked := 0;       -- it is told
        elsif not q.paused then
            -- In transaction mode the bit is always there; with one lane, and one segment, there is nothing to choose.
            v_has_lanes := v_register & (1::bigint << 31) <> 0      -- mq._has_lanes, but every empty poll comes here
                and (q.mode = 'lease' or (v_register >> 16) & 32767 <> v_open or pg_sequence_last_value(q.lanes) is not null);
            if v_has_lanes then
                return query select * from mq._take_by_priority(q.queue_id, q.priority_ageing, v_open, dequeue.n, v_vt, v_begun, v_give_up);
                get diagnostics v_count = row_count;
                if v_count > 0 then
                    return;
                end if;
            elsif (v_register >> 16) & 32767 <> v_open then
                -- The oldest segment first, but for what is due again, which comes in turn.
                if v_chance < 0.25 then
                    return query execute 'select * from mq._take_' || q.queue_id || '_' || v_open || '($5, 1::smallint, 0::smallint, $1, $2, false, true, $3, $4)'
                        using dequeue.n, v_vt, v_begun, v_give_up, case when v_key = q.queue_id::bigint * 65536 + v_open then v_ticket::bigint end;
                    get diagnostics v_count = row_count;
                    v_key := nullif(v_key, q.queue_id::bigint * 65536 + v_open);
                    if v_count > 0 then
                        return;
                    end if;
                end if;
                for v_slot in
                    select s.slot from mq.segment as s
                    where s.queue_id = q.queue_id and s.exhausted_at is null and s.drained_at is null and s.slot <> v_open      -- segment_live
                    order by s.queue_id, s.segment
                loop
                    return query execute 'select * from mq._take_' || q.queue_id || '_' || v_slot || '($5, 1::smallint, 0::smallint, $1, $2, true, false, $3, $4)'
                        using dequeue.n, v_vt, v_begun, v_give_up, case when v_key = q.queue_id::bigint * 65536 + v_slot then v_ticket::bigint end;
                    get diagnostics v_count = row_count;
                    if v_count > 0 then
                        return;
                    end if;
                end loop;
            end if;
            if not v_has_lanes then
                return query execute 'select * from mq._take_' || q.queue_id || '_' || v_open || '($5, 1::smallint, 0::smallint, $1, $2, true, true, $3, $4)'
                    using dequeue.n, v_vt, v_begun, v_give_up, case when v_key = q.queue_id::bigint * 65536 + v_open then v_ticket::bigint end;
                v_ticket := null;
                get diagnostics v_count = row_count;
                if v_count > 0 then
                    return;
                end if;
            end if;
            -- What ran out is delivered at once. Not in a transaction that wrote before: others would have to wait for
            -- the end of it. If it cannot be delivered, all is undone, with its locks, and left to others; unless it is
            -- all dead letters, for which nobody waits.
            if not v_begun and q.mode = 'lease'
                and mq._is_stale(q.queue_id, v_open, case when v_has_lanes then mq._lanes(q.queue_id) else '{0}' end)
                and (v_has_lanes or mq._is_lane_free(q.queue_id, v_open))
            then
                begin
                    select x.again, x.taken into v_again, v_taken from mq._sweep(q.queue_id, q.max_attempts, 100) as x;
                    v_count := 0;
                    if cardinality(v_again) > 0 then
                        return query select * from mq._redeliver(dequeue.queue, v_open, v_again, dequeue.n, v_vt);
                        get diagnostics v_count = row_count;
                    end if;
                    if v_taken = 0 or v_count = 0 and cardinality(v_again) > 0 then
                        raise exception using errcode = 'MQ0ZZ';
                    end if;
                exception
                    when sqlstate 'MQ0ZZ' then
                        null;
                end;
                -- Also where that gave nothing: what the sweep settled is for others only once this commits.
                if v_count > 0 or pg_current_xact_id_if_assigned() is not null then
                    return;
                end if;
            end if;
        end if;
        -- What this transaction repaired, or made a slot for, is for others once it commits; and who repairs it needs the
        -- tables that this call has used.
        exit when v_until is null or clock_timestamp() >= v_until
            -- Nor is what it buried in transaction mode gone before that, or what it brought back to an ordering key there; and
            -- it has locks that keep others from it. (An ack has written already, so then the locks tell.)
            or not v_begun and pg_current_xact_id_if_assigned() is not null
               and (dequeue.ack is null or mq._has_lock(q.queue_id, -2) or mq._has_lock(q.queue_id, -12))
            or exists (select from mq.slot as s where s.queue_id = q.queue_id and s.made_by = pg_current_xact_id_if_assigned())
            or mq._ran_backwards(q.queue_id);
        perform pg_sleep(least(v_pause, extract(epoch from v_until - clock_timestamp()),
                               case when v_is_limited then mq._rate_back_in(q.queue_id) end));
        v_pause := least(v_pause * 2, 0.1);
        q.paused := coalesce((select x.paused from mq.queue as x where x.queue_id = q.queue_id), true);
        v_register := pg_sequence_last_value(q.register);
    end loop;
end $$;

comment on function mq.dequeue(text, int, interval, text, interval, text) is
'Leases up to n messages, the highest priority first, then the oldest, under one receipt. No rows: nothing can be delivered now. (What this call found to be due, or lost by its consumer, and has an ordering_key, comes with the next one; so does what stands behind thousands of messages of keys that are under lease.)
queue: its name.
n: at most so many, 1 to 10000; default 1.
visibility_timeout: how long the lease lasts; default the queue''s. In a queue of mode transaction it does not matter: the messages are consumed when this transaction commits, and are there again, with the attempt counted, when it rolls back.
ack: a receipt of an earlier dequeue to acknowledge in the same call; if that lease was lost, nothing is leased.
wait: poll inside the server for up to so long, at most 20 seconds, or until the next call has something; default not at all. It holds a snapshot meanwhile: prefer listen.
subscription: null or ''default''.
Returns: msg_id, receipt, attempt (from 1), enqueued_at, leased_until, payload, headers.
Raises: MQ001 no such queue; MQ003 the lease to acknowledge is lost; MQ004 a malformed receipt; MQ007 too many claims in this transaction; 22023 a bad argument; 0A000 not in READ COMMITTED.
Role: mq_consumer.';
