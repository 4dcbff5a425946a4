select plan(23);

select test.forget('enqueue_batch');
select mq.create_queue('enqueue_batch');
select results_eq($$ select mq.enqueue_batch('enqueue_batch', array['"a"', '"b"', 'null']::jsonb[]) $$, $$ values (1::bigint), (2), (3) $$,
    'numbers come out in the order of the payloads');
select results_eq(
    $$ select mq.enqueue_batch(queue => 'enqueue_batch', payloads => array['4', '5']::jsonb[], headers => array[null, '{"h": 5}']::jsonb[]) $$,
    $$ values (4::bigint), (5) $$, 'there may be as many headers, some of them null');
select results_eq(
    $$ select msg_id, attempt, payload, headers from mq.dequeue('enqueue_batch', 10) $$,
    $$ values (1::bigint, 1, '"a"'::jsonb, null::jsonb), (2, 1, '"b"', null), (3, 1, 'null', null), (4, 1, '4', null), (5, 1, '5', '{"h": 5}') $$,
    'they are delivered in that order');
select is_empty($$ select mq.enqueue_batch('enqueue_batch', '{}') $$, 'an empty batch is no error');
select results_eq(
    $$ select mq.enqueue_batch('enqueue_batch', array(select to_jsonb(i) from generate_series(1, 1000) as i)) $$,
    $$ select generate_series(6, 1005)::bigint $$, 'a thousand are counted one by one');
select results_eq($$ select msg_id, payload from mq.dequeue('enqueue_batch', 2000) $$,
    $$ select i::bigint + 5, to_jsonb(i) from generate_series(1, 1000) as i $$, 'and delivered');

select results_eq($$ select mq.enqueue_batch('enqueue_batch', array['6', '7']::jsonb[], delay => '1 hour') $$, $$ values (1006::bigint), (1007) $$,
    'a batch may be delayed');
select is((select deferred from mq.queue_stats('enqueue_batch')), 2::bigint, 'all of it');
select is_empty($$ select * from mq.dequeue('enqueue_batch', 10) $$, 'none is delivered before its time');
select test.make_due('enqueue_batch');
select results_eq($$ select msg_id, payload from mq.dequeue('enqueue_batch', 10) $$, $$ values (1006::bigint, '6'::jsonb), (1007, '7') $$,
    'all are when it has come');
select is((select count(*) from mq.enqueue_batch('enqueue_batch', array['8']::jsonb[], deliver_at => now() - interval '1 hour')), 1::bigint,
    'a time that has passed is none');

begin;
select 1 from mq.enqueue_batch('enqueue_batch', array['9']::jsonb[]);
rollback;
select results_eq($$ select payload from mq.dequeue('enqueue_batch', 10) $$, $$ values ('8'::jsonb) $$, 'what is rolled back never was');

select throws_ok($$ select mq.enqueue_batch('enqueue_batch.none', array['1']::jsonb[]) $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select mq.enqueue_batch('enqueue_batch.none', '{}') $$, 'MQ001', null, 'for an empty batch too');
select throws_ok($$ select mq.enqueue_batch('enqueue_batch', null) $$, '22004', null, 'payloads are not null');
select throws_ok($$ select mq.enqueue_batch('enqueue_batch', array['1', null, '3']::jsonb[]) $$, '22004',
    'argument "payloads[2]" must not be null', 'none of them is, and it says which');
select throws_ok($$ select mq.enqueue_batch('enqueue_batch', array['1', '2']::jsonb[], array['{}']::jsonb[]) $$, '22023', null, 'headers are as many as payloads');
select throws_ok($$ select mq.enqueue_batch('enqueue_batch', array['1']::jsonb[], array['{}', '{}']::jsonb[]) $$, '22023', null, 'not more');
select throws_ok($$ select mq.enqueue_batch('enqueue_batch', array['1']::jsonb[], delay => '-1 s') $$, '22023', null, 'a delay is not negative');
select throws_ok($$ select mq.enqueue_batch('enqueue_batch', array['1']::jsonb[], ordering_keys => '{a,b}') $$, '22023', null, 'ordering keys are as many as payloads');
select is((select count(*) from mq.peek('enqueue_batch', 10) where state = 'ready'), 0::bigint, 'nothing of what is refused is there');

select is(test.value_as('mq_producer', '(select count(*) from mq.enqueue_batch(''enqueue_batch'', array[''1'']::jsonb[]))'), '1', 'a producer may');
select throws_ok($$ select test.run_as('mq_consumer', 'select mq.enqueue_batch(''enqueue_batch'', ''{}'')') $$, '42501', null, 'a consumer may not');
select mq.drop_queue('enqueue_batch');

select * from finish();
