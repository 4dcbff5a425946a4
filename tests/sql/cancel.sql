select plan(36);

-- A message that waits is taken out, wherever it waits.
select test.forget('cancel');
select mq.create_queue('cancel', max_attempts => 3, retry_backoff => '1 hour');
create function pg_temp.next(n int default 1) returns text language plpgsql as $$
declare
    v_text text;
begin
    select string_agg(d.payload #>> '{}', ' ' order by d.msg_id) into v_text from mq.dequeue('cancel', n) as d;
    return v_text;
end $$;
create function pg_temp.figures() returns bigint[] language sql as $$
    select array[ready, deferred, leased, dead, delivered_total, settled_total] from mq.queue_stats('cancel')
$$;

-- Behind the cursor.
select mq.enqueue('cancel', '"a"') as a \gset
select mq.enqueue('cancel', '"b"') as b \gset
select mq.enqueue('cancel', '"c"') as c \gset
select mq.enqueue('cancel', '"d"') as d \gset
select is(mq.cancel('cancel', :b), true, 'a message that waits is cancelled');
select is(mq.cancel('cancel', :b), false, 'once');
select is((mq.message_status('cancel', :b)).state, 'cancelled', 'its state says so');
select is((select string_agg(payload #>> '{}', ' ' order by msg_id) from mq.peek('cancel')), 'a c d', 'peek does not show it');
select is(pg_temp.figures(), array[3, 0, 0, 0, 0, 0]::bigint[], 'it is not counted');
select is(pg_temp.next(), 'a', 'what is before it is delivered');

-- In an open block.
select is(mq.cancel('cancel', :a), false, 'what is leased is not cancelled');
select is(mq.cancel('cancel', :c), true, 'what waits in an open block is');
select is(pg_temp.figures(), array[1, 0, 1, 0, 1, 0]::bigint[], 'and counts no more');
select is(pg_temp.next(), 'd', 'the next one is delivered');
select is(pg_temp.next(), null, 'and nothing else');
select is((mq.message_status('cancel', :b)).state, 'cancelled', 'what was passed over is still known as cancelled');
select is((select count(*) from mq.cancelled), 0::bigint, 'though nobody needs to look for it any more');
select is((mq.message_status('cancel', :c)).state, 'cancelled', 'as is the other');

-- In a slice of several, which is free, or begun.
select mq.enqueue('cancel', to_jsonb('e ' || i)) as e from generate_series(1, 9) as i \g /dev/null
select is(pg_temp.next(3), 'e 1 e 2 e 3', 'a block of three each is open');
select is(mq.cancel('cancel', :d + 5), true, 'one of three that are free');
select is(pg_temp.next(2), 'e 7 e 8', 'the others of its slice are due again');
select is(mq.cancel('cancel', :d + 9), true, 'the rest of one that was begun');
select is(mq.cancel('cancel', :d + 8), false, 'but not what is leased of it');
select is(pg_temp.next(10), 'e 4 e 6', 'the others are delivered');
select is(pg_temp.figures(), array[0, 0, 9, 0, 9, 0]::bigint[], 'nothing else waits');

-- Deferred, before and after it has a timer; a retry.
select mq.enqueue('cancel', '"f"', delay => '1 hour') as f \gset
select mq.enqueue('cancel', '"g"', delay => '2 hours') as g \gset
select is(mq.cancel('cancel', :f), true, 'a delayed message');
select is(pg_temp.figures(), array[0, 1, 9, 0, 9, 0]::bigint[], 'is not deferred any more');
select count(*) from mq.maintain('cancel') \g /dev/null
select is(mq.cancel('cancel', :g), true, 'also one that has its timer');
select mq.enqueue('cancel', '"h"', delay => '3 hours') \g /dev/null
select test.make_due('cancel');
select is(pg_temp.next(10), 'h', 'only what was not cancelled comes');
select is(pg_temp.next(), null, 'there is no more');
select mq.purge_queue('cancel') \g /dev/null
select mq.enqueue('cancel', '"retry"') as retry \gset
select d.receipt from mq.dequeue('cancel') as d \gset
select is(mq.nack('cancel', :'receipt'), 1, 'what failed waits for its next attempt');
select is(mq.cancel('cancel', :retry), true, 'which it will not have');
select test.make_due('cancel');
select is(pg_temp.next(), null, 'indeed');

-- Nothing else.
select mq.enqueue('cancel', '"done"') as done \gset
select d.receipt from mq.dequeue('cancel') as d \gset
select mq.ack('cancel', :'receipt') \g /dev/null
select is(mq.cancel('cancel', :done), false, 'what is done stays done');
select is(mq.cancel('cancel', 100000), false, 'what was never there is not cancelled');
select mq.enqueue('cancel', '"late"', ttl => '1 microsecond') as late \gset
select is(mq.cancel('cancel', :late), false, 'what expired is dead');
select throws_ok($$ select mq.cancel('cancel.none', 1) $$, 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select mq.cancel('cancel', null) $$, '22004', null, 'so is no msg_id');
select is(test.value_as('mq_producer', 'mq.cancel(''cancel'', 100000)'), 'false', 'a producer may call it');
select throws_ok($$ select test.run_as('mq_consumer', 'select mq.cancel(''cancel'', 1)') $$, '42501', null, 'a consumer may not');

select * from finish();
