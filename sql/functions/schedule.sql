create or replace function mq.schedule(
    name text,
    cron text,
    queue text,
    payload jsonb,
    timezone text default 'UTC',
    headers jsonb default null,
    catch_up text default 'one'
) returns timestamptz
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
declare
    q      mq.queue;
    s      mq.timetable;
    v_next timestamptz;
begin
    if num_nulls(schedule.name, schedule.cron, schedule.payload, schedule.timezone, schedule.catch_up) > 0 then
        perform mq._null_argument('an argument of schedule');
    end if;
    if length(schedule.name) not between 1 and 100 then
        perform mq._invalid('name', format('It has %s characters, not 1 to 100.', length(schedule.name)), 'Give a name that says what it is for.');
    end if;
    if schedule.catch_up not in ('one', 'all', 'none') then
        perform mq._invalid('catch_up', format('"%s" is none of them.', left(schedule.catch_up, 100)), 'Use ''one'', ''all'' or ''none''.');
    end if;
    v_next := mq.cron_next(schedule.cron, clock_timestamp(), schedule.timezone);
    -- With its register read: who drops the queue waits for us, and then knows of this schedule; or we wait, and there is no queue.
    q := mq._queue(schedule.queue);
    -- Two who schedule one name: the second waits here, and its tick alone has the generation that stays.
    insert into mq.timetable as x (name, queue_id, cron, timezone, payload, headers, catch_up, generation)
    values (schedule.name, q.queue_id, schedule.cron, schedule.timezone, schedule.payload, schedule.headers, schedule.catch_up, (random() * 9e18)::bigint)
    on conflict on constraint timetable_pkey do update
    set queue_id = excluded.queue_id, cron = excluded.cron, timezone = excluded.timezone, payload = excluded.payload, headers = excluded.headers,
        catch_up = excluded.catch_up, generation = excluded.generation
    where (x.queue_id, x.cron, x.timezone, x.payload, x.headers, x.catch_up)
        is distinct from (excluded.queue_id, excluded.cron, excluded.timezone, excluded.payload, excluded.headers, excluded.catch_up)
    returning * into s;
    if not found then
        -- The same again, as by a program that says so each time it starts: a tick that it was to catch up with is not forgotten.
        return (select mq._next_tick(x.queue_id, x.generation) from mq.timetable as x where x.name = schedule.name);
    end if;
    perform mq._put_tick(s, v_next, s.generation);
    return v_next;
end $$;

comment on function mq.schedule(text, text, text, jsonb, text, jsonb, text) is
'Puts a message into a queue each time that a cron expression is due. Whoever dequeues or calls maintain() puts it there: once, however many they are. Its enqueued_at is the time at which it was due.
name: of the schedule, 1 to 100 characters. One that exists is replaced, and begins anew with the next time; given again as it is, nothing changes.
cron: when; as in cron_next, which tells what it makes of it.
queue: where to. payload, headers: of the messages; headers default null.
timezone: whose clocks, default UTC.
catch_up: what becomes of times that nobody was there for: ''one'' message for all of them (default), ''all'', ''none''.
Returns: when it is due next.
Raises: MQ001 no such queue; 22004 a null argument; 22023 a bad expression, with its field, time zone, name or catch_up; 55P03 the queue or the schedule is being changed by another transaction, for 10 seconds.
Role: mq_admin.';
