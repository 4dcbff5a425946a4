begin;
select plan(20);

-- Every kind of error says what to do about it.
select mq.create_queue('errors');
select mq.create_queue('errors.full', max_depth => 1), mq.create_queue('errors.transaction', mode => 'transaction');
create function pg_temp.error(statement text, out state text, out message text, out hint text) language plpgsql as $$
begin
    execute statement;
exception
    when others then
        get stacked diagnostics state = returned_sqlstate, message = message_text, hint = pg_exception_hint;
end $$;
create temp table errors as
    select v.no, v.code, e.* from (values
        (1, 'MQ001', $$ select mq.enqueue('errors.none', '1') $$),
        (2, 'MQ002', $$ select mq.create_queue('errors') $$),
        (3, 'MQ003', format('select mq.ack(%L, %L, strict => true)', 'errors',
                            test.queue_id('errors') || '.1.1.0.1.0.0.1.1000000000000000000')),
        (4, 'MQ004', $$ select mq.ack('errors', 'x') $$),
        (5, 'MQ007', $$ select mq._too_many_claims() $$),
        (6, '0A000', $$ select mq.alter_queue('errors.transaction', max_depth => 1) $$),
        (13, 'MQ008', $$ select mq.enqueue_batch('errors.full', '{1,2}') $$),
        (7, '22004', $$ select mq.enqueue('errors', null) $$),
        (8, '22023', $$ select * from mq.dequeue('errors', 0) $$),
        (9, '22023', $$ select mq.create_queue('no name') $$),
        (10, '40001', $$ select mq._snapshot_too_old() $$),
        (11, '0A000', $$ select mq._wrong_isolation('dequeue') $$),
        (12, '55000', $$ select mq.rotate_segment('errors') $$),
        (13, 'MQ010', $$ select mq._message_dead('errors', 1, 'bad') $$),
        (14, 'MQ011', $$ select mq.run_schedule('errors.none') $$),
        (15, 'MQ009', $$ select mq._duplicate('errors', 1) $$),
        (16, '40001', $$ select mq._key_unknown() $$)) as v (no, code, statement)
    cross join lateral pg_temp.error(v.statement) as e;
select is(state, code, format('%s: %s', code, message)) from errors order by no;
select is_empty($$ select state, message from errors where coalesce(hint, '') = '' $$, 'each has a hint');
select is_empty($$ select state, message from errors where message ~ '^[A-Z]|\.$' $$, 'each message is lower case, without a full stop');
select set_eq(
    $$ select distinct m[1] from pg_proc as p, regexp_matches(p.prosrc, 'errcode = ''(MQ\d+)''', 'g') as m where p.pronamespace = 'mq'::regnamespace and m[1] <> 'MQ0ZZ' $$,
    $$ select distinct code from errors where code ~ '^MQ' $$, 'there are no others of class MQ');

select * from finish();
rollback;
