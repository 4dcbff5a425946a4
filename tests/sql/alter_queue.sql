begin;
select plan(26);

select mq.create_queue('alter_queue');
create function pg_temp.settings() returns jsonb language sql as $$ select settings from mq.queues() where name = 'alter_queue' $$;

create temp table before as select pg_temp.settings() as settings;
select lives_ok($$ select mq.alter_queue('alter_queue') $$, 'nothing need be changed');
select is(pg_temp.settings(), (select settings from before), 'then nothing is');
select lives_ok($$ select mq.alter_queue('alter_queue', max_attempts => 7) $$, 'one setting can be changed');
select is(pg_temp.settings(), (select settings || '{"max_attempts": 7}' from before), 'and no other changes');
select lives_ok(
    $$ select mq.alter_queue('alter_queue', 'lease', '1 minute', 2, '3 seconds', '4 minutes', '0', 'always', '5 hours', 1000000, 'list', '{1 second}', 0.25, null, '2 hours', 100, 'drop_oldest', '0', 3, true, 10, 100, '2 seconds') $$,
    'all can be changed');
select is(pg_temp.settings(), '{"mode": "lease", "visibility_timeout": "00:01:00", "max_attempts": 2, "retry_backoff": "00:00:03",
    "retry_backoff_max": "00:04:00", "retention": "00:00:00", "notify": "always", "segment_age": "05:00:00", "segment_bytes": 1000000,
    "retry_policy": "list", "retry_delays": ["00:00:01"], "retry_jitter": 0.25, "priority_ageing": null, "result_retention": "02:00:00", "max_depth": 100, "overflow": "drop_oldest", "dedup_window": "00:00:00", "max_in_flight_per_key": 3, "fair": true, "max_in_flight": 10, "rate_limit": 100, "rate_period": "00:00:02"}'::jsonb,
    'and they are');

select throws_ok($$ select mq.alter_queue('alter_queue.none') $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select mq.alter_queue(null) $$, 'MQ001', null, 'so is none');
select throws_ok(format('select mq.alter_queue(%L, %s)', 'alter_queue', bad), '22023', null, bad || ' is refused')
from unnest(array[
    'mode => ''topic''', 'visibility_timeout => ''-1 second''', 'max_attempts => 0', 'retry_backoff => ''-1 second''',
    'retry_backoff_max => ''-1 second''', 'retention => ''-1 day''', 'result_retention => ''11 years''', 'notify => ''''', 'segment_age => ''0''',
    'segment_bytes => 1', 'max_in_flight_per_key => -1']) with ordinality as u (bad, no) order by no;
select throws_ok($$ select mq.alter_queue('alter_queue', mode => 'transaction') $$, '22023', null, 'the mode stays what it is');
select throws_ok($$ select mq.alter_queue('alter_queue', retention => '11 years') $$, '22023', null, 'nothing is kept for eleven years');
select throws_ok($$ select mq.alter_queue('alter_queue', max_attempts => 3, segment_bytes => 1) $$, '22023', null, 'one bad setting among good ones');
select is((pg_temp.settings() ->> 'max_attempts')::int, 2, 'refuses them all');
select lives_ok($$ select mq.alter_queue('alter_queue', max_in_flight_per_key => 0, fair => false) $$, 'the limit of a key can be taken away');
select is(pg_temp.settings() ->> 'max_in_flight_per_key', null, 'then there is none');
select throws_ok($$ select test.run_as('mq_consumer', 'select mq.alter_queue(''alter_queue'')') $$, '42501', null, 'a consumer may not');

select * from finish();
rollback;
