select plan(16);

select test.forget('rotate_segment');
select mq.create_queue('rotate_segment');
select 1 from mq.enqueue_batch('rotate_segment', array['1', '2']::jsonb[]);
select lives_ok($$ select mq.rotate_segment('rotate_segment') $$, 'a new segment is opened on request');
select results_eq(
    $$ select segment, closed_at is null from mq.segment where queue_id = test.queue_id('rotate_segment') order by 1 $$,
    $$ values (1::bigint, false), (2, true) $$, 'the one before is closed');
select is((select segments from mq.queue_stats('rotate_segment')), 2, 'queue_stats counts both');
select is(mq.enqueue('rotate_segment', '3'), 3::bigint, 'numbers go on');
select is((select count(*) from mq.peek('rotate_segment')), 3::bigint, 'nothing is lost');
select results_eq($$ select msg_id from mq.dequeue('rotate_segment', 2) $$, $$ values (1::bigint), (2) $$, 'the old segment is read first');
select results_eq($$ select msg_id from mq.dequeue('rotate_segment', 2) $$, $$ values (3::bigint) $$, 'then the new one');

-- Again and again, with no upkeep in between.
select mq.rotate_segment('rotate_segment');
select mq.rotate_segment('rotate_segment');
select mq.enqueue('rotate_segment', '4');
select is((select msg_id from mq.dequeue('rotate_segment')), 4::bigint, 'through empty segments too');

begin;
select lives_ok($$ select mq.rotate_segment('rotate_segment') $$, 'in a transaction that enqueues');
select mq.enqueue('rotate_segment', '5');
select throws_ok($$ select mq.rotate_segment('rotate_segment') $$, '55000', null, 'a queue is rotated once');
rollback;
select mq.enqueue('rotate_segment', '6');
select is((select array_agg(msg_id) from mq.dequeue('rotate_segment', 10)), array[6]::bigint[],
    'a rotation that is rolled back loses nothing that comes after it');
select 1 from mq.maintain('rotate_segment');
select is((select count(*) from mq.segment where queue_id = test.queue_id('rotate_segment') and closed_at is null), 1::bigint,
    'and one segment is open then');

select throws_ok($$ select mq.rotate_segment('rotate_segment.none') $$, 'MQ001', null, 'an unknown queue is an error');
begin isolation level repeatable read;
select throws_ok($$ select mq.rotate_segment('rotate_segment') $$, '0A000', null, 'an old snapshot does not do');
commit;
select throws_ok($$ select test.run_as('mq_consumer', 'select mq.rotate_segment(''rotate_segment'')') $$, '42501', null, 'a consumer may not');
select lives_ok($$ select test.run_as('mq_admin', 'select mq.rotate_segment(''rotate_segment'')') $$, 'an administrator may');
select mq.drop_queue('rotate_segment');

select * from finish();
