select plan(55);

select test.forget(q) from unnest(array['depth', 'depth.oldest', 'depth.dead', 'depth.none']) as q;
select mq.create_queue('depth', max_depth => 3, notify => 'never');

create function pg_temp.waits(queue text) returns text language sql as $$ select ready || ' ' || deferred from mq.queue_stats(waits.queue) $$;
create function pg_temp.payloads(queue text) returns jsonb[] language sql as $$ select array_agg(payload order by msg_id) from mq.peek(payloads.queue, 1000) $$;

-- reject
select is(mq.enqueue('depth', '1'), 1::bigint, 'as long as there is room, messages come');
select mq.enqueue('depth', '2', delay => '1 hour');
select mq.enqueue('depth', '3');
select throws_ok($$ select mq.enqueue('depth', '4') $$, 'MQ008', 'queue "depth" is full', 'then they do not');
select throws_ok($$ select mq.enqueue('depth', '4', delay => '1 hour') $$, 'MQ008', null, 'nor do those that are for later');
select throws_ok($$ select mq.enqueue_batch('depth', '{4}') $$, 'MQ008', null, 'nor does a batch');
prepare copied as insert into mq.inbox (queue, payload) values ('depth', '4');
select throws_ok('copied', 'MQ008', null, 'nor what is copied');
select is(pg_temp.waits('depth'), '2 1', 'what is for later is counted');
select is(mq.enqueue_batch('depth', '{}'), null, 'a batch of none needs no room');
select throws_ok($$ select mq.enqueue('depth', null) $$, '22004', null, 'a null payload is told first');
select is((select enqueued_total from mq.queue_stats('depth')), 3::bigint, 'what is refused has no number');

select receipt as r from mq.dequeue('depth') \gset
select is(mq.enqueue('depth', '4'), 4::bigint, 'what is leased does not wait');
select throws_ok($$ select mq.enqueue('depth', '5') $$, 'MQ008', null, 'what came instead does');
select is(mq.nack('depth', :'r', delay => '0'), 1, 'what comes back is never refused');
select is(pg_temp.waits('depth'), '3 1', 'though it is above the limit then');
select throws_ok($$ select mq.enqueue('depth', '5') $$, 'MQ008', null, 'what is new is refused');
select receipt as r from mq.dequeue('depth') \gset
select receipt as r from mq.dequeue('depth') \gset
select throws_ok($$ select mq.enqueue_batch('depth', '{5,6}') $$, 'MQ008', null, 'a batch that is too big for the room is refused as a whole');
prepare copied_two as insert into mq.inbox (queue, payload, deliver_at) values ('depth', '5', null), ('depth', '6', '2100-01-01');
select throws_ok('copied_two', 'MQ008', null, 'and so is what is copied');
select is(pg_temp.waits('depth'), '1 1', 'nothing of them is there');
select lives_ok('copied', 'one has room');
select throws_ok($$ select mq.enqueue_batch('depth', '{1,2,3,4}') $$, 'MQ008', null, 'a batch of more than max_depth never has');

select mq.purge_queue('depth');
select lives_ok($$ select mq.enqueue_batch('depth', '{1,2,3}') $$, 'a queue that was purged is empty');

-- redrive
select distinct receipt as r from mq.dequeue('depth', 3) \gset
select mq.nack('depth', :'r', dead => true);
select mq.enqueue('depth', '4');
select is(mq.redrive('depth'), 3, 'redrive is not refused');
select is(pg_temp.waits('depth'), '4 0', 'though the queue is above the limit then');
select throws_ok($$ select mq.enqueue('depth', '5') $$, 'MQ008', null, 'and what is new must wait for it');

-- settings
select is((select settings - array(select jsonb_object_keys(settings - '{max_depth,overflow}'::text[])) from mq.queues() where name = 'depth'),
    '{"max_depth": 3, "overflow": "reject"}'::jsonb, 'the settings show it');
select lives_ok($$ select mq.alter_queue('depth', max_depth => 5) $$, 'the limit can be raised');
select lives_ok($$ select mq.enqueue('depth', '5') $$, 'and then there is room');
select throws_ok($$ select mq.enqueue('depth', '6') $$, 'MQ008', null, 'just so much');
select lives_ok($$ select mq.alter_queue('depth', max_depth => 2) $$, 'it can be lowered below what waits');
select is(pg_temp.waits('depth'), '5 0', 'which removes nothing');
select lives_ok($$ select mq.alter_queue('depth', max_attempts => 7) $$, 'other settings');
select is((select settings ->> 'max_depth' from mq.queues() where name = 'depth'), '2', 'leave it as it is');
select ok((select prosrc from pg_proc where proname = '_append_0') !~ ('msg_id_' || test.queue_id('depth')), 'the short way of enqueue does not know such a queue');
select lives_ok($$ select mq.alter_queue('depth', overflow => 'drop_oldest'), mq.alter_queue('depth', max_depth => 0) $$, '0 removes it');
select is((select settings ->> 'overflow' from mq.queues() where name = 'depth'), 'reject', 'and what was done about it');
select ok((select prosrc from pg_proc where proname = '_append_0') ~ ('msg_id_' || test.queue_id('depth')), 'then it does');
select lives_ok($$ select mq.enqueue_batch('depth', array_fill('0'::jsonb, array[100])) $$, 'and there is no limit');
select throws_ok(format('select mq.alter_queue(%L, %s)', 'depth', bad), '22023', null, bad || ' is refused')
from unnest(array['max_depth => -1', 'overflow => ''block''', 'overflow => ''dead_letter''']) with ordinality as u (bad, no) order by no;
select throws_ok($$ select mq.create_queue('depth.none', max_depth => 0) $$, '22023', null, 'nothing may wait: is refused');
select throws_ok($$ select mq.create_queue('depth.none', overflow => 'drop_oldest') $$, '22023', null, 'so is a policy without a limit');

-- drop_oldest
select mq.create_queue('depth.oldest', max_depth => 4, overflow => 'drop_oldest');
select mq.enqueue('depth.oldest', '1', delay => '1 hour');
select mq.enqueue('depth.oldest', to_jsonb(i)) from generate_series(2, 4) as i;
select is((select array_agg(mq.enqueue('depth.oldest', to_jsonb(i))) from generate_series(5, 6) as i), '{5,6}', 'the oldest make room');
select is(pg_temp.payloads('depth.oldest'), '{1,4,5,6}'::jsonb[], 'of those that are ready');
select is((select array_agg(i) from mq.enqueue_batch('depth.oldest', '{7,8}') as i), '{7,8}', 'for a batch as many as it is');
select is(pg_temp.payloads('depth.oldest'), '{1,6,7,8}'::jsonb[], 'and no more');
select throws_ok($$ select mq.enqueue_batch('depth.oldest', '{1,2,3,4}') $$, 'MQ008', null, 'what is for later is never dropped: then it is full');
select is(pg_temp.payloads('depth.oldest'), '{1,6,7,8}'::jsonb[], 'and all is as it was');
select is((select delivered_total || ' ' || settled_total || ' ' || leased || ' ' || dead from mq.queue_stats('depth.oldest')), '0 0 0 0', 'what was dropped was neither delivered nor settled');

-- With priorities the lowest goes first.
select mq.purge_queue('depth.oldest');
select mq.enqueue('depth.oldest', to_jsonb(p), priority => p) from unnest(array[2, 9, 2, 5]) as p;
select is(mq.enqueue('depth.oldest', '"new"'), 13::bigint, 'a message of any priority makes room');
select is((select array_agg(msg_id || ':' || priority order by msg_id) from mq.peek('depth.oldest', 10)), '{10:9,11:2,12:5,13:4}', 'the oldest of the lowest first');
select mq.cancel('depth.oldest', 12);
select mq.enqueue('depth.oldest', '"next"');
select is((select array_agg(msg_id order by msg_id) from mq.peek('depth.oldest', 10)), '{10,11,13,14}', 'what is cancelled makes room, too');

-- dead_letter
select mq.create_queue('depth.dead', max_depth => 2, overflow => 'dead_letter');
select mq.enqueue_batch('depth.dead', '{1,2}', array['{"h": 1}', null]::jsonb[]);
insert into mq.inbox (queue, payload) values ('depth.dead', '3');
select results_eq($$ select msg_id, attempts, reason, payload, headers, history -> 0 ->> 'outcome' from mq.dead_letters('depth.dead') $$,
    $$ values (1::bigint, 0, 'overflow', '1'::jsonb, '{"h": 1}'::jsonb, 'overflow') $$, 'dead letters say why, and that nobody had them');
select is((mq.message_status('depth.dead', 1)).reason, 'overflow', 'message_status, too');
select is(mq.redrive('depth.dead'), 1, 'they can be put back');

-- Who empties the queue has no more room for that: it may all come back.
select mq.create_queue('depth.none', max_depth => 2);
select mq.enqueue_batch('depth.none', '{1,2}') \g /dev/null
begin;
select mq.purge_queue('depth.none') \g /dev/null
select throws_ok($$ select mq.enqueue('depth.none', '3') $$, 'MQ008', null, 'in the transaction of a purge there is no new room');
rollback;
select throws_ok($$ select mq.enqueue('depth.none', '3') $$, 'MQ008', null, 'nor after it was rolled back');

select mq.drop_queue(q) from unnest(array['depth', 'depth.oldest', 'depth.dead', 'depth.none']) as q;

select * from finish();
