select plan(32);

select test.forget(q) from unnest(array['maintain', 'maintain.other']) as q;
select mq.create_queue('maintain', segment_age => '1 hour', visibility_timeout => '1 minute');
create function pg_temp.upkeep(queue text) returns text[] language sql as
    $$ select coalesce(array_agg(u.action), '{}') from mq.maintain(queue) as u where u.queue = upkeep.queue and u.action <> 'busy' $$;
create function pg_temp.segments() returns bigint[] language sql as
    $$ select array_agg(s.segment order by s.segment) from mq.segment as s where s.queue_id = test.queue_id('maintain') $$;
create function pg_temp.drain() returns bigint language plpgsql as $$
declare
    v_receipt text;
    v_sum     bigint := 0;
    v_count   int;
begin
    loop
        select d.receipt into v_receipt from mq.dequeue('maintain', 10) as d limit 1;
        exit when not found;
        v_count := mq.ack('maintain', v_receipt);
        v_sum := v_sum + v_count;
    end loop;
    return v_sum;
end $$;

select is(pg_temp.upkeep('maintain'), '{}', 'a new queue needs no upkeep');
select test.age_segments('maintain', '2 hours');
select is(pg_temp.upkeep('maintain'), '{}', 'an empty segment is not rotated, however old');

-- By age.
select 1 from mq.enqueue_batch('maintain', array['1', '2', '3']::jsonb[]);
select is(pg_temp.upkeep('maintain') @> '{rotated}', true, 'one with messages is, when it is old');
select is(pg_temp.segments(), array[1, 2]::bigint[], 'now there are two');
select 1 from mq.enqueue_batch('maintain', array['4', '5']::jsonb[]);
select pg_temp.upkeep('maintain');
select is(pg_temp.segments(), array[1, 2]::bigint[], 'the old one stays while something is to be claimed');
select distinct receipt as r from mq.dequeue('maintain', 3) \gset
select pg_temp.upkeep('maintain');
select is(pg_temp.segments(), array[1, 2]::bigint[], 'and while something is leased');
select isnt((select exhausted_at from mq.segment where queue_id = test.queue_id('maintain') and segment = 1), null, 'but it is known to be exhausted');
select is(mq.ack('maintain', :'r', array[1, 2]), 2, 'a lease in it can be settled');
select pg_temp.upkeep('maintain');
select is(pg_temp.segments(), array[1, 2]::bigint[], 'settled in part');
select is(mq.ack('maintain', :'r'), 1, 'or whole');
select pg_temp.upkeep('maintain') @> '{drained}' as drained \gset
select is(:'drained'::boolean and pg_temp.upkeep('maintain') @> '{dropped}', true, 'then it goes, with the call after');
select is(pg_temp.segments(), array[2]::bigint[], 'one segment is left');
select is(mq.ack('maintain', :'r'), 0, 'a late ack of a segment that is gone is refused');
select is((select delivered_total || ' ' || settled_total from mq.queue_stats('maintain')), '3 3', 'the totals remember it');
select is(mq.message_status('maintain', 1), null, 'its messages are forgotten');
select is(pg_temp.drain(), 2::bigint, 'those of the other are delivered');

-- By size.
select mq.alter_queue('maintain', segment_bytes => 65536);
select 1 from mq.enqueue_batch('maintain', array(select to_jsonb(repeat(md5(i::text), 10)) from generate_series(1, 300) as i));
select is(pg_temp.upkeep('maintain') @> '{rotated}', true, 'a segment is rotated when it is big');
select is(pg_temp.drain(), 300::bigint, 'no message is lost');
select pg_temp.upkeep('maintain');
select pg_temp.upkeep('maintain');
select pg_temp.upkeep('maintain');
select is(cardinality(pg_temp.segments()), 1, 'one segment is left');
select is((select count(*) <= 4 from mq.slot where queue_id = test.queue_id('maintain')), true, 'slots are used again');

-- What ran out.
select mq.enqueue('maintain', '6');
select 1 from mq.dequeue('maintain');
select test.expire_leases('maintain');
select is(pg_temp.upkeep('maintain') @> '{swept}', true, 'what ran out is taken back');
select is((select attempt from mq.dequeue('maintain')), 2, 'and delivered again');

-- A very long lease does not pin its segment.
select 1 from mq.enqueue_batch('maintain', array['7', '8']::jsonb[]);
select distinct receipt as r from mq.dequeue('maintain', 2, '1 day') \gset
select mq.rotate_segment('maintain');
select pg_temp.upkeep('maintain');
select test.age_segments('maintain', '2 hours');
select pg_temp.upkeep('maintain');
select pg_temp.upkeep('maintain');
select is_empty($$ select * from mq.segment where queue_id = test.queue_id('maintain') and closed_at is not null $$, 'its segment goes');
select is(mq.ack('maintain', :'r', (select array[max(msg_id)] from mq.peek('maintain', 100))), 1, 'some of the lease can be settled all the same');
select isnt(mq.extend('maintain', :'r'), null, 'and the rest extended');
select is(mq.ack('maintain', :'r'), 1, 'and settled');

-- All queues.
select mq.create_queue('maintain.other');
select mq.enqueue('maintain.other', '1');
select test.age_segments('maintain.other', '2 hours');
select ok(exists (select from mq.maintain() where queue = 'maintain.other' and action = 'rotated'), 'without a name every queue is maintained');
select ok(not exists (select from mq.maintain('maintain') where queue <> 'maintain'), 'with one, that one');

select throws_ok($$ select mq.maintain('maintain.none') $$, 'MQ001', null, 'an unknown queue is an error');
begin isolation level repeatable read;
select throws_ok($$ select mq.maintain('maintain') $$, '0A000', null, 'an old snapshot does not do');
commit;
select lives_ok($$ select test.run_as('mq_consumer', 'select mq.maintain(''maintain'')') $$, 'a consumer may');
select throws_ok($$ select test.run_as('mq_producer', 'select mq.maintain(''maintain'')') $$, '42501', null, 'a producer may not');
select mq.drop_queue('maintain');
select mq.drop_queue('maintain.other');

select * from finish();
