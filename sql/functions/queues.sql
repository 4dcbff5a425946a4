create or replace function mq.queues() returns setof mq.queue_info
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
    return query
        select q.name,
               jsonb_build_object('mode', q.mode, 'visibility_timeout', q.visibility_timeout::text, 'max_attempts', q.max_attempts,
                   'retry_backoff', q.retry_backoff::text, 'retry_backoff_max', q.retry_backoff_max::text, 'retention', q.retention::text,
                   'result_retention', q.result_retention::text,
                   'retry_policy', q.retry_policy, 'retry_delays', q.retry_delays::text[], 'retry_jitter', q.retry_jitter, 'priority_ageing', q.priority_ageing::text, 'max_depth', q.max_depth, 'overflow', q.overflow,
                   'dedup_window', q.dedup_window::text, 'max_in_flight_per_key', q.max_in_flight_per_key, 'fair', q.fair,
                   'max_in_flight', q.max_in_flight, 'rate_limit', q.rate_limit, 'rate_period', q.rate_period::text,
                   'notify', q.notify, 'segment_age', q.segment_age::text, 'segment_bytes', q.segment_bytes),
               q.created_at, q.paused
        from mq.queue as q order by q.name;
end $$;

comment on function mq.queues() is
'Lists the queues with their settings, by name.
Returns: name, settings (an object; intervals as text), created_at, paused.
Role: mq_producer, mq_consumer.';
