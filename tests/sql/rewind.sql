select plan(69);

-- Each message that was acknowledged comes back once, whatever state it went through before.
select test.forget('rewind');
select mq.create_queue('rewind', max_attempts => 2, retention => '7 days');
create function pg_temp.ids() returns bigint[] language sql as
    $$ select array_agg(msg_id order by msg_id) from mq.peek('rewind', 1000) where state = 'ready' $$;
create function pg_temp.state(id bigint) returns text language sql as $$ select (mq.message_status('rewind', id)).state $$;
create function pg_temp.detail(statement text) returns text language plpgsql as $$
declare
    v_detail text;
begin
    execute statement;
    return null;
exception
    when invalid_parameter_value then
        get stacked diagnostics v_detail = pg_exception_detail;
        return v_detail;
end $$;
-- All that can be delivered: a call may return a part of it.
create function pg_temp.take() returns setof mq.delivery language plpgsql as $$
begin
    loop
        return query select * from mq.dequeue('rewind', 100);
        exit when not found;
    end loop;
end $$;
create function pg_temp.ack() returns bigint language sql as
    $$ select sum(mq.ack('rewind', r.receipt)) from (select distinct d.receipt from pg_temp.take() as d) as r $$;
-- What is kept is kept for so long already.
create function pg_temp.age(age interval) returns void language sql as $$
    update mq.segment as s set drained_at = s.drained_at - age.age where s.queue_id = test.queue_id('rewind');
    update mq.kept as k set settled_at = k.settled_at - age.age where k.queue_id = test.queue_id('rewind');
$$;
-- As many calls as upkeep needs from a rotation to the end of a segment.
create procedure pg_temp.upkeep() language plpgsql as $$
begin
    for i in 1 .. 5 loop
        perform mq.maintain('rewind');
        commit;
    end loop;
end $$;

select is(mq.rewind('rewind', to_time => '-infinity'), 0::bigint, 'of an empty queue nothing comes back');

-- Each state a message can be in: 1 acknowledged, 2 dead, 3 deferred as it failed, 4 and 5 acknowledged, 6 leased, 7 ready, 8 delayed.
select 1 from mq.enqueue_batch('rewind', array(select to_jsonb(i) from generate_series(1, 7) as i), array_fill('{"h": 1}'::jsonb, array[7]));
select mq.enqueue('rewind', '8', delay => '1 hour');
select distinct receipt as r from mq.dequeue('rewind', 5) \gset
select mq.ack('rewind', :'r', array[1]);
select mq.nack('rewind', :'r', array[2], dead => true);
select mq.nack('rewind', :'r', array[3], delay => '1 hour');
select mq.ack('rewind', :'r', array[4, 5]);
select receipt as leased from mq.dequeue('rewind', 1) \gset
select is(pg_temp.ids(), array[7]::bigint[], 'one message waits');

begin;
select is(mq.rewind('rewind', to_msg_id => 1), 3::bigint, 'what was acknowledged comes back');
select is(pg_temp.ids(), array[1, 4, 5, 7]::bigint[], 'beside what waits');
select is(mq.rewind('rewind', to_msg_id => 1), 0::bigint, 'once, for then it waits');
select is_empty($$ select * from mq.dequeue('rewind', 10) where msg_id <> 7 $$, 'the transaction does not receive it itself');
rollback;
select is(pg_temp.ids(), array[7]::bigint[], 'when it is rolled back nothing came back');
select is(pg_temp.state(1), 'completed', 'and what was acknowledged is');

select is(mq.rewind('rewind', to_msg_id => 4), 2::bigint, 'from a message on: that one and later ones');
select is(pg_temp.state(4), 'ready', 'it is ready, though it was completed before');
select is(pg_temp.state(1), 'completed', 'an earlier one is not touched');
select is(pg_temp.state(6) || ' ' || pg_temp.state(3) || ' ' || pg_temp.state(8) || ' ' || pg_temp.state(2), 'leased deferred deferred dead',
    'nor what is leased, deferred or dead');
select is(mq.ack('rewind', :'leased'), 1, 'a lease goes on');
select is((select ready || ' ' || leased || ' ' || deferred || ' ' || dead from mq.queue_stats('rewind')), '3 0 2 1', 'queue_stats counts what came back as ready');
select is((select enqueued_total || ' ' || delivered_total || ' ' || settled_total from mq.queue_stats('rewind')), '8 6 4',
    'and as nothing that was enqueued, for its number is not new');

select is((select sum(mq.nack('rewind', r.receipt, delay => '0', reason => 'again')) from (select distinct receipt from pg_temp.take()) as r), 3::bigint,
    'it is delivered and can fail');
select test.make_due('rewind');
create temp table seen as select * from pg_temp.take();
select results_eq('select msg_id, attempt, payload, headers from seen where msg_id in (4, 5) order by msg_id',
    $$ values (4::bigint, 2, '4'::jsonb, '{"h": 1}'::jsonb), (5, 2, '5', '{"h": 1}') $$, 'with its number, payload and headers, and attempts counted from 1');
select is(mq.nack('rewind', receipt, array[4], dead => true), 1, 'what was rewound can die') from seen where msg_id = 4;
select is((select string_agg(h ->> 'outcome', ' ') from mq.dead_letters('rewind') as d, jsonb_array_elements(d.history) as h where d.msg_id = 4),
    'rewound nacked rejected', 'its history tells that it was');
select is((select (history -> 0) ? 'at' from mq.dead_letters('rewind') where msg_id = 4), true, 'and when');
select is(mq.rewind('rewind', to_msg_id => 4), 1::bigint, 'what died since is left to redrive; 6 comes back');
select is(pg_temp.state(4), 'dead', 'it is dead');
select mq.purge_dead_letters('rewind');
select is(pg_temp.state(4), null, 'and forgotten when that is purged, though it was completed once');
select is(mq.rewind('rewind', to_msg_id => 4), 0::bigint, 'it does not come back then');
select mq.ack('rewind', receipt) from (select distinct receipt from seen) as s;
select pg_temp.ack();
select is((select ready + leased + deferred from mq.queue_stats('rewind')), 0::bigint, 'all is settled');
select is((select settled_total from mq.queue_stats('rewind')), 9::bigint, 'what was acknowledged twice counts twice');

-- Segments: what is drained is kept, and comes back in order of msg_id, whichever segment it is in.
select mq.rotate_segment('rewind');
select 1 from mq.enqueue_batch('rewind', array['9', '10']::jsonb[]);
call pg_temp.upkeep();
select ok(drained_at is not null, 'a segment is drained, and stays') from mq.segment where queue_id = test.queue_id('rewind') and segment = 1;
select is((select segments from mq.queue_stats('rewind')), 2, 'queue_stats counts it');
select is((select enqueued_total || ' ' || delivered_total || ' ' || settled_total from mq.queue_stats('rewind')), '10 15 9', 'the totals go on');
select is(pg_temp.state(1), 'completed', 'message_status knows what it holds');
select is_empty($$ select x from mq._live_slots(test.queue_id('rewind')) as x
                   where x = (select slot from mq.segment where queue_id = test.queue_id('rewind') and segment = 1) $$, 'consumers do not visit it');
select mq.ack('rewind', receipt) from (select distinct receipt from mq.dequeue('rewind', 1)) as d;
select enqueued_at as at_6 from mq.history('rewind') where msg_id = 6 limit 1 \gset
select is(mq.rewind('rewind', to_time => :'at_6'), 4::bigint, 'to a time: what was enqueued then or later, 10 waits');
select results_eq('select msg_id from pg_temp.take()', array[10, 6, 7, 8, 9]::bigint[], 'what comes back comes after what waits, in order of msg_id');
select test.expire_leases('rewind');
select 1 from mq.sweep_stale('rewind');
select pg_temp.ack();
select is(mq.rewind('rewind', to_time => 'infinity'), 0::bigint, 'there is nothing at the end of time');

-- A lease that outlived its segment.
select mq.enqueue('rewind', '11');
select receipt as r from mq.dequeue('rewind', 1, '1 year') \gset
select mq.rotate_segment('rewind');
call pg_temp.upkeep();
select test.age_segments('rewind', '2 hours');
call pg_temp.upkeep();
select is((select count(*) from mq.survivor where queue_id = test.queue_id('rewind')), 1::bigint, 'a lease outlives its segment');
select is(mq.rewind('rewind', to_msg_id => 11), 0::bigint, 'while it lasts its message does not come back');
select is(mq.ack('rewind', :'r'), 1, 'when it is acknowledged');
select is(pg_temp.state(11), 'completed', 'it is kept, too');
select is(mq.rewind('rewind', to_msg_id => 11), 1::bigint, 'and comes back');
select pg_temp.ack();

-- The end of the retention: what is dropped is remembered, by number and by time.
select mq.rotate_segment('rewind');
select enqueued_at as at_11, enqueued_at + interval '1 microsecond' as after_11 from mq.history('rewind') where msg_id = 11 limit 1 \gset
select mq.enqueue('rewind', '12');
select pg_temp.ack();
call pg_temp.upkeep();
select pg_temp.age('6 days');
call pg_temp.upkeep();
select is((select min(segment) from mq.segment where queue_id = test.queue_id('rewind')), 1::bigint, 'a day before its retention ends a segment is there');
select pg_temp.age('1 day');
call pg_temp.upkeep();
select is((select count(*) from mq.segment where queue_id = test.queue_id('rewind')), 1::bigint, 'when it ends all go but the open one');
select is((select count(*) from mq.kept where queue_id = test.queue_id('rewind')), 0::bigint, 'with what outlived one');
select is(pg_temp.state(11), null, 'what they held is forgotten');
select is(pg_temp.detail('select mq.rewind(''rewind'', to_msg_id => 11)'), 'Only messages from 12 on are still kept.', 'to a message before that is refused: the detail says what is kept');
select is(pg_temp.detail(format('select mq.rewind(%L, to_time => %L)', 'rewind', :'at_11')), format('Only what was enqueued after %s is still kept.', :'at_11'),
    'to a time before that, too');
select is(mq.rewind('rewind', to_time => :'after_11'), 1::bigint, 'a microsecond later it is not');
select pg_temp.ack();
select is(mq.rewind('rewind', to_msg_id => 12), 1::bigint, 'and as little from the next message on');
select pg_temp.ack();

-- A shorter retention holds for what is there already; so does a purge.
select mq.rotate_segment('rewind');
call pg_temp.upkeep();
select is((select segments from mq.queue_stats('rewind')), 2, 'a segment is kept');
select mq.alter_queue('rewind', retention => '0');
call pg_temp.upkeep();
select is((select segments from mq.queue_stats('rewind')), 1, 'until its queue keeps nothing any more');
select is(pg_temp.detail('select mq.rewind(''rewind'', to_msg_id => 1)'), 'Queue "rewind" keeps nothing: its retention is 0.', 'then nothing comes back');
select mq.alter_queue('rewind', retention => '1 day');
select is(pg_temp.detail('select mq.rewind(''rewind'', to_msg_id => 12)'), 'Only messages from 13 on are still kept.', 'nor later what was dropped meanwhile');
select 1 from mq.enqueue_batch('rewind', array['13', '14']::jsonb[]);
select pg_temp.ack();
select is(mq.rewind('rewind', to_msg_id => 13), 2::bigint, 'what came later does');
select pg_temp.ack();
select mq.rotate_segment('rewind');
call pg_temp.upkeep();
select is((select mq.purge_queue('rewind')), 0::bigint, 'a purge of what is settled removes nothing that waits');
select is(pg_temp.detail('select mq.rewind(''rewind'', to_msg_id => 14)'), 'Only messages from 15 on are still kept.', 'but all that was kept');
call pg_temp.upkeep();
select is((select segments || ' ' || settled_total from mq.queue_stats('rewind')), '1 24', 'an empty segment is kept for nothing; the totals are what they were');

-- Priorities are kept, times to live are not; what was cancelled since does not come back.
select mq.enqueue('rewind', '15', priority => 7, ttl => '1 hour');
select mq.enqueue('rewind', '16');
select pg_temp.ack();
select is(mq.rewind('rewind', to_msg_id => 15), 2::bigint, 'two messages come back');
select is((select priority from mq.peek('rewind') where msg_id = 15), 7, 'one has the priority that it had');
select is_empty(format($$ select from mq.log_%1$s_%2$s where msg_id = 15 and attempt = 1 and extra ? 'h' and extra ? 'e' $$,
    test.queue_id('rewind'), (select pg_sequence_last_value(register) & 65535 from mq.queue where name = 'rewind')), 'and does not expire');
select is(mq.cancel('rewind', 16), true, 'the other one is cancelled');
select is(mq.rewind('rewind', to_msg_id => 15), 0::bigint, 'it is not acknowledged then, though it was');
select set_eq('select msg_id from pg_temp.take()', array[15]::bigint[], 'nor delivered');
select 1 from mq.maintain('rewind');
select is(mq.rewind('rewind', to_msg_id => 15), 0::bigint, 'later neither');

select throws_ok(format('select mq.rewind(%s)', bad), '22023', null, bad || ' is refused')
from unnest(array['''rewind''', '''rewind'', now(), 1']) with ordinality as u (bad, no) order by no;
select throws_ok($$ select mq.rewind('rewind.none', to_msg_id => 1) $$, 'MQ001', null, 'an unknown queue is an error');
begin isolation level repeatable read;
select throws_ok($$ select mq.rewind('rewind', to_msg_id => 15) $$, '0A000', null, 'an old snapshot is no good');
rollback;
select throws_ok($$ select test.run_as('mq_consumer', 'select mq.rewind(''rewind'', to_msg_id => 1)') $$, '42501', null, 'a consumer may not');
select is(test.value_as('mq_admin', 'mq.rewind(''rewind'', to_msg_id => 17)'), '0', 'an administrator may');
select mq.drop_queue('rewind');
select is_empty($$ select from mq.kept $$, 'nothing is left');

select * from finish();
