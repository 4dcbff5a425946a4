select plan(47);

select test.forget(q) from unnest(array['receipts', 'receipts.other']) as q;
select mq.create_queue('receipts', visibility_timeout => '1 minute');
select mq.create_queue('receipts.other');
select 1 from mq.enqueue_batch('receipts', array(select to_jsonb(i) from generate_series(1, 20) as i));
select mq.enqueue('receipts.other', '1');

-- What is not a receipt is refused wherever one is taken.
select distinct receipt as r from mq.dequeue('receipts', 2) \gset
create temp table bad as
    select no, what, receipt from (values
        (1, 'nothing', ''),
        (2, 'a word', 'receipt'),
        (3, 'one with a part missing', regexp_replace(:'r', '\.[^.]*$', '')),
        (4, 'one with a part too many', :'r' || '.1'),
        (5, 'one with a space', ' ' || :'r'),
        (6, 'one with a line feed', :'r' || E'\n'),
        (7, 'one with a number too large', regexp_replace(:'r', '^\d+\.\d+', '\&9999999999')),
        (8, 'one with a negative number', regexp_replace(:'r', '^(\d+)\.', '\1.-')),
        (9, 'one with SQL inside', regexp_replace(:'r', '^(\d+)\.(\d+)', '\1.\2; drop table mq.queue')),
        (10, 'one with a token cut short', left(:'r', -1))) as v (no, what, receipt);
select throws_ok(format(call, receipt), 'MQ004', null, format('%s takes %s for no receipt', split_part(split_part(call, '.', 2), '(', 1), what))
from bad, unnest(array['select mq.ack(''receipts'', %L)', 'select mq.nack(''receipts'', %L)', 'select mq.extend(''receipts'', %L)']) as call
order by no, call;
select is((select count(*) from mq.peek('receipts', 100) where state = 'leased'), 2::bigint, 'none of that did anything');

-- Of another queue, of another lease.
select throws_ok(format('select mq.ack(%L, %L)', 'receipts.other', :'r'), 'MQ004', null, 'a receipt of another queue is refused');
select throws_ok(format('select * from mq.dequeue(%L, ack => %L)', 'receipts.other', :'r'), 'MQ004', null, 'in a dequeue too');
select is((select state from mq.peek('receipts.other')), 'ready', 'which then leases nothing');
create temp table forged as
    select regexp_replace(:'r', '[0-9]{19}$', '1234567890123456789') as receipt
    union all select regexp_replace(:'r', '^(\d+)\.(\d+)\.', '\1.9\2.')
    union all select regexp_replace(:'r', '^((\d+\.){4})\d+\.', '\1999999.');
select is((select sum(mq.ack('receipts', receipt)) from forged), 0::bigint, 'one that is well-formed and of no lease settles nothing');
select is((select sum(mq.nack('receipts', receipt)) from forged), 0::bigint, 'nor gives anything back');
select is((select count(mq.extend('receipts', receipt)) from forged), 0::bigint, 'nor extends');
select is(mq.ack('receipts', :'r'), 2, 'while the true one does');
select is(mq.ack('receipts', :'r') + mq.nack('receipts', :'r'), 0, 'once, and for all');

-- A position that is used again.
begin;
select distinct receipt as lost from mq.dequeue('receipts', 2) \gset
rollback;
select distinct receipt as r from mq.dequeue('receipts', 2) \gset
select is(mq.ack('receipts', :'lost'), 0, 'a receipt that was rolled back does not settle what somebody else got');
select is(mq.nack('receipts', :'lost'), 0, 'nor give it back');
select is(mq.ack('receipts', :'r'), 2, 'who got it settles it');

-- A segment that is gone, and its slot used again by another.
select distinct receipt as r from mq.dequeue('receipts', 20) \gset
select mq.ack('receipts', :'r');
select mq.ack('receipts', receipt) from (select distinct receipt from mq.dequeue('receipts', 20)) as d;
select mq.rotate_segment('receipts');
select 1 from mq.maintain('receipts');
select mq.rotate_segment('receipts');
select 1 from mq.maintain('receipts');
select mq.rotate_segment('receipts');
select 1 from mq.maintain('receipts');
select mq.enqueue('receipts', '"later"');
select receipt as later from mq.dequeue('receipts') \gset
select is(mq.ack('receipts', :'r'), 0, 'a receipt of a segment that is gone settles nothing');
select is(mq.nack('receipts', :'r'), 0, 'nor gives back');
select is(mq.extend('receipts', :'r'), null, 'nor extends');
select throws_ok(format('select * from mq.dequeue(%L, ack => %L)', 'receipts', :'r'), 'MQ003', null, 'in a dequeue it is an error');
select is(mq.ack('receipts', :'later'), 1, 'the lease that is there now is not touched');
select mq.drop_queue('receipts');
select mq.drop_queue('receipts.other');

select * from finish();
