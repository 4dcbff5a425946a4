select plan(26);

select test.forget('message_status');
select mq.create_queue('message_status', max_attempts => 2);
create function pg_temp.state(id bigint) returns text language sql as $$ select (mq.message_status('message_status', id)).state $$;

select is(mq.message_status('message_status', 1), null, 'of a message that never was nothing is known');
select 1 from mq.enqueue_batch('message_status', array['1', '2', '3', '4', '5', '6']::jsonb[]);
select results_eq(
    $$ select state, attempt, due_at, leased_until, settled_at, reason from mq.message_status('message_status', 1) $$,
    $$ values ('ready', 1, null::timestamptz, null::timestamptz, null::timestamptz, null::text) $$, 'a new message is ready');
select ok(enqueued_at <= clock_timestamp(), 'it knows since when') from mq.message_status('message_status', 1);
select mq.enqueue('message_status', '7', deliver_at => '2100-01-01');
select results_eq($$ select state, attempt, due_at from mq.message_status('message_status', 7) $$,
    $$ values ('deferred', 1, '2100-01-01'::timestamptz) $$, 'a delayed one is deferred');

select distinct receipt as r, leased_until as until from mq.dequeue('message_status', 6) \gset
select results_eq($$ select state, attempt, due_at from mq.message_status('message_status', 1) $$, $$ values ('leased', 1, null::timestamptz) $$,
    'a delivered one is leased');
select is((mq.message_status('message_status', 1)).leased_until, :'until'::timestamptz, 'until the deadline of its lease');
select mq.extend('message_status', :'r', '1 hour') as until \gset
select is((mq.message_status('message_status', 1)).leased_until, :'until'::timestamptz, 'which moves when it is extended');

select mq.ack('message_status', :'r', array[1]);
select mq.nack('message_status', :'r', array[2], delay => '1 hour');
select mq.nack('message_status', :'r', array[3], dead => true, reason => 'bad');
select mq.nack('message_status', :'r', array[4], delay => '0');
select results_eq($$ select state, attempt from mq.message_status('message_status', 1) $$, $$ values ('completed', 1) $$, 'an acknowledged one is completed');
select ok((mq.message_status('message_status', 1)).settled_at <= clock_timestamp(), 'and it is known since when');
select results_eq($$ select state, attempt, due_at > clock_timestamp() from mq.message_status('message_status', 2) $$, $$ values ('deferred', 2, true) $$,
    'one that was given back waits for its second attempt');
select results_eq($$ select state, attempt, reason, settled_at <= clock_timestamp() from mq.message_status('message_status', 3) $$, $$ values ('dead', 1, 'bad', true) $$,
    'a dead one says why, and since when');
select is(pg_temp.state(4), 'ready', 'one that is due again is ready');
select is(pg_temp.state(5), 'leased', 'what is not settled of a lease is leased');
select mq.ack('message_status', :'r');
select is(pg_temp.state(5) || ' ' || pg_temp.state(6), 'completed completed', 'until it is');

-- The second attempt.
select distinct receipt as r from mq.dequeue('message_status', 10) \gset
select results_eq($$ select state, attempt from mq.message_status('message_status', 4) $$, $$ values ('leased', 2) $$, 'the second attempt is leased');
select mq.ack('message_status', :'r');
select results_eq($$ select state, attempt from mq.message_status('message_status', 4) $$, $$ values ('completed', 2) $$, 'and completed');

-- Given up.
select test.make_due('message_status');
select mq.nack('message_status', receipt, reason => 'late') from (select distinct receipt from mq.dequeue('message_status', 10)) as d;
select is(pg_temp.state(2), 'dead', 'after the last attempt it is dead');
select mq.purge_dead_letters('message_status');
select is(pg_temp.state(2), null, 'when its dead letter is purged it is forgotten');
select is(pg_temp.state(1), 'completed', 'the others are not');

-- Another segment.
select mq.rotate_segment('message_status');
select is(pg_temp.state(1), 'completed', 'in a closed segment it is known too');
select 1 from mq.maintain('message_status');
select 1 from mq.maintain('message_status');
select 1 from mq.maintain('message_status');
select is(pg_temp.state(1), null, 'with the segment it is forgotten');
select is(pg_temp.state(null), null, 'of no message nothing is known');

select throws_ok($$ select mq.message_status('message_status.none', 1) $$, 'MQ001', null, 'an unknown queue is an error');
select mq.enqueue('message_status', '8');
select is(test.value_as('mq_producer', '(mq.message_status(''message_status'', 8)).state'), 'ready', 'a producer may ask');
select is(test.value_as('mq_consumer', '(mq.message_status(''message_status'', 8)).state'), 'ready', 'a consumer may');
select throws_ok($$ select test.run_as('pg_monitor', 'select mq.message_status(''message_status'', 8)') $$, '42501', null, 'nobody else may');
select mq.drop_queue('message_status');

select * from finish();
