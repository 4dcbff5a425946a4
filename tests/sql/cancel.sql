begin;
select plan(5);

select mq.create_queue('cancel');
select mq.enqueue('cancel', '1', delay => '1 hour');
select throws_ok($$ select mq.cancel('cancel', 1) $$, '0A000', 'cancel is not supported by this version of mq', 'cancel is of a later version');
do $$
declare
    v_hint text;
begin
    perform mq.cancel('cancel', 1);
exception
    when feature_not_supported then
        get stacked diagnostics v_hint = pg_exception_hint;
        perform set_config('test.hint', v_hint, false);
end $$;
select isnt(current_setting('test.hint', true), '', 'and the hint says what to do');
select throws_ok($$ select mq.cancel('cancel.none', 1) $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select test.run_as('mq_producer', 'select mq.cancel(''cancel'', 1)') $$, '0A000', null, 'a producer may call it');
select throws_ok($$ select test.run_as('mq_consumer', 'select mq.cancel(''cancel'', 1)') $$, '42501', null, 'a consumer may not');

select * from finish();
rollback;
