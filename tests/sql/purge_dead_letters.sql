select plan(9);

select test.forget('purge_dead_letters');
select mq.create_queue('purge_dead_letters');
select is(mq.purge_dead_letters('purge_dead_letters'), 0::bigint, 'without dead letters there is nothing to do');
select 1 from mq.enqueue_batch('purge_dead_letters', array['1', '2', '3', '4']::jsonb[]);
select mq.nack('purge_dead_letters', receipt, dead => true) from (select distinct receipt from mq.dequeue('purge_dead_letters', 3)) as d;
update mq.dead_letter set died_at = died_at - interval '2 days' where queue_id = test.queue_id('purge_dead_letters') and msg_id = 2;
select is(mq.purge_dead_letters('purge_dead_letters', '1 day'), 1::bigint, 'those that died long ago are deleted');
select is((select array_agg(msg_id order by msg_id) from mq.dead_letters('purge_dead_letters')), array[1, 3]::bigint[], 'the others stay');
begin;
select mq.purge_dead_letters('purge_dead_letters');
rollback;
select is(mq.purge_dead_letters('purge_dead_letters'), 2::bigint, 'without an age all are');
select is(mq.redrive('purge_dead_letters'), 0, 'they do not come back');
select is((select payload from mq.dequeue('purge_dead_letters')), '4'::jsonb, 'the queue itself is not touched');
select is((mq.message_status('purge_dead_letters', 1)).state, null, 'what died was never completed: it is forgotten');

select throws_ok($$ select mq.purge_dead_letters('purge_dead_letters.none') $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select test.run_as('mq_consumer', 'select mq.purge_dead_letters(''purge_dead_letters'')') $$, '42501', null, 'a consumer may not');
select mq.drop_queue('purge_dead_letters');

select * from finish();
