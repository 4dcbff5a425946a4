select plan(130);

select test.forget('ordering_key');
select mq.create_queue('ordering_key', max_attempts => 3, retry_backoff => '0');
create temp table held (what text, msg_id bigint, receipt text, attempt int);
-- What a dequeue gives, in its order.
create function pg_temp.take(n int default 10) returns text language plpgsql as $$
declare
    v_text text;
begin
    with d as materialized (select x.*, row_number() over () as no from mq.dequeue('ordering_key', take.n) as x),
    kept as (insert into held select d.payload #>> '{}', d.msg_id, d.receipt, d.attempt from d)
    select string_agg(d.payload #>> '{}', ' ' order by d.no) into v_text from d;
    return v_text;
end $$;
create function pg_temp.receipt(what text) returns text language sql as $$
    select h.receipt from held as h where h.what = receipt.what order by h.ctid desc limit 1
$$;
create function pg_temp.id(what text) returns bigint language sql as $$ select max(h.msg_id) from held as h where h.what = id.what $$;
create function pg_temp.attempt(what text) returns int language sql as $$
    select h.attempt from held as h where h.what = attempt.what order by h.ctid desc limit 1
$$;
create function pg_temp.ack(variadic whats text[]) returns int language sql as $$
    select sum(mq.ack('ordering_key', pg_temp.receipt(w), array[pg_temp.id(w)]))::int from unnest(whats) as w
$$;
create function pg_temp.nack(what text, delay interval default null, dead boolean default false, count boolean default true) returns int language sql as $$
    select mq.nack('ordering_key', pg_temp.receipt(what), array[pg_temp.id(what)], delay => delay, dead => dead, count_attempt => count)
$$;
-- Messages of one key: "a 1 2" are a1 and a2 with the key a.
create function pg_temp.put(messages text, options text default '') returns void language plpgsql as $$
declare
    v_parts text[] := string_to_array(messages, ' ');
begin
    for i in 2 .. cardinality(v_parts) loop
        execute format('select mq.enqueue(%L, to_jsonb(%L::text), ordering_key => %L%s)', 'ordering_key', v_parts[1] || v_parts[i], v_parts[1], options);
    end loop;
end $$;
create function pg_temp.fresh(options text default '') returns void language plpgsql as $$
begin
    perform mq.drop_queue('ordering_key');
    execute format('select mq.create_queue(%L, max_attempts => 3, retry_backoff => %L%s)', 'ordering_key', '0', options);
    truncate held;
end $$;
-- How many rows the queue keeps of its keys, and of what waits for them.
create function pg_temp.rows(which text) returns bigint language plpgsql as $$
declare
    v_count bigint;
begin
    execute format('select count(*) from mq.%s_%s', which, test.queue_id('ordering_key')) into v_count;
    return v_count;
end $$;

-- In order, under one lease at a time; other keys, and messages without one, flow.
select pg_temp.put('a 1 2 3'), pg_temp.put('b 1 2') \g /dev/null
select mq.enqueue('ordering_key', '"plain"') \g /dev/null
select is(pg_temp.take(1), 'a1', 'the oldest key comes first, with its first message');
select is(pg_temp.take(1), 'b1', 'the next of a key waits for the one before, other keys do not');
select is(pg_temp.take(), 'plain', 'nor does what has no key');
select is(pg_temp.take(), null, 'then every key is under lease');
select is(pg_temp.ack('a1'), 1, 'the first is acknowledged');
select is(pg_temp.take(), 'a2 a3', 'and one lease may have several of a key, in order');
select is(pg_temp.take(), null, 'but there is one lease of a key');
select is(pg_temp.ack('a3'), 1, 'the last of a lease may be acknowledged first');
select pg_temp.put('a 4') \g /dev/null
select is(pg_temp.take(), null, 'what comes meanwhile waits for the whole lease');
select is(pg_temp.ack('a2', 'b1'), 2, 'as that ends');
select is(pg_temp.take(), 'b2 a4', 'it is there, and one lease may have several keys');
select is(pg_temp.ack('a4', 'b2', 'plain'), 3, 'all are acknowledged');
select is(pg_temp.take(), null, 'nothing is left');
select is((select array[ready, deferred, leased, dead] from mq.queue_stats('ordering_key')), '{0,0,0,0}', 'as the statistics say');
select is(pg_temp.rows('line'), 0::bigint, 'and no key has anything in its line');

-- A smaller n than the run that was made for another.
select pg_temp.fresh();
select pg_temp.put('b 1 2 3 4'), pg_temp.put('a 1 2 3 4'), pg_temp.put('c 1') \g /dev/null
select is(pg_temp.take(4), 'b1 b2 b3 b4', 'a consumer takes a run of four');
select is(pg_temp.take(2), 'a1 a2', 'there is another such run, of which the next one wants two');
select is(pg_temp.take(10), 'c1', 'the rest of it is not for another lease');
select is(pg_temp.ack('a1', 'a2'), 2, 'they are acknowledged');
select is(pg_temp.take(1), 'a3', 'and the rest comes, in order');
select is((select attempt from held where what = 'a3'), 1, 'no attempt is counted for it');
select is(pg_temp.ack('a3'), 1, 'which goes on');
select is(pg_temp.take(1), 'a4', 'to the end');

-- A smaller n than that for which runs of several keys were put together.
select pg_temp.fresh();
select pg_temp.put('a 1 2 3'), pg_temp.put('b 1'), pg_temp.put('c 1 2 3'), pg_temp.put('d 1'), pg_temp.put('e 1 2 3'), pg_temp.put('f 1') \g /dev/null
select is(pg_temp.take(4), 'a1 a2 a3 b1', 'two keys fill a lease of four');
select is(pg_temp.take(3), 'c1 c2 c3', 'who wants less of another such has the keys that fit');
select is(pg_temp.take(2), 'd1', 'the others are for others');
select is(pg_temp.take(2), 'e1 e2', 'a key that does not fit is cut');
select is(pg_temp.rows('parked'), 2::bigint, 'the rest of it goes back, a message and a word of that, and nothing else');
select is((select array[ready, deferred, leased] from mq.queue_stats('ordering_key')), '{2,0,10}', 'as the statistics say');
select is(pg_temp.take(2), 'f1', 'other keys stay where they are');
select is(pg_temp.take(), null, 'and what went back waits for its key');
select is(pg_temp.ack('e1', 'e2'), 2, 'when that is done');
select is(pg_temp.take(), 'e3', 'it comes');
select pg_temp.put('a 4 5 6'), pg_temp.put('b 2'), pg_temp.put('c 4 5') \g /dev/null
select is(pg_temp.ack('a1', 'a2', 'a3', 'b1', 'c1', 'c2', 'c3'), 7, 'others are done');
select is(pg_temp.take(3), 'a4 a5 a6', 'two keys more are put together for a lease of three');
select is(pg_temp.take(2), 'b2', 'and one of two has only the one that fits');
select is(pg_temp.take(2), 'c4 c5', 'rather than a part of the other');

-- One fails.
select pg_temp.fresh();
select pg_temp.put('a 1 2 3 4'), pg_temp.put('b 1 2') \g /dev/null
select is(pg_temp.take(10), 'a1 a2 a3 a4 b1 b2', 'six messages, two keys');
select is(pg_temp.nack('a2'), 1, 'the second fails: so many were given back as were said');
select is((select array[ready, deferred, leased] from mq.queue_stats('ordering_key')), '{3,0,3}', 'those behind it of its key are, too');
select is(pg_temp.ack('a3'), 0, 'and cannot be acknowledged any more');
select is(pg_temp.take(), null, 'the first of the key is still under lease');
select is(pg_temp.ack('a1', 'b1', 'b2'), 3, 'what stands before it may be acknowledged, and other keys');
select is(pg_temp.take(), 'a2 a3 a4', 'then they come again, in order');
select is(array(select pg_temp.attempt(w) from unnest('{a2,a3,a4}'::text[]) as w), '{2,1,1}', 'an attempt is counted of that which failed');
select is(mq.nack('ordering_key', pg_temp.receipt('a2')), 3, 'the whole lease is given back');
select is(pg_temp.take(), 'a2 a3 a4', 'in order');
select is(array(select pg_temp.attempt(w) from unnest('{a2,a3,a4}'::text[]) as w), '{3,2,2}', 'with an attempt counted of each');
select test.expire_leases('ordering_key');
select pg_temp.put('a 5') \g /dev/null
select pg_temp.take() \g /dev/null
select is(pg_temp.take(), 'a3 a4 a5', 'a lease that ran out unblocks the key; the first had no attempt left, the others come again before new ones');
select is(pg_temp.attempt('a3'), 3, 'their attempts are counted');
select is((select array_agg(d.payload #>> '{}') from mq.dead_letters('ordering_key') as d), '{a2}', 'the first is dead');
select is(pg_temp.nack('a3', dead => true), 1, 'one is rejected');
select is(pg_temp.take(), null, 'which gives back nothing else');
select is(pg_temp.ack('a4', 'a5'), 2, 'the others of its lease go on');
select is(mq.redrive('ordering_key'), 2, 'the dead are redriven');
select pg_temp.put('a 6') \g /dev/null
select is(pg_temp.take(), 'a6', 'they come behind those that are there when they are due');
select is(pg_temp.ack('a6'), 1, 'which are done first');
select is(pg_temp.take(), 'a2 a3', 'in order');
select is(pg_temp.ack('a2', 'a3'), 2, 'and all are done');

-- A delay holds up its own key only, if it is that of a retry.
select pg_temp.fresh();
select pg_temp.put('a 1 2'), pg_temp.put('b 1') \g /dev/null
select pg_temp.put('a 0', ', delay => ''1 hour''') \g /dev/null
select is(pg_temp.take(1), 'a1', 'a delayed message is not in the way of those behind it');
select is(pg_temp.nack('a1', '1 hour'), 1, 'one is to be tried again in an hour');
select is(pg_temp.take(), 'b1', 'that holds up its key, and no other');
select is((select array[ready, deferred, leased] from mq.queue_stats('ordering_key')), '{1,2,1}', 'what it holds up is ready');
select test.make_due('ordering_key');
select pg_temp.take() \g /dev/null
select is(pg_temp.take(), 'a1 a2 a0', 'once it is due it comes before the others, and what was delayed behind them');
select is(pg_temp.nack('a2', '1 hour', count => false), 1, 'the second is put off');
select is(pg_temp.ack('a1'), 1, 'the first is done');
select is(pg_temp.take(), null, 'the third waits for the second');
select test.make_due('ordering_key');
select pg_temp.take() \g /dev/null
select is(pg_temp.take(), 'a2 a0', 'they come in order');
select is(array(select pg_temp.attempt(w) from unnest('{a2,a0}'::text[]) as w), '{1,1}', 'no attempt was counted of either');

-- Cancelled, expired and dropped messages are in nobody's way.
select pg_temp.fresh();
select pg_temp.put('a 1 2 3 4') \g /dev/null
select is(array(select mq.cancel('ordering_key', i) from unnest('{1,3}'::bigint[]) as i), '{t,t}', 'messages are cancelled, one of them in front');
select is((mq.message_status('ordering_key', 1)).state, 'cancelled', 'it is');
select is((select ready from mq.queue_stats('ordering_key')), 2::bigint, 'and does not count');
select is(pg_temp.take(1), 'a2', 'the next one is delivered by the same call');
select is(pg_temp.ack('a2'), 1, 'it is acknowledged');
select is(pg_temp.take(), 'a4', 'and the other is not seen either');
select is(pg_temp.nack('a4', '1 hour'), 1, 'one is to be tried again');
select pg_temp.put('a 5') \g /dev/null
select is(pg_temp.take(), null, 'and holds up the next');
select is(mq.cancel('ordering_key', pg_temp.id('a4')), true, 'until it is cancelled');
select is(pg_temp.take(), 'a5', 'which is delivered then');
select test.make_due('ordering_key');
update mq.cancelled set due_at = clock_timestamp() where queue_id = test.queue_id('ordering_key');
select is(pg_temp.ack('a5'), 1, 'it is done');
select pg_temp.take() \g /dev/null
select pg_temp.put('a 6') \g /dev/null
select is(pg_temp.take(), 'a6', 'when what was cancelled is due, nothing comes of it');
select is((select array[ready, deferred, leased] from mq.queue_stats('ordering_key')), '{0,0,1}', 'and nothing is left');
select pg_temp.put('b 1 2', ', ttl => ''1 microsecond''') \g /dev/null
select pg_temp.put('b 3') \g /dev/null
select is(pg_temp.take(1), 'b3', 'what expired in front is passed over in the same call');
select is((select array_agg(d.reason order by d.msg_id) from mq.dead_letters('ordering_key') as d), '{expired,expired}', 'and dead');

select pg_temp.fresh(', max_depth => 3, overflow => ''drop_oldest''');
select pg_temp.put('a 1 2 3') \g /dev/null
select throws_ok($$ select mq.enqueue_batch('ordering_key', '{1,2,3,4}', ordering_key => 'a') $$, 'MQ008', null, 'max_depth counts what waits for its key');
select is((select ready from mq.queue_stats('ordering_key')), 3::bigint, 'three of them');
select pg_temp.put('a 4') \g /dev/null
select is(pg_temp.take(), 'a2 a3 a4', 'the oldest is dropped, and in nobody''s way');
select is(pg_temp.ack('a2', 'a3', 'a4'), 3, 'the others are done');
select pg_temp.put('a 5 6 7') \g /dev/null
select is(pg_temp.take(1), 'a5', 'where one is under lease');
select pg_temp.put('a 8') \g /dev/null
select throws_ok($$ select mq.enqueue('ordering_key', '"a9"', ordering_key => 'a') $$, 'MQ008', null, 'those that wait for it cannot be dropped');

-- Priorities: a key has that of its first message.
select pg_temp.fresh();
select pg_temp.put('a 1') \g /dev/null
select pg_temp.put('a 2', ', priority => 9') \g /dev/null
select pg_temp.put('b 1', ', priority => 6') \g /dev/null
select is(pg_temp.take(), 'b1', 'a key has the priority of its first message');
select is(pg_temp.take(), 'a1', 'whatever those behind it have');
select pg_temp.put('c 1', ', priority => 8') \g /dev/null
select is(pg_temp.ack('a1'), 1, 'that is done');
select is(pg_temp.take(), 'a2', 'then it has that of the next');

-- At most so many of a key; round robin.
select pg_temp.fresh(', max_in_flight_per_key => 2');
select pg_temp.put('a 1 2 3 4 5'), pg_temp.put('b 1') \g /dev/null
select is(pg_temp.take(10), 'a1 a2 b1', 'of each key there are two under lease at most');
select is(pg_temp.ack('a1'), 1, 'one is done');
select is(pg_temp.take(10), null, 'it is one lease still');
select is(pg_temp.ack('a2'), 1, 'so is the other');
select mq.alter_queue('ordering_key', max_in_flight_per_key => 0) \g /dev/null
select is(pg_temp.take(10), 'a3 a4 a5', 'without a limit it is as many as there are');

select pg_temp.fresh(', fair => true');
select mq.enqueue_batch('ordering_key', (select array_agg(to_jsonb('noisy' || i)) from generate_series(1, 1000) as i), ordering_key => 'noisy') \g /dev/null
select pg_temp.put('quiet' || i || ' 1 2') from generate_series(0, 9) as i \g /dev/null
create temp table served (no serial, what text);
do $$
begin
    for i in 1 .. 40 loop
        insert into served (what) values (pg_temp.take(1));
        perform pg_temp.ack(x.what) from served as x where x.no = i;
    end loop;
end $$;
select is((select max(gap) from (select no - lag(no, 1, 0) over (partition by left(what, 6) order by no) as gap from served where what ~ '^quiet') as x) <= 12, true,
    'with fair each quiet key has its turn within as many deliveries as there are keys');
select is((select count(*) from served where what ~ '^quiet'), 20::bigint, 'so all of them are served');
select is((select array_agg(what order by no) from served where what ~ '^noisy'),
    (select array_agg('noisy' || i order by i) from generate_series(1, 20) as i), 'and the noisy one in order, with what is left');

-- More keys than one call looks at.
select pg_temp.fresh(', fair => true');
select mq.enqueue_batch('ordering_key', '{1,2,3}', ordering_key => 'noisy') \g /dev/null
select mq.enqueue_batch('ordering_key', array_agg(to_jsonb('quiet'::text)), ordering_keys => array_agg('quiet' || i)) from generate_series(1, 70) as i \g /dev/null
select mq.ack('ordering_key', min(d.receipt)) from mq.dequeue('ordering_key', 64) as d \g /dev/null
select is(pg_temp.take(64), 'quiet quiet quiet quiet quiet quiet quiet', 'a lease has as many keys as it has room for, and the next one the others');
select is(pg_temp.take(64), '2 3', 'who had a turn comes behind all that had none');

-- Batches, COPY, and a key of the other kind.
select pg_temp.fresh(', dedup_window => ''1 hour''');
select mq.enqueue_batch('ordering_key', array['"a1"', '"b1"', '"x"', '"a2"']::jsonb[], ordering_keys => '{a,b,null,a}') \g /dev/null
copy mq.inbox (queue, payload, ordering_key) from stdin;
ordering_key	"a3"	a
ordering_key	"y"	\N
ordering_key	"b2"	b
\.
select is((select string_agg(p.payload #>> '{}', ' ' order by p.msg_id) from mq.peek('ordering_key', 10) as p), 'a1 b1 x a2 a3 y b2', 'peek shows them');
select is((select string_agg(w, ' ' order by w) from unnest(string_to_array(concat_ws(' ', pg_temp.take(1), pg_temp.take(1), pg_temp.take(1), pg_temp.take(1)), ' ')) as w),
    'a1 b1 x y', 'each of a batch, and of COPY, has its own key or none');
select is(pg_temp.ack('a1', 'b1'), 2, 'the first ones are done');
select is(pg_temp.take(), 'a2 a3 b2', 'the others follow');
select mq.enqueue('ordering_key', '"c1"', ordering_key => 'c', dedup_key => 'd') as first \gset
select is(mq.enqueue('ordering_key', '"c2"', ordering_key => 'c', dedup_key => 'd'), :first::bigint, 'a dedup_key may keep a message from its key');
select mq.enqueue('ordering_key', '"c3"', ordering_key => 'c', dedup_key => 'd', on_duplicate => 'replace') \g /dev/null
select is(pg_temp.take(), 'c3', 'or put another in its place');

-- Back to an earlier time, and gone.
select pg_temp.fresh(', retention => ''1 hour''');
select pg_temp.put('a 1 2 3') \g /dev/null
select is(pg_temp.take(), 'a1 a2 a3', 'three');
select is(pg_temp.ack('a1', 'a2'), 2, 'two are done');
select pg_temp.put('a 4') \g /dev/null
select is(mq.rewind('ordering_key', to_msg_id => 1), 2::bigint, 'they are wanted again');
select is(pg_temp.ack('a3'), 1, 'the third is done');
select is(pg_temp.take(), 'a4', 'what is rewound comes behind');
select is(pg_temp.ack('a4'), 1, 'which is done first');
select is(pg_temp.take(), 'a1 a2', 'in order');
select pg_temp.put('a 5'), pg_temp.put('b 1') \g /dev/null
select is(mq.purge_queue('ordering_key'), 4::bigint, 'a purge removes what waits for its key, too');
select pg_temp.put('a 6') \g /dev/null
select is(pg_temp.take(), 'a6', 'and nothing of it is in the way then');

-- Upkeep forgets keys with which nothing goes on, but not at once: their rows would be in the way of the next look, as long as a snapshot keeps them.
select pg_temp.fresh();
create function pg_temp.grow_old() returns void language plpgsql as $$
begin
    execute format('update mq.key_%s set since = since - interval ''11 minutes''', test.queue_id('ordering_key'));
end $$;
select pg_temp.put('a 1'), pg_temp.put('b 1') \g /dev/null
select is(pg_temp.take(), 'a1 b1', 'two keys');
select is(pg_temp.ack('a1'), 1, 'one of which is done');
select pg_temp.put('c 1') \g /dev/null
select is(pg_temp.take(), 'c1', 'and read');
select mq.maintain('ordering_key') \g /dev/null
select is(pg_temp.rows('key'), 3::bigint, 'all are known');
select pg_temp.grow_old() \g /dev/null
select mq.maintain('ordering_key') \g /dev/null
select is(pg_temp.rows('key'), 2::bigint, 'ten minutes later only those that are under lease');
select pg_temp.put('a 2'), pg_temp.put('b 2') \g /dev/null
select is(pg_temp.take(), 'a2', 'one who is forgotten is like a new one');

-- Bad input.
select throws_ok($$ select mq.enqueue('ordering_key', '1', ordering_key => '') $$, '22023', null, 'a key is not empty');
select throws_like(format('select mq.enqueue(%L, %L, ordering_key => %L)', 'ordering_key', '1', repeat('x', 10000)), '%ordering_key%', 'nor of 10 kB');
select throws_ok($$ select mq.enqueue_batch('ordering_key', '{1,2}', ordering_keys => '{a}') $$, '22023', null, 'a batch has as many keys as messages');
select throws_ok($$ select mq.enqueue_batch('ordering_key', '{1,2}', ordering_keys => '{a,b}', ordering_key => 'a') $$, '22023', null, 'or one for all');
select throws_ok($$ select mq.enqueue_batch('ordering_key', '{1,2}', ordering_keys => array['a', repeat('x', 513)]) $$, '22023', null, 'each of at most 512 bytes');
select mq.drop_queue('ordering_key');

select * from finish();
