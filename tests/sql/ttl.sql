select plan(37);

-- What was not delivered in time is a dead letter, and is never delivered.
select test.forget('ttl');
select mq.create_queue('ttl', max_attempts => 3, retry_backoff => '0');
create function pg_temp.next(n int default 1) returns text language plpgsql as $$
declare
    v_text text;
begin
    select string_agg(d.payload #>> '{}', ' ' order by d.msg_id) into v_text from mq.dequeue('ttl', n) as d;
    return v_text;
end $$;
-- As if it had been enqueued so much earlier.
create function pg_temp.pass(message text, by interval) returns void language plpgsql as $$
declare
    v_table text;
begin
    foreach v_table in array array['log_%s_1', 'deferred_%s_0', 'deferred_%s_1'] loop
        execute format('update mq.' || v_table || ' set extra = extra || jsonb_build_object(''e'', (extra ->> ''e'')::bigint - $2)'
                       ' where payload = to_jsonb($1)', test.queue_id('ttl')) using message, (extract(epoch from by) * 1000000)::bigint;
    end loop;
end $$;

select mq.enqueue('ttl', '"plain"') \g /dev/null
select mq.enqueue('ttl', '"short"', ttl => '1 minute') as short \gset
select mq.enqueue('ttl', '"long"', ttl => '1 hour') \g /dev/null
select is((select ready from mq.queue_stats('ttl')), 3::bigint, 'all are ready');
select pg_temp.pass('short', '1 minute 1 second');
select is((mq.message_status('ttl', :short)).state, 'dead', 'once its time is over it counts as dead, though nobody came by');
select is((mq.message_status('ttl', :short)).reason, 'expired', 'for that reason');
select is((mq.message_status('ttl', :short)).attempt, 0, 'without an attempt');
select is((select array[ready, dead] from mq.queue_stats('ttl')), array[2, 1]::bigint[], 'and so it is counted');
select is((select string_agg(payload #>> '{}', ' ' order by msg_id) from mq.peek('ttl')), 'plain long', 'peek does not show it');
select is(pg_temp.next(), 'plain', 'others are delivered, the oldest first');
select is(pg_temp.next(), 'long', 'also what has time left');
select is(pg_temp.next(), null, 'but never what has none');
select results_eq($$ select reason, attempts, history, payload #>> '{}' from mq.dead_letters('ttl') $$, $$ values ('expired', 0, '[]'::jsonb, 'short') $$,
    'it is in the dead letters');
select is((mq.message_status('ttl', :short)).reason, 'expired', 'its state is what it was');
select is((select array[ready, leased, dead, delivered_total] from mq.queue_stats('ttl')), array[0, 2, 1, 2]::bigint[], 'so are the figures');
select is(mq.redrive('ttl'), 1, 'it may be put back');
select is(pg_temp.next(), 'short', 'and has all the time then');

-- In blocks that are open already, big and small slices.
select mq.purge_queue('ttl') \g /dev/null
select mq.enqueue('ttl', to_jsonb('a ' || i), ttl => '1 minute') from generate_series(1, 6) as i \g /dev/null
select is(pg_temp.next(), 'a 1', 'a block of single messages is open');
select pg_temp.pass('a ' || i, '1 hour') from unnest(array[2, 3, 5]) as i \g /dev/null
select is(pg_temp.next(), 'a 4', 'expired ones in it are passed over');
select is(pg_temp.next(), 'a 6', 'and others are not');
select is(pg_temp.next(), null, 'that is all');
select is((select count(*) from mq.dead_letters('ttl') where reason = 'expired'), 3::bigint, 'three are dead');
select mq.enqueue('ttl', to_jsonb('b ' || i), ttl => '1 minute') from generate_series(1, 9) as i \g /dev/null
select is(pg_temp.next(3), 'b 1 b 2 b 3', 'a block of three each is open');
select pg_temp.pass('b ' || i, '1 hour') from unnest(array[4, 6]) as i \g /dev/null
select is(pg_temp.next(3), 'b 5', 'of a slice what has time left is delivered');
select pg_temp.pass('b ' || i, '1 hour') from generate_series(7, 9) as i \g /dev/null
select is(pg_temp.next(3), null, 'of another nothing');
select is((select array[ready, leased, dead, delivered_total] from mq.queue_stats('ttl')), array[0, 7, 8, 10]::bigint[], 'nothing is lost');

-- A backlog of expired messages does not hide what is behind it.
select mq.enqueue_batch('ttl', array(select to_jsonb('c'::text) from generate_series(1, 2000)), ttl => '1 minute') \g /dev/null
select pg_temp.pass('c', '1 hour');
select mq.enqueue('ttl', '"behind"', ttl => '1 minute') \g /dev/null
create function pg_temp.next_soon() returns text language plpgsql as $$
declare
    v_text text;
begin
    for i in 1 .. 20 loop       -- each call goes on for a second
        v_text := pg_temp.next();
        exit when v_text is not null;
    end loop;
    return v_text;
end $$;
select is(pg_temp.next_soon(), 'behind', 'a call passes over many');
select is((select dead from mq.queue_stats('ttl')), 2008::bigint, 'which are dead');

-- Attempts: what was delivered once is tried again, whatever time it is.
select mq.purge_queue('ttl') \g /dev/null
select mq.enqueue('ttl', to_jsonb(x), ttl => '1 minute') from unnest(array['fails', 'is lost', 'is put off']) as x \g /dev/null
select d.receipt as fails from mq.dequeue('ttl') as d \gset
select d.receipt as lost from mq.dequeue('ttl') as d \gset
select d.receipt as put_off from mq.dequeue('ttl') as d \gset
select pg_temp.pass(x, '1 hour') from unnest(array['fails', 'is lost', 'is put off']) as x \g /dev/null
select is(mq.nack('ttl', :'fails'), 1, 'one fails');
select is(mq.nack('ttl', :'put_off', delay => '0', count_attempt => false), 1, 'one is put off');
select is(pg_temp.next(10), 'fails is put off', 'and comes again');
select test.expire_leases('ttl');
select is(pg_temp.next(10), 'fails is lost is put off', 'as does what was lost');

-- Delays.
select mq.purge_queue('ttl') \g /dev/null
select mq.enqueue('ttl', '"later"', delay => '1 hour', ttl => '2 hours') as later \gset
select mq.enqueue('ttl', '"in time"', delay => '1 hour', ttl => '2 hours') \g /dev/null
select test.make_due('ttl');
select pg_temp.pass('later', '3 hours');
select is((mq.message_status('ttl', :later)).reason, 'expired', 'what is deferred expires, too');
select is(pg_temp.next(10), 'in time', 'and is not delivered');
select is((select array[ready, leased, dead] from mq.queue_stats('ttl')), array[0, 1, 2009]::bigint[], 'but buried');

select throws_ok($$ select mq.enqueue('ttl', '1', ttl => '0') $$, '22023', null, 'a ttl is above 0');
select throws_ok($$ select mq.enqueue('ttl', '1', ttl => '-1 s') $$, '22023', null, 'not below it');
select throws_ok($$ select mq.enqueue('ttl', '1', ttl => '101 years') $$, '22023', null, 'nor too long');
select throws_ok($$ select mq.enqueue('ttl', '1', ttl => '1 minute', delay => '2 minutes') $$, '22023', null, 'it ends after the delay');
select throws_ok($$ select mq.enqueue_batch('ttl', array['1', '2']::jsonb[], ttl => '1 minute', delay => '2 minutes') $$, '22023', null, 'that of a batch, too');

select * from finish();
