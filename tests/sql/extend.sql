select plan(19);

select test.forget('extend');
select mq.create_queue('extend', visibility_timeout => '1 minute');
select 1 from mq.enqueue_batch('extend', array['1', '2', '3', '4']::jsonb[]);
select distinct receipt as r, leased_until as was from mq.dequeue('extend', 2) \gset

select ok(mq.extend('extend', :'r') between clock_timestamp() + interval '59 seconds' and clock_timestamp() + interval '1 minute',
    'a lease lasts for the visibility timeout of the queue from now');
select ok(mq.extend('extend', :'r', '1 hour') between clock_timestamp() + interval '59 minutes' and clock_timestamp() + interval '1 hour',
    'or for what the call says');
select ok((mq.message_status('extend', 2)).leased_until > clock_timestamp() + interval '59 minutes', 'message_status says so');
select ok(mq.extend('extend', :'r', '1 second') > clock_timestamp() + interval '59 minutes', 'it is never made shorter');
select mq.ack('extend', :'r', array[1]);
select ok(mq.extend('extend', :'r', '1 hour') > clock_timestamp(), 'with some of it settled it can be extended');

-- An extend is never overruled.
select test.expire_leases('extend');
select isnt(mq.extend('extend', :'r'), null, 'a lease that ran out and was not taken back is held');
select is(mq.sweep_stale('extend'), 0, 'it is not taken back then');
select is(mq.ack('extend', :'r'), 1, 'and can be settled');
select is(mq.extend('extend', :'r'), null, 'what is settled is not extended');

select receipt as r from mq.dequeue('extend') \gset
begin;
select mq.extend('extend', :'r', '1 hour');
rollback;
select ok((mq.message_status('extend', 3)).leased_until < clock_timestamp() + interval '2 minutes', 'an extend that is rolled back never was');
select test.expire_leases('extend');
select mq.sweep_stale('extend');
select is(mq.extend('extend', :'r'), null, 'a lease that was taken back is lost');

select throws_ok(format('select mq.extend(%L, %L)', 'extend.none', :'r'), 'MQ001', null, 'an unknown queue is an error');
select throws_ok($$ select mq.extend('extend', 'nonsense') $$, 'MQ004', null, 'a malformed receipt is one');
select throws_ok($$ select mq.extend('extend', null) $$, '22004', null, 'so is none');
select throws_ok(format('select mq.extend(%L, %L, %L)', 'extend', :'r', '0'), '22023', null, 'a lease lasts for more than nothing');
select throws_ok(format('select mq.extend(%L, %L, %L)', 'extend', :'r', '11 years'), '22023', null, 'and not for ever');
select receipt as r from mq.dequeue('extend') \gset
begin isolation level repeatable read;
select isnt(mq.extend('extend', :'r'), null, 'a repeatable read transaction may extend');
commit;
select isnt(test.value_as('mq_consumer', format('mq.extend(''extend'', %L)', :'r')), null, 'a consumer may');
select throws_ok(format($$ select test.run_as('mq_producer', 'select mq.extend(''extend'', ''%s'')') $$, :'r'), '42501', null, 'a producer may not');
select mq.drop_queue('extend');

select * from finish();
