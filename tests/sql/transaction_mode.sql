select plan(114);

-- Begin, dequeue, work, commit.
select test.forget('tx');
select test.forget('tx.lease');
select mq.create_queue('tx', mode => 'transaction', max_attempts => 3, retry_backoff => '0');
create function pg_temp.next(n int default 1) returns text language plpgsql as $$
declare
    v_text text;
begin
    select string_agg(concat(d.payload #>> '{}', case when d.attempt > 1 then '*' || d.attempt end), ' ') into v_text from mq.dequeue('tx', n) as d;
    return v_text;
end $$;
create function pg_temp.put(variadic messages text[]) returns void language plpgsql as $$
begin
    perform mq.enqueue_batch('tx', (select array_agg(to_jsonb(x) order by o) from unnest(messages) with ordinality as u (x, o)));
end $$;
create function pg_temp.stats(out ready bigint, out deferred bigint, out leased bigint, out dead bigint, out delivered bigint, out settled bigint) language sql as $$
    select s.ready, s.deferred, s.leased, s.dead, s.delivered_total, s.settled_total from mq.queue_stats('tx') as s
$$;

select is((select settings ->> 'mode' from mq.queues() where name = 'tx'), 'transaction', 'a queue has a mode');
select is(pg_temp.next(), null, 'it is empty at first');
select pg_temp.put('a', 'b', 'c');
select is(pg_temp.next(), 'a', 'a message is delivered');
select is(pg_temp.next(10), 'b c', 'others in their order');
select is(pg_temp.next(), null, 'and each once');
select is((mq.message_status('tx', 1)).state, 'completed', 'commit settles them');
select ok((mq.message_status('tx', 1)).settled_at is not null, 'at a time');
select is((select concat_ws(' ', ready, deferred, leased, dead, delivered, settled) from pg_temp.stats()), '0 0 0 0 3 3', 'they are counted');

-- Rollback.
select pg_temp.put('d', 'e');
begin;
select is(pg_temp.next(10), 'd e', 'what is dequeued');
select is((mq.message_status('tx', 4)).state, 'completed', 'is done for its own transaction');
rollback;
select is((mq.message_status('tx', 4)).state, 'ready', 'but is there again after a rollback');
select is((select string_agg(payload #>> '{}', ' ') from mq.peek('tx')), 'd e', 'peek shows it');
select is(pg_temp.next(10), 'd*2', 'those come one by one, with the attempt counted');
select is(pg_temp.next(10), 'e*2', 'so that a poison is found out');

-- A poison.
select pg_temp.put('poison');
begin;
select is(pg_temp.next(), 'poison', 'the first attempt');
rollback;
begin;
select is(pg_temp.next(), 'poison*2', 'the second');
rollback;
begin;
select is(pg_temp.next(), 'poison*3', 'the last');
rollback;
begin;
select is(pg_temp.next(), null, 'it is not tried any more');
rollback;
select is((select count(*) from mq.dead_letters('tx')), 0::bigint, 'nobody has committed that yet');
select is(mq.sweep_stale('tx'), 1, 'upkeep does');
select results_eq($$ select payload #>> '{}', attempts, reason, history -> 0 ->> 'outcome' from mq.dead_letters('tx') $$,
    $$ values ('poison', 3, 'rolled back', 'rolled back') $$, 'it is a dead letter');
select is(mq.redrive('tx'), 1, 'it may be put back');
select is(mq.sweep_stale('tx'), 1, 'it joins the others');
begin;
select is(pg_temp.next(), 'poison', 'and begins anew');
rollback;
begin;
select is(pg_temp.next(), 'poison*2', 'whatever was counted before');
rollback;
select is(pg_temp.next(), 'poison*3', 'as often as any other');

-- Settling.
select pg_temp.put('f', 'g', 'h');
begin;
create temporary table took on commit drop as select * from mq.dequeue('tx', 3);
select is(count(distinct receipt), 1::bigint, 'one call has one receipt') from took;
select is(min(leased_until), '9999-12-31 00:00+00'::timestamptz, 'it has no deadline') from took;
select is(mq.extend('tx', min(receipt)), '9999-12-31 00:00+00'::timestamptz, 'extend changes nothing') from took;
select is(mq.ack('tx', min(receipt)), 3, 'nor does ack, which says how many there are') from took;
select is(mq.nack('tx', (select min(receipt) from took), array[msg_id], delay => '0', reason => 'no'), 1, 'nack gives one back') from took where payload = '"g"';
select is(mq.nack('tx', (select min(receipt) from took), array[msg_id]), 0, 'once') from took where payload = '"g"';
select is(mq.nack('tx', (select min(receipt) from took), array[msg_id], dead => true, reason => 'bad'), 1, 'or gives one up') from took where payload = '"h"';
select is(mq.ack('tx', min(receipt)), 1, 'then one is left') from took;
select throws_ok(format('select mq.ack(''tx'', %L, array[%s], strict => true)', receipt, msg_id), 'MQ003', null, 'strict says that the others are not') from took where payload = '"g"';
select min(receipt) as receipt from took \gset
commit;
select is(mq.ack('tx', :'receipt'), 1, 'a receipt is good after the commit');
select is(mq.nack('tx', :'receipt'), 0, 'but nothing can be given back');
select lives_ok(format('select * from mq.dequeue(''tx'', ack => %L)', :'receipt'), 'dequeue takes it, too');
select throws_ok($$ select * from mq.dequeue('tx', ack => 'no') $$, 'MQ004', null, 'if it is one');
select is((select reason from mq.dead_letters('tx')), 'bad', 'what was given up is dead');
select is((select history -> 0 ->> 'reason' from mq.dead_letters('tx')), 'bad', 'with its history');
select is(pg_temp.next(), null, 'what is due waits for upkeep');
select is(mq.sweep_stale('tx'), 1, 'which lets it join');
select is(pg_temp.next(), 'g*2', 'with the attempt counted');
select pg_temp.put('snooze');
begin;
select mq.nack('tx', d.receipt, delay => '0', count_attempt => false) from mq.dequeue('tx') as d \g /dev/null
commit;
select mq.sweep_stale('tx') \g /dev/null
select is(pg_temp.next(), 'snooze', 'or not, where it is only put off');

-- Priorities, ttl, delays, cancel.
select mq.enqueue('tx', to_jsonb(p), priority => p) from generate_series(0, 9) as p \g /dev/null
select pg_temp.put('plain');
select is(string_agg(pg_temp.next(), ' '), '9 8 7 6 5 4 plain 3 2 1 0', 'priorities are strict') from generate_series(1, 11);
select mq.enqueue('tx', '"late"', ttl => '1 minute') as late \gset
select mq.enqueue('tx', '"in time"', ttl => '1 hour') \g /dev/null
do $$ begin execute format('update mq.log_%s_1 set extra = ''{"e": 1}'' where payload = ''"late"''', test.queue_id('tx')); end $$;
select is((mq.message_status('tx', :late)).reason, 'expired', 'what was not delivered in time counts as dead');
select is(pg_temp.next(), 'in time', 'and is not delivered');
select is(pg_temp.next(), null, 'never');
select is((select reason from mq.dead_letters('tx') where msg_id = :late), 'expired', 'but buried');
select mq.enqueue('tx', '"later"', delay => '1 hour', priority => 7) as later \gset
select mq.sweep_stale('tx') \g /dev/null
select is((mq.message_status('tx', :later)).state, 'deferred', 'a delayed message waits');
select test.make_due('tx');
select is((mq.message_status('tx', :later)).state, 'ready', 'until it is due');
select is(mq.sweep_stale('tx'), 1, 'then it joins');
select is(pg_temp.next(), 'later', 'and is delivered');
select mq.enqueue('tx', '"cancelled"') as cancelled \gset
select is(mq.cancel('tx', :cancelled), true, 'what waits can be cancelled');
select is(pg_temp.next(), null, 'then it is not delivered');
select is((mq.message_status('tx', :cancelled)).state, 'cancelled', 'its state says so');
select is(mq.cancel('tx', :cancelled), false, 'once');
select mq.enqueue('tx', '"cancelled"', delay => '1 hour') as cancelled \gset
select is(mq.cancel('tx', :cancelled), true, 'also what is deferred');
select test.make_due('tx');
select is(mq.sweep_stale('tx'), 0, 'then it never joins');

-- Options of other kinds.
select mq.enqueue('tx', '"first"', dedup_key => 'k') as first \gset
select is(mq.enqueue('tx', '"second"', dedup_key => 'k'), :first::bigint, 'a dedup key is kept');
select isnt(mq.enqueue('tx', '"third"', dedup_key => 'k', on_duplicate => 'replace'), :first::bigint, 'or its message is replaced');
select is(pg_temp.next(10), 'third', 'and only the new one delivered');
select mq.enqueue('tx', '"request"') as request \gset
begin;
select mq.ack('tx', d.receipt, result => '42') from mq.dequeue('tx') as d \g /dev/null
commit;
select is(mq.wait_for('tx', :request), '42', 'a result is kept');
select throws_ok($$ select mq.create_queue('tx.bad', mode => 'transaction', max_depth => 1) $$, '0A000', null, 'there is no max_depth');
select throws_ok($$ select mq.create_queue('tx.bad', mode => 'transaction', dedup_window => '0') $$, '0A000', null, 'and no dedup_window of 0');
select throws_ok($$ select mq.alter_queue('tx', max_depth => 1) $$, '0A000', null, 'nor can they be set');
select throws_ok($$ select mq.alter_queue('tx', dedup_window => '0') $$, '0A000', null, 'neither');

-- Progress.
select pg_temp.put('one', 'two');
begin;
select receipt as r, msg_id as id from mq.dequeue('tx') \gset
select is(mq.report('tx', :'r', :id, '50'), true, 'who has a message can say how far it is');
select is((mq.message_status('tx', :id)).progress, '50', 'and sees it');
select is(mq.report('tx', :'r', :id + 1, '50'), false, 'of no other message');
savepoint s;
select mq.nack('tx', :'r') \g /dev/null
select is(mq.report('tx', :'r', :id, '60'), false, 'not once it gave it back');
rollback to s;
select is(mq.report('tx', :'r', :id, '70'), true, 'but if it kept it after all');
commit;
select is((mq.message_status('tx', :id)).progress, '70', 'others see the last that was said');
select is(mq.report('tx', :'r', :id, '80'), false, 'and nothing more is said of what is done');
select is(pg_temp.next(), 'two', 'the other one is there');

-- Retention.
select mq.create_queue('tx.kept', mode => 'transaction', max_attempts => 2, retention => '7 days', retry_backoff => '0');
select mq.enqueue_batch('tx.kept', array['1', '2', '3', '4', '5']::jsonb[]) \g /dev/null
select mq.ack('tx.kept', d.receipt) from mq.dequeue('tx.kept') as d \g /dev/null
select mq.nack('tx.kept', d.receipt, dead => true) from mq.dequeue('tx.kept') as d \g /dev/null
begin;
select mq.nack('tx.kept', d.receipt) from mq.dequeue('tx.kept') as d \g /dev/null
commit;
select mq.cancel('tx.kept', 4) \g /dev/null
select is(mq.rewind('tx.kept', to_msg_id => 1), 1::bigint, 'what was consumed can be rewound, and nothing else');
select mq.sweep_stale('tx.kept') \g /dev/null
select is((select string_agg(concat_ws(' ', d.msg_id, d.attempt), ', ') from mq.dequeue('tx.kept', 10) as d), '5 1, 1 1, 3 2', 'it comes again');
select mq.rotate_segment('tx.kept');
do $$ begin for i in 1 .. 5 loop perform mq.maintain('tx.kept'); commit; end loop; end $$;
select is((select string_agg(concat_ws(' ', h.msg_id, h.outcome, h.attempts), ', ' order by h.msg_id, h.settled_at) from mq.history('tx.kept') as h),
    '1 acked 1, 1 acked 1, 2 dead 1, 3 acked 2, 5 acked 1', 'and what was kept can be read, after a rotation, too');
select is(mq.rewind('tx.kept', to_msg_id => 1), 3::bigint, 'and be rewound, each message once');
select is((select string_agg(d.payload::text, ' ') from mq.dequeue('tx.kept', 10) as d), '1 3 5', 'in order');
select mq.rotate_segment('tx.kept');
do $$ begin for i in 1 .. 5 loop perform mq.maintain('tx.kept'); commit; end loop; end $$;
update mq.segment as s set drained_at = s.drained_at - interval '8 days' where s.queue_id = test.queue_id('tx.kept');
do $$ begin for i in 1 .. 5 loop perform mq.maintain('tx.kept'); commit; end loop; end $$;
select is((select string_agg(concat_ws(' ', h.msg_id, h.outcome), ', ') from mq.history('tx.kept') as h), '2 dead', 'until the time is over');
select throws_ok($$ select mq.rewind('tx.kept', to_msg_id => 1) $$, '22023', null, 'then it is forgotten');
select mq.drop_queue('tx.kept');

-- Bounds.
select throws_ok($$ select mq.alter_queue('tx', mode => 'lease') $$, '22023', null, 'the mode stays what it is');
select lives_ok($$ select mq.alter_queue('tx', mode => 'transaction', max_attempts => 5) $$, 'other settings do not');
select mq.enqueue_batch('tx', (select array_agg(to_jsonb(i)) from generate_series(1, 1200) as i)) \g /dev/null
begin;
select is((select count(*) from mq.dequeue('tx', 5000)), 1000::bigint, 'a transaction takes at most 1000');
select throws_ok($$ select * from mq.dequeue('tx') $$, 'MQ007', null, 'and is told so');
commit;
begin isolation level repeatable read;
select throws_ok($$ select * from mq.dequeue('tx') $$, '0A000', null, 'its snapshot must be new');
rollback;
select is(mq.purge_queue('tx'), 200::bigint, 'what was not consumed can be purged');
select is(pg_temp.next(), null, 'then nothing is left');
select lives_ok($$ select mq.drop_queue('tx') $$, 'the queue can be dropped');
select is((select count(*) from pg_class as c where c.relnamespace = 'mq'::regnamespace and c.relname ~ '^(taken|mark|strike|mark_no)_'), 0::bigint, 'with all that it had');

-- Ordering keys: upkeep lets one message of a key join, when the one before it is done.
select test.forget('tx');
select mq.create_queue('tx', mode => 'transaction', max_attempts => 2, retry_backoff => '0');
create function pg_temp.keyed(messages text[], keys text[]) returns void language plpgsql as $$
begin
    perform mq.enqueue_batch('tx', (select array_agg(to_jsonb(x) order by o) from unnest(messages) with ordinality as u (x, o)), ordering_keys => keys);
end $$;
select pg_temp.keyed('{a1,a2,b1}', '{a,a,b}');
select is(mq.sweep_stale('tx'), 2, 'one of each key joins the others');
begin;
select is(pg_temp.next(10), 'a1 b1', 'they are delivered');
select is(mq.sweep_stale('tx'), 0, 'the next ones do not join before they are done');
rollback;
select is(mq.sweep_stale('tx'), 0, 'nor after a rollback');
select is(pg_temp.next(10), 'a1*2', 'which brings the same back');
select is(pg_temp.next(10), 'b1*2', 'of each key');
select is(mq.sweep_stale('tx'), 1, 'the commit lets the next one join');
begin;
select is((select mq.nack('tx', d.receipt, delay => '0') from mq.dequeue('tx') as d), 1, 'one that is given back');
commit;
select pg_temp.keyed('{a3}', '{a}');
select mq.sweep_stale('tx') \g /dev/null
select mq.sweep_stale('tx') \g /dev/null
select is(pg_temp.next(10), 'a2*2', 'goes before those behind it');
select mq.sweep_stale('tx') \g /dev/null
begin;
select is((select mq.nack('tx', d.receipt, dead => true) from mq.dequeue('tx') as d), 1, 'a dead letter');
commit;
select pg_temp.keyed('{a4,a5,a6}', '{a,a,a}');
select is(mq.cancel('tx', 5), true, 'and what is cancelled');
select mq.sweep_stale('tx') \g /dev/null
begin;
select is(pg_temp.next(10), 'a5', 'hold up nobody');
rollback;
begin;
select is(pg_temp.next(10), 'a5*2', 'nor does one that rolls back as often as it may');
rollback;
select mq.sweep_stale('tx') \g /dev/null
select mq.sweep_stale('tx') \g /dev/null
select is((select string_agg(concat(payload #>> '{}', ' ', reason), ', ' order by msg_id) from mq.dead_letters('tx')), 'a3 rejected, a5 rolled back', 'it is buried');
select is(pg_temp.next(10), 'a6', 'and the next one is delivered');
select is(mq.redrive('tx'), 2, 'dead letters are brought back');
select mq.sweep_stale('tx') \g /dev/null
select mq.sweep_stale('tx') \g /dev/null
select is(pg_temp.next(10), 'a3', 'one after the other');
select mq.sweep_stale('tx') \g /dev/null
select is(pg_temp.next(10), 'a5', 'in their order');
select is((select ready + deferred + leased from mq.queue_stats('tx')), 0::bigint, 'nothing is left');

-- Who has taken something may give it back: a sweep in his transaction does not count on that.
select pg_temp.keyed('{d1,d2,d3}', '{d,d,d}');
select mq.sweep_stale('tx') \g /dev/null
begin;
select receipt as taken from mq.dequeue('tx') \gset
select is(mq.sweep_stale('tx'), 0, 'the next one does not join');
select is(mq.nack('tx', :'taken', delay => '0'), 1, 'so that he may still give back what he has');
commit;
select mq.sweep_stale('tx') \g /dev/null
select mq.sweep_stale('tx') \g /dev/null
select is(pg_temp.next(10), 'd1*2', 'and the order is kept');
select mq.drop_queue('tx');

select * from finish();
