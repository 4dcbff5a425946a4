select plan(26);

select test.forget(q) from unnest(array['retry.fixed', 'retry.linear', 'retry.exponential', 'retry.list', 'retry.jitter', 'retry.snooze']) as q;

-- How long a message waits after each of its attempts, in seconds. In transactions of their own: none gets what it put there.
create temp table waited (no int generated always as identity, s int);
create procedure pg_temp.wait(queue text, attempts int) language plpgsql as $$
declare
    v_receipt text;
begin
    truncate waited;
    perform mq.enqueue(wait.queue, '1');
    for i in 1 .. attempts loop
        commit;
        select d.receipt into strict v_receipt from mq.dequeue(wait.queue) as d;
        commit;
        perform mq.nack(wait.queue, v_receipt);
        commit;
        insert into waited (s) values (round(extract(epoch from mq.next_due(wait.queue) - clock_timestamp())));
        perform test.make_due(wait.queue);
    end loop;
end $$;
create function pg_temp.waits() returns int[] language sql as $$ select array_agg(s order by no) from waited $$;

select mq.create_queue('retry.fixed', max_attempts => 9, retry_policy => 'fixed', retry_backoff => '10 seconds', retry_jitter => 0);
call pg_temp.wait('retry.fixed', 3);
select is(pg_temp.waits(), '{10,10,10}', 'fixed: the same each time');
select mq.create_queue('retry.linear', max_attempts => 9, retry_policy => 'linear', retry_backoff => '10 seconds', retry_backoff_max => '25 seconds', retry_jitter => 0);
call pg_temp.wait('retry.linear', 4);
select is(pg_temp.waits(), '{10,20,25,25}', 'linear: by as much more, up to the maximum');
select mq.create_queue('retry.exponential', max_attempts => 9, retry_backoff => '10 seconds', retry_backoff_max => '50 seconds', retry_jitter => 0);
call pg_temp.wait('retry.exponential', 4);
select is(pg_temp.waits(), '{10,20,40,50}', 'exponential, if nothing is said: doubled');
select mq.create_queue('retry.list', max_attempts => 9, retry_policy => 'list', retry_delays => array['5 seconds', '2 hours', '7 seconds']::interval[], retry_jitter => 0);
call pg_temp.wait('retry.list', 4);
select is(pg_temp.waits(), '{5,7200,7,7}', 'list: as they stand, without a maximum, the last from then on');
select is((select settings -> 'retry_delays' from mq.queues() where name = 'retry.list'), '["00:00:05", "02:00:00", "00:00:07"]', 'the settings show it');

select mq.create_queue('retry.jitter', max_attempts => 30000, retry_policy => 'fixed', retry_backoff => '1000 seconds', retry_jitter => 0.1);
call pg_temp.wait('retry.jitter', 100);
select ok((select min(s) between 899 and 930 and max(s) between 970 and 1000 from waited), 'up to the jitter is taken off, by chance');
select mq.alter_queue('retry.jitter', retry_jitter => 1);
call pg_temp.wait('retry.jitter', 100);
select ok((select min(s) < 100 and max(s) > 900 from waited), 'or all of it');

-- Another policy.
select lives_ok($$ select mq.alter_queue('retry.list', retry_policy => 'fixed') $$, 'another policy than list');
select is((select settings -> 'retry_delays' from mq.queues() where name = 'retry.list'), 'null', 'forgets its delays');
select lives_ok($$ select mq.alter_queue('retry.list', retry_policy => 'list', retry_delays => '{3 seconds}') $$, 'and back');
select lives_ok($$ select mq.alter_queue('retry.list', retry_delays => '{4 seconds}') $$, 'another list alone');
select lives_ok($$ select mq.alter_queue('retry.list', max_attempts => 8) $$, 'another setting');
select is((select settings -> 'retry_delays' from mq.queues() where name = 'retry.list'), '["00:00:04"]', 'leaves it as it is');
select throws_ok(format('select mq.alter_queue(%L, %s)', 'retry.fixed', bad), '22023', null, bad || ' is refused')
from unnest(array['retry_policy => ''cubic''', 'retry_policy => ''list''', 'retry_delays => ''{1 second}''', 'retry_policy => ''list'', retry_delays => ''{}''',
    'retry_policy => ''list'', retry_delays => ''{-1 seconds}''', 'retry_policy => ''list'', retry_delays => ''{null}''',
    'retry_jitter => 1.5', 'retry_jitter => ''nan''']) with ordinality as u (bad, no) order by no;

-- Snoozed: put off without end, though there is one attempt only.
select mq.create_queue('retry.snooze', max_attempts => 1, retry_policy => 'fixed', retry_backoff => '10 seconds', retry_jitter => 0);
select mq.enqueue('retry.snooze', '1');
create procedure pg_temp.snooze(times int, delay interval) language plpgsql as $$
declare
    d record;
begin
    truncate waited;
    for i in 1 .. times loop
        commit;
        select * into strict d from mq.dequeue('retry.snooze');
        commit;
        perform mq.nack('retry.snooze', d.receipt, delay => snooze.delay, count_attempt => false);
        insert into waited (s) values (d.attempt);
    end loop;
end $$;
call pg_temp.snooze(100, '0');
call pg_temp.snooze(1, null);
select is((select array_agg(distinct s) from waited), '{1}', 'who snoozes uses up no attempt');
select is(round(extract(epoch from mq.next_due('retry.snooze') - clock_timestamp())), 10::numeric, 'a delay that is not given is that of the policy');
select test.make_due('retry.snooze');
select receipt as r from mq.dequeue('retry.snooze') \gset
select throws_ok(format('select mq.nack(%L, %L, dead => true, count_attempt => false)', 'retry.snooze', :'r'), '22023', null, 'a dead letter is not snoozed');
select is(mq.nack('retry.snooze', :'r', reason => 'no'), 1, 'what fails in the end');
select is((select attempts || ' ' || jsonb_array_length(history) from mq.dead_letters('retry.snooze')), '1 1', 'is dead after one attempt, and has no more in its history');

select mq.drop_queue(q) from unnest(array['retry.fixed', 'retry.linear', 'retry.exponential', 'retry.list', 'retry.jitter', 'retry.snooze']) as q;
select * from finish();
