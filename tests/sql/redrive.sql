select plan(26);

select test.forget(q) from unnest(array['redrive', 'redrive.to']) as q;
select mq.create_queue('redrive', max_attempts => 1);
select mq.create_queue('redrive.to');
select mq.enqueue('redrive.to', '"first"');
create function pg_temp.kill(n int) returns bigint language sql as
    $$ select count(mq.nack('redrive', d.receipt, array[d.msg_id], reason => 'bad')) from mq.dequeue('redrive', n) as d $$;

select is(mq.redrive('redrive'), 0, 'without dead letters there is nothing to do');
select 1 from mq.enqueue_batch('redrive', array['1', '2', '3', '4', '5']::jsonb[], array['{"h": 1}', null, null, null, null]::jsonb[]);
select is(pg_temp.kill(5), 5::bigint, 'five messages die');

-- In place.
select is(mq.redrive('redrive', array[1, 99]), 1, 'those named come back, if they are there');
select is((select count(*) from mq.dead_letters('redrive')), 4::bigint, 'and are no dead letters any more');
select is((mq.message_status('redrive', 1)).state, 'ready', 'they are ready');
select results_eq(
    $$ select msg_id, attempt, payload, headers from mq.dequeue('redrive', 10) $$,
    $$ values (1::bigint, 1, '1'::jsonb, '{"h": 1}'::jsonb) $$, 'delivered under the same number, with attempts counted anew');
select test.expire_leases('redrive');
select mq.sweep_stale('redrive');
select is((select string_agg(h ->> 'outcome', ' ') from mq.dead_letters('redrive') as d, jsonb_array_elements(d.history) as h where d.msg_id = 1),
    'nacked redriven expired', 'the history goes on where it was');
select is((select (history -> 1) ? 'at' from mq.dead_letters('redrive') where msg_id = 1), true, 'and tells when it was redriven');

-- At most so many, the oldest death first.
select is(mq.redrive('redrive', max_messages => 0), 0, 'none for 0');
select is(mq.redrive('redrive', max_messages => 2), 2, 'two of them');
select is((select array_agg(msg_id order by msg_id) from mq.peek('redrive')), array[2, 3]::bigint[], 'the oldest');
begin;
select mq.redrive('redrive');
select is_empty($$ select * from mq.dequeue('redrive', 10) where msg_id in (1, 4, 5) $$, 'the transaction does not receive them itself');
rollback;
select is((select array_agg(msg_id order by msg_id) from mq.dead_letters('redrive')), array[1, 4, 5]::bigint[], 'when it is rolled back they are dead');
select is((select array_agg(msg_id order by msg_id) from mq.dequeue('redrive', 10)), array[2, 3]::bigint[], 'while the others are delivered');

-- Elsewhere.
select is(mq.redrive('redrive', array[4], to_queue => 'redrive.to'), 1, 'they can go to another queue');
select set_eq($$ select msg_id, attempt, payload from mq.dequeue('redrive.to', 10) $$, $$ values (1::bigint, 1, '"first"'::jsonb), (2, 1, '4') $$,
    'there they get a number of that queue');
select is((mq.message_status('redrive', 4)).state, null, 'here they are forgotten');
select is(mq.redrive('redrive', max_messages => 1, to_queue => 'redrive'), 1, 'the other queue may be the same');
select is(mq.redrive('redrive'), 1, 'all that are left');
select is(mq.redrive('redrive'), 0, 'once');

-- Dead again.
select is(pg_temp.kill(10), 2::bigint, 'what came back can die again');
select throws_ok($$ select mq.redrive('redrive', max_messages => -1) $$, '22023', null, 'max_messages is not negative');
select throws_ok($$ select mq.redrive('redrive.none') $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select mq.redrive('redrive', to_queue => 'redrive.none') $$, 'MQ001', null, 'so is an unknown target');
select throws_ok($$ select test.run_as('mq_consumer', 'select mq.redrive(''redrive'')') $$, '42501', null, 'a consumer may not');
select is(test.value_as('mq_admin', 'mq.redrive(''redrive'')'), '2', 'an administrator may');
select mq.drop_queue('redrive');
select mq.drop_queue('redrive.to');

select * from finish();
