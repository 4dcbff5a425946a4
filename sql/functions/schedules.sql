create or replace function mq.schedules() returns setof mq.schedule_info
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    return query
        select s.name, q.name, s.cron, s.timezone, s.payload, s.headers, s.catch_up, mq._next_tick(s.queue_id, s.generation), s.created_at
        from mq.timetable as s join mq.queue as q on q.queue_id = s.queue_id
        where pg_sequence_last_value(q.register) > 0 order by s.name;
end $$;

comment on function mq.schedules() is
'Lists the schedules.
Returns: name, queue, cron, timezone, payload, headers, catch_up, next_at (when it is due next: in the past, if nobody has been there to see to it), created_at.
Role: mq_producer, mq_consumer.';
