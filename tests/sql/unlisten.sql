select plan(9);

select test.forget(q) from unnest(array['unlisten', 'unlisten.other']) as q;
select mq.create_queue('unlisten');
select mq.create_queue('unlisten.other');
select lives_ok($$ select mq.unlisten('unlisten') $$, 'who does not listen may stop all the same');
select is(test.advisory_locks(), 0::bigint, 'without a lock');
select mq.listen('unlisten');
select mq.listen('unlisten');
select mq.listen('unlisten.other');
select mq.unlisten('unlisten');
select is((select array_agg(c) from pg_listening_channels() as c), array['mq_unlisten.other'], 'a session stops listening to one queue');
select is(test.advisory_locks(), 1::bigint, 'and waits for the other still');
select mq.unlisten('unlisten.other');
select is_empty($$ select pg_listening_channels() $$, 'then to none');
select is(test.advisory_locks(), 0::bigint, 'and nothing is held');

select throws_ok($$ select mq.unlisten('unlisten.none') $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select test.run_as('mq_producer', 'select mq.unlisten(''unlisten'')') $$, '42501', null, 'a producer may not');
select lives_ok($$ select test.run_as('mq_consumer', 'select mq.unlisten(''unlisten'')') $$, 'a consumer may');
select mq.drop_queue('unlisten');
select mq.drop_queue('unlisten.other');

select * from finish();
