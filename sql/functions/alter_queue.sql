create or replace function mq.alter_queue(
    queue text,
    mode text default null,
    visibility_timeout interval default null,
    max_attempts int default null,
    retry_backoff interval default null,
    retry_backoff_max interval default null,
    retention interval default null,
    notify text default null,
    segment_age interval default null,
    segment_bytes bigint default null,
    retry_policy text default null,
    retry_delays interval[] default null,
    retry_jitter float8 default null,
    priority_ageing interval default null,
    result_retention interval default null,
    max_depth bigint default null,
    overflow text default null,
    dedup_window interval default null,
    max_in_flight_per_key int default null,
    fair boolean default null,
    max_in_flight int default null,
    rate_limit int default null,
    rate_period interval default null
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
declare
    q mq.queue;
    v_had_limit boolean;
begin
    -- _append_0 knows how it notifies, and which queues have a max_depth, _ack_0 which have no max_in_flight. The lock comes before all others, as in drop_queue, and stays until this commits:
    -- nobody makes it from what was before.
    if num_nonnulls(alter_queue.notify, alter_queue.max_depth, alter_queue.max_in_flight) > 0 then
        perform mq._lock_generated('alter_queue');
    end if;
    -- One after the other: each begins with what the one before has left.
    perform from mq.queue as x where x.name = alter_queue.queue for no key update;
    q := mq._queue(alter_queue.queue, false);
    if alter_queue.mode <> q.mode then
        perform mq._invalid('mode', 'The mode of a queue cannot be changed.', 'Create another queue with that mode.');
    end if;
    q.visibility_timeout := coalesce(alter_queue.visibility_timeout, q.visibility_timeout);
    q.max_attempts := coalesce(alter_queue.max_attempts, q.max_attempts);
    q.retry_backoff := coalesce(alter_queue.retry_backoff, q.retry_backoff);
    q.retry_backoff_max := coalesce(alter_queue.retry_backoff_max, q.retry_backoff_max);
    q.retry_policy := coalesce(alter_queue.retry_policy, q.retry_policy);
    -- Another policy than list forgets its delays.
    q.retry_delays := coalesce(alter_queue.retry_delays, case when coalesce(alter_queue.retry_policy, 'list') = 'list' then q.retry_delays end);
    q.retry_jitter := coalesce(alter_queue.retry_jitter, q.retry_jitter);
    q.priority_ageing := nullif(coalesce(alter_queue.priority_ageing, q.priority_ageing), '0');
    q.max_depth := nullif(coalesce(alter_queue.max_depth, q.max_depth), 0);
    -- Without a limit there is nothing to do about it.
    q.overflow := coalesce(alter_queue.overflow, case when q.max_depth is null then 'reject' else q.overflow end);
    q.dedup_window := coalesce(alter_queue.dedup_window, q.dedup_window);
    q.max_in_flight_per_key := nullif(coalesce(alter_queue.max_in_flight_per_key, q.max_in_flight_per_key), 0);
    q.fair := coalesce(alter_queue.fair, q.fair);
    v_had_limit := num_nonnulls(q.max_in_flight, q.rate_limit) > 0;
    q.max_in_flight := nullif(coalesce(alter_queue.max_in_flight, q.max_in_flight), 0);
    q.rate_limit := nullif(coalesce(alter_queue.rate_limit, q.rate_limit), 0);
    -- Without a rate its time is forgotten.
    q.rate_period := coalesce(alter_queue.rate_period, case when q.rate_limit is not null then q.rate_period end);
    q.retention := coalesce(alter_queue.retention, q.retention);
    q.result_retention := coalesce(alter_queue.result_retention, q.result_retention);
    q.notify := coalesce(alter_queue.notify, q.notify);
    q.segment_age := coalesce(alter_queue.segment_age, q.segment_age);
    q.segment_bytes := coalesce(alter_queue.segment_bytes, q.segment_bytes);
    perform mq._check_settings(q);
    update mq.queue as x
    set visibility_timeout = q.visibility_timeout,
        max_attempts = q.max_attempts,
        retry_backoff = q.retry_backoff,
        retry_backoff_max = q.retry_backoff_max,
        retry_policy = q.retry_policy,
        retry_delays = q.retry_delays,
        retry_jitter = q.retry_jitter,
        priority_ageing = q.priority_ageing,
        max_depth = q.max_depth,
        overflow = q.overflow,
        dedup_window = q.dedup_window,
        max_in_flight_per_key = q.max_in_flight_per_key,
        fair = q.fair,
        max_in_flight = q.max_in_flight,
        rate_limit = q.rate_limit,
        rate_period = q.rate_period,
        retention = q.retention,
        result_retention = q.result_retention,
        notify = q.notify,
        segment_age = q.segment_age,
        segment_bytes = q.segment_bytes
    where x.queue_id = q.queue_id;
    if not found then
        perform mq._queue_not_found(alter_queue.queue);
    end if;
    if alter_queue.max_depth is not null then
        -- There is no room, nor is any counted, until this commits; then by the new limit.
        perform pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(q.queue_id, -11));
        perform setval(format('mq.room_%s', q.queue_id)::regclass, 1);
    end if;
    perform mq._begin_limits(q) where not v_had_limit and num_nonnulls(q.max_in_flight, q.rate_limit) > 0;
    if alter_queue.max_in_flight is not null then
        perform mq._create_dispatchers();
    elsif num_nonnulls(alter_queue.notify, alter_queue.max_depth) > 0 then
        perform mq._create_append();
    end if;
    -- There may be room now for what waits.
    perform mq._notify(q.queue_id, q.name, q.notify, q.notified) where num_nonnulls(alter_queue.max_in_flight, alter_queue.rate_limit, alter_queue.rate_period) > 0;
end $$;

comment on function mq.alter_queue(text, text, interval, int, interval, interval, interval, text, interval, bigint, text, interval[], float8, interval, interval, bigint, text, interval, int, boolean, int, int, interval) is
'Changes settings of a queue; null leaves one as it is. They hold from the next call on, notify and a first max_depth from the next transaction on; leases keep their deadline, and dedup keys that are taken their time.
queue, and the settings of create_queue, of which mode must be what it is; of priority_ageing 0 is none. max_depth: 0 for no limit any more; a lower one removes nothing, but nothing new comes before there is room. max_in_flight_per_key: 0 for no limit any more; it and fair hold for what is admitted from then on. max_in_flight, rate_limit: 0 for none any more; a lower max_in_flight takes nothing back, but nothing is delivered before there is room. A rate counts what was delivered since there was one. The first limit waits up to 10 seconds for transactions that use the queue.
Raises: MQ001 no such queue; 22023 a bad setting; 55P03 another transaction is changing or dropping it, or with notify, max_depth or max_in_flight any queue, or using it while a first limit is set; 0A000 a setting of a later version, or notify, max_depth or max_in_flight outside READ COMMITTED.
Role: mq_admin.';
