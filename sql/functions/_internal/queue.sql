-- Checks the settings of a queue, as they are to be.
create or replace function mq._check_settings(q mq.queue) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if q.mode not in ('lease', 'transaction') then
        perform mq._invalid('mode', format('"%s" is not a mode.', left(q.mode, 100)), 'Use ''lease'' or ''transaction''.');
    end if;
    if q.mode = 'transaction' then
        -- No code of mq runs when a message is settled, which is somebody's commit; nor is it known without reading them all how
        -- many wait, as any open transaction may yet give some back.
        perform mq._not_yet('max_depth in mode "transaction"') where q.max_depth is not null;
        perform mq._not_yet('dedup_window 0 in mode "transaction"') where q.dedup_window = '0';
        perform mq._not_yet('max_in_flight in mode "transaction"') where q.max_in_flight is not null;
        perform mq._not_yet('rate_limit in mode "transaction"') where q.rate_limit is not null;
    end if;
    if q.max_in_flight_per_key < 1 then
        perform mq._invalid('max_in_flight_per_key', format('%s is less than 1.', q.max_in_flight_per_key), 'Give a number of messages, or none for no limit.');
    end if;
    perform mq._check_timeout(q.visibility_timeout);
    if q.max_attempts not between 1 and 32000 then
        perform mq._invalid('max_attempts', format('%s is not between 1 and 32000.', q.max_attempts), 'A message is tried at least once.');
    end if;
    if q.retry_backoff < '0' or q.retry_backoff > '10 years' then
        perform mq._invalid('retry_backoff', format('%s is not between 0 and 10 years.', q.retry_backoff), 'Give an interval, such as ''1 second''.');
    end if;
    if q.retry_backoff_max < '0' or q.retry_backoff_max > '10 years' then
        perform mq._invalid('retry_backoff_max', format('%s is not between 0 and 10 years.', q.retry_backoff_max), 'Give an interval, such as ''1 hour''.');
    end if;
    if q.retry_policy not in ('fixed', 'linear', 'exponential', 'list') then
        perform mq._invalid('retry_policy', format('"%s" is not a policy.', left(q.retry_policy, 100)), 'Use ''fixed'', ''linear'', ''exponential'' or ''list''.');
    end if;
    if cardinality(q.retry_delays) not between 1 and 100 or array_ndims(q.retry_delays) > 1 or array_position(q.retry_delays, null) > 0
        or exists (select from unnest(q.retry_delays) as x where x < '0' or x > '10 years')
    then
        perform mq._invalid('retry_delays', 'They are not 1 to 100 intervals between 0 and 10 years.', 'Give a list, such as array[''1 second'', ''1 minute'']::interval[].');
    end if;
    if q.retry_jitter not between 0 and 1 then
        perform mq._invalid('retry_jitter', format('%s is not between 0 and 1.', q.retry_jitter), 'It is the share of a delay that is taken off at random, at most.');
    end if;
    if q.priority_ageing < '1 millisecond' or q.priority_ageing > '10 years' then
        perform mq._invalid('priority_ageing', format('%s is not between 1 millisecond and 10 years.', q.priority_ageing), 'Give an interval, such as ''1 minute'', or leave it out.');
    end if;
    if q.dedup_window < '0' or q.dedup_window > '10 years' then
        perform mq._invalid('dedup_window', format('%s is not between 0 and 10 years.', q.dedup_window), 'Give an interval, such as ''5 minutes'', or 0: until the message is settled.');
    end if;
    if q.retention < '0' or q.retention > '10 years' then
        perform mq._invalid('retention', format('%s is not between 0 and 10 years.', q.retention), 'Give an interval, such as ''7 days''; ''0'' keeps nothing.');
    end if;
    if q.result_retention < '0' or q.result_retention > '10 years' then
        perform mq._invalid('result_retention', format('%s is not between 0 and 10 years.', q.result_retention), 'Give an interval, such as ''1 hour''.');
    end if;
    if q.notify not in ('auto', 'always', 'never') then
        perform mq._invalid('notify', format('"%s" is not a notify mode.', left(q.notify, 100)), 'Use ''auto'', ''always'' or ''never''.');
    end if;
    if q.segment_age <= '0' or q.segment_age > '10 years' then
        perform mq._invalid('segment_age', format('%s is not between 0 and 10 years.', q.segment_age), 'Give an interval, such as ''1 hour''.');
    end if;
    if q.segment_bytes < 65536 then
        perform mq._invalid('segment_bytes', format('%s is less than 65536.', q.segment_bytes), 'Give a number of bytes, such as 268435456.');
    end if;
    if q.overflow not in ('reject', 'drop_oldest', 'dead_letter') then
        perform mq._invalid('overflow', format('"%s" is not a policy.', left(q.overflow, 100)), 'Use ''reject'', ''drop_oldest'' or ''dead_letter''.');
    elsif q.overflow <> 'reject' and q.max_depth is null then
        perform mq._invalid('overflow', format('It is "%s", and there is no max_depth.', q.overflow), 'Give max_depth, too.');
    elsif q.max_depth < 1 then
        perform mq._invalid('max_depth', format('%s is less than 1.', q.max_depth), 'Give a number of messages, or none for no limit.');
    end if;
    if q.max_in_flight < 1 then
        perform mq._invalid('max_in_flight', format('%s is less than 1.', q.max_in_flight), 'Give a number of messages, or none for no limit.');
    elsif q.rate_limit < 1 then
        perform mq._invalid('rate_limit', format('%s is less than 1.', q.rate_limit), 'Give a number of messages, or none for no limit.');
    elsif q.rate_limit is not null and q.rate_period is null then
        perform mq._invalid('rate_limit', format('It is %s, and there is no rate_period.', q.rate_limit), 'Give rate_period, too.');
    elsif q.rate_period is not null and q.rate_limit is null then
        perform mq._invalid('rate_period', 'It is given, and there is no rate_limit.', 'Give rate_limit, too.');
    elsif q.rate_period < '1 millisecond' or q.rate_period > '10 years' then
        perform mq._invalid('rate_period', format('%s is not between 1 millisecond and 10 years.', q.rate_period), 'Give an interval, such as ''1 second''.');
    end if;
    -- Delays are listed where the policy is to go by them, and nowhere else.
    if q.retry_policy = 'list' and q.retry_delays is null then
        perform mq._invalid('retry_policy', 'It is "list", and there are no retry_delays.', 'Give retry_delays, too.');
    elsif q.retry_policy <> 'list' and q.retry_delays is not null then
        perform mq._invalid('retry_delays', format('They are given, and retry_policy is "%s".', q.retry_policy), 'Give retry_policy => ''list'', too.');
    end if;
end $$;

create or replace function mq._check_timeout(visibility_timeout interval) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if visibility_timeout <= '0' or visibility_timeout > '10 years' then
        perform mq._invalid('visibility_timeout', format('%s is not above 0 and at most 10 years.', visibility_timeout),
                            'Give an interval, such as ''30 seconds''.');
    end if;
end $$;

-- How long a call may wait inside the server. Added, too: 12 months are more than 360 days, but do not compare as more.
create or replace function mq._check_wait(argument text, wait interval) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if wait < '0' or wait > '20 seconds' or clock_timestamp() + wait > clock_timestamp() + interval '20 seconds' then
        perform mq._invalid(_check_wait.argument, format('%s is not between 0 and 20 seconds.', wait), 'Listen, or call again, to wait for longer.');
    end if;
end $$;

create or replace function mq._system_identifier() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return (select s.system_identifier from pg_control_system() as s);
exception
    when insufficient_privilege then    -- some managed services keep it to themselves; the relation's oid remains
        return 0;
end $$;

-- Where we are: a restore, or a copy into another database or cluster, is somewhere else. Both parts are needed: a restore
-- into a fresh cluster often gives mq.queue the oid that it had.
create or replace function mq._home() returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return 'mq.queue'::regclass::oid || '.' || mq._system_identifier();
end $$;

-- Whether that is where a queue comes from. The session remembers the system identifier (mq.system), which cannot change
-- and is in a file, so that the hot path need not ask. Where it could not be read (0), the oid decides.
create or replace function mq._is_at_home(home text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if home <> concat('mq.queue'::regclass::oid, '.', current_setting('mq.system', true)) then
        if home not in (mq._home(), 'mq.queue'::regclass::oid || '.0') then
            return false;
        end if;
        perform set_config('mq.system', split_part(home, '.', 2), false);
    end if;
    return true;
end $$;

-- Whether a queue is a copy: by its home, or as transaction ids ran backwards.
create or replace function mq._is_copy(queue_id int, home text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return not mq._is_at_home(_is_copy.home) or mq._ran_backwards(_is_copy.queue_id);
end $$;

create or replace function mq._is_transactional(queue_id int) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return exists (select from mq.queue as q where q.queue_id = _is_transactional.queue_id and q.mode = 'transaction');
end $$;

-- Whether a statement may see less than those that ran before it.
create or replace function mq._is_stale_snapshot() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return current_setting('transaction_isolation') not in ('read committed', 'read uncommitted');
end $$;

-- dequeue, which is called more often, looks for itself.
create or replace function mq._check_isolation(caller text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if mq._is_stale_snapshot() then
        perform mq._wrong_isolation(_check_isolation.caller);
    end if;
end $$;

-- The row of a queue, for functions that are not on the hot path. Those that lock its row, or its upkeep, look at the
-- register only behind that lock: drop_queue takes the three in this order.
create or replace function mq._queue(queue text, and_register boolean default true) returns mq.queue
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    q mq.queue;
begin
    select * into q from mq.queue as x where x.name = _queue.queue;
    if not found then
        perform mq._queue_not_found(_queue.queue);
    elsif not mq._is_at_home(q.home) then
        perform mq._repair(q.queue_id);
        select * into q from mq.queue as x where x.name = _queue.queue;
        if not found then
            perform mq._queue_not_found(_queue.queue);      -- dropped while we waited for the repair
        end if;
    end if;
    if _queue.and_register and pg_sequence_last_value(q.register) is null then
        perform mq._queue_not_found(_queue.queue);      -- dropped while we waited for the register
    end if;
    return q;
end $$;

-- When to deliver: null for at once.
create or replace function mq._due_at(delay interval, deliver_at timestamptz) returns timestamptz
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if delay is not null and deliver_at is not null then
        perform mq._invalid('deliver_at', 'Both delay and deliver_at are given.', 'Give one of them.');
    end if;
    if delay < '0' or delay > '100 years' then
        perform mq._invalid('delay', format('%s is not between 0 and 100 years.', delay), 'Give an interval, such as ''5 minutes''.');
    end if;
    if deliver_at is not null and (not isfinite(deliver_at) or deliver_at > now() + interval '100 years') then
        perform mq._invalid('deliver_at', format('%s is not within 100 years.', deliver_at), 'Give a timestamp with time zone.');
    end if;
    return case when delay > '0' then clock_timestamp() + delay when deliver_at > clock_timestamp() then deliver_at end;
end $$;

-- What of an enqueue's options is kept with the message. ending_key: a dedup key that its end sets free.
create or replace function mq._extra(ttl interval, due_at timestamptz, ending_key text, ordering_key text default null) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if ttl <= '0' or ttl > '100 years' then
        perform mq._invalid('ttl', format('%s is not above 0 and at most 100 years.', ttl), 'Give an interval, such as ''10 minutes''.');
    elsif clock_timestamp() + ttl <= due_at then
        perform mq._invalid('ttl', 'It ends before the message is due.', 'Give a longer ttl, or a shorter delay.');
    end if;
    return nullif(jsonb_strip_nulls(jsonb_build_object('e', mq._microseconds(clock_timestamp() + ttl), 'd', ending_key, 'k', ordering_key)), '{}');
end $$;

-- Locks all tables of a queue, for who drops or purges it. Consumers take them in orders of their own: so a wait for one
-- ends well before a deadlock would be looked for, gives back the others, and is tried again, for as long as patience is.
create or replace function mq._lock_tables(queue_id int, sequences boolean default false, patience interval default '10 seconds') returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '200ms' as $$
declare
    v_table   name;
    v_give_up timestamptz := clock_timestamp() + _lock_tables.patience;
begin
    loop
        begin
            -- Who reads a register keeps a lock on it. LOCK takes no sequences; this does as well.
            for v_table in
                select c.relname from pg_class as c
                where sequences and c.relnamespace = 'mq'::regnamespace and c.relkind = 'S'
                  and c.relname ~ ('^(register|msg_id|notified|waiting|lanes|room|counted)_' || _lock_tables.queue_id || '$|^((last_)?ticket|mark_no|strike|strike_xid)_' || _lock_tables.queue_id || '_[0-9]+$')
                order by c.relname !~ '^register', c.oid
            loop
                execute format('alter sequence mq.%I no cycle', v_table);
            end loop;
            for v_table in
                select c.relname from pg_class as c
                where c.relnamespace = 'mq'::regnamespace and c.relkind = 'r'
                  and c.relname ~ ('^(log|block|lease|settlement|taken|mark|deferred|timer|promotion)_' || _lock_tables.queue_id || '_[0-9]+$|^(parked|line|key|turn)_' || _lock_tables.queue_id || '$')
                order by c.oid
            loop
                execute format('lock table mq.%I in access exclusive mode', v_table);
            end loop;
            return;
        exception
            when lock_not_available then
                if clock_timestamp() > v_give_up then
                    perform mq._in_use();
                end if;
        end;
        perform pg_sleep(0.01);
    end loop;
end $$;
