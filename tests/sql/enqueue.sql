select plan(35);

select test.forget('enqueue');
select mq.create_queue('enqueue');
select is(mq.enqueue('enqueue', '{"a": 1}'), 1::bigint, 'messages are counted from 1');
select is(mq.enqueue(queue => 'enqueue', payload => '"text"', headers => '{"h": true}'), 2::bigint, 'one by one, by name too');
select is(mq.enqueue('enqueue', 'null'), 3::bigint, 'a JSON null is a payload');
select is(mq.enqueue('enqueue', '4', delay => '0'), 4::bigint, 'a delay of nothing is none');
select is(mq.enqueue('enqueue', '5', deliver_at => '2001-01-01'), 5::bigint, 'nor is a time that has passed');
select results_eq(
    $$ select msg_id, attempt, payload, headers from mq.dequeue('enqueue', 10) $$,
    $$ values (1::bigint, 1, '{"a": 1}'::jsonb, null::jsonb), (2, 1, '"text"', '{"h": true}'), (3, 1, 'null', null),
              (4, 1, '4', null), (5, 1, '5', null) $$,
    'they are delivered as they were put in, oldest first');

begin;
select mq.enqueue('enqueue', '6');
rollback;
select is_empty($$ select * from mq.dequeue('enqueue', 10) $$, 'what is rolled back never was');
select is(mq.enqueue('enqueue', '7'), 7::bigint, 'its number is not used again');
begin;
select mq.enqueue('enqueue', '8');
select mq.enqueue('enqueue', '9', delay => '1 hour');
select test.make_due('enqueue');
select results_eq($$ select msg_id from mq.dequeue('enqueue', 10) $$, $$ values (7::bigint) $$,
    'a transaction does not receive its own messages, nor what it delayed');
commit;
select set_eq($$ select msg_id from mq.dequeue('enqueue', 10) $$, array[8, 9]::bigint[], 'the next one does');

-- Later.
select is(mq.enqueue('enqueue', '10', delay => '5 minutes'), 10::bigint, 'a delayed message is counted too');
select is(mq.enqueue('enqueue', '11', deliver_at => clock_timestamp() + interval '1 minute'), 11::bigint, 'so is one for a certain time');
select ok(mq.next_due('enqueue') between clock_timestamp() + interval '50 seconds' and clock_timestamp() + interval '1 minute',
    'the next one is due in a minute');
select is_empty($$ select * from mq.dequeue('enqueue', 10) $$, 'neither is delivered before its time');
select test.make_due('enqueue');
select results_eq($$ select msg_id, attempt, payload from mq.dequeue('enqueue', 10) $$, $$ values (10::bigint, 1, '10'::jsonb), (11, 1, '11') $$,
    'both come when they are due, what is due together in order of number');

select ok(enqueued_at between clock_timestamp() - interval '1 minute' and clock_timestamp(), 'the time is kept')
from (select enqueued_at from mq.message_status('enqueue', 11)) as m;

-- Isolation.
begin isolation level serializable;
select is(mq.enqueue('enqueue', '12'), 12::bigint, 'a serializable transaction may enqueue');
commit;
select results_eq($$ select msg_id from mq.dequeue('enqueue', 10) $$, $$ values (12::bigint) $$, 'and what it enqueued is delivered');

-- Large, odd, and many-named.
select is(mq.enqueue('enqueue', to_jsonb(repeat('x', 1000000))), 13::bigint, 'a payload may be large');
select is(length(payload #>> '{}'), 1000000, 'and comes out whole') from mq.dequeue('enqueue');
select is(mq.enqueue('enqueue', '[{"ü": "\\\"''$$"}]'), 14::bigint, 'any character is fine');
select is(payload, '[{"ü": "\\\"''$$"}]'::jsonb, 'and stays what it is') from mq.dequeue('enqueue');

-- A paused queue takes messages, and a producer may give them.
select is(test.value_as('mq_producer', 'mq.enqueue(''enqueue'', ''1'')'), '15', 'a producer may enqueue');
select throws_ok($$ select test.run_as('mq_consumer', 'select mq.enqueue(''enqueue'', ''1'')') $$, '42501', null, 'a consumer may not');

select throws_ok($$ select mq.enqueue('enqueue.none', '1') $$, 'MQ001', 'queue "enqueue.none" does not exist', 'an unknown queue is an error');
select throws_ok($$ select mq.enqueue(null, '1') $$, 'MQ001', null, 'so is none');
select throws_ok($$ select mq.enqueue('enqueue', null) $$, '22004', null, 'a payload is not null');
select throws_ok($$ select mq.enqueue('enqueue', '1', delay => '-1 second') $$, '22023', null, 'a delay is not negative');
select throws_ok($$ select mq.enqueue('enqueue', '1', delay => '101 years') $$, '22023', null, 'nor too long');
select throws_ok($$ select mq.enqueue('enqueue', '1', deliver_at => 'infinity') $$, '22023', null, 'for ever is no time');
select throws_ok($$ select mq.enqueue('enqueue', '1', delay => '1 s', deliver_at => now()) $$, '22023', null, 'there is one due time');
select throws_ok(format('select mq.enqueue(%L, %L, ordering_key => %L)', 'enqueue', '1', repeat('k', 513)), '22023', null, 'an ordering key has at most 512 bytes');
select throws_ok($$ select mq.enqueue('enqueue', '{') $$, '22P02', null, 'what is not JSON is refused by PostgreSQL');
select is((select enqueued_total from mq.queue_stats('enqueue')), 15::bigint, 'what is refused draws no number');
select is((select ready from mq.queue_stats('enqueue')), 1::bigint, 'nor is it there');
select mq.drop_queue('enqueue');

select * from finish();
