select plan(12);

select test.forget('pause_queue');
select mq.create_queue('pause_queue');
select 1 from mq.enqueue_batch('pause_queue', array['1', '2', '3', '4']::jsonb[]);
select receipt as r1 from mq.dequeue('pause_queue') \gset
select receipt as r2 from mq.dequeue('pause_queue') \gset
select lives_ok($$ select mq.pause_queue('pause_queue') $$, 'a queue is paused');
select lives_ok($$ select mq.pause_queue('pause_queue') $$, 'twice is no error');
select is((select paused from mq.queues() where name = 'pause_queue'), true, 'queues() says so');
select is_empty($$ select * from mq.dequeue('pause_queue', 10) $$, 'nothing is delivered');
select is_empty($$ select * from mq.dequeue('pause_queue', 10, wait => '10 milliseconds') $$, 'nor after a wait');
select is(mq.enqueue('pause_queue', '5'), 5::bigint, 'enqueue goes on');
select is(mq.ack('pause_queue', :'r1'), 1, 'so does ack');
select isnt(mq.extend('pause_queue', :'r2'), null, 'and extend');
select is(mq.nack('pause_queue', :'r2'), 1, 'and nack');
select is_empty(format('select * from mq.dequeue(%L, 10, ack => (select %L::text from mq.queues() where name = %L and not paused))', 'pause_queue', :'r1', 'pause_queue'),
    'an ack in a dequeue that delivers nothing does no harm');
select throws_ok($$ select mq.pause_queue('pause_queue.none') $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select test.run_as('mq_consumer', 'select mq.pause_queue(''pause_queue'')') $$, '42501', null, 'a consumer may not');
select mq.drop_queue('pause_queue');

select * from finish();
