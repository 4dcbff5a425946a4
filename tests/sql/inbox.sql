select plan(25);

select test.forget(q) from unnest(array['inbox', 'inbox.other']) as q;
select mq.create_queue('inbox');
select mq.create_queue('inbox.other');

copy mq.inbox (queue, payload, headers, deliver_at) from stdin;
inbox	{"a": 1}	{"h": 1}	\N
inbox	2	\N	\N
inbox.other	3	\N	\N
inbox	4	\N	2001-01-01
inbox	5	\N	2100-01-01
\.
select is((select array_agg(msg_id) from mq.peek('inbox')), array[1, 2, 3, 4]::bigint[], 'what is copied is numbered per queue');
select results_eq(
    $$ select attempt, payload, headers from mq.dequeue('inbox', 10) order by msg_id $$,
    $$ values (1, '{"a": 1}'::jsonb, '{"h": 1}'::jsonb), (1, '2', null), (1, '4', null) $$, 'and delivered, unless it is for later');
select is(mq.next_due('inbox'), '2100-01-01'::timestamptz, 'which comes when it is due');
select results_eq($$ select msg_id, payload from mq.dequeue('inbox.other', 10) $$, $$ values (1::bigint, '3'::jsonb) $$,
    'one copy may go to several queues');

insert into mq.inbox (queue, payload) select 'inbox', to_jsonb(i) from generate_series(1, 1000) as i;
select results_eq($$ select payload from mq.dequeue('inbox', 1000) $$, $$ select to_jsonb(i) from generate_series(1, 1000) as i $$,
    'an insert does the same, in order');
insert into mq.inbox (queue, payload) select 'inbox', '0' where false;
select is_empty($$ select * from mq.dequeue('inbox', 10) $$, 'no rows are no messages');

begin;
insert into mq.inbox (queue, payload) values ('inbox', '1');
select is_empty($$ select * from mq.dequeue('inbox', 10) $$, 'a transaction does not receive what it put there');
rollback;
select is_empty($$ select * from mq.dequeue('inbox', 10) $$, 'what is rolled back never was');

-- Some are due while the statement runs.
select enqueued_total as before from mq.queue_stats('inbox') \gset
insert into mq.inbox (queue, payload, deliver_at)
    select 'inbox', to_jsonb(i), clock_timestamp() + i * interval '10 microseconds' from generate_series(1, 20000) as i;
select is(enqueued_total - :before, 20000::bigint, 'what becomes due meanwhile is not lost') from mq.queue_stats('inbox');
select mq.purge_queue('inbox');

-- The whole statement or nothing.
select throws_ok($$ insert into mq.inbox (queue, payload) values ('inbox', '1'), ('inbox.none', '2') $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ insert into mq.inbox (queue, payload) values ('inbox', '1'), ('inbox', null) $$, '22004', null, 'so is a null payload');
select throws_ok($$ insert into mq.inbox (queue, payload) values ('inbox', '1'), (null, '2') $$, '22004', null, 'and a null queue');
select throws_ok($$ insert into mq.inbox (queue, payload, deliver_at) values ('inbox', '1', null), ('inbox', '2', 'infinity') $$, '22023', null,
    'for ever is no time');
select throws_ok($$ insert into mq.inbox (queue, payload, deliver_at) values ('inbox', '1', null), ('inbox', '2', '-infinity') $$, '22023', null,
    'nor is it for ever ago');
select throws_ok($$ insert into mq.inbox (queue, payload, deliver_at) values ('inbox', '1', clock_timestamp() + interval '101 years') $$, '22023', null,
    'nor too long');
select is_empty($$ select * from mq.peek('inbox', 10) $$, 'then nothing of the statement is there');

-- Wherever the messages go.
select mq.rotate_segment('inbox');
insert into mq.inbox (queue, payload) values ('inbox', '"rotated"');
select is((select payload from mq.dequeue('inbox')), '"rotated"'::jsonb, 'into the open segment');
select 1 from mq.maintain('inbox');
select is(pg_relation_size('mq.inbox'), 0::bigint, 'upkeep empties the inbox');
select mq.pause_queue('inbox');
insert into mq.inbox (queue, payload) values ('inbox', '"paused"');
select mq.resume_queue('inbox');
select is((select payload from mq.dequeue('inbox')), '"paused"'::jsonb, 'a paused queue takes messages');

-- Rights.
select lives_ok($$ select test.run_as('mq_producer', 'insert into mq.inbox (queue, payload) values (''inbox'', ''1'')') $$, 'a producer may insert');
select lives_ok($$ select test.run_as('mq_admin', 'insert into mq.inbox (queue, payload) values (''inbox'', ''2'')') $$, 'an administrator may');
select throws_ok($$ select test.run_as('mq_consumer', 'insert into mq.inbox (queue, payload) values (''inbox'', ''3'')') $$, '42501', null, 'a consumer may not');
select throws_ok($$ select test.run_as('mq_producer', 'select * from mq.inbox') $$, '42501', null, 'a producer may not look');
select throws_ok($$ select test.run_as('mq_producer', 'delete from mq.inbox') $$, '42501', null, 'nor take back');
select is((select count(*) from mq.dequeue('inbox', 10)), 2::bigint, 'what they put there is delivered');
select mq.drop_queue('inbox');
select mq.drop_queue('inbox.other');

select * from finish();
