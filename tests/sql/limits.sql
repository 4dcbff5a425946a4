select plan(84);

select test.forget(q) from unnest(array['limits', 'limits.rate', 'limits.both', 'limits.bad', 'limits.lanes']) as q;
create function pg_temp.took(queue text, n int default 100) returns bigint language sql as $$ select count(*) from mq.dequeue(took.queue, took.n) $$;
create function pg_temp.took_all(queue text) returns bigint language plpgsql as $$
declare
    v_count bigint;
    v_sum   bigint := 0;
begin
    loop
        v_count := pg_temp.took(took_all.queue);
        v_sum := v_sum + v_count;
        exit when v_count = 0;
    end loop;
    return v_sum;
end $$;
create function pg_temp.leased(queue text) returns bigint language sql as $$ select leased from mq.queue_stats(leased.queue) $$;
create function pg_temp.counted(queue text) returns bigint language sql as $$ select mq._in_flight(test.queue_id(counted.queue)) $$;

-- max_in_flight
select mq.create_queue('limits', max_in_flight => 3, visibility_timeout => '1 hour', max_attempts => 3);
select mq.enqueue_batch('limits', (select array_agg(to_jsonb(i)) from generate_series(1, 50) as i));
select receipt as r1 from mq.dequeue('limits') \gset
select is(pg_temp.took('limits'), 2::bigint, 'of what is asked for as many are delivered as there is room for');
select is(pg_temp.took('limits'), 0::bigint, 'then none');
select is(pg_temp.counted('limits'), 3::bigint, 'which are those that are leased');
select ok(mq.next_due('limits') between clock_timestamp() + interval '500 milliseconds' and clock_timestamp() + interval '1 second', 'who comes to a full queue may look again in a second');
select is(test.advisory_locks(), 0::bigint, 'nothing is locked');
select is(mq.ack('limits', :'r1'), 1, 'what is acknowledged');
select is(mq.next_due('limits'), null, 'leaves room');
select msg_id as id, receipt as r from mq.dequeue('limits', 5) \gset
select is(:id, 4, 'for as many: the next in order');
select is(pg_temp.took('limits'), 0::bigint, 'and no more');
select is((select count(*) from mq.dequeue('limits', 5, ack => :'r')), 1::bigint, 'who acknowledges as he dequeues has the place that he leaves');

-- nack, dead, extend, a part of a lease
select test.expire_leases('limits');
select is((select count(*) from mq.dequeue('limits', 5)), 3::bigint, 'in a full queue what ran out is taken back, and delivered again');
select is(pg_temp.counted('limits'), 3::bigint, 'as many as there is room for');
select test.expire_leases('limits');
select is(pg_temp.counted('limits'), 3::bigint, 'what ran out counts until it is taken back, for it can be acknowledged');
select is(mq.sweep_stale('limits'), 3, 'which upkeep does, too');
select is(pg_temp.counted('limits'), 0::bigint, 'then it counts no more');
select receipt as r, count(*) as n, min(msg_id) as id from mq.dequeue('limits', 5) group by receipt \gset
select is(:n, 3, 'three again');
select is(mq.ack('limits', :'r', array[:id]::bigint[]), 1, 'a part of a lease is acknowledged');
select is(pg_temp.counted('limits'), 2::bigint, 'the rest counts');
select ok(mq.extend('limits', :'r', '2 hours') is not null, 'it is extended');
select is(pg_temp.counted('limits'), 2::bigint, 'and counts as before');
select is(mq.nack('limits', :'r', delay => '1 hour'), 2, 'what is given back');
select is(pg_temp.counted('limits'), 0::bigint, 'does not count');

-- dead letters make room at once
select mq.purge_queue('limits');
select mq.enqueue('limits', to_jsonb(i)) from generate_series(1, 5) as i;
select mq.alter_queue('limits', max_attempts => 1);
select is(pg_temp.took('limits'), 3::bigint, 'three are out for the last time');
select test.expire_leases('limits');
select count(*) as n from mq.dequeue('limits', 5) \gset
select is(:n, 2, 'when they ran out, others are delivered in the same call');
select is((select count(*) from mq.dead_letters('limits')), 3::bigint, 'they are dead letters');

-- The limit changes while messages are out.
select mq.alter_queue('limits', max_attempts => 5);
select mq.purge_queue('limits');
select mq.enqueue('limits', to_jsonb(i)) from generate_series(1, 20) as i;
select is(pg_temp.took('limits'), 3::bigint, 'three are out');
select lives_ok($$ select mq.alter_queue('limits', max_in_flight => 5) $$, 'the limit can be raised');
select is(pg_temp.took('limits'), 2::bigint, 'then there is room for two more');
select lives_ok($$ select mq.alter_queue('limits', max_in_flight => 2) $$, 'it can be lowered below what is out');
select is(pg_temp.took('limits'), 0::bigint, 'then nothing is delivered');
select test.expire_leases('limits');
select receipt as r, count(*) as n, min(msg_id) as id from mq.dequeue('limits', 9) group by receipt \gset
select is(:n, 2, 'of what ran out as many as may be');
select is(pg_temp.counted('limits'), 2::bigint, 'are out');
select mq.ack('limits', :'r', array[:id]::bigint[]);
select is(pg_temp.took('limits'), 1::bigint, 'and one more when one is done');
select lives_ok($$ select mq.alter_queue('limits', max_in_flight => 0) $$, '0 removes the limit');
select is((select settings -> 'max_in_flight' from mq.queues() where name = 'limits'), 'null', 'queues says so');
select is(pg_temp.took_all('limits'), 17::bigint, 'and all are delivered');
select lives_ok($$ select mq.alter_queue('limits', max_in_flight => 20) $$, 'it is set again');
select mq.enqueue('limits', to_jsonb(i)) from generate_series(1, 5) as i;
select is(pg_temp.took('limits'), 1::bigint, 'and counts what was delivered without it');
select is(pg_temp.counted('limits'), pg_temp.leased('limits'), 'by the statistics, too');

-- Over segments, and what outlives them.
select mq.rotate_segment('limits');
select mq.enqueue('limits', '"in the next segment"');
select is(pg_temp.took('limits'), 0::bigint, 'what is out in another segment counts');
select count(*) from mq.maintain('limits') \gset
select count(*) from mq.maintain('limits') \gset
select is(pg_temp.counted('limits'), 20::bigint, 'after upkeep, too');

-- With priorities
select mq.create_queue('limits.lanes', max_in_flight => 2);
select mq.enqueue('limits.lanes', to_jsonb(p), priority => p) from unnest(array[1, 9, 5]) as p;
select mq.enqueue('limits.lanes', '"plain"');
select is((select payload from mq.dequeue('limits.lanes', 5)), '9'::jsonb, 'the highest priority goes first');
select is((select payload from mq.dequeue('limits.lanes', 5)), '5'::jsonb, 'then the next');
select is(pg_temp.took('limits.lanes'), 0::bigint, 'all priorities share the limit');
select mq.drop_queue('limits.lanes');

-- rate_limit. Time moves by editing the meter.
create function pg_temp.pass(queue text, age interval) returns void language sql as $$
    update mq.meter as m set at = m.at - pass.age where m.queue_id = test.queue_id(pass.queue) $$;
select mq.create_queue('limits.rate', rate_limit => 10, rate_period => '1 minute');
select mq.enqueue_batch('limits.rate', (select array_agg(to_jsonb(i)) from generate_series(1, 200) as i));
select is(pg_temp.took('limits.rate', 4), 4::bigint, 'as long as it is not used up, messages are delivered');
select is(mq.next_due('limits.rate'), null, 'next_due has nothing to say');
select pg_temp.pass('limits.rate', '20 seconds');
select is(pg_temp.took('limits.rate', 100), 6::bigint, 'as many as are left');
select is(pg_temp.took('limits.rate', 1), 0::bigint, 'then none');
select ok(mq.next_due('limits.rate') between clock_timestamp() + interval '39 seconds' and clock_timestamp() + interval '41 seconds', 'next_due tells when the first of them leaves the period');
select pg_temp.pass('limits.rate', '39 seconds');
select is(pg_temp.took('limits.rate', 100), 0::bigint, 'before that nothing is delivered');
select pg_temp.pass('limits.rate', '2 seconds');
select is(pg_temp.took('limits.rate', 100), 4::bigint, 'then as many as left it: the period is no calendar minute');
select is(pg_temp.took('limits.rate', 100), 0::bigint, 'and no more');
select is(test.advisory_locks(), 0::bigint, 'nothing is locked');
select test.expire_leases('limits.rate');
select is(pg_temp.took('limits.rate', 100), 0::bigint, 'what ran out is a delivery as any other');
select pg_temp.pass('limits.rate', '61 minutes');
select mq.sweep_stale('limits.rate');
select is(pg_temp.took('limits.rate', 7), 7::bigint, 'after a long time there is no more than one period''s');
select is(pg_temp.took('limits.rate', 7), 3::bigint, 'allowance');
select lives_ok($$ select mq.alter_queue('limits.rate', rate_limit => 12) $$, 'it can be raised');
select is(pg_temp.took('limits.rate', 7), 2::bigint, 'and counts what was delivered before');
select lives_ok($$ select mq.alter_queue('limits.rate', rate_limit => 1) $$, 'or lowered');
select is(pg_temp.took('limits.rate', 7), 0::bigint, 'and nothing comes');
select lives_ok($$ select mq.alter_queue('limits.rate', rate_period => '1 hour', rate_limit => 14) $$, 'another period');
select is(pg_temp.took('limits.rate', 7), 2::bigint, 'counts as far as is known');
-- The clock is set back by an hour.
select pg_temp.pass('limits.rate', '-1 day');
select is(pg_temp.took('limits.rate', 7), 0::bigint, 'what was delivered later than now was delivered now');
select pg_temp.pass('limits.rate', '62 minutes');
select is(pg_temp.took_all('limits.rate'), 14::bigint, 'so a period later it is over');
select pg_temp.pass('limits.rate', '1 day');
select count(*) from mq.maintain('limits.rate') \gset
select is((select count(*) from mq.meter as m where m.queue_id = test.queue_id('limits.rate')), 0::bigint, 'upkeep deletes what is over');
select is(pg_temp.took_all('limits.rate'), 14::bigint, 'and the allowance is there');
select is((select settings - array(select jsonb_object_keys(settings - '{max_in_flight,rate_limit,rate_period}'::text[])) from mq.queues() where name = 'limits.rate'),
    '{"max_in_flight": null, "rate_limit": 14, "rate_period": "01:00:00"}'::jsonb, 'queues tells it');
select lives_ok($$ select mq.alter_queue('limits.rate', rate_limit => 0) $$, '0 removes it');
select is((select settings -> 'rate_period' from mq.queues() where name = 'limits.rate'), 'null', 'with its period');
select ok(pg_temp.took_all('limits.rate') > 14, 'and more is delivered at once');

-- Both, and a rollback
select mq.create_queue('limits.both', max_in_flight => 4, rate_limit => 5, rate_period => '1 hour');
select mq.enqueue_batch('limits.both', (select array_agg(to_jsonb(i)) from generate_series(1, 20) as i));
begin;
select is(pg_temp.took('limits.both', 20), 4::bigint, 'the lower one holds');
savepoint s;
select is(pg_temp.took('limits.both', 20), 0::bigint, 'in the same transaction, too');
rollback;
select receipt as r, count(*) as n from mq.dequeue('limits.both', 3) group by receipt \gset
select is(:n, 3, 'what was rolled back was not delivered');
select is(mq.ack('limits.both', :'r'), 3, 'what is done');
select is(pg_temp.took('limits.both', 20), 2::bigint, 'counts for the rate');

-- Bad input
select throws_ok(format('select mq.create_queue(%L, %s)', 'limits.bad', bad), '22023', null, bad || ' is refused')
from unnest(array['max_in_flight => 0', 'rate_limit => 1', 'rate_period => ''1 second''', 'rate_limit => -1, rate_period => ''1 second''',
                  'rate_limit => 1, rate_period => ''0''']) with ordinality as u (bad, no) order by no;
select throws_ok($$ select mq.alter_queue('limits.both', rate_limit => 0, rate_period => '1 second') $$, '22023', null, 'no rate, and a period: is refused');
select throws_ok($$ select mq.create_queue('limits.bad', mode => 'transaction', max_in_flight => 1) $$, '0A000', null, 'in mode transaction nobody can count what is out');
select throws_ok($$ select mq.create_queue('limits.bad', mode => 'transaction', rate_limit => 1, rate_period => '1 second') $$, '0A000', null, 'nor what was delivered');

select mq.drop_queue(q) from unnest(array['limits', 'limits.rate', 'limits.both']) as q;
select is((select count(*) from mq.meter), 0::bigint, 'a queue that is dropped leaves nothing in the meter');

select * from finish();
