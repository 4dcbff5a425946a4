select plan(23);

-- A lease that outlives its segment moves out of it, and goes on as if nothing had happened.
select test.forget('survivors');
select mq.create_queue('survivors', max_attempts => 2, visibility_timeout => '1 minute');
select 1 from mq.enqueue_batch('survivors', array(select to_jsonb(i) from generate_series(1, 12) as i), array_fill('{"h": 1}'::jsonb, array[12]));
select distinct receipt as a from mq.dequeue('survivors', 3, '1 day') \gset
select distinct receipt as b from mq.dequeue('survivors', 3, '1 day') \gset
select distinct receipt as c from mq.dequeue('survivors', 3) \gset
select distinct receipt as d from mq.dequeue('survivors', 3) \gset
select mq.ack('survivors', :'a', array[1]);
select mq.extend('survivors', :'c', '2 days') as until \gset
select mq.ack('survivors', :'d');
select mq.rotate_segment('survivors');
select 1 from mq.maintain('survivors');
select test.age_segments('survivors', '2 hours');
select count(*) as moved from mq.maintain('survivors') where action = 'moved' \gset
select is(:moved, 1, 'maintain moves long leases');
select 1 from mq.maintain('survivors');
select is((select count(*) from mq.segment where queue_id = test.queue_id('survivors') and closed_at is not null), 0::bigint, 'their segment goes');
select is((select count(*) from mq.survivor where queue_id = test.queue_id('survivors')), 8::bigint, 'what was settled stays behind');

select results_eq($$ select state, attempt from mq.message_status('survivors', 2) $$, $$ values ('leased', 1) $$, 'message_status knows them');
select is((mq.message_status('survivors', 8)).leased_until, :'until'::timestamptz, 'with the deadline that was granted');
select is((select leased from mq.queue_stats('survivors')), 8::bigint, 'queue_stats counts them');
select is((select payload || headers from mq.peek('survivors') where msg_id = 2), '2'::jsonb || '{"h": 1}'::jsonb, 'peek shows them');
select is_empty($$ select * from mq.dequeue('survivors', 10) $$, 'they are not delivered again');

select is(mq.ack('survivors', :'a', array[2]), 1, 'one can be acknowledged');
select is(mq.ack('survivors', :'a', array[2]), 0, 'once');
select throws_ok(format('select mq.ack(%L, %L, %L, true)', 'survivors', :'a', '{2,3}'), 'MQ003', null, 'strict, what is settled is an error');
select is(mq.ack('survivors', :'a'), 1, 'or what is left');
select is((select settled_total from mq.queue_stats('survivors')), 6::bigint, 'settled_total counts these too');
select ok(mq.extend('survivors', :'b', '3 days') > clock_timestamp() + interval '2 days', 'a lease can be extended');
select is(mq.nack('survivors', :'b', array[4], delay => '0'), 1, 'a message given back');
select results_eq($$ select msg_id, attempt, payload, headers from mq.dequeue('survivors', 10) $$, $$ values (4::bigint, 2, '4'::jsonb, '{"h": 1}'::jsonb) $$,
    'it is delivered again');
select is(mq.nack('survivors', :'b', array[5], dead => true, reason => 'bad'), 1, 'or given up');
select is((select reason from mq.dead_letters('survivors') where msg_id = 5), 'bad', 'for a reason');

-- They run out like others.
select test.expire_leases('survivors');
select is(mq.sweep_stale('survivors'), 5, 'what runs out is taken back');
select is(mq.ack('survivors', :'c'), 0, 'and a late ack refused');
select is(mq.extend('survivors', :'c'), null, 'as is an extend');
select set_eq($$ select msg_id, attempt from mq.dequeue('survivors', 10) $$, $$ values (6::bigint, 2), (7, 2), (8, 2), (9, 2) $$, 'the next attempt is delivered');
select is((select reason from mq.dead_letters('survivors') where msg_id = 4), 'lease expired', 'what was out of attempts is dead');
select mq.drop_queue('survivors');

select * from finish();
