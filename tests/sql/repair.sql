select plan(19);

-- A copy of the database elsewhere: its transaction ids mean nothing. What mq compares is changed here by hand.
select test.forget('repair');
select mq.create_queue('repair', max_attempts => 3);
select 1 from mq.enqueue_batch('repair', array(select to_jsonb(i) from generate_series(1, 10) as i), array_fill('{"h": 1}'::jsonb, array[10]));
select mq.enqueue('repair', '11', deliver_at => '2100-01-01');
select distinct receipt as r from mq.dequeue('repair', 4) \gset
select mq.ack('repair', :'r', array[1]);
select mq.nack('repair', :'r', array[2], dead => true);
select mq.nack('repair', :'r', array[3], delay => '1 hour', reason => 'later');
select mq.rotate_segment('repair');
select mq.enqueue('repair', '12');
select test.become_copy('repair', '1.1');

select is_empty($$ select * from mq.dequeue('repair', 100) $$, 'the next call repairs; a transaction does not receive what it appended');
select is((select array_agg(msg_id order by msg_id) from mq.dequeue('repair', 100)), array[4, 5, 6, 7, 8, 9, 10, 12]::bigint[],
    'then what was ready or leased is delivered, without what was settled');
select is((select delivered_total || ' ' || settled_total from mq.queue_stats('repair')), '12 1', 'the totals go on');
select is((select home from mq.queue where name = 'repair'), mq._home(), 'once and for all');
select is(mq.ack('repair', :'r'), 0, 'receipts of the original are void');
select is((select payload || headers from mq.peek('repair', 100) where msg_id = 5), '5'::jsonb || '{"h": 1}'::jsonb, 'messages are what they were');
select is((mq.message_status('repair', 2)).state, 'dead', 'a dead letter is one still');
select is((mq.message_status('repair', 3)).state, 'deferred', 'a retry waits still');
select ok(mq.next_due('repair') between clock_timestamp() + interval '59 minutes' and clock_timestamp() + interval '1 hour', 'for as long as it had to');
select is((mq.message_status('repair', 11)).due_at, '2100-01-01'::timestamptz, 'and so does what was delayed');
select is((select count(*) from mq.segment where queue_id = test.queue_id('repair')), 1::bigint, 'all is in one segment');
select is(mq.enqueue('repair', '13'), 13::bigint, 'numbers go on');
select is((select payload from mq.dequeue('repair', 100)), '13'::jsonb, 'and so does delivery');

-- Other functions notice too, and numbers are mended where sequences were not copied.
select test.become_copy('repair', '1.1');
do $$ begin perform setval((select msg_ids from mq.queue where name = 'repair'), 1); end $$;
select is(mq.enqueue('repair', '14'), 14::bigint, 'an enqueue repairs as well');
select test.become_copy('repair', 'mq.queue'::regclass::oid || '.1');
select is((select array_agg(action) @> '{repaired}' from mq.maintain('repair')), true, 'maintain notices another cluster');
select is_empty($$ select * from mq.maintain('repair') where action = 'repaired' $$, 'once');
select test.make_due('repair');
create temp table seen as select msg_id, attempt, receipt from mq.dequeue('repair', 100);
insert into seen select msg_id, attempt, receipt from mq.dequeue('repair', 100);
select set_eq('select msg_id from seen', array[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]::bigint[], 'after all that every message comes, once');
select is((select attempt from seen where msg_id = 3), 2, 'the attempts of a retry count');
select is((select sum(mq.ack('repair', receipt)) from (select distinct receipt from seen) as s), 12::bigint, 'and all can be settled');
select mq.drop_queue('repair');

select * from finish();
