select plan(5);

select test.forget('run_schedule');
select mq.create_queue('run_schedule');
select mq.schedule('a', '@yearly', 'run_schedule', '{"p": 1}', headers => '{"h": 1}');
select is(mq.run_schedule('a'), 2::bigint, 'it says which message it is');
select results_eq($$ select msg_id, payload, headers from mq.dequeue('run_schedule', 10) $$, $$ values (2::bigint, '{"p": 1}'::jsonb, '{"h": 1}'::jsonb) $$, 'which is there at once');
select is((select next_at from mq.schedules()), mq.cron_next('@yearly'), 'besides the next one');
select throws_ok($$ select mq.run_schedule('none') $$, 'MQ011', 'schedule "none" does not exist', 'one that is not there is an error');
select throws_ok($$ select mq.run_schedule(null) $$, 'MQ011', null, 'so is null');

select mq.drop_queue('run_schedule');
select * from finish();
