select plan(38);

select test.forget('nack');
select mq.create_queue('nack', max_attempts => 3, retry_backoff => '10 seconds', retry_backoff_max => '15 seconds');
select 1 from mq.enqueue_batch('nack', array['1', '2', '3']::jsonb[], array['{"h": 1}', null, null]::jsonb[]);

-- The backoff of the queue.
select distinct receipt as r from mq.dequeue('nack', 3) \gset
select is(mq.nack('nack', :'r', array[1], reason => 'first'), 1, 'one message of three is given back');
select is((mq.message_status('nack', 1)).state, 'deferred', 'it waits');
select ok(mq.next_due('nack') between clock_timestamp() + interval '4 seconds' and clock_timestamp() + interval '10 seconds',
    'for the backoff of the queue, up to half of it less');
select is_empty($$ select * from mq.dequeue('nack', 3) $$, 'meanwhile it is not delivered');
select is(mq.nack('nack', :'r', array[1]), 0, 'it is given back once');
select is(mq.ack('nack', :'r', array[1]), 0, 'and cannot be acknowledged any more');
select is(mq.ack('nack', :'r'), 2, 'the others can');
select is(mq.nack('nack', :'r'), 0, 'after that there is nothing to give back');

select test.make_due('nack');
select receipt as r2, attempt, msg_id, payload, headers from mq.dequeue('nack', 3) \gset
select is(concat_ws(' ', :'msg_id', :'attempt', :'payload', :'headers'), '1 2 1 {"h": 1}', 'when it is due it comes back whole, as the second attempt');
select isnt(:'r'::text, :'r2', 'under a new receipt');
select is(mq.ack('nack', :'r'), 0, 'the old one is void');
select is(mq.nack('nack', :'r2', reason => 'second'), 1, 'given back again');
select ok(mq.next_due('nack') between clock_timestamp() + interval '7 seconds' and clock_timestamp() + interval '15 seconds',
    'it waits for twice as long, up to the maximum');
select test.make_due('nack');
select receipt as r from mq.dequeue('nack', 3) \gset
select is(mq.nack('nack', :'r', reason => 'third'), 1, 'the last attempt can be given back');
select is((mq.message_status('nack', 1)).state, 'dead', 'but then it is dead');
select is(mq.next_due('nack'), null, 'and does not wait');
select results_eq(
    $$ select msg_id, attempts, reason, payload, headers from mq.dead_letters('nack') $$,
    $$ values (1::bigint, 3, 'third', '1'::jsonb, '{"h": 1}'::jsonb) $$, 'the dead letter has it all');
select results_eq(
    $$ select h ->> 'attempt', h ->> 'outcome', h ->> 'reason', (h ->> 'at')::timestamptz <= clock_timestamp()
       from mq.dead_letters('nack'), jsonb_array_elements(history) as h $$,
    $$ values ('1', 'nacked', 'first', true), ('2', 'nacked', 'second', true), ('3', 'nacked', 'third', true) $$,
    'and the history of every attempt');

-- A delay of the caller's.
select mq.enqueue('nack', '4');
select receipt as r from mq.dequeue('nack') \gset
select is(mq.nack('nack', :'r', delay => '1 hour'), 1, 'a delay may be given');
select ok(mq.next_due('nack') between clock_timestamp() + interval '59 minutes' and clock_timestamp() + interval '1 hour', 'and holds');
select test.make_due('nack');
select receipt as r from mq.dequeue('nack') \gset
select is(mq.nack('nack', :'r', delay => '0'), 1, 'a delay of nothing');
select receipt as r, msg_id, attempt from mq.dequeue('nack') \gset
select is(concat_ws(' ', :'msg_id', :'attempt'), '4 3', 'brings it back at once');
select is(mq.nack('nack', :'r'), 1, 'attempts are counted all the same');
select is((select reason from mq.dead_letters('nack') where msg_id = 4), 'out of attempts', 'without a reason, being out of attempts is one');

-- Straight to the dead letters.
select 1 from mq.enqueue_batch('nack', array['5', '6', '7']::jsonb[]);
select distinct receipt as r from mq.dequeue('nack', 3) \gset
select is(mq.nack('nack', :'r', array[5], reason => 'poison', dead => true), 1, 'a message may be given up at once');
select is(mq.nack('nack', :'r', array[6], dead => true), 1, 'without a reason too');
select results_eq($$ select msg_id, attempts, reason, history -> 0 ->> 'outcome' from mq.dead_letters('nack') where msg_id in (5, 6) order by 1 $$,
    $$ values (5::bigint, 1, 'poison', 'rejected'), (6, 1, 'rejected', 'rejected') $$, 'it is dead after one attempt');
begin;
select mq.nack('nack', :'r');
rollback;
select is((mq.message_status('nack', 7)).state, 'leased', 'a nack that is rolled back never was');

-- Lost.
select test.expire_leases('nack');
select mq.sweep_stale('nack');
select is(mq.nack('nack', :'r'), 0, 'a late nack is refused');
select is(attempt, 2, 'it changes nothing') from mq.message_status('nack', 7);

select throws_ok(format('select mq.nack(%L, %L)', 'nack.none', :'r'), 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select mq.nack('nack', 'nonsense') $$, 'MQ004', null, 'a malformed receipt is one');
select throws_ok($$ select mq.nack('nack', null) $$, '22004', null, 'so is none');
select throws_ok(format('select mq.nack(%L, %L, delay => %L)', 'nack', :'r', '-1 s'), '22023', null, 'a delay is not negative');
select throws_ok(format('select mq.nack(%L, %L, delay => %L)', 'nack', :'r', '101 years'), '22023', null, 'nor too long');
begin isolation level repeatable read;
select is(mq.nack('nack', :'r'), 0, 'a repeatable read transaction may give back');
commit;
select is(test.value_as('mq_consumer', format('mq.nack(''nack'', %L)', :'r')), '0', 'a consumer may');
select throws_ok(format($$ select test.run_as('mq_producer', 'select mq.nack(''nack'', ''%s'')') $$, :'r'), '42501', null, 'a producer may not');
select mq.drop_queue('nack');

select * from finish();
