select plan(40);

select test.forget('ack');
select mq.create_queue('ack', max_attempts => 2);
select 1 from mq.enqueue_batch('ack', array(select to_jsonb(i) from generate_series(1, 30) as i));

-- A whole lease.
select distinct receipt as r from mq.dequeue('ack', 3) \gset
select is(mq.ack('ack', :'r'), 3, 'a lease is settled whole');
select is(mq.ack('ack', :'r'), 0, 'and once');
select throws_ok(format('select mq.ack(%L, %L, strict => true)', 'ack', :'r'), 'MQ003', null, 'strict, the second time is an error');
select test.expire_leases('ack');
select is(mq.sweep_stale('ack'), 0, 'what is settled does not run out');
select results_eq($$ select (mq.message_status('ack', i)).state from generate_series(1, 3) as i $$, array['completed', 'completed', 'completed'],
    'its messages are completed');

-- Some of it.
select distinct receipt as r from mq.dequeue('ack', 3) \gset
select is(mq.ack('ack', :'r', array[5]), 1, 'one message of three is settled');
select is(mq.ack('ack', :'r', array[5]), 0, 'that one once');
select is(mq.ack('ack', :'r', array[4, 5, 99]), 1, 'of those named, those count that are left');
select throws_ok(format('select mq.ack(%L, %L, %L, true)', 'ack', :'r', '{5,6}'), 'MQ003', null, 'strict, all that are named must be there');
select is((mq.message_status('ack', 6)).state, 'leased', 'else none is settled');
select is(mq.ack('ack', :'r', array[]::bigint[]), 0, 'none named is none settled');
select is(mq.ack('ack', :'r', array[]::bigint[], strict => true), 0, 'strict too');
select is(mq.ack('ack', :'r', array[6, 6], strict => true), 1, 'a message named twice counts once');
select is(mq.ack('ack', :'r'), 0, 'then nothing is left');
select distinct receipt as r from mq.dequeue('ack', 3) \gset
select mq.ack('ack', :'r', array[8]);
select is(mq.ack('ack', :'r'), 2, 'without names it is what is left');
select distinct receipt as r from mq.dequeue('ack', 3) \gset
select is(mq.ack(queue => 'ack', receipt => :'r', strict => true), 3, 'strict is content with a lease that is held');

-- Together with the consumer's own writes.
create temp table effects (msg_id bigint);
begin;
insert into effects select msg_id from mq.dequeue('ack', 3);
select distinct receipt as r from mq.dequeue('ack', 3) \gset
select is(mq.ack('ack', :'r'), 3, 'a lease can be settled in the transaction that took it');
rollback;
select is(mq.ack('ack', :'r'), 0, 'a receipt that was rolled back is of no lease');
select distinct receipt as r from mq.dequeue('ack', 3) \gset
begin;
select mq.ack('ack', :'r');
rollback;
select is(mq.ack('ack', :'r'), 3, 'an ack that is rolled back never was');

-- Lost.
select distinct receipt as r from mq.dequeue('ack', 3) \gset
select test.expire_leases('ack');
select is(mq.ack('ack', :'r', array[(select min(msg_id) from mq.peek('ack', 100) where state = 'leased')]), 1,
    'a lease that ran out is still held until somebody takes it back');
select is(mq.sweep_stale('ack'), 2, 'taken back is what was left of it');
select is(mq.ack('ack', :'r'), 0, 'then a late ack is refused');
select throws_ok(format('select mq.ack(%L, %L, strict => true)', 'ack', :'r'), 'MQ003', null, 'strict, with an error');

-- In a transaction with an old snapshot.
select distinct receipt as r from mq.dequeue('ack', 3) \gset
begin isolation level repeatable read;
select is(mq.ack('ack', :'r'), 3, 'a repeatable read transaction may settle');
commit;

-- With a result.
select mq.purge_queue('ack');
create function pg_temp.result(id bigint) returns jsonb language sql as $$ select (mq.message_status('ack', id)).result $$;
select array_agg(i) as ids from mq.enqueue_batch('ack', array(select to_jsonb(i) from generate_series(1, 9) as i)) as i \gset
select (:'ids'::bigint[])[1] as a, (:'ids'::bigint[])[2] as b, (:'ids'::bigint[])[3] as c, (:'ids'::bigint[])[4] as d, (:'ids'::bigint[])[7] as g \gset
select distinct receipt as r from mq.dequeue('ack', 3) \gset
select is(mq.ack('ack', :'r', array[:a], result => '{"n": 1}'), 1, 'one message is settled with a result');
select is(pg_temp.result(:a), '{"n": 1}', 'which is kept');
select is(pg_temp.result(:b), null, 'for no other message');
select is(mq.ack('ack', :'r', array[:a, :b, 99], result => '2'), 1, 'of those named, those count that are left');
select is(pg_temp.result(:a) || pg_temp.result(:b), '{"n": 1}'::jsonb || '2'::jsonb, 'only these get the result');
select is(mq.ack('ack', :'r', result => 'null'), 1, 'the rest of a lease may have one');
select is(pg_temp.result(:c), 'null', 'JSON''s null is one');
select distinct receipt as r from mq.dequeue('ack', 3) \gset
select mq.ack('ack', :'r', result => '"same"');
select is((select count(*) from mq.note where queue_id = test.queue_id('ack') and value = '"same"'), 3::bigint, 'that of a whole lease is that of each of its messages');
select distinct receipt as r from mq.dequeue('ack', 3) \gset
select test.expire_leases('ack');
select mq.sweep_stale('ack');
select is(mq.ack('ack', :'r', result => '3'), 0, 'an ack of a lost lease is refused');
select is(pg_temp.result(:g), null, 'and leaves no result');
select throws_ok(format('select mq.ack(%L, %L, strict => true, result => %L)', 'ack', :'r', '3'), 'MQ003', null, 'strict, with an error');

select throws_ok(format('select mq.ack(%L, %L)', 'ack.none', :'r'), 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select mq.ack('ack', 'nonsense') $$, 'MQ004', null, 'a malformed receipt is one');
select throws_ok($$ select mq.ack('ack', null) $$, '22004', null, 'so is none');
select is(test.value_as('mq_consumer', format('mq.ack(''ack'', %L)', :'r')), '0', 'a consumer may');
select throws_ok(format($$ select test.run_as('mq_producer', 'select mq.ack(''ack'', ''%s'')') $$, :'r'), '42501', null, 'a producer may not');
select mq.drop_queue('ack');

select * from finish();
