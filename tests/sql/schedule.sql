select plan(44);

-- Who dequeues and who calls maintain() at one time, and what a crash leaves, is in tests/py/test_schedules.py.
select test.forget(q) from unnest(array['schedule', 'schedule.other']) as q;
select mq.create_queue('schedule');
select mq.create_queue('schedule.other');
create function pg_temp.waiting(queue text default 'schedule') returns bigint language sql as $$ select deferred from mq.queue_stats(queue) $$;
create function pg_temp.next() returns timestamptz language sql as $$ select next_at from mq.schedules() where name = 'a' $$;
-- What a consumer gets, as often as it asks for it.
create temp table got (payload jsonb, enqueued_at timestamptz);
create procedure pg_temp.drain(times int default 3) language plpgsql as $$
declare
    d record;
begin
    truncate got;
    for i in 1 .. times loop
        commit;
        for d in select * from mq.dequeue('schedule', 100) loop
            insert into got values (d.payload, d.enqueued_at);
            perform mq.ack('schedule', d.receipt);
        end loop;
    end loop;
end $$;

-- A tick.
select is(mq.schedule('a', '0 0 1 1 *', 'schedule', '1', headers => '{"h": 1}'), mq.cron_next('0 0 1 1 *'), 'it says when it is due next');
select results_eq($$ select state, due_at, enqueued_at, payload, headers from mq.peek('schedule') $$,
    $$ select 'deferred', mq.cron_next('0 0 1 1 *'), mq.cron_next('0 0 1 1 *'), '1'::jsonb, '{"h": 1}'::jsonb $$, 'its next message waits in the queue');
select is(mq.next_due('schedule'), mq.cron_next('0 0 1 1 *'), 'a consumer knows when to wake up');
call pg_temp.drain();
select is((select count(*) from got), 0::bigint, 'before that there is nothing');
select test.move_tick('a', mq.cron_next('0 0 1 1 *', now() - interval '1 year'));
call pg_temp.drain();
select results_eq('select payload, enqueued_at from got', $$ select '1'::jsonb, mq.cron_next('0 0 1 1 *', now() - interval '1 year') $$, 'it is delivered once, as old as its tick');
select is(pg_temp.next(), mq.cron_next('0 0 1 1 *'), 'and the next one waits');
select is(pg_temp.waiting(), 1::bigint, 'only that');

-- The same, and another.
create temp table before as select generation from mq.timetable where name = 'a';
select is(mq.schedule('a', '0 0 1 1 *', 'schedule', '1', headers => '{"h": 1}'), mq.cron_next('0 0 1 1 *'), 'the same again says when it is due next');
select is((select generation from mq.timetable where name = 'a'), (select generation from before), 'and changes nothing');
select test.move_tick('a', mq.cron_next('0 0 1 1 *', now() - interval '1 year'));
select ok(mq.schedule('a', '0 0 1 1 *', 'schedule', '1', headers => '{"h": 1}') < now(), 'nor does it forget what is due');
select is(mq.schedule('a', '0 0 1 7 *', 'schedule', '2', 'Europe/Berlin'), mq.cron_next('0 0 1 7 *', now(), 'Europe/Berlin'), 'another takes its place');
select results_eq($$ select payload, due_at from mq.peek('schedule') $$, $$ select '2'::jsonb, mq.cron_next('0 0 1 7 *', now(), 'Europe/Berlin') $$, 'what waited for the one before is not shown');
select results_eq($$ select ready, deferred from mq.queue_stats('schedule') $$, 'values (0::bigint, 1::bigint)', 'nor counted');
call pg_temp.drain();
select is((select count(*) from got), 0::bigint, 'nor delivered, though it is due');
select is(mq.next_due('schedule'), mq.cron_next('0 0 1 7 *', now(), 'Europe/Berlin'), 'and once it is skipped it wakes up nobody');
select mq.schedule('a', '0 0 1 7 *', 'schedule.other', '2');
select results_eq($$ select pg_temp.waiting(), pg_temp.waiting('schedule.other') $$, 'values (0::bigint, 1::bigint)', 'it moves to another queue');
select is(mq.unschedule('a'), true, 'it ends');

-- What is due besides is neither lost nor kept waiting by a tick that is skipped.
select mq.schedule('a', '@yearly', 'schedule', '1');
select test.move_tick('a', '2020-01-01');
select mq.unschedule('a');
select mq.enqueue('schedule', '"delayed"', delay => '1 hour');
select test.make_due('schedule');
call pg_temp.drain(2);
select results_eq('select payload from got', $$ values ('"delayed"'::jsonb) $$, 'a delayed message comes with it');

-- What nobody was there for, of five ticks.
create procedure pg_temp.miss(catch_up text) language plpgsql as $$
begin
    perform mq.schedule('a', 'every 400 days', 'schedule', to_jsonb(miss.catch_up), catch_up => miss.catch_up);
    perform test.move_tick('a', mq.cron_next('every 400 days', now() - interval '2000 days'));
end $$;
call pg_temp.miss('one');
call pg_temp.drain();
select results_eq('select payload, enqueued_at from got', $$ select '"one"'::jsonb, mq.cron_next('every 400 days', now() - interval '2000 days') $$, 'one: once, as old as the first of them');
select is(pg_temp.next(), mq.cron_next('every 400 days'), 'then as ever');
call pg_temp.miss('all');
call pg_temp.drain(5);
select results_eq('select payload, enqueued_at from got',
    $$ select '"all"'::jsonb, mq.cron_next('every 400 days', now() - i * interval '400 days') from generate_series(5, 1, -1) as i $$, 'all: each, in order');
select is(pg_temp.next(), mq.cron_next('every 400 days'), 'then as ever');
call pg_temp.miss('none');
call pg_temp.drain();
select is((select count(*) from got), 0::bigint, 'none: none');
select is(pg_temp.next(), mq.cron_next('every 400 days'), 'then as ever');
select test.move_tick('a', mq.cron_next('every 400 days', now() - interval '400 days'));
call pg_temp.drain();
select results_eq('select payload, enqueued_at from got', $$ select '"none"'::jsonb, mq.cron_next('every 400 days', now() - interval '400 days') $$, 'what is not late comes');
call pg_temp.miss('none');
select is(mq.cancel('schedule', (select p.msg_id from mq.peek('schedule') as p)), true, 'the message that waits is cancelled');
call pg_temp.drain();
select is((select ready || ' ' || deferred from mq.queue_stats('schedule')), '0 1', 'and skipped, and counts no more');
select mq.schedule('a', 'every 4 days', 'schedule', '"many"', catch_up => 'all');
select test.move_tick('a', mq.cron_next('every 4 days', now() - interval '2000 days'));
call pg_temp.drain(2);
select is((select count(*) from got), 101::bigint, 'many that were missed: a hundred at a time, behind the first');
call pg_temp.drain(12);
select is((select count(*) || ' ' || (array_agg(enqueued_at order by enqueued_at) = array_agg(enqueued_at)) from got), '399 true', 'until none is left, in order');

-- A time zone that was known when the schedule was made, and the server was not another.
select mq.schedule('a', '@yearly', 'schedule', '1');
update mq.timetable set timezone = 'Europe/Nowhere' where name = 'a';
select test.move_tick('a', '2020-01-01');
set client_min_messages = error;
select lives_ok($$ select * from mq.dequeue('schedule') $$, 'who dequeues is not disturbed by a zone that is unknown today');
reset client_min_messages;
select ok(pg_temp.next() between now() + interval '50 seconds' and now() + interval '1 minute', 'it is tried again in a minute');

-- What is refused.
select throws_ok(format('select mq.schedule(%s)', call), code, message, format('%s is refused', call)) from (values
    (1, $$'b', '* * *', 'schedule', '1'$$, '22023', 'invalid value for argument "expression"'),
    (2, $$'b', '@daily', 'schedule', '1', 'Europe/Nowhere'$$, '22023', 'invalid value for argument "timezone"'),
    (3, $$'b', '@daily', 'schedule', '1', catch_up => 'some'$$, '22023', 'invalid value for argument "catch_up"'),
    (4, $$'', '@daily', 'schedule', '1'$$, '22023', 'invalid value for argument "name"'),
    (5, $$repeat('x', 101), '@daily', 'schedule', '1'$$, '22023', 'invalid value for argument "name"'),
    (6, $$null, '@daily', 'schedule', '1'$$, '22004', null),
    (7, $$'b', '@daily', 'schedule', null$$, '22004', null),
    (8, $$'b', '@daily', 'schedule.none', '1'$$, 'MQ001', null)) as v (no, call, code, message) order by no;
select is((select count(*) from mq.schedules() where name = 'b'), 0::bigint, 'and leaves nothing behind');
select lives_ok($$ select mq.schedule(repeat('ä', 100), '@daily', 'schedule', '1') $$, 'a name of a hundred letters is not');
select is(mq.unschedule(repeat('ä', 100)), true, 'as it ends');
select throws_ok($$ select test.run_as('mq_producer', 'select mq.schedule(''b'', ''@daily'', ''schedule'', ''1'')') $$, '42501', null, 'nor may just anybody');

-- A tick that is cancelled, and then its schedule ends.
select mq.create_queue('schedule.none');
select mq.schedule('gone', '@yearly', 'schedule.none', '1');
select mq.cancel('schedule.none', 1) \g /dev/null
select mq.unschedule('gone') \g /dev/null
select results_eq($$ select ready, deferred from mq.queue_stats('schedule.none') $$, $$ values (0::bigint, 0::bigint) $$, 'a tick that is gone in two ways is not counted, either way');

select mq.drop_queue(q) from unnest(array['schedule', 'schedule.other', 'schedule.none']) as q;
select * from finish();
