select plan(9);

select test.forget('unschedule');
select mq.create_queue('unschedule');
select is(mq.unschedule('none'), false, 'there is none of that name');
select mq.schedule('a', '@yearly', 'unschedule', '1');
select is(mq.unschedule('a'), true, 'it ends');
select is_empty($$ select * from mq.schedules() where name = 'a' $$, 'it is listed no more');
select is_empty($$ select * from mq.peek('unschedule') $$, 'nor is its next message');
select is((select ready + deferred from mq.queue_stats('unschedule')), 0::bigint, 'nor counted');
select is(mq.unschedule('a'), false, 'once');

-- While it is due, and what is in the queue already.
select mq.schedule('a', '@yearly', 'unschedule', '1');
select test.move_tick('a', '2020-01-01');
select mq.unschedule('a');
select is_empty($$ select * from mq.dequeue('unschedule') $$, 'what is due is not delivered any more');
select mq.schedule('a', '@yearly', 'unschedule', '1');
select test.move_tick('a', '2020-01-01');
select count(*) from mq.maintain('unschedule') \gset
select mq.unschedule('a');
select is((select payload from mq.dequeue('unschedule')), '1', 'a message that upkeep has put into the queue is');
select is(mq.unschedule(null), false, 'null is the name of none');

select mq.drop_queue('unschedule');
select * from finish();
