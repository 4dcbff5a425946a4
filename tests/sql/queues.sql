begin;
select plan(5);

select mq.create_queue('queues.b', visibility_timeout => '90 seconds', notify => 'never');
select mq.create_queue('queues.a');
select mq.pause_queue('queues.a');
select results_eq(
    $$ select name, settings ->> 'notify', (settings ->> 'visibility_timeout')::interval, paused from mq.queues() where name like 'queues.%' $$,
    $$ values ('queues.a', 'auto', '30 seconds'::interval, true), ('queues.b', 'never', '90 seconds', false) $$,
    'queues are listed by name, with their settings');
select is(test.value_as('mq_producer', '(select count(*) from mq.queues() where name like ''queues.%'')'), '2', 'a producer may look');
select is(test.value_as('mq_consumer', '(select count(*) from mq.queues() where name like ''queues.%'')'), '2', 'a consumer may');
select throws_ok($$ select test.run_as('pg_monitor', 'select * from mq.queues()') $$, '42501', null, 'nobody else may');
select mq.drop_queue('queues.a');
select set_eq($$ select name from mq.queues() where name like 'queues.%' $$, array['queues.b'], 'what is dropped is not listed');

select * from finish();
rollback;
