select plan(33);

select test.forget('wait_for');
select mq.create_queue('wait_for');
select 1 from mq.enqueue_batch('wait_for', array['1', '2', '3', '4', '5', '6']::jsonb[]);
select distinct receipt as r from mq.dequeue('wait_for', 4) \gset

select is(mq.wait_for('wait_for', 1, '0'), null, 'of what is not done there is nothing yet');
select is(mq.wait_for('wait_for', 5, '10 milliseconds'), null, 'nor of what is not begun, after the timeout');
select mq.ack('wait_for', :'r', array[1], result => '{"answer": 42}');
select mq.ack('wait_for', :'r', array[2], result => 'null');
select mq.ack('wait_for', :'r', array[3]);
select is(mq.wait_for('wait_for', 1), '{"answer": 42}', 'the result is returned');
select is(mq.wait_for(queue => 'wait_for', msg_id => 1, timeout => '0'), '{"answer": 42}', 'as often as one asks');
select is(mq.wait_for('wait_for', 2, '0'), 'null', 'it may be JSON''s null');
select is(mq.wait_for('wait_for', 3, '0'), 'null', 'which also says that it was done without one');
select is(mq.wait_for('wait_for', 3), 'null', 'that is noticed before the timeout');

-- Dead.
select mq.nack('wait_for', :'r', array[4], dead => true, reason => 'no such customer');
select throws_ok($$ select mq.wait_for('wait_for', 4) $$, 'MQ010', null, 'a message that is dead is an error');
create function pg_temp.detail(statement text) returns text language plpgsql as $$
declare
    v_detail text;
begin
    execute statement;
    return 'no error';
exception when others then
    get stacked diagnostics v_detail = pg_exception_detail;
    return v_detail;
end $$;
select is(pg_temp.detail($$ select mq.wait_for('wait_for', 4) $$), 'no such customer', 'with its reason');
select mq.redrive('wait_for');
select is(mq.wait_for('wait_for', 4, '0'), null, 'one that is tried again is waited for again');

select mq.enqueue('wait_for', '7') as id \gset
select mq.cancel('wait_for', :id);
select is(pg_temp.detail(format($$ select mq.wait_for('wait_for', %s, '0') $$, :id)), 'cancelled', 'so is one that was cancelled');
select mq.enqueue('wait_for', '8', ttl => '1 microsecond') as id \gset
select is(pg_temp.detail(format($$ select mq.wait_for('wait_for', %s, '0') $$, :id)), 'expired', 'or expired, though nobody has buried it yet');

-- What can never come.
select throws_ok($$ select mq.wait_for('wait_for', 9, '0') $$, '22023', null, 'a number that was never given out is an error');
select throws_ok($$ select mq.wait_for('wait_for', 0, '0') $$, '22023', null, 'so is 0');
begin;
select mq.enqueue('wait_for', '7') as own \gset
select throws_ok(format($$ select mq.wait_for('wait_for', %s) $$, :own), '22023', null, 'so is a message of the very transaction');
select mq.enqueue('wait_for', '8', delay => '1 second') as own \gset
select throws_ok(format($$ select mq.wait_for('wait_for', %s) $$, :own), '22023', null, 'a delayed one too');
select mq.enqueue('wait_for', '8', priority => 9) as own \gset
select throws_ok(format($$ select mq.wait_for('wait_for', %s) $$, :own), '22023', null, 'one with a priority');
savepoint s;
select mq.enqueue('wait_for', '9') as own \gset
release savepoint s;
select mq.rotate_segment('wait_for');
select throws_ok(format($$ select mq.wait_for('wait_for', %s) $$, :own), '22023', null, 'and one of a savepoint, in a segment that is closed');
select is(mq.wait_for('wait_for', 5, '0'), null, 'others are waited for');
select is(mq.wait_for('wait_for', 1, '0'), '{"answer": 42}', 'and answered');
rollback;
select throws_ok(format($$ select mq.wait_for('wait_for', %s, '0') $$, :own), '22023', null, 'one that was rolled back is not there');
select throws_ok(format($$ select mq.wait_for('wait_for', mq.enqueue('wait_for', '10')) $$), '22023', null, 'one enqueued by the same statement neither');

-- The segment goes, the result stays.
select mq.ack('wait_for', receipt, result => '"late"') from (select distinct receipt from mq.dequeue('wait_for', 10)) as d;
select mq.ack('wait_for', receipt, result => '"late"') from (select distinct receipt from mq.dequeue('wait_for', 10)) as d;
select mq.ack('wait_for', receipt, result => '"late"') from (select distinct receipt from mq.dequeue('wait_for', 10)) as d;
select mq.ack('wait_for', receipt, result => '"late"') from (select distinct receipt from mq.dequeue('wait_for', 10)) as d;
select mq.rotate_segment('wait_for');
select 1 from mq.maintain('wait_for');
select 1 from mq.maintain('wait_for');
select 1 from mq.maintain('wait_for');
select is(mq.wait_for('wait_for', 6, '0'), '"late"', 'a result outlives the segment of its message');
select throws_ok($$ select mq.wait_for('wait_for', 3, '0') $$, '22023', null, 'what was done without one is forgotten then');

select throws_ok($$ select mq.wait_for('wait_for.none', 1) $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select mq.wait_for('wait_for', null) $$, '22004', null, 'no msg_id is one');
select throws_ok($$ select mq.wait_for('wait_for', 1, null) $$, '22004', null, 'so is no timeout');
select throws_ok($$ select mq.wait_for('wait_for', 1, '21 seconds') $$, '22023', null, 'it waits for 20 seconds at most');
select throws_ok($$ select mq.wait_for('wait_for', 1, '-1 second') $$, '22023', null, 'and not for less than nothing');
begin isolation level repeatable read;
select throws_ok($$ select mq.wait_for('wait_for', 1) $$, '0A000', null, 'an old snapshot would see no result');
rollback;
select is(test.value_as('mq_producer', 'mq.wait_for(''wait_for'', 1)'), '{"answer": 42}', 'a producer may');
select is(test.value_as('mq_consumer', 'mq.wait_for(''wait_for'', 1)'), '{"answer": 42}', 'a consumer may');
select throws_ok($$ select test.run_as('pg_monitor', 'select mq.wait_for(''wait_for'', 1)') $$, '42501', null, 'nobody else may');
select mq.drop_queue('wait_for');

select * from finish();
