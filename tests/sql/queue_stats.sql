select plan(24);

select test.forget(q) from unnest(array['queue_stats', 'queue_stats.other']) as q;
select mq.create_queue('queue_stats');
create function pg_temp.counts() returns text language sql as
    $$ select concat_ws(' ', ready, deferred, leased, dead) from mq.queue_stats('queue_stats') $$;

select results_eq(
    $$ select queue, ready, deferred, leased, dead, oldest_ready_age, enqueued_total, delivered_total, settled_total, segments, paused, maintenance_overdue
       from mq.queue_stats('queue_stats') $$,
    $$ values ('queue_stats', 0::bigint, 0::bigint, 0::bigint, 0::bigint, null::interval, 0::bigint, 0::bigint, 0::bigint, 1, false, false) $$,
    'a new queue has nothing');
select 1 from mq.enqueue_batch('queue_stats', array(select to_jsonb(i) from generate_series(1, 10) as i));
select 1 from mq.enqueue_batch('queue_stats', array['11', '12']::jsonb[], delay => '1 hour');
select is(pg_temp.counts(), '10 2 0 0', 'messages are ready or deferred');
select ok(oldest_ready_age between '0' and '1 minute', 'the oldest is not old') from mq.queue_stats('queue_stats');
select ok(bytes > 0, 'they take some room') from mq.queue_stats('queue_stats');
select distinct receipt as r from mq.dequeue('queue_stats', 4) \gset
select is(pg_temp.counts(), '6 2 4 0', 'or leased');
select mq.ack('queue_stats', :'r', array[1]);
select is(pg_temp.counts(), '6 2 3 0', 'what is settled is not counted');
select mq.nack('queue_stats', :'r', array[2], delay => '1 hour');
select is(pg_temp.counts(), '6 3 2 0', 'a retry is deferred');
select mq.nack('queue_stats', :'r', array[3], dead => true);
select is(pg_temp.counts(), '6 3 1 1', 'or dead');
select is((select concat_ws(' ', enqueued_total, delivered_total, settled_total) from mq.queue_stats('queue_stats')), '12 4 1',
    'the totals count ids given out, deliveries and acknowledgements');
select mq.ack('queue_stats', :'r');
select is(pg_temp.counts(), '6 3 0 1', 'a whole lease settled');
select is((select concat_ws(' ', enqueued_total, delivered_total, settled_total) from mq.queue_stats('queue_stats')), '12 4 2', 'counts in the totals');
select test.make_due('queue_stats');
select is(pg_temp.counts(), '9 0 0 1', 'what is due is ready');
select mq.ack('queue_stats', receipt) from (select distinct receipt from mq.dequeue('queue_stats', 100)) as d;
select mq.ack('queue_stats', receipt) from (select distinct receipt from mq.dequeue('queue_stats', 100)) as d;
select is(pg_temp.counts(), '0 0 0 1', 'and gone when it is settled');
select is((select concat_ws(' ', enqueued_total, delivered_total, settled_total) from mq.queue_stats('queue_stats')), '12 13 11',
    'a retry is delivered twice and settled once');

-- A rotation changes nothing; a segment that is dropped neither.
select mq.rotate_segment('queue_stats');
select is((select segments from mq.queue_stats('queue_stats')), 2, 'segments are counted');
select 1 from mq.maintain('queue_stats');
select 1 from mq.maintain('queue_stats');
select 1 from mq.maintain('queue_stats');
select is((select concat_ws(' ', segments, enqueued_total, delivered_total, settled_total) from mq.queue_stats('queue_stats')), '1 12 13 11',
    'when one goes the totals stay');

-- Upkeep.
select test.age_segments('queue_stats', '2 hours');
select is((select maintenance_overdue from mq.queue_stats('queue_stats')), false, 'an old empty segment needs no upkeep');
select mq.enqueue('queue_stats', '13');
select is((select maintenance_overdue from mq.queue_stats('queue_stats')), true, 'an old full one does');
select 1 from mq.maintain('queue_stats');
select is((select maintenance_overdue from mq.queue_stats('queue_stats')), false, 'which maintain does');
select mq.pause_queue('queue_stats');
select is((select paused from mq.queue_stats('queue_stats')), true, 'a pause shows');

select mq.create_queue('queue_stats.other');
select results_eq($$ select queue from mq.queue_stats() where queue like 'queue_stats%' $$, $$ values ('queue_stats'), ('queue_stats.other') $$,
    'without a name all queues are counted, by name');
select throws_ok($$ select * from mq.queue_stats('queue_stats.none') $$, 'MQ001', null, 'an unknown queue is an error');
select is(test.value_as('mq_producer', '(select count(*) from mq.queue_stats(''queue_stats''))')
       || test.value_as('mq_consumer', '(select count(*) from mq.queue_stats(''queue_stats''))'), '11', 'producers and consumers may look');
select throws_ok($$ select test.run_as('pg_monitor', 'select * from mq.queue_stats()') $$, '42501', null, 'nobody else may');
select mq.drop_queue('queue_stats');
select mq.drop_queue('queue_stats.other');

select * from finish();
