select plan(27);

-- What is kept of a message, for how long, and where it goes.
select test.forget('results');
select mq.create_queue('results', visibility_timeout => '1 minute', result_retention => '1 hour');
create function pg_temp.notes() returns bigint language sql as $$
    select count(*) from mq.note where queue_id = test.queue_id('results') and kind <> 'mark' $$;
create function pg_temp.age(ids bigint[], by interval) returns void language sql as $$
    update mq.note set at = at - by where queue_id = test.queue_id('results') and msg_id = any (ids) $$;
select 1 from mq.enqueue_batch('results', array(select to_jsonb(i) from generate_series(1, 10) as i));
select distinct receipt as r from mq.dequeue('results', 6) \gset
select distinct receipt as long from mq.dequeue('results', 2, '1 day') \gset
select mq.report('results', :'r', i, to_jsonb(i)) from generate_series(1, 4) as i;
select mq.ack('results', :'r', array[i], result => to_jsonb(i * 10)) from generate_series(1, 3) as i;

select results_eq($$ select state, attempt, reason, progress, result from mq.message_status('results', 1) $$,
    $$ values ('completed', 1, null::text, '1'::jsonb, '10'::jsonb) $$, 'message_status tells progress and result');
select results_eq($$ select state, progress, result from mq.message_status('results', 4) $$, $$ values ('leased', '4'::jsonb, null::jsonb) $$,
    'of what is not done there is no result');

-- A lease that outlives its segment.
select mq.ack('results', :'r');
select distinct receipt as r from mq.dequeue('results', 10) \gset
select mq.ack('results', :'r');
select mq.rotate_segment('results');
select 1 from mq.maintain('results');
select test.age_segments('results', '2 hours');
select 1 from mq.maintain('results');
select 1 from mq.maintain('results');
select is((select count(*) from mq.survivor where queue_id = test.queue_id('results')), 2::bigint, 'two messages outlive their segment');
select is(mq.report('results', :'long', 7, '"far"'), true, 'one can report on them');
select is((mq.message_status('results', 7)).progress, '"far"', 'which message_status tells');
select is(mq.report('results', :'r', 7, '1'), false, 'another lease cannot');
select is(mq.ack('results', :'long', array[7], result => '70'), 1, 'they can be settled with a result');
select is(mq.report('results', :'long', 7, '1'), false, 'then there is nothing to report');
select results_eq($$ select state, attempt, settled_at <= clock_timestamp(), progress, result from mq.message_status('results', 7) $$,
    $$ values ('completed', null::int, true, '"far"'::jsonb, '70'::jsonb) $$, 'the result is kept');

-- The segment of these is gone.
select results_eq($$ select state, attempt, enqueued_at, settled_at <= clock_timestamp(), result from mq.message_status('results', 2) $$,
    $$ values ('completed', null::int, null::timestamptz, true, '20'::jsonb) $$, 'what has a result is known to be completed without its segment');
select is((mq.message_status('results', 4)).state, null, 'progress alone does not keep a message from being forgotten');

-- Old ones are forgotten.
select is(pg_temp.notes(), 9::bigint, 'a note each');
select is_empty($$ select * from mq.maintain('results') where action = 'forgot' $$, 'what is young is kept');
select pg_temp.age(array[1, 2], '61 minutes');
select results_eq($$ select detail from mq.maintain('results') where action = 'forgot' $$, $$ values ('4 results and reports') $$, 'maintain forgets what is older than result_retention');
select is((mq.message_status('results', 2)).state, null, 'message_status then knows nothing');
select is((mq.message_status('results', 3)).result, '30', 'others are kept');
select pg_temp.age(array[3], '2 hours');
select is(mq._forget_notes(q), 0, 'what was committed late is behind the mark') from mq.queue as q where q.name = 'results';
select is(mq._forget_notes(q, '-infinity'), 2, 'and found from the beginning') from mq.queue as q where q.name = 'results';
select is((mq.message_status('results', 3)).state, null, 'then it is forgotten, too');
select is((select count(*) from mq.note where kind = 'mark'), 1::bigint, 'there is one mark');
select mq.alter_queue('results', result_retention => '0');
select results_eq($$ select detail from mq.maintain('results') where action = 'forgot' $$, $$ values ('3 results and reports') $$, 'a queue may forget at once');
select is_empty($$ select * from mq.maintain('results') where action = 'forgot' $$, 'and once');

-- Copies, purge.
select mq.alter_queue('results', result_retention => '1 hour');
select mq.enqueue('results', '11');
select mq.enqueue('results', '12');
select distinct receipt as r from mq.dequeue('results', 2) \gset
select mq.report('results', :'r', 11, '1');
select mq.ack('results', :'r', array[12], result => '120');
select test.become_copy('results', '1.1');
select setval(q.msg_ids, 2) from mq.queue as q where q.name = 'results';
select 1 from mq.maintain('results');
select is(mq.wait_for('results', 12, '0'), '120', 'a restored database has the results');
select is((mq.message_status('results', 11)).progress, null, 'of leases that are void there is no progress');
select is(mq.enqueue('results', '13'), 13::bigint, 'no new message has the number of one with a result');
select mq.purge_queue('results');
select is_empty($$ select from mq.note $$, 'purge_queue leaves nothing');
select throws_ok($$ select mq.wait_for('results', 12, '0') $$, '22023', null, 'so that it is forgotten');
select mq.drop_queue('results');

select * from finish();
