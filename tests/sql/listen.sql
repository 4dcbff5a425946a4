select plan(12);

select test.forget(q) from unnest(array['listen', 'Listen.2-x']) as q;
select mq.create_queue('listen');
select mq.create_queue('Listen.2-x');
select lives_ok($$ select mq.listen('listen') $$, 'a session listens');
select is((select array_agg(c) from pg_listening_channels() as c), array['mq_listen'], 'to the channel that is named after the queue');
select is(test.advisory_locks(), 1::bigint, 'and says that it waits');
select mq.listen('listen');
select is(test.advisory_locks(), 1::bigint, 'once, however often it is called');
select mq.listen('Listen.2-x');
select set_eq($$ select pg_listening_channels() $$, array['mq_listen', 'mq_Listen.2-x'], 'the channel has the name of the queue, letter by letter');
select is(test.advisory_locks(), 2::bigint, 'two queues are two locks');
begin;
select mq.enqueue('listen', '1');
commit;
select is(test.advisory_locks(), 2::bigint, 'to enqueue does not end it');
select is((select payload from mq.dequeue('listen')), '1'::jsonb, 'nor to dequeue');
select mq.unlisten('listen');
select mq.unlisten('Listen.2-x');

select throws_ok($$ select mq.listen('listen.none') $$, 'MQ001', null, 'an unknown queue is an error');
select is(test.advisory_locks(), 0::bigint, 'that leaves no lock');
select throws_ok($$ select test.run_as('mq_producer', 'select mq.listen(''listen'')') $$, '42501', null, 'a producer may not');
select lives_ok($$ select test.run_as('mq_consumer', 'select mq.listen(''listen'')') $$, 'a consumer may');
select mq.unlisten('listen');
select mq.drop_queue('listen');
select mq.drop_queue('Listen.2-x');

select * from finish();
