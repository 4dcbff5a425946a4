select plan(15);

select test.forget('history');
select mq.create_queue('history', max_attempts => 2, retention => '1 day');
create function pg_temp.take() returns setof mq.delivery language plpgsql as $$
begin
    loop
        return query select * from mq.dequeue('history', 100);
        exit when not found;
    end loop;
end $$;
select is_empty($$ select * from mq.history('history') $$, 'a new queue has no history');
select 1 from mq.enqueue_batch('history', array(select to_jsonb(i) from generate_series(1, 6) as i), array_fill('{"h": 1}'::jsonb, array[6]));
select distinct receipt as r from mq.dequeue('history', 4) \gset
select is_empty($$ select * from mq.history('history') $$, 'nor what waits or is leased');
select mq.ack('history', :'r', array[1, 3]);
select mq.nack('history', :'r', array[2], dead => true, reason => 'bad');
select mq.nack('history', :'r', array[4], delay => '0', reason => 'late');
select mq.ack('history', receipt, array[4]) from pg_temp.take() where msg_id = 4;
select results_eq(
    $$ select msg_id, attempts, outcome, payload, headers from mq.history('history') $$,
    $$ values (1::bigint, 1, 'acked', '1'::jsonb, '{"h": 1}'::jsonb), (2, 1, 'dead', '2', '{"h": 1}'), (3, 1, 'acked', '3', '{"h": 1}'), (4, 2, 'acked', '4', '{"h": 1}') $$,
    'what is done is listed, the oldest first, with what became of it');
select ok(bool_and(enqueued_at <= settled_at and settled_at <= clock_timestamp()), 'and when') from mq.history('history');
select is((select jsonb_path_query_array(history, '$[*].reason') from mq.history('history') where msg_id = 4), '["late"]', 'attempts before the last one are in its history');
select is((select history from mq.history('history') where msg_id = 1), '[]', 'which is empty where there was none');
select is((select array_agg(msg_id) from mq.history('history', n => 2)), array[1, 2]::bigint[], 'n cuts off the later ones');

-- From one time to another.
select mq.rotate_segment('history');
select mq.enqueue('history', '7');
select enqueued_at as at_7, receipt as r from pg_temp.take() where msg_id = 7 \gset
select mq.ack('history', :'r');
select is((select array_agg(msg_id) from mq.history('history', from_time => :'at_7')), array[7]::bigint[], 'from a time on, which belongs to it');
select is((select array_agg(msg_id) from mq.history('history', to_time => :'at_7')), array[1, 2, 3, 4]::bigint[], 'or up to one, which does not');

-- Rewound: a row for each time.
select mq.rewind('history', to_msg_id => 4);
select mq.ack('history', receipt) from (select distinct receipt from pg_temp.take()) as d;
select results_eq($$ select msg_id, attempts, jsonb_array_length(history) from mq.history('history') where msg_id = 4 $$, $$ values (4::bigint, 2, 1), (4, 1, 2) $$,
    'what was rewound is listed each time that it was acknowledged');

select throws_ok($$ select mq.history('history', n => -1) $$, '22023', null, 'n is not negative');
select throws_ok($$ select mq.history('history.none') $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select test.run_as('mq_producer', 'select * from mq.history(''history'')') $$, '42501', null, 'a producer may not');
select is(test.value_as('mq_consumer', '(select count(*) from mq.history(''history''))'), '7', 'a consumer may');
select test.expire_leases('history');
select 1 from mq.sweep_stale('history');
select mq.alter_queue('history', retention => '0');
do $$ begin for i in 1 .. 5 loop perform mq.maintain('history'); commit; end loop; end $$;
select is((select min(msg_id) from mq.history('history') where outcome = 'acked'), 4::bigint, 'what is dropped is not listed');
select mq.drop_queue('history');

select * from finish();
