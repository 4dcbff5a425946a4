select plan(28);

select test.forget('report');
select mq.create_queue('report', max_attempts => 2);
create function pg_temp.progress(id bigint) returns jsonb language sql as $$ select (mq.message_status('report', id)).progress $$;
select 1 from mq.enqueue_batch('report', array['1', '2', '3', '4', '5', '6', '7', '8']::jsonb[]);
select distinct receipt as r from mq.dequeue('report', 3) \gset

select is(pg_temp.progress(1), null, 'first there is no progress');
select is(mq.report('report', :'r', 1, '{"done": 10}'), true, 'who has the lease may report');
select is(pg_temp.progress(1), '{"done": 10}', 'and message_status tells');
select is(mq.report('report', :'r', 1, '{"done": 20}'), true, 'again and again');
select is(pg_temp.progress(1), '{"done": 20}', 'the newest counts');
select is(pg_temp.progress(2), null, 'for this message only');
select is(mq.report('report', :'r', 4, '1'), false, 'a message of another lease is not his to report');
select is(mq.report('report', :'r', 99, '1'), false, 'nor one that is not there');
select is(mq.ack('report', :'r', array[1]), 1, 'a message is done');
select is(mq.report('report', :'r', 1, '{"done": 30}'), false, 'then there is nothing to report');
select is(pg_temp.progress(1), '{"done": 20}', 'and nothing is noted');
select is(mq.report('report', :'r', 2, 'null'), true, 'of what is left of the lease there is');
begin;
select mq.report('report', :'r', 3, '"never"');
rollback;
select is(pg_temp.progress(3), null, 'a report that is rolled back never was');

select test.expire_leases('report');
select is(mq.report('report', :'r', 3, '"late"'), true, 'a lease that ran out holds until it is taken back');
select is(mq.sweep_stale('report'), 2, 'it is taken back');
select is(mq.report('report', :'r', 3, '"lost"'), false, 'then it is lost');
select is(pg_temp.progress(3), '"late"', 'what was reported before stays, until the next attempt reports');

-- Of another lane.
select mq.enqueue('report', '9', priority => 9) as id \gset
select receipt as r from mq.dequeue('report') \gset
select is(mq.report('report', :'r', :id, '"urgent"'), true, 'a message with a priority is reported of as any other');
select is(pg_temp.progress(:id), '"urgent"', 'and message_status tells');

-- In a transaction with an old snapshot.
select receipt as r, msg_id as id from mq.dequeue('report') \gset
begin isolation level repeatable read;
select is(mq.report('report', :'r', :id, '1'), true, 'a repeatable read transaction may report');
commit;

select throws_ok(format('select mq.report(%L, %L, 1, %L)', 'report.none', :'r', '1'), 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select mq.report('report', 'nonsense', 1, '1') $$, 'MQ004', null, 'a malformed receipt is one');
select throws_ok($$ select mq.report('report', null, 1, '1') $$, '22004', null, 'so is none');
select throws_ok(format('select mq.report(%L, %L, null, %L)', 'report', :'r', '1'), '22004', null, 'no msg_id');
select throws_ok(format('select mq.report(%L, %L, 1, null)', 'report', :'r'), '22004', null, 'or no progress');
select is(test.value_as('mq_consumer', format('mq.report(''report'', %L, %s, ''1'')', :'r', :id)), 'true', 'a consumer may');
select throws_ok(format($$ select test.run_as('mq_producer', 'select mq.report(''report'', ''%s'', 1, ''1'')') $$, :'r'), '42501', null, 'a producer may not');
select mq.drop_queue('report');
select is_empty($$ select from mq.note $$, 'nothing is left of a queue that is dropped');

select * from finish();
