begin;
select plan(4);

select matches(mq.version(), '^\d+\.\d+\.\d+$', 'the version has three numbers');
select is(test.value_as('mq_producer', 'mq.version()'), mq.version(), 'a producer may ask for it');
select is(test.value_as('mq_consumer', 'mq.version()'), mq.version(), 'a consumer may ask for it');
select throws_ok(
    $$ select test.run_as('pg_monitor', 'select mq.version()') $$,
    '42501', null, 'nobody else may');

select * from finish();
rollback;
