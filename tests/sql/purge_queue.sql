select plan(19);

select test.forget('purge_queue');
select mq.create_queue('purge_queue');
select is(mq.purge_queue('purge_queue'), 0::bigint, 'an empty queue has nothing to purge');

select 1 from mq.enqueue_batch('purge_queue', array['1', '2', '3', '4', '5']::jsonb[]);
select mq.enqueue('purge_queue', '6', delay => '1 hour');
select mq.ack('purge_queue', d.receipt) from mq.dequeue('purge_queue') as d;
select mq.nack('purge_queue', d.receipt, dead => true) from mq.dequeue('purge_queue') as d;
select receipt from mq.dequeue('purge_queue') \gset
begin;
select is(mq.purge_queue('purge_queue'), 4::bigint, 'what is ready, leased and deferred is counted');
rollback;
select is((select ready + leased + deferred from mq.queue_stats('purge_queue')), 4::bigint, 'and is back when that is rolled back');

select throws_ok($$ select test.run_as('mq_consumer', 'select mq.purge_queue(''purge_queue'')') $$, '42501', null, 'a consumer may not');
select is(mq.purge_queue('purge_queue'), 4::bigint, 'purged for good');
select is_empty($$ select * from mq.peek('purge_queue') $$, 'nothing is left');
select is((select count(*) from mq.dead_letters('purge_queue')), 1::bigint, 'but the dead letters');
select is((select concat_ws(' ', enqueued_total, delivered_total, settled_total) from mq.queue_stats('purge_queue')), '6 3 1', 'and the totals');
select is(mq.next_due('purge_queue'), null, 'nothing is deferred any more');
select is(mq.ack('purge_queue', :'receipt'), 0, 'a lease from before is lost');
select is_empty($$ select * from mq.dequeue('purge_queue', 10) $$, 'nothing is delivered');

select is(mq.enqueue('purge_queue', '7'), 7::bigint, 'message numbers go on');
select results_eq($$ select msg_id, payload from mq.dequeue('purge_queue', 10) $$, $$ values (7::bigint, '7'::jsonb) $$,
    'what comes after is delivered');

-- What was cancelled is settled.
select mq.enqueue('purge_queue', '8', delay => '1 hour'), mq.enqueue('purge_queue', '9');
select mq.cancel('purge_queue', 8), mq.cancel('purge_queue', 9);
select is(mq.purge_queue('purge_queue'), 1::bigint, 'what was cancelled is not counted, only the one that is leased');

-- Schedules go on.
select mq.schedule('purge', '@yearly', 'purge_queue', '"tick"');
select test.move_tick('purge', '2020-01-01');
select is(mq.purge_queue('purge_queue'), 1::bigint, 'a message that a schedule puts aside is counted, and goes');
select is_empty($$ select * from mq.dequeue('purge_queue') $$, 'though it is due');
select results_eq($$ select payload, due_at from mq.peek('purge_queue') $$, $$ select '"tick"'::jsonb, mq.cron_next('@yearly') $$, 'but the next one waits');

select throws_ok($$ select mq.purge_queue('purge_queue.none') $$, 'MQ001', null, 'an unknown queue is an error');
begin isolation level repeatable read;
select throws_ok($$ select mq.purge_queue('purge_queue') $$, '0A000', null, 'an old snapshot does not do');
commit;
select mq.drop_queue('purge_queue');

select * from finish();
