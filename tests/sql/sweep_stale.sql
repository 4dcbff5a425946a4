select plan(23);

select test.forget(q) from unnest(array['sweep_stale', 'sweep_stale.other']) as q;
select mq.create_queue('sweep_stale', max_attempts => 2);
select mq.create_queue('sweep_stale.other');
select is(mq.sweep_stale('sweep_stale'), 0, 'an empty queue has nothing to take back');
select 1 from mq.enqueue_batch('sweep_stale', array['1', '2', '3', '4']::jsonb[]);
select is(mq.sweep_stale('sweep_stale'), 0, 'nor has one with nothing leased');
select distinct receipt as r1 from mq.dequeue('sweep_stale', 2) \gset
select distinct receipt as r2 from mq.dequeue('sweep_stale', 2) \gset
select is(mq.sweep_stale('sweep_stale'), 0, 'a live lease is left alone');

select mq.ack('sweep_stale', :'r1', array[1]);
select test.expire_leases('sweep_stale');
select mq.extend('sweep_stale', :'r2', '1 hour');
select is(mq.sweep_stale('sweep_stale'), 1, 'of what ran out, what was neither settled nor extended is taken back');
select is(mq.sweep_stale('sweep_stale'), 0, 'once');
select is((mq.message_status('sweep_stale', 2)).state, 'ready', 'it is ready at once');
select is(mq.ack('sweep_stale', :'r1'), 0, 'who had it has lost it');
select is(mq.ack('sweep_stale', :'r2'), 2, 'who extended has not');
select results_eq($$ select msg_id, attempt from mq.dequeue('sweep_stale', 10) $$, $$ values (2::bigint, 2) $$, 'it is delivered as the second attempt');

select test.expire_leases('sweep_stale');
select is(mq.sweep_stale('sweep_stale'), 1, 'the last attempt may run out too');
select results_eq(
    $$ select msg_id, attempts, reason, history -> 0 ->> 'outcome', history -> 1 ->> 'outcome' from mq.dead_letters('sweep_stale') $$,
    $$ values (2::bigint, 2, 'lease expired', 'expired', 'expired') $$, 'then it is a dead letter');
select is_empty($$ select * from mq.dequeue('sweep_stale', 10) $$, 'and is not delivered');

-- A hole: what a rolled-back consumer left in a block that is not the newest.
select 1 from mq.enqueue_batch('sweep_stale', array['5', '6']::jsonb[]);
begin;
select 1 from mq.dequeue('sweep_stale');
rollback;
select 1 from mq.dequeue('sweep_stale', 2);
begin;
select 1 from mq.dequeue('sweep_stale', 2);
rollback;
create temp table seen as select msg_id, attempt, receipt from mq.dequeue('sweep_stale', 2);
insert into seen select msg_id, attempt, receipt from mq.dequeue('sweep_stale', 2);
select mq.sweep_stale('sweep_stale');
insert into seen select msg_id, attempt, receipt from mq.dequeue('sweep_stale', 2);
select is((select coalesce(max(attempt), 1) from seen), 1, 'a delivery that was rolled back is no attempt');
select is((select count(*) from mq.peek('sweep_stale') where state = 'leased'), 2::bigint, 'and no message is left behind');

-- All queues; a transaction that is undone.
select mq.enqueue('sweep_stale.other', '1');
select 1 from mq.dequeue('sweep_stale.other');
select test.expire_leases('sweep_stale');
select test.expire_leases('sweep_stale.other');
begin;
select mq.sweep_stale();
rollback;
select is((select count(*) from mq.peek('sweep_stale') where state = 'leased'), 2::bigint, 'a sweep that is rolled back took nothing');
select ok(mq.sweep_stale() >= 3, 'without a name all queues are swept');
select is((mq.message_status('sweep_stale.other', 1)).state, 'ready', 'the other one too');

-- In one transaction with the dequeue.
begin;
select receipt as r from mq.dequeue('sweep_stale.other') \gset
select test.expire_leases('sweep_stale.other');
select is(mq.sweep_stale('sweep_stale.other'), 1, 'a lease of one''s own transaction can run out');
select is(mq.ack('sweep_stale.other', :'r'), 0, 'and is lost then');
commit;

select throws_ok($$ select mq.sweep_stale('sweep_stale.none') $$, 'MQ001', null, 'an unknown queue is an error');
begin isolation level repeatable read;
select throws_ok($$ select mq.sweep_stale('sweep_stale') $$, '0A000', null, 'an old snapshot does not do');
commit;
select is(test.value_as('mq_consumer', 'mq.sweep_stale(''sweep_stale'')'), '0', 'a consumer may');
select throws_ok($$ select test.run_as('mq_producer', 'select mq.sweep_stale()') $$, '42501', null, 'a producer may not');
select mq.drop_queue('sweep_stale');
select mq.drop_queue('sweep_stale.other');

select * from finish();
