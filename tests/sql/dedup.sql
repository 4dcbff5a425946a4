select plan(113);

-- Within the window a key has one message.
select test.forget('dedup');
select mq.create_queue('dedup', max_attempts => 2, retry_backoff => '0');
create function pg_temp.payloads(n int default 10) returns text language plpgsql as $$
declare
    v_text text;
begin
    select string_agg(d.payload #>> '{}', ' ' order by d.msg_id) into v_text from mq.dequeue('dedup', n) as d;
    return v_text;
end $$;
-- Time passes for the entries.
create function pg_temp.pass(by interval) returns void language sql as $$
    update mq.dedup as d set until = d.until - by where d.queue_id = test.queue_id('dedup')
$$;
create function pg_temp.entries() returns bigint language sql as $$
    select count(*) from mq.dedup as d where d.queue_id = test.queue_id('dedup') and d.dedup_key <> ''
$$;

select is(mq.enqueue('dedup', '"a"', dedup_key => 'k'), 1::bigint, 'the first message of a key is enqueued');
select is(mq.enqueue('dedup', '"b"', dedup_key => 'k'), 1::bigint, 'the second call returns its number');
select is(mq.enqueue('dedup', '"b"', dedup_key => 'k', on_duplicate => 'keep', delay => '1 hour', priority => 9), 1::bigint, 'whatever else it says');
select is(mq.enqueue('dedup', '"c"', dedup_key => 'K'), 2::bigint, 'keys are told apart by case, and no number was drawn in vain');
select is(mq.enqueue('dedup', '"d"'), 3::bigint, 'a message without a key has none');
select is(pg_temp.payloads(), 'a c d', 'nothing else was added');
select is(mq.enqueue('dedup', '"e"', dedup_key => 'k'), 1::bigint, 'a message that is leased has its key');
select throws_ok($$ select mq.enqueue('dedup', '"e"', dedup_key => 'k', on_duplicate => 'reject') $$, 'MQ009',
    'a message of queue "dedup" has this dedup_key already', 'who would rather have an error gets one');
select mq.create_queue('dedup.other');
select is(mq.enqueue('dedup.other', '1', dedup_key => 'k'), 1::bigint, 'another queue has keys of its own');
select mq.drop_queue('dedup.other');
select is((select count(*) from mq.dedup as d where d.queue_id <> test.queue_id('dedup')), 0::bigint, 'which go with it');

select pg_temp.pass('4 minutes');
select is(mq.enqueue('dedup', '"f"', dedup_key => 'k'), 1::bigint, 'the window is five minutes from the first one');
select pg_temp.pass('1 minute');
select is(mq.enqueue('dedup', '"g"', dedup_key => 'k', on_duplicate => 'reject'), 4::bigint, 'then the key is free');
select is(mq.enqueue('dedup', '"h"', dedup_key => 'k'), 4::bigint, 'and the next message has it');
select mq.alter_queue('dedup', dedup_window => '1 day');
select pg_temp.pass('5 minutes');
select is(mq.enqueue('dedup', '"i"', dedup_key => 'k'), 5::bigint, 'who has a key has it for the window of that time');
select pg_temp.pass('23 hours');
select is(mq.enqueue('dedup', '"j"', dedup_key => 'k'), 5::bigint, 'the new one holds for new ones');
select is((select settings ->> 'dedup_window' from mq.queues() where name = 'dedup'), '1 day', 'queues tells it');
select mq.alter_queue('dedup', dedup_window => '5 minutes');

begin;
select mq.enqueue('dedup', '"k"', dedup_key => 'rolled back') \g /dev/null
rollback;
begin;
select is(mq.enqueue('dedup', '"l"', dedup_key => 'rolled back'), 7::bigint, 'a key goes with a rollback');
savepoint s;
select mq.enqueue('dedup', '"m"', dedup_key => 'savepoint') \g /dev/null
rollback to s;
select is(mq.enqueue('dedup', '"n"', dedup_key => 'savepoint'), 9::bigint, 'and to a savepoint');
select is(mq.enqueue('dedup', '"o"', dedup_key => 'savepoint'), 9::bigint, 'a transaction knows its own');
commit;

-- Delayed, and of a priority, and with a ttl.
select is(mq.enqueue('dedup', '"p"', dedup_key => 'later', delay => '1 hour', priority => 3, ttl => '2 hours'), 10::bigint, 'options go with it');
select is(mq.enqueue('dedup', '"q"', dedup_key => 'later'), 10::bigint, 'a delayed message has its key');
select is((mq.message_status('dedup', 10)).state, 'deferred', 'it is the delayed one');
select is((mq.message_status('dedup', 10)).priority, 3, 'of that priority');

-- Isolation.
begin isolation level serializable;
select is(mq.enqueue('dedup', '"r"', dedup_key => 'serializable'), 11::bigint, 'a serializable transaction may have a key');
select is(mq.enqueue('dedup', '"r"', dedup_key => 'serializable'), 11::bigint, 'and knows it');
commit;

-- Batches.
select mq.purge_queue('dedup') \g /dev/null
select is(pg_temp.entries(), 0::bigint, 'a purge frees the keys');
select results_eq($$ select mq.enqueue_batch('dedup', '{1,2,3,4,5}', dedup_keys => '{b,a,null,b,null}') $$,
    array[12, 13, 14, 12, 15]::bigint[], 'of equal keys of a batch the first one counts; numbers are in the order of the payloads');
select is(pg_temp.payloads(), '1 2 3 5', 'which are delivered in their order');
select results_eq($$ select mq.enqueue_batch('dedup', '{6,7}', dedup_keys => '{a,c}') $$, array[13, 16]::bigint[], 'a key that is taken adds nothing');
select results_eq($$ select mq.enqueue_batch('dedup', '{8,9}', array['{"h": 1}', null]::jsonb[], dedup_key => 'one') $$, array[17, 17]::bigint[],
    'one key makes one message of a batch');
select results_eq($$ select payload, headers from mq.peek('dedup') where msg_id > 15 $$, $$ values ('7'::jsonb, null::jsonb), ('8', '{"h": 1}') $$, 'with its own headers');
select is_empty($$ select mq.enqueue_batch('dedup', '{}', dedup_keys => '{}') $$, 'a batch of nothing is nothing');
select results_eq($$ select mq.enqueue_batch('dedup', '{10,11}', dedup_keys => '{d,d}', delay => '1 hour', priority => 9) $$, array[18, 18]::bigint[], 'a batch may be delayed');
select is((mq.message_status('dedup', 18)).state, 'deferred', 'then it is');
select throws_ok($$ select mq.enqueue_batch('dedup', '{12,13}', dedup_keys => '{new,a}', on_duplicate => 'reject') $$, 'MQ009', null, 'a batch is refused for one key');
select is(mq.enqueue('dedup', '"new"', dedup_key => 'new', on_duplicate => 'reject') > 18, true, 'and as a whole');

-- COPY.
copy mq.inbox (queue, payload, dedup_key, deliver_at) from stdin;
dedup	"taken"	a	\N
dedup	"copied"	e	\N
dedup	"copied, too"	e	\N
dedup	"plain"	\N	\N
dedup	"copied for later"	f	2090-01-01
\.
select is(pg_temp.payloads(20), '7 8 new copied plain', 'COPY takes keys, too');
select is((mq.message_status('dedup', mq.enqueue('dedup', '1', dedup_key => 'f'))).state, 'deferred', 'those of delayed messages as well');

-- Until the message is settled.
select mq.purge_queue('dedup') \g /dev/null
select mq.alter_queue('dedup', dedup_window => '0');
create function pg_temp.free(key text) returns boolean language plpgsql as $$
begin
    perform mq.enqueue('dedup', '0', dedup_key => key, on_duplicate => 'reject');
    raise exception using errcode = 'MQ0ZZ';
exception
    when sqlstate 'MQ009' then      -- before its class
        return false;
    when sqlstate 'MQ0ZZ' then
        return true;
end $$;
select mq.enqueue_batch('dedup', '{1,2,3}', dedup_keys => '{x,y,z}'), mq.enqueue('dedup', '4', dedup_key => 'w', priority => 1) \g /dev/null
select pg_temp.pass('10 years');
select is(pg_temp.free('x'), false, 'without a window a key is taken until its message is settled');
select min(msg_id) as x, max(receipt) as receipt from mq.dequeue('dedup', 3) \gset
select is(pg_temp.free('x'), false, 'it is, while that is leased');
select is(mq.ack('dedup', :'receipt', array[:x]), 1, 'one of the lease is acknowledged');
select is(pg_temp.free('x'), true, 'which frees its key');
select is(pg_temp.free('y'), false, 'and none else');
select mq.enqueue('dedup', '"x again"', dedup_key => 'x') as again \gset
select is(mq.ack('dedup', :'receipt'), 2, 'so does an ack of all that is left');
select is((pg_temp.free('y'), pg_temp.free('z'))::text, '(t,t)', 'free their keys');
select is(pg_temp.free('x'), false, 'but not that which another has by now');
begin;
select max(receipt) as receipt from mq.dequeue('dedup') \gset
select mq.ack('dedup', :'receipt') \g /dev/null
rollback;
select is(pg_temp.free('x'), false, 'an ack that is rolled back frees nothing');
select receipt from mq.dequeue('dedup') \gset
select receipt from mq.dequeue('dedup', ack => :'receipt') \gset
select is((pg_temp.free('x'), pg_temp.free('w'))::text, '(t,f)', 'an ack with the next dequeue does');
select is(mq.nack('dedup', :'receipt', reason => 'no'), 1, 'one that failed');
select is(pg_temp.free('w'), false, 'has its key while it waits');
select receipt from mq.dequeue('dedup') \gset
select is(mq.nack('dedup', :'receipt', count_attempt => false, delay => '0'), 1, 'so has one that is put off');
select is(pg_temp.free('w'), false, 'as well');
select receipt from mq.dequeue('dedup') \gset
select is(mq.nack('dedup', :'receipt', reason => 'no'), 1, 'out of attempts');
select is(pg_temp.free('w'), true, 'it has it no longer');
select mq.enqueue('dedup', '"w again"', dedup_key => 'w') as again \gset
select is(mq.redrive('dedup'), 1, 'a dead letter comes back');
select results_eq($$ select payload #>> '{}' from mq.dequeue('dedup', 10) $$, array['w again'], 'beside the message that has its key now');
select test.expire_leases('dedup');
select is(mq.enqueue('dedup', '1', dedup_key => 'w'), :again::bigint, 'a lease that ran out changes nothing');
select is(mq.sweep_stale('dedup') > 0, true, 'nor does taking it back');
select is(pg_temp.free('w'), false, 'its message is to be delivered again');
select count(*) from mq.dequeue('dedup', 10) \g /dev/null
select count(*) from mq.dequeue('dedup', 10) \g /dev/null
select test.expire_leases('dedup');
select mq.sweep_stale('dedup') \g /dev/null
select is(pg_temp.free('w'), true, 'unless it was the last attempt');
select mq.purge_queue('dedup') \g /dev/null
select mq.enqueue('dedup', '1', dedup_key => 'v') \g /dev/null
select receipt from mq.dequeue('dedup') \gset
select is(mq.nack('dedup', :'receipt', dead => true), 1, 'a message is rejected');
select is(pg_temp.free('v'), true, 'and its key is free');
select mq.enqueue('dedup', '1', dedup_key => 'dies') \g /dev/null
select mq.nack('dedup', d.receipt) from mq.dequeue('dedup') as d \g /dev/null
select mq.enqueue('dedup', '2', dedup_key => 'lives') \g /dev/null
select max(receipt) as receipt, count(*) as n from mq.dequeue('dedup', 10) \gset
select is(:n, 2, 'two messages are leased together, one of them for the last time');
select is(mq.nack('dedup', :'receipt'), 2, 'and given back');
select is(array[pg_temp.free('dies'), pg_temp.free('lives')], array[true, false], 'only the key of the one that died is free');
select mq.purge_queue('dedup') \g /dev/null
select mq.enqueue('dedup', '1', dedup_key => 'u', ttl => '1 hour') as msg_id \gset
select format('update mq.log_%s_1 set extra = jsonb_set(extra, ''{e}'', ''1'') where msg_id = %s', test.queue_id('dedup'), :msg_id) \gexec
select is_empty($$ select * from mq.dequeue('dedup') $$, 'a message expired');
select is(pg_temp.free('u'), true, 'and its key is free, too');

-- Replace: the last one counts, as long as the one before waits.
select mq.purge_queue('dedup') \g /dev/null
select mq.alter_queue('dedup', dedup_window => '5 minutes');
select mq.enqueue('dedup', '"first"', dedup_key => 'k', delay => '1 hour') as first \gset
select mq.enqueue('dedup', '"second"', '{"h": 2}', dedup_key => 'k', delay => '2 hours', priority => 7, on_duplicate => 'replace') as second \gset
select isnt(:first, :second, 'what replaces another is a message of its own');
select results_eq($$ select state, payload, headers, priority from mq.peek('dedup') $$, $$ values ('deferred', '"second"'::jsonb, '{"h": 2}'::jsonb, 7) $$,
    'with its own payload, headers and priority');
select ok((mq.message_status('dedup', :second)).due_at > clock_timestamp() + interval '1 hour 50 minutes', 'and delay');
select is((mq.message_status('dedup', :first)).state, 'cancelled', 'the other one is cancelled');
select is(mq.enqueue('dedup', '"third"', dedup_key => 'k'), :second::bigint, 'it has the key');
begin;
select mq.enqueue('dedup', '"third"', dedup_key => 'k', on_duplicate => 'replace') \g /dev/null
rollback;
select results_eq($$ select payload #>> '{}' from mq.peek('dedup') $$, array['second'], 'a rollback leaves the one that was');
begin;
select mq.enqueue('dedup', '"fourth"', dedup_key => 'k', delay => '1 hour', on_duplicate => 'replace') \g /dev/null
select mq.enqueue('dedup', '"fifth"', dedup_key => 'k', delay => '1 hour', on_duplicate => 'replace') \g /dev/null
select mq.enqueue('dedup', '"sixth"', dedup_key => 'k', on_duplicate => 'replace') \g /dev/null
select mq.enqueue('dedup', '"seventh"', dedup_key => 'k', on_duplicate => 'replace') \g /dev/null
commit;
select results_eq($$ select state, payload #>> '{}' from mq.peek('dedup') $$, $$ values ('ready', 'seventh') $$, 'a transaction may replace its own');
select test.make_due('dedup');
-- A call that comes by what was cancelled may give nothing else.
select coalesce(pg_temp.payloads(), '') as got \gset
select is(coalesce(nullif(:'got', ''), pg_temp.payloads()), 'seventh', 'only the last one is delivered');
select is(pg_temp.payloads(), null, 'however often one asks');
select mq.enqueue('dedup', '"eighth"', dedup_key => 'k', on_duplicate => 'replace') as eighth \gset
select is((select leased from mq.queue_stats('dedup')), 1::bigint, 'one that is leased stays as it is');
select is(mq.enqueue('dedup', '"ninth"', dedup_key => 'k'), :eighth::bigint, 'and the next one has the key');
select is(pg_temp.payloads(), 'eighth', 'and is delivered');
select mq.enqueue_batch('dedup', '{1,2,3}', dedup_keys => '{a,b,c}') \g /dev/null
select mq.enqueue_batch('dedup', '{4,5,6,7}', dedup_keys => '{b,d,b,null}', on_duplicate => 'replace') \g /dev/null
select coalesce(pg_temp.payloads(), '') as got \gset
select is(coalesce(nullif(:'got', ''), pg_temp.payloads()), '1 3 5 6 7', 'in a batch the last one of equal keys counts');
select mq.alter_queue('dedup', dedup_window => '0');
select mq.enqueue('dedup', '"m"', dedup_key => 'm') as one \gset
select receipt from mq.dequeue('dedup') \gset
select mq.enqueue('dedup', '"m again"', dedup_key => 'm', on_duplicate => 'replace') as two \gset
select is(mq.ack('dedup', :'receipt'), 1, 'without a window the one that is leased may be settled');
select is(pg_temp.free('m'), false, 'which does not free the key of the other');
select is(mq.cancel('dedup', :two), true, 'who is cancelled');
select is(pg_temp.free('m'), true, 'frees it');
begin isolation level repeatable read;
select throws_ok($$ select mq.enqueue('dedup', '1', dedup_key => 'm', on_duplicate => 'replace') $$, '0A000', null, 'to replace one must see what others do');
commit;
select mq.alter_queue('dedup', dedup_window => '1 hour');
select mq.enqueue('dedup', '"n"', dedup_key => 'n') as one \gset
select mq.cancel('dedup', :one) \g /dev/null
select is(pg_temp.free('n'), true, 'who is cancelled frees a key that has a window, too');

-- A queue that has room for one.
select mq.purge_queue('dedup') \g /dev/null
select mq.alter_queue('dedup', dedup_window => '0', max_depth => 1, overflow => 'drop_oldest');
select mq.enqueue('dedup', '1', dedup_key => 'one') as one \gset
select is(mq.enqueue('dedup', '1', dedup_key => 'one'), :one::bigint, 'what adds nothing needs no room');
select results_eq($$ select mq.enqueue_batch('dedup', '{1,1}', dedup_keys => '{one,one}') $$, array[:one, :one]::bigint[], 'in a batch, neither');
select mq.enqueue('dedup', '2', dedup_key => 'two') \g /dev/null
select results_eq($$ select payload from mq.peek('dedup') $$, array['2'::jsonb], 'what is new takes the place of the oldest');
select is((pg_temp.free('one'), pg_temp.free('two'))::text, '(t,f)', 'whose key is free');
select mq.alter_queue('dedup', overflow => 'reject');
select throws_ok($$ select mq.enqueue('dedup', '3', dedup_key => 'three') $$, 'MQ008', null, 'or it is refused');
select mq.enqueue('dedup', '2', dedup_key => 'two', on_duplicate => 'replace') \g /dev/null
select results_eq($$ select i = (select p.msg_id from mq.peek('dedup') as p) from mq.enqueue_batch('dedup', '{2,2}', dedup_keys => '{two,two}', on_duplicate => 'replace') as i $$,
    array[true, true], 'what replaces another takes its place');
select throws_ok($$ select mq.enqueue_batch('dedup', '{2,3}', dedup_keys => '{two,three}', on_duplicate => 'replace') $$, 'MQ008', null, 'and no more than that');
select mq.alter_queue('dedup', max_depth => 0);
select is(pg_temp.free('three'), true, 'and has no key');
copy mq.inbox (queue, payload, dedup_key) from stdin;
dedup	4	two
dedup	5	four
\.
select results_eq($$ select payload from mq.peek('dedup') $$, $$ values ('2'::jsonb), ('5') $$, 'COPY keeps, too');

-- What is over is forgotten, in time.
select mq.purge_queue('dedup') \g /dev/null
select mq.alter_queue('dedup', dedup_window => '1 minute');
select mq.enqueue_batch('dedup', '{1,2,3}', dedup_keys => '{a,b,c}') \g /dev/null
select pg_temp.pass('10 minutes');
select is_empty($$ select * from mq.maintain('dedup') where action = 'forgot' $$, 'not at once');
select pg_temp.pass('1 minute');
select mq.enqueue('dedup', '4', dedup_key => 'a') \g /dev/null
select results_eq($$ select detail from mq.maintain('dedup') where action = 'forgot' $$, array['3 dedup keys that are over'], 'but ten minutes later');
select is(pg_temp.entries(), 1::bigint, 'what is not over stays');
select is(pg_temp.free('a'), false, 'and holds');
select pg_temp.pass('12 minutes');
select is((select count(*) from mq.maintain('dedup') where action = 'forgot'), 1::bigint, 'later calls go on');
select is(pg_temp.entries(), 0::bigint, 'until nothing is left');
select is((select count(*) from mq.dedup as d where d.queue_id = test.queue_id('dedup')), 1::bigint, 'but where to go on');
insert into mq.dedup (queue_id, dedup_key, no, msg_id, until) values (test.queue_id('dedup'), 'late', 1, 1, clock_timestamp() - interval '1 day');
select count(*) from mq.maintain('dedup') \g /dev/null
update mq.dedup as d set no = 256 where d.queue_id = test.queue_id('dedup') and d.dedup_key = '';
select results_eq($$ select detail from mq.maintain('dedup') where action = 'forgot' $$, array['1 dedup keys that are over'], 'now and then also what was committed late is found');

-- Bad input.
select throws_ok($$ select mq.enqueue('dedup', '1', dedup_key => '') $$, '22023', null, 'a key is not empty');
select throws_ok($$ select mq.enqueue('dedup', '1', dedup_key => repeat('ü', 257)) $$, '22023', null, 'nor longer than 512 bytes');
select lives_ok($$ select mq.enqueue('dedup', '1', dedup_key => repeat('ü', 256)) $$, 'which it may have');
select throws_ok($$ select mq.enqueue_batch('dedup', '{1,2}', dedup_keys => array['k', repeat('k', 10000)]) $$, '22023', 'invalid value for argument "dedup_keys[2]"', 'in a batch, too');
select throws_ok($$ select mq.enqueue_batch('dedup', '{1,2}', dedup_keys => '{k}') $$, '22023', null, 'a batch has as many keys as payloads');
select throws_ok($$ select mq.enqueue_batch('dedup', '{1}', dedup_keys => '{k}', dedup_key => 'k') $$, '22023', null, 'and either one key or many');
select throws_ok($$ select mq.enqueue('dedup', '1', dedup_key => 'k', on_duplicate => 'drop') $$, '22023', null, 'on_duplicate is one of few');
select throws_ok($$ select mq.enqueue('dedup', '1', on_duplicate => 'reject') $$, '22023', null, 'and nothing without a key');
select throws_ok($$ select mq.alter_queue('dedup', dedup_window => '-1 second') $$, '22023', null, 'a window is not negative');
select throws_ok($$ select mq.create_queue('dedup.2', dedup_window => '11 years') $$, '22023', null, 'nor too long');
select mq.drop_queue('dedup');

select * from finish();
