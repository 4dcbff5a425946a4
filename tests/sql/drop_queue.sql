select plan(12);

select test.forget(q) from unnest(array['drop_queue', 'drop_queue.other']) as q;
select mq.create_queue('drop_queue.other');     -- what queues share is there now
create temp table before as select c.oid from pg_class as c where c.relnamespace = 'mq'::regnamespace
    union all select p.oid from pg_proc as p where p.pronamespace = 'mq'::regnamespace;
-- A queue that has some of everything: two segments, a lease, something deferred, a dead letter.
select mq.create_queue('drop_queue', max_attempts => 1);
select 1 from mq.enqueue_batch('drop_queue', array['1', '2', '3']::jsonb[]);
select mq.enqueue('drop_queue', '4', delay => '1 hour');
select mq.nack('drop_queue', d.receipt) from mq.dequeue('drop_queue') as d;
select mq.rotate_segment('drop_queue');
select 1 from mq.maintain('drop_queue');
select receipt from mq.dequeue('drop_queue') \gset
create temp table gone as select test.queue_id('drop_queue') as id;

select throws_ok($$ select test.run_as('mq_consumer', 'select mq.drop_queue(''drop_queue'')') $$, '42501', null, 'a consumer may not');
select throws_ok($$ select mq.drop_queue('Drop_Queue') $$, 'MQ001', null, 'an unknown queue is an error');
begin;
select lives_ok($$ select mq.drop_queue('drop_queue') $$, 'a queue with messages is dropped');
rollback;
select is((select ready || ' ' || leased || ' ' || deferred || ' ' || dead from mq.queue_stats('drop_queue')), '1 1 1 1',
    'and is back as it was when that is rolled back');
select lives_ok($$ select mq.drop_queue('drop_queue') $$, 'it is dropped for good');
select results_eq(
    $$ select c.relname::text collate "C" from pg_class as c where c.relnamespace = 'mq'::regnamespace and c.relkind in ('r', 'S') and c.oid not in (select oid from before) $$,
    $$ select ('register_' || id) collate "C" from gone $$,
    'all that is left is the register, which tells those who wait for it');
select format('comment on sequence mq.register_%s is %L', id, 'dropped 0') from gone \gexec
select 1 from mq.maintain('drop_queue.other');
select is_empty(
    $$ select c.oid::regclass::text from pg_class as c where c.relnamespace = 'mq'::regnamespace and c.relkind in ('r', 'S')
           and c.oid not in (select oid from before)
       union all
       select p.oid::regprocedure::text from pg_proc as p where p.pronamespace = 'mq'::regnamespace and p.oid not in (select oid from before) $$,
    'a day later upkeep removes that, too: no table, sequence or function is left');
select is_empty(
    $$ select 'queue' from mq.queue join gone on id = queue_id union all select 'subscription' from mq.subscription join gone on id = queue_id
       union all select 'slot' from mq.slot join gone on id = queue_id union all select 'segment' from mq.segment join gone on id = queue_id
       union all select 'tally' from mq.tally join gone on id = queue_id union all select 'dead' from mq.dead_letter join gone on id = queue_id
       union all select 'survivor' from mq.survivor join gone on id = queue_id
       union all select 'schedule' from mq.timetable join gone on id = queue_id $$,
    'and every row of it');
select throws_ok($$ select mq.drop_queue('drop_queue') $$, 'MQ001', null, 'it can be dropped once');

-- Another queue of the same name knows nothing of the first.
select mq.create_queue('drop_queue');
select throws_ok(format('select mq.ack(%L, %L)', 'drop_queue', :'receipt'), 'MQ004', null, 'a receipt of a dropped queue is not one of its namesake');
select is(mq.enqueue('drop_queue', '1'), 1::bigint, 'whose messages are counted from 1');
select mq.drop_queue('drop_queue');
select is(mq.enqueue('drop_queue.other', '1'), 1::bigint, 'other queues go on');
select mq.drop_queue('drop_queue.other');

select * from finish();
