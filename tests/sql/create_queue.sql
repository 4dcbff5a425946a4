begin;
select plan(40);

select lives_ok($$ select mq.create_queue('create_queue') $$, 'a queue is made with nothing but a name');
select results_eq(
    $$ select settings, paused from mq.queues() where name = 'create_queue' $$,
    $$ values ('{"mode": "lease", "visibility_timeout": "00:00:30", "max_attempts": 5, "retry_backoff": "00:00:01",
                 "retry_backoff_max": "01:00:00", "retention": "00:00:00", "result_retention": "01:00:00", "notify": "auto", "segment_age": "01:00:00",
                 "segment_bytes": 268435456, "retry_policy": "exponential", "retry_delays": null, "retry_jitter": 0.5, "priority_ageing": null, "max_depth": null, "overflow": "reject", "dedup_window": "00:05:00", "max_in_flight_per_key": null, "fair": false, "max_in_flight": null, "rate_limit": null, "rate_period": null}'::jsonb, false) $$,
    'the defaults are those of the contract');
select is(mq.enqueue('create_queue', '1'), 1::bigint, 'the first message has number 1');
select results_eq(
    $$ select s.subscription_id, s.name from mq.subscription as s where s.queue_id = test.queue_id('create_queue') $$,
    $$ values (1::smallint, 'default') $$, 'there is one subscription, "default"');
select ok(created_at between now() and clock_timestamp(), 'it knows when it was made')
from mq.queues() where name = 'create_queue';

select throws_ok($$ select mq.create_queue('create_queue') $$, 'MQ002', 'queue "create_queue" already exists',
    'the same queue is not made twice');
select lives_ok($$ select mq.create_queue('create_queue', max_attempts => 9, if_not_exists => true) $$,
    'unless that is accepted');
select is((select (settings ->> 'max_attempts')::int from mq.queues() where name = 'create_queue'), 5,
    'a queue that is accepted stays as it is');
select lives_ok($$ select mq.create_queue('create_queue.new', if_not_exists => true) $$, 'if_not_exists makes what is not there');
select lives_ok($$ select mq.create_queue('Create_Queue') $$, 'names are case-sensitive');

select lives_ok(
    $$ select mq.create_queue('create_queue.all', 'lease', '5 minutes', 3, '2 seconds', '10 seconds', '0', 'never', '1 day', 65536, false) $$,
    'the settings may be given by position');
select results_eq(
    $$ select settings from mq.queues() where name = 'create_queue.all' $$,
    $$ values ('{"mode": "lease", "visibility_timeout": "00:05:00", "max_attempts": 3, "retry_backoff": "00:00:02",
                 "retry_backoff_max": "00:00:10", "retention": "00:00:00", "result_retention": "01:00:00", "notify": "never", "segment_age": "1 day",
                 "segment_bytes": 65536, "retry_policy": "exponential", "retry_delays": null, "retry_jitter": 0.5, "priority_ageing": null, "max_depth": null, "overflow": "reject", "dedup_window": "00:05:00", "max_in_flight_per_key": null, "fair": false, "max_in_flight": null, "rate_limit": null, "rate_period": null}'::jsonb) $$,
    'and are kept');

select lives_ok(format('select mq.create_queue(%L)', repeat('x', 48)), 'a name may have 48 characters');
select throws_ok(format('select mq.create_queue(%L)', repeat('x', 49)), '22023', null, 'but not 49');
select throws_ok(format('select mq.create_queue(%L)', bad), '22023', null, format('%s is no name', coalesce(to_json(bad)::text, 'null')))
from unnest(array['', 'a b', 'a"b', 'a''b', 'ä', E'a\n', 'a;drop', null]) with ordinality as u (bad, no) order by no;

select throws_ok(format('select mq.create_queue(%L, %s)', 'create_queue.bad', bad), '22023', null, bad || ' is refused')
from unnest(array[
    'mode => ''topic''', 'visibility_timeout => ''0''', 'visibility_timeout => ''11 years''', 'max_attempts => 0', 'max_attempts => 32001',
    'retry_backoff => ''-1 second''', 'retry_backoff_max => ''-1 second''', 'retention => ''-1 day''', 'result_retention => ''-1 day''', 'notify => ''sometimes''',
    'segment_age => ''0''', 'segment_bytes => 65535', 'max_in_flight_per_key => 0']) with ordinality as u (bad, no) order by no;
select throws_ok($$ select mq.create_queue('create_queue.bad', fair => null) $$, '22004', null, 'fair is so or not');
select throws_ok($$ select mq.create_queue('create_queue.bad', max_attempts => null) $$, '22004', null, 'a setting is not null');
select lives_ok($$ select mq.create_queue('create_queue.tx', mode => 'transaction') $$, 'a queue may be of mode transaction');
select throws_ok($$ select mq.create_queue('create_queue.bad', retention => '11 years') $$, '22023', null, 'nothing is kept for eleven years');
select is_empty($$ select from mq.queues() where name = 'create_queue.bad' $$, 'what is refused leaves nothing');

select * from finish();
rollback;
