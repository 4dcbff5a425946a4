select plan(12);

select test.forget('dead_letters');
select mq.create_queue('dead_letters', max_attempts => 2);
select is_empty($$ select * from mq.dead_letters('dead_letters') $$, 'a new queue has none');
select 1 from mq.enqueue_batch('dead_letters', array['1', '2', '3']::jsonb[], array['{"h": 1}', null, null]::jsonb[]);
select mq.nack('dead_letters', receipt, dead => true, reason => 'one') from mq.dequeue('dead_letters');
select mq.nack('dead_letters', receipt, dead => true, reason => 'two') from mq.dequeue('dead_letters');
select results_eq(
    $$ select msg_id, attempts, reason, payload, headers from mq.dead_letters('dead_letters') $$,
    $$ values (1::bigint, 1, 'one', '1'::jsonb, '{"h": 1}'::jsonb), (2, 1, 'two', '2', null) $$, 'they come in the order of death');
select results_eq(
    $$ select jsonb_array_length(history), history -> 0 ->> 'attempt', history -> 0 ->> 'outcome', history -> 0 ->> 'reason',
              (history -> 0 ->> 'at')::timestamptz between enqueued_at and died_at + interval '1 minute' from mq.dead_letters('dead_letters', 1) $$,
    $$ values (1, '1', 'rejected', 'one', true) $$, 'with the history of each attempt');
select ok(bool_and(enqueued_at <= died_at and died_at <= clock_timestamp()), 'and both times') from mq.dead_letters('dead_letters');
select is((select count(*) from mq.dead_letters('dead_letters', 1)), 1::bigint, 'not more than n');
select is_empty($$ select * from mq.dead_letters('dead_letters', 0) $$, 'none for 0');

-- One that failed in two ways.
select mq.nack('dead_letters', receipt, delay => '0') from mq.dequeue('dead_letters');
select 1 from mq.dequeue('dead_letters');
select test.expire_leases('dead_letters');
select mq.sweep_stale('dead_letters');
select results_eq(
    $$ select reason, h ->> 'outcome', h ? 'reason' from mq.dead_letters('dead_letters') as d, jsonb_array_elements(d.history) as h where msg_id = 3 $$,
    $$ values ('lease expired', 'nacked', false), ('lease expired', 'expired', false) $$, 'each attempt says how it ended');

select throws_ok($$ select * from mq.dead_letters('dead_letters', -1) $$, '22023', null, 'n is not negative');
select throws_ok($$ select * from mq.dead_letters('dead_letters.none') $$, 'MQ001', null, 'an unknown queue is an error');
select is(test.value_as('mq_consumer', '(select count(*) from mq.dead_letters(''dead_letters''))'), '3', 'a consumer may look');
select throws_ok($$ select test.run_as('mq_producer', 'select * from mq.dead_letters(''dead_letters'')') $$, '42501', null, 'a producer may not');
select throws_ok($$ select test.run_as('mq_consumer', 'select * from mq.dead_letter') $$, '42501', null, 'nobody looks at the table');
select mq.drop_queue('dead_letters');

select * from finish();
