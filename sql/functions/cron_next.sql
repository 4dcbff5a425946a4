create or replace function mq.cron_next(
    expression text,
    after timestamptz default now(),
    timezone text default 'UTC'
) returns timestamptz
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    c       record;
    v_local timestamp;
    v_next  timestamptz;
begin
    if num_nulls(expression, after, cron_next.timezone) > 0 then
        perform mq._null_argument('an argument of cron_next');
    elsif not isfinite(after) then
        perform mq._invalid('after', 'It is not finite.', 'Give a timestamp with time zone.');
    end if;
    begin
        v_local := after at time zone cron_next.timezone;
    exception
        when invalid_parameter_value then
            perform mq._invalid('timezone', format('"%s" is not a time zone.', left(cron_next.timezone, 100)), 'select name from pg_timezone_names lists them.');
    end;
    c := mq._cron_parse(expression);
    if c.every is not null then
        return to_timestamp((floor(extract(epoch from after) / c.every) + 1) * c.every);
    end if;
    loop
        v_local := mq._cron_after(v_local, c.seconds, c.minutes, c.hours, c.days, c.months, c.weekdays, c.either);
        if v_local is null then
            perform mq._invalid('expression', format('"%s" is never due: no such day in these months.', left(expression, 100)), 'Give a day that one of the months has.');
        end if;
        v_next := mq._first_instant(v_local, cron_next.timezone);
        -- Not yet, where clocks were put back, or forward over it.
        exit when v_next > after;
    end loop;
    return v_next;
end $$;

comment on function mq.cron_next(text, timestamptz, text) is
'When a cron expression is due next.
expression: minute hour day-of-month month day-of-week, with numbers, names (jan, mon), *, ranges, steps and lists; of both days either is enough if both are restricted. Six fields: seconds first. Or @yearly, @monthly, @weekly, @daily, @hourly; or every 90 seconds (minutes, hours, days, weeks), counted from 1970 on, in UTC.
after: strictly after it; default now.
timezone: whose clocks, default UTC. Put forward over a time, they are due when that is done; put back, once, the first time.
Returns: the instant.
Raises: 22023 a bad expression, with its field, or time zone; 22004 a null argument.
Role: mq_producer, mq_consumer.';
