-- Schedules. The next tick of each is a message that waits in the deferral set of its queue (extra.s: the generation that the schedule
-- had). Whoever takes it when it is due puts the next one there in the same transaction. That is the promoter: one at
-- a time, under a lock, and its cursor only moves forward. So a tick comes once, whoever is at work and however many; and a rollback
-- takes back the message and what follows it.
--
-- A schedule that is changed gets another generation, and a first tick of its own. The tick of the one before stays where it is, for
-- nothing is deleted there one by one, and is skipped when it comes up.

-- Puts a tick where it waits to be due, or, without a generation, the message that it has missed. It is as old as the tick, whenever it
-- is put there.
create or replace function mq._put_tick(s mq.timetable, tick timestamptz, generation bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    q mq.queue;
begin
    select * into q from mq.queue as x where x.queue_id = s.queue_id;
    -- It comes whatever max_depth says, but new messages have less room.
    perform mq._enter(q.queue_id, 1) where q.max_depth is not null;
    execute 'insert into mq.deferred_' || q.queue_id || '_' || ((pg_sequence_last_value(q.register) >> 32) & 1)
        || ' (msg_id, due_at, enqueued_at, payload, headers, extra) values ($1, $2, $2, $3, $4, $5)'
        using nextval(q.msg_ids), _put_tick.tick, s.payload, s.headers,
              case when _put_tick.generation is not null then jsonb_build_object('s', _put_tick.generation) end;
    -- Who sleeps until the next message is due is to know of this one.
    perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
end $$;

-- The tick that waits: the last one that was put there.
create or replace function mq._next_tick(queue_id int, generation bigint) returns timestamptz
language plpgsql set search_path = pg_catalog, pg_temp as $f$
declare
    v_tick timestamptz;
begin
    execute replace($x$
        select max(t.due_at) from (
            (select x.due_at from mq.deferred_{q}_0 as x
             where x.extra ? 's' and (x.extra ->> 's')::bigint = $1 order by (x.extra ->> 's')::bigint desc, x.due_at desc limit 1)
            union all
            (select x.due_at from mq.deferred_{q}_1 as x
             where x.extra ? 's' and (x.extra ->> 's')::bigint = $1 order by (x.extra ->> 's')::bigint desc, x.due_at desc limit 1)) as t
        $x$, '{q}', _next_tick.queue_id::text) into v_tick using _next_tick.generation;
    return v_tick;
end $f$;

-- Null where this server does not know the time zone any more. That must not stop who dequeues.
create or replace function mq._tick_after(s mq.timetable, tick timestamptz) returns timestamptz
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return mq.cron_next(s.cron, _tick_after.tick, s.timezone);
exception
    when invalid_parameter_value then
        raise warning using message = format('schedule "%s" is held up: %s', s.name, sqlerrm), hint = 'Call mq.schedule with a time zone that this server knows.';
        return null;
end $$;

-- What the promoter does with a tick that is due: puts the next one there, and says whether this one is delivered (null) or skipped.
-- One that is skipped is gone, so it does not count as cancelled either.
create or replace function mq._take_tick(queue_id int, msg_id bigint, generation bigint, tick timestamptz) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_outcome text := mq._follow_tick(generation, tick);
begin
    if v_outcome = 'skipped' then
        delete from mq.cancelled as c where c.queue_id = _take_tick.queue_id and c.msg_id = _take_tick.msg_id;
    end if;
    return v_outcome;
end $$;

-- Late is a tick whose successor is due as well.
create or replace function mq._follow_tick(generation bigint, tick timestamptz) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    s      mq.timetable;
    v_now  timestamptz := clock_timestamp();
    v_next timestamptz;
    v_late boolean;
begin
    select * into s from mq.timetable as x where x.generation = _follow_tick.generation;
    if not found then
        return 'skipped';       -- unscheduled, or changed
    end if;
    v_next := mq._tick_after(s, tick);
    if v_next is null then
        perform mq._put_tick(s, greatest(tick, v_now) + interval '1 minute', s.generation);
        return 'skipped';
    end if;
    v_late := v_next <= v_now;
    if s.catch_up = 'all' then
        -- Many were missed: a hundred at a time, so that nobody works long for what others missed.
        for i in 1 .. 99 loop
            exit when v_next > v_now;
            perform mq._put_tick(s, v_next, null);
            v_next := mq._tick_after(s, v_next);
        end loop;
    elsif v_late then
        v_next := mq._tick_after(s, v_now);
    end if;
    perform mq._put_tick(s, v_next, s.generation);
    return case when v_late and s.catch_up = 'none' then 'skipped' end;
end $$;

-- Where nobody dequeues, upkeep takes what is due in lane 0, where ticks are, and appends it to the log: messages as any other. Not where no tick
-- is due, so other queues are left alone, and what they have to retry is not moved behind their backlog. Behind all that
-- upkeep does with segments: a window does not show it the rows of its own transaction. Returns how many.
create or replace function mq._promote_ticks(q mq.queue) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_count int;
begin
    if not exists (select from mq.timetable as s where s.queue_id = q.queue_id and mq._next_tick(s.queue_id, s.generation) <= clock_timestamp()) then
        return 0;
    end if;
    execute format('insert into mq.log_%1$s_%2$s (msg_id, enqueued_at, attempt, payload, headers, extra)'
                   ' select m.msg_id, m.enqueued_at, m.attempt, m.payload, m.headers, m.extra from mq._promote_%1$s(0::smallint, 10000, 23) as m where m.outcome is null',
                   q.queue_id, pg_sequence_last_value(q.register) & 65535);
    get diagnostics v_count = row_count;
    if v_count > 0 then
        perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    end if;
    return v_count;
end $$;
