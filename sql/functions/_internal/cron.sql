-- When a schedule is due. An expression becomes sets of numbers, and these the next time on the wall that all of them have;
-- only then an instant is looked for, so that what daylight saving does stands in one place (_first_instant).

-- The numbers of one field, in order: *, a, a-b, each with /step, and lists of these. a/step runs to the end.
create or replace function mq._cron_field(field text, value text, low int, high int, names text[] default '{}') returns int[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_item   text;
    v_part   text[];
    v_from   int;
    v_to     int;
    v_step   int;
    v_values int[] := '{}'::int[];
begin
    foreach v_item in array string_to_array(lower(_cron_field.value), ',') loop
        v_part := regexp_match(v_item, '^(?:([*])|([a-z]{3}|[0-9]{1,4})(?:-([a-z]{3}|[0-9]{1,4}))?)(?:/([0-9]{1,4}))?$');
        v_from := case when v_part[1] = '*' then low when v_part[2] ~ '^[0-9]' then v_part[2]::int else low + array_position(names, v_part[2]) - 1 end;
        v_to := case when v_part[1] = '*' then high
                     when v_part[3] is null then case when v_part[4] is null then v_from else high end
                     when v_part[3] ~ '^[0-9]' then v_part[3]::int else low + array_position(names, v_part[3]) - 1 end;
        v_step := coalesce(v_part[4]::int, 1);
        if v_from is null or v_to is null then
            perform mq._invalid('expression', format('%s: "%s" is not *, a number%s, a range or a step.', field, left(v_item, 100),
                                                     case when names <> '{}' then ', a name from ' || names[1] || ' to ' || names[cardinality(names)] else '' end),
                                'Write 5, 1-5, */15, 10-30/5 or a list of these with commas.');
        end if;
        -- Sunday is 0 and 7.
        if field = 'day of week' and v_to = 0 and v_from > 0 and v_part[3] is not null then
            v_to := 7;
        end if;
        if least(v_from, v_to) < low or greatest(v_from, v_to) > high + (field = 'day of week')::int then
            perform mq._invalid('expression', format('%s: %s is not between %s and %s.', field, case when v_from between low and high then v_to else v_from end, low, high),
                                'The fields are minute, hour, day of month, month, day of week; with six of them seconds come first.');
        elsif v_from > v_to then
            perform mq._invalid('expression', format('%s: %s runs backwards.', field, v_item), 'Write two ranges, such as 22-23,0-2.');
        elsif v_step = 0 then
            perform mq._invalid('expression', format('%s: the step of %s is 0.', field, v_item), 'A step is at least 1.');
        end if;
        v_values := v_values || array(select x from generate_series(v_from, v_to, v_step) as x);
    end loop;
    return array(select distinct case when field = 'day of week' then x % 7 else x end as y from unnest(v_values) as x order by y);
end $$;

-- What an expression says: so many seconds, counted from 1970 on, or sets of numbers. either: on a day of the month or on one of the
-- week, as both are restricted.
create or replace function mq._cron_parse(expression text, out every bigint, out seconds int[], out minutes int[], out hours int[],
                                          out days int[], out months int[], out weekdays int[], out either boolean)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_text   text := btrim(regexp_replace(lower(_cron_parse.expression), '\s+', ' ', 'g'));
    v_every  text[] := regexp_match(v_text, '^every (?:([0-9]{1,9}) )?(second|minute|hour|day|week)s?$');
    v_fields text[];
begin
    if v_every is not null then
        every := coalesce(v_every[1], '1')::bigint * case v_every[2] when 'second' then 1 when 'minute' then 60 when 'hour' then 3600 when 'day' then 86400 else 604800 end;
        if every = 0 or every > 3155760000 then
            perform mq._invalid('expression', format('"%s" is not between 1 second and 100 years.', v_text), 'Write every 90 seconds.');
        end if;
        return;
    elsif v_text ~ '^every' then
        perform mq._invalid('expression', format('"%s" is not every so many seconds, minutes, hours, days or weeks.', left(v_text, 100)),
                            'Write every 90 seconds; months differ in length, so write a day of the month: 0 0 1 * *.');
    end if;
    v_text := case v_text when '@yearly' then '0 0 1 1 *' when '@annually' then '0 0 1 1 *' when '@monthly' then '0 0 1 * *' when '@weekly' then '0 0 * * 0'
                          when '@daily' then '0 0 * * *' when '@midnight' then '0 0 * * *' when '@hourly' then '0 * * * *' else v_text end;
    v_fields := string_to_array(v_text, ' ');
    if cardinality(v_fields) = 5 then
        v_fields := array_prepend('0', v_fields);
    elsif cardinality(v_fields) <> 6 or v_text ~ '^@' then
        perform mq._invalid('expression', format('"%s" has %s fields, not 5 or 6.', left(v_text, 100), cardinality(v_fields)),
                            'minute hour day-of-month month day-of-week, with six fields seconds first; or @daily and the like, or every 90 seconds.');
    end if;
    seconds := mq._cron_field('second', v_fields[1], 0, 59);
    minutes := mq._cron_field('minute', v_fields[2], 0, 59);
    hours := mq._cron_field('hour', v_fields[3], 0, 23);
    days := mq._cron_field('day of month', v_fields[4], 1, 31);
    months := mq._cron_field('month', v_fields[5], 1, 12, '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}');
    weekdays := mq._cron_field('day of week', v_fields[6], 0, 6, '{sun,mon,tue,wed,thu,fri,sat}');
    -- All that there are, beside a field that names none but has a star, as in */2, restrict nothing either.
    either := v_fields[4] <> '*' and v_fields[6] <> '*' and not (cardinality(days) = 31 and v_fields[6] ~ '[*]' or cardinality(weekdays) = 7 and v_fields[4] ~ '[*]');
end $$;

-- The first time on the wall after another that the sets have; null: in twelve years there is none (29 February comes within eight).
create or replace function mq._cron_after(local timestamp, seconds int[], minutes int[], hours int[], days int[], months int[], weekdays int[], either boolean)
returns timestamp language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
    v_local  timestamp := date_trunc('second', _cron_after.local) + interval '1 second';
    v_day    date := v_local::date;
    v_hour   int := extract(hour from v_local);
    v_minute int := extract(minute from v_local);
    v_second int := extract(second from v_local);
    v_is_day boolean;
begin
    while v_day < v_local::date + 4384 loop
        if extract(month from v_day)::int <> all (months) then
            v_day := (date_trunc('month', v_day) + interval '1 month')::date;
            continue;
        end if;
        v_is_day := case when either then extract(day from v_day)::int = any (days) or extract(dow from v_day)::int = any (weekdays)
                         else extract(day from v_day)::int = any (days) and extract(dow from v_day)::int = any (weekdays) end;
        if v_is_day and v_day > v_local::date then
            return v_day + make_time(hours[1], minutes[1], seconds[1]);
        elsif v_is_day then
            -- The rest of the first day: of this minute, of this hour, of a later one.
            if v_hour = any (hours) then
                if v_minute = any (minutes) and v_second <= seconds[cardinality(seconds)] then
                    return v_day + make_time(v_hour, v_minute, (select min(x) from unnest(seconds) as x where x >= v_second));
                elsif v_minute < minutes[cardinality(minutes)] then
                    return v_day + make_time(v_hour, (select min(x) from unnest(minutes) as x where x > v_minute), seconds[1]);
                end if;
            end if;
            if v_hour < hours[cardinality(hours)] then
                return v_day + make_time((select min(x) from unnest(hours) as x where x > v_hour), minutes[1], seconds[1]);
            end if;
        end if;
        v_day := v_day + 1;
    end loop;
    return null;
end $$;

-- The first instant at which clocks on the wall show a time or a later one: where they are put back and show it twice the first
-- of the two, where they are put forward over it the one at which they are.
create or replace function mq._first_instant(local timestamp, zone text) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_at    timestamptz := _first_instant.local at time zone zone;
    v_early timestamptz;
    v_late  timestamptz;
    v_half  timestamptz;
begin
    if v_at at time zone zone = _first_instant.local then
        -- With what clocks were from UTC a day before.
        v_early := (_first_instant.local - ((v_at - interval '1 day') at time zone zone - (v_at - interval '1 day') at time zone 'UTC')) at time zone 'UTC';
        return case when v_early at time zone zone = _first_instant.local then least(v_at, v_early) else v_at end;
    end if;
    v_early := v_at - interval '2 days';
    v_late := v_at + interval '2 days';
    while v_late - v_early > interval '1 second' loop
        v_half := date_trunc('second', v_early + (v_late - v_early) / 2);
        if v_half at time zone zone >= _first_instant.local then
            v_late := v_half;
        else
            v_early := v_half;
        end if;
    end loop;
    return v_late;
end $$;
