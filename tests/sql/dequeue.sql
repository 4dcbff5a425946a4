select plan(58);

select test.forget('dequeue');
select mq.create_queue('dequeue', visibility_timeout => '1 minute', max_attempts => 2);
select is_empty($$ select * from mq.dequeue('dequeue') $$, 'an empty queue delivers nothing');
select 1 from mq.enqueue_batch('dequeue', array(select to_jsonb(i) from generate_series(1, 20) as i));

select results_eq($$ select msg_id, attempt, payload, headers from mq.dequeue('dequeue') $$, $$ values (1::bigint, 1, '1'::jsonb, null::jsonb) $$,
    'one message by default, the oldest');
create temp table got as select * from mq.dequeue('dequeue', 3);
select results_eq('select msg_id from got', $$ values (2::bigint), (3), (4) $$, 'n of them, in order');
select is((select count(distinct receipt) from got), 1::bigint, 'under one receipt');
select ok(bool_and(leased_until between clock_timestamp() + interval '50 seconds' and clock_timestamp() + interval '1 minute'),
    'leased for the visibility timeout of the queue') from got;
select ok(bool_and(enqueued_at < clock_timestamp()), 'with the time they were enqueued') from got;
select ok(leased_until between clock_timestamp() + interval '59 minutes' and clock_timestamp() + interval '1 hour', 'or for what the call says')
from mq.dequeue('dequeue', visibility_timeout => '1 hour');
select isnt((select receipt from mq.dequeue('dequeue')), (select receipt from got limit 1), 'each call has a receipt of its own');
select results_eq($$ select msg_id from mq.dequeue('dequeue', 5) $$, $$ values (7::bigint), (8), (9), (10), (11) $$,
    'what is leased is not delivered again');
select is((select count(*) from mq.dequeue('dequeue', 100)), 9::bigint, 'fewer come where fewer are');
select is_empty($$ select * from mq.dequeue('dequeue', 100) $$, 'and none where none is left');

-- Rollback.
select mq.enqueue('dequeue', '21');
begin;
select is((select msg_id from mq.dequeue('dequeue')), 21::bigint, 'a message is delivered in a transaction');
rollback;
select results_eq($$ select msg_id, attempt from mq.dequeue('dequeue') $$, $$ values (21::bigint, 1) $$,
    'and again, as if never before, when that is rolled back');

-- Ack on the way.
select 1 from mq.enqueue_batch('dequeue', array(select to_jsonb(i) from generate_series(22, 27) as i));
select distinct receipt from mq.dequeue('dequeue', 2) \gset
create temp table next as select * from mq.dequeue('dequeue', 2, ack => :'receipt');
select results_eq('select msg_id from next', $$ values (24::bigint), (25) $$, 'an earlier receipt is acknowledged in the same call');
select results_eq($$ select i, (mq.message_status('dequeue', i)).state from generate_series(22, 25) as i $$,
    $$ values (22, 'completed'), (23, 'completed'), (24, 'leased'), (25, 'leased') $$, 'its messages are done');
select throws_ok(format('select * from mq.dequeue(%L, 2, ack => %L)', 'dequeue', :'receipt'), 'MQ003', null, 'a lease that is lost is an error');
select throws_ok($$ select * from mq.dequeue('dequeue', 2, ack => 'nonsense') $$, 'MQ004', null, 'a malformed receipt is one too');
select throws_ok($$ select * from mq.dequeue('dequeue', 2, ack => '') $$, 'MQ004', null, 'as is an empty one');
select throws_ok(format('select * from mq.dequeue(%L, 2, ack => %L)', 'dequeue', regexp_replace(:'receipt', '[0-9]{12}$', '000000000000')),
    'MQ003', null, 'and one with another token is of no lease');
select is((select count(*) from mq.peek('dequeue', 100) where state = 'ready'), 2::bigint, 'then nothing is leased');
select distinct receipt from mq.dequeue('dequeue', 2) \gset
select is_empty(format('select * from mq.dequeue(%L, 2, ack => %L)', 'dequeue', :'receipt'), 'where nothing is left, nothing comes');
select is((mq.message_status('dequeue', 27)).state, 'completed', 'but the receipt is acknowledged');

-- A lease that ran out.
select test.expire_leases('dequeue');
begin;
select pg_current_xact_id();
select is_empty($$ select * from mq.dequeue('dequeue', 100) $$, 'a transaction that has written sweeps nothing: others would wait for it');
commit;
select is((select count(*) || ' ' || min(attempt) || ' ' || max(attempt) from mq.dequeue('dequeue', 100)), '23 2 2',
    'a consumer that finds nothing takes back what ran out, for a second attempt');
select throws_ok(format('select * from mq.dequeue(%L, ack => %L)', 'dequeue', (select receipt from got limit 1)), 'MQ003', null,
    'who had it before has lost it');
select test.expire_leases('dequeue');
select is_empty($$ select * from mq.dequeue('dequeue', 100) $$, 'after max_attempts there is none');
select is((select count(*) from mq.dead_letters('dequeue', 100)), 23::bigint, 'but a dead letter');

-- Two segments.
select 1 from mq.enqueue_batch('dequeue', array['28', '29']::jsonb[]);
select mq.rotate_segment('dequeue');
select 1 from mq.enqueue_batch('dequeue', array['30', '31']::jsonb[]);
select results_eq($$ select msg_id from mq.dequeue('dequeue', 1) $$, $$ values (28::bigint) $$, 'the older segment is read first');
select set_eq($$ select msg_id from mq.dequeue('dequeue', 10) $$, array[29]::bigint[], 'to its end');
select set_eq($$ select msg_id from mq.dequeue('dequeue', 10) $$, array[30, 31]::bigint[], 'then the newer one');

-- Different n on one block.
select 1 from mq.enqueue_batch('dequeue', array(select to_jsonb(i) from generate_series(32, 51) as i));
select is((select array_agg(msg_id) from mq.dequeue('dequeue', 7)), array[32, 33, 34, 35, 36, 37, 38]::bigint[], 'seven');
select is((select array_agg(msg_id) from mq.dequeue('dequeue', 2)), array[39, 40]::bigint[], 'then two');
select is((select array_agg(msg_id) from mq.dequeue('dequeue', 2)), array[41, 42]::bigint[], 'two more');
create temp table rest as select msg_id, receipt from mq.dequeue('dequeue', 5);
insert into rest select msg_id, receipt from mq.dequeue('dequeue', 5);
insert into rest select msg_id, receipt from mq.dequeue('dequeue', 5);
select set_eq('select msg_id from rest', array[43, 44, 45, 46, 47, 48, 49, 50, 51]::bigint[], 'nothing is left behind or comes twice');
select is((select sum(mq.ack('dequeue', receipt)) from (select distinct receipt from rest) as r), 9::bigint, 'and all can be acknowledged');

-- Own writes.
begin;
select mq.enqueue('dequeue', '52');
select is_empty($$ select * from mq.dequeue('dequeue', 10) $$, 'a transaction does not receive what it enqueued');
commit;
begin;
select is((select msg_id from mq.dequeue('dequeue', 10)), 52::bigint, 'a later one does');
select mq.enqueue('dequeue', '53');
select is_empty($$ select * from mq.dequeue('dequeue', 10) $$, 'nor after a dequeue');
commit;
select is((select msg_id from mq.dequeue('dequeue', 10)), 53::bigint, 'and it is not lost');

-- Wait.
select is_empty($$ select * from mq.dequeue('dequeue', wait => '5 milliseconds') $$, 'a wait ends');
select mq.enqueue('dequeue', '54');
select is((select msg_id from mq.dequeue('dequeue', wait => '20 seconds')), 54::bigint, 'and is none where there is a message');

select is_empty($$ select * from mq.dequeue('dequeue', subscription => 'default') $$, 'the subscription may be named');
select throws_ok($$ select * from mq.dequeue('dequeue.none') $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok(format('select * from mq.dequeue(%L, %s)', 'dequeue', bad), '22023', null, bad || ' is refused')
from unnest(array['0', '-1', '10001', 'null', 'visibility_timeout => ''0''', 'visibility_timeout => ''-1 s''', 'wait => ''-1 s''',
                  'wait => ''21 s''', 'subscription => ''other''']) with ordinality as u (bad, no) order by no;
begin isolation level repeatable read;
select throws_ok($$ select * from mq.dequeue('dequeue') $$, '0A000', null, 'an old snapshot does not do');
commit;
begin isolation level serializable;
select throws_ok($$ select * from mq.dequeue('dequeue') $$, '0A000', null, 'nor does a serializable one');
commit;

-- Many claims in one transaction.
select 1 from mq.enqueue_batch('dequeue', array(select to_jsonb(i) from generate_series(1, 3) as i));
select is(test.value_as('mq_consumer', '(select count(*) from mq.dequeue(''dequeue''))'), '1', 'a consumer may');
select throws_ok($$ select test.run_as('mq_producer', 'select * from mq.dequeue(''dequeue'')') $$, '42501', null, 'a producer may not');
begin;
select set_config('mq.claims', '1000', true), pg_current_xact_id();
select throws_ok($$ select * from mq.dequeue('dequeue') $$, 'MQ007', null, 'a transaction that claimed a thousand times is told to commit');
commit;
select is((select count(*) from mq.dequeue('dequeue')), 1::bigint, 'the next transaction may again');
select mq.drop_queue('dequeue');

select * from finish();
