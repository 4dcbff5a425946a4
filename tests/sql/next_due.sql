select plan(12);

select test.forget('next_due');
select mq.create_queue('next_due');
select is(mq.next_due('next_due'), null, 'nothing is due in an empty queue');
select mq.enqueue('next_due', '1');
select is(mq.next_due('next_due'), null, 'nor where nothing is deferred');
select mq.enqueue('next_due', '2', deliver_at => '2100-01-01');
select is(mq.next_due('next_due'), '2100-01-01'::timestamptz, 'a message for a certain time is due then');
select mq.enqueue('next_due', '3', deliver_at => '2090-01-01');
select mq.enqueue('next_due', '4', deliver_at => '2095-01-01');
select is(mq.next_due('next_due'), '2090-01-01'::timestamptz, 'of several it is the first');
begin;
select mq.enqueue('next_due', '5', deliver_at => '2080-01-01');
rollback;
select is(mq.next_due('next_due'), '2090-01-01'::timestamptz, 'what is rolled back is never due');

-- With timers: a dequeue has looked at them.
select mq.enqueue('next_due', '6', delay => '1 hour');
select test.make_due('next_due');
select ok(mq.next_due('next_due') < clock_timestamp(), 'what is due already is due in the past');
select 1 from mq.dequeue('next_due', 10);
select is(mq.next_due('next_due'), null, 'nothing is when all is delivered');
select mq.enqueue('next_due', '7', deliver_at => '2100-01-01');
select is(mq.next_due('next_due'), '2100-01-01'::timestamptz, 'what comes after that is');

select mq.enqueue('next_due', '8');
select mq.nack('next_due', receipt, delay => '1 hour') from mq.dequeue('next_due');
select ok(mq.next_due('next_due') between clock_timestamp() + interval '59 minutes' and clock_timestamp() + interval '1 hour', 'a retry is due too');

select throws_ok($$ select mq.next_due('next_due.none') $$, 'MQ001', null, 'an unknown queue is an error');
select isnt(test.value_as('mq_consumer', 'mq.next_due(''next_due'')'), null, 'a consumer may ask');
select throws_ok($$ select test.run_as('mq_producer', 'select mq.next_due(''next_due'')') $$, '42501', null, 'a producer may not');
select mq.drop_queue('next_due');

select * from finish();
