create or replace function mq.run_schedule(name text) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    s record;
begin
    select q.name as queue, x.payload, x.headers into s from mq.timetable as x join mq.queue as q on q.queue_id = x.queue_id where x.name = run_schedule.name;
    if not found then
        perform mq._schedule_not_found(run_schedule.name);
    end if;
    return mq.enqueue(s.queue, s.payload, s.headers);
end $$;

comment on function mq.run_schedule(text) is
'Puts the message of a schedule into its queue now, besides those that are due.
name: of the schedule.
Returns: the message''s msg_id.
Raises: MQ011 no such schedule.
Role: mq_admin.';
