select plan(15);

select test.forget('peek');
select mq.create_queue('peek');
select is_empty($$ select * from mq.peek('peek') $$, 'an empty queue shows nothing');
select 1 from mq.enqueue_batch('peek', array(select to_jsonb(i) from generate_series(1, 12) as i), array_fill('{"h": 1}'::jsonb, array[12]));
select mq.enqueue('peek', '13', deliver_at => '2100-01-01');
select is((select array_agg(msg_id) from mq.peek('peek')), array[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]::bigint[], 'ten messages by default, by number');
select is((select count(*) from mq.peek('peek', 100)), 13::bigint, 'or as many as are asked for');
select is((select count(*) from mq.peek('peek', 0)), 0::bigint, 'or none');
select results_eq($$ select state, attempt, due_at, payload, headers from mq.peek('peek', 1) $$,
    $$ values ('ready', 1, null::timestamptz, '1'::jsonb, '{"h": 1}'::jsonb) $$, 'with all that is known');
select is((select count(*) from mq.dequeue('peek', 2)), 2::bigint, 'what was shown is delivered all the same');
select results_eq($$ select msg_id, state, due_at from mq.peek('peek', 100) where msg_id in (1, 3, 13) $$,
    $$ values (1::bigint, 'leased', null::timestamptz), (3, 'ready', null), (13, 'deferred', '2100-01-01') $$, 'each in its state');
select mq.ack('peek', receipt, array[3, 4]) from (select distinct receipt from mq.dequeue('peek', 2)) as d;
select mq.nack('peek', receipt, dead => true) from (select distinct receipt from mq.dequeue('peek', 2)) as d;
select is((select array_agg(msg_id) from mq.peek('peek', 100)), array[1, 2, 7, 8, 9, 10, 11, 12, 13]::bigint[], 'what is settled or dead is not shown');
select test.make_due('peek');
select is((select state from mq.peek('peek', 100) where msg_id = 13), 'ready', 'what is due is ready');

begin;
select mq.enqueue('peek', '14');
select is((select state from mq.peek('peek', 100) where msg_id = 14), 'ready', 'a transaction sees its own');
rollback;

select throws_ok($$ select * from mq.peek('peek', -1) $$, '22023', null, 'n is not negative');
select throws_ok($$ select * from mq.peek('peek.none') $$, 'MQ001', null, 'an unknown queue is an error');
begin isolation level repeatable read;
select is((select count(*) from mq.peek('peek', 100)), 9::bigint, 'any transaction may look');
commit;
select is(test.value_as('mq_consumer', '(select count(*) from mq.peek(''peek'', 100))'), '9', 'a consumer may');
select throws_ok($$ select test.run_as('mq_producer', 'select * from mq.peek(''peek'')') $$, '42501', null, 'a producer may not');
select mq.drop_queue('peek');

select * from finish();
