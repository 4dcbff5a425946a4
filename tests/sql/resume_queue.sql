select plan(6);

select test.forget('resume_queue');
select mq.create_queue('resume_queue');
select 1 from mq.enqueue_batch('resume_queue', array['1', '2']::jsonb[]);
select lives_ok($$ select mq.resume_queue('resume_queue') $$, 'a queue that is not paused may be resumed');
select mq.pause_queue('resume_queue');
select is_empty($$ select * from mq.dequeue('resume_queue', 10) $$, 'a paused queue delivers nothing');
select mq.resume_queue('resume_queue');
select is((select paused from mq.queues() where name = 'resume_queue'), false, 'the pause ends');
select results_eq($$ select msg_id from mq.dequeue('resume_queue', 10) $$, $$ values (1::bigint), (2) $$, 'what waited is delivered');
select throws_ok($$ select mq.resume_queue('resume_queue.none') $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select test.run_as('mq_consumer', 'select mq.resume_queue(''resume_queue'')') $$, '42501', null, 'a consumer may not');
select mq.drop_queue('resume_queue');

select * from finish();
