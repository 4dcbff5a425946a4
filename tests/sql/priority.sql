select plan(37);

-- The highest priority first; within it the oldest.
select test.forget('priority');
select mq.create_queue('priority', max_attempts => 2, retry_backoff => '0');
create function pg_temp.next(n int default 1) returns text language plpgsql as $$
declare
    v_text text;
begin
    select string_agg(d.payload #>> '{}', ' ' order by d.msg_id) into v_text from mq.dequeue('priority', n) as d;
    return v_text;
end $$;

select mq.enqueue('priority', '"plain 1"') as first \gset
select mq.enqueue('priority', '"low"', priority => 0) as low \gset
select mq.enqueue('priority', '"high 1"', priority => 9) \g /dev/null
select mq.enqueue('priority', '"four"', priority => 4) \g /dev/null
select mq.enqueue('priority', '"high 2"', priority => 9) \g /dev/null
select mq.enqueue_batch('priority', array['"six 1"', '"six 2"']::jsonb[], priority => 6) \g /dev/null
copy mq.inbox (queue, payload, priority) from stdin;
priority	"copied"	5
\.

select is((mq.message_status('priority', :low)).priority, 0, 'message_status tells the priority');
select is((mq.message_status('priority', :first)).priority, 4, 'a message without one has 4');
select results_eq($$ select payload #>> '{}', priority from mq.peek('priority', 3) $$,
    $$ values ('plain 1', 4), ('low', 0), ('high 1', 9) $$, 'peek shows it');
select is((select ready from mq.queue_stats('priority')), 8::bigint, 'all of them are ready');

select is(pg_temp.next(), 'high 1', 'the highest priority comes first');
select is(pg_temp.next(10), 'high 2', 'a call gives one priority');
select is(pg_temp.next(), 'six 1', 'then the next one, the oldest first');
select mq.enqueue('priority', '"high 3"', priority => 9) \g /dev/null
select is(pg_temp.next(), 'high 3', 'what is more important overtakes what is in the middle of a block');
select is(pg_temp.next(), 'six 2', 'which goes on then');
select is(pg_temp.next(), 'copied', 'COPY takes a priority, too');
select is(pg_temp.next(5), 'plain 1 four', '4 is that of messages without one');
select is(pg_temp.next(), 'low', '0 is the last');
select is(pg_temp.next(), null, 'nothing is left');
select is((select leased from mq.queue_stats('priority')), 9::bigint, 'all of them are leased');

-- Leases that run out, failures, dead letters keep it.
select test.expire_leases('priority');
select is(pg_temp.next(10), 'high 1 high 2 high 3', 'what ran out comes back by priority');
select is(pg_temp.next(10), 'six 1 six 2', 'and so does what was not delivered at once');
select d.receipt from mq.dequeue('priority', 10) as d limit 1 \gset
select is(mq.nack('priority', :'receipt', reason => 'no'), 1, 'the last attempt of one fails');
select is((mq.message_status('priority', (select d.msg_id from mq.dead_letters('priority') as d))).priority, 5, 'a dead letter keeps its priority');
select is(mq.redrive('priority'), 1, 'it is put back');
select mq.enqueue('priority', '"plain 2"') \g /dev/null
select is(pg_temp.next(10), 'copied', 'with the priority that it had');

-- Delayed ones come by priority once they are due.
select mq.purge_queue('priority') \g /dev/null
select mq.enqueue('priority', '"later"', delay => '1 hour', priority => 1) \g /dev/null
select mq.enqueue('priority', '"later, but high"', delay => '2 hours', priority => 8) \g /dev/null
select mq.enqueue('priority', '"later, and plain"', delay => '3 hours') \g /dev/null
select is(pg_temp.next(), null, 'delayed ones wait');
select ok(mq.next_due('priority') between now() + interval '59 minutes' and now() + interval '61 minutes', 'the first one, whatever its priority, is due next');
select is((select deferred from mq.queue_stats('priority')), 3::bigint, 'they are deferred');
select test.make_due('priority');
select is(pg_temp.next(10), 'later, but high', 'the most important of them comes first');
select is(pg_temp.next(10), 'later, and plain', 'then the plain one');
select is(pg_temp.next(10), 'later', 'then the least');

-- With ageing nothing starves.
select mq.purge_queue('priority') \g /dev/null
select mq.alter_queue('priority', priority_ageing => '1 minute');
create function pg_temp.age(message text, by interval) returns void language plpgsql as $$
begin
    execute format('update mq.log_%s_1 set enqueued_at = clock_timestamp() - $2 where payload = to_jsonb($1)', test.queue_id('priority')) using message, by;
end $$;
select mq.enqueue('priority', '"least"', priority => 0), mq.enqueue('priority', '"less"', priority => 3), mq.enqueue('priority', '"most"', priority => 9) \g /dev/null
select pg_temp.age('least', '8 minutes');
select is(pg_temp.next(), 'most', '8 minutes make 8 of 0, and 9 is more');
select mq.enqueue('priority', '"most again"', priority => 9) \g /dev/null
select pg_temp.age('least', '9 minutes 1 second');
select pg_temp.age('less', '6 minutes');
select is(pg_temp.next(), 'least', 'after nine times the least is before what is new');
select pg_temp.age('most again', '1 second');
select is(pg_temp.next(), 'most again', 'what waited for longer goes first');
select is(pg_temp.next(), 'less', 'each by the age of its own oldest one');
select mq.enqueue('priority', '"rare"', priority => 0, delay => '1 hour') \g /dev/null
select pg_temp.next() \g /dev/null
select test.make_due('priority');
select count(*) from mq.maintain('priority') \g /dev/null
select mq.enqueue('priority', '"new"', priority => 9) \g /dev/null
select is(pg_temp.next(), 'rare', 'what was deferred grows older from when it is due');
select mq.alter_queue('priority', priority_ageing => '0');
select is((select settings ->> 'priority_ageing' from mq.queues() where name = 'priority'), null, '0 ends it');
select mq.enqueue('priority', '"old"', priority => 0) \g /dev/null
select pg_temp.age('old', '1 day');
select is(pg_temp.next(), 'new', 'then the highest priority is always first');
select is(pg_temp.next(), 'old', 'and the least the last');
select throws_ok($$ select mq.alter_queue('priority', priority_ageing => '-1 s') $$, '22023', null, 'ageing takes time');
select throws_ok($$ select mq.enqueue('priority', '1', priority => -1) $$, '22023', null, 'there is no negative priority');
select throws_ok($$ select mq.enqueue('priority', '1', priority => 10) $$, '22023', null, 'there are priorities 0 to 9');

select * from finish();
