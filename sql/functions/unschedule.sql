create or replace function mq.unschedule(name text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
begin
    delete from mq.timetable as s where s.name = unschedule.name;
    return found;
end $$;

comment on function mq.unschedule(text) is
'Ends a schedule. Messages that it put into its queue stay there.
name: of the schedule.
Returns: whether there was one.
Raises: 55P03 it is being changed by another transaction, for 10 seconds.
Role: mq_admin.';
