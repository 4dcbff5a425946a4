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
    retry_jitter float8 default null
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
declare
    q mq.queue;
begin
    -- _append_0 knows how it notifies. The lock comes before all others, as in drop_queue, and stays until this commits:
    -- nobody makes it from what was before.
    if alter_queue.notify is not null then
        perform mq._lock_generated('alter_queue');
    end if;
    q := mq._queue(alter_queue.queue, false);
    perform mq._check_settings(alter_queue.mode, alter_queue.visibility_timeout, alter_queue.max_attempts, alter_queue.retry_backoff,
        alter_queue.retry_backoff_max, alter_queue.retention, alter_queue.notify, alter_queue.segment_age, alter_queue.segment_bytes,
        alter_queue.retry_policy, alter_queue.retry_delays, alter_queue.retry_jitter);
    -- Another policy than list forgets its delays.
    perform mq._check_retry_policy(coalesce(alter_queue.retry_policy, q.retry_policy),
        coalesce(alter_queue.retry_delays, case when coalesce(alter_queue.retry_policy, 'list') = 'list' then q.retry_delays end));
    update mq.queue as x
    set visibility_timeout = coalesce(alter_queue.visibility_timeout, x.visibility_timeout),
        max_attempts = coalesce(alter_queue.max_attempts, x.max_attempts),
        retry_backoff = coalesce(alter_queue.retry_backoff, x.retry_backoff),
        retry_backoff_max = coalesce(alter_queue.retry_backoff_max, x.retry_backoff_max),
        retry_policy = coalesce(alter_queue.retry_policy, x.retry_policy),
        retry_delays = coalesce(alter_queue.retry_delays, case when coalesce(alter_queue.retry_policy, 'list') = 'list' then x.retry_delays end),
        retry_jitter = coalesce(alter_queue.retry_jitter, x.retry_jitter),
        notify = coalesce(alter_queue.notify, x.notify),
        segment_age = coalesce(alter_queue.segment_age, x.segment_age),
        segment_bytes = coalesce(alter_queue.segment_bytes, x.segment_bytes)
    where x.queue_id = q.queue_id;
    if not found then
        perform mq._queue_not_found(alter_queue.queue);
    end if;
    if alter_queue.notify is not null then
        perform mq._create_append();
    end if;
end $$;

comment on function mq.alter_queue(text, text, interval, int, interval, interval, interval, text, interval, bigint, text, interval[], float8) is
'Changes settings of a queue; null leaves one as it is. They hold from the next call on, notify from the next transaction on; leases keep their deadline.
queue, and the settings of create_queue.
Raises: MQ001 no such queue; 22023 a bad setting; 55P03 another transaction is changing or dropping it, or with notify any queue; 0A000 a setting of a later version, or notify outside READ COMMITTED.
Role: mq_admin.';
