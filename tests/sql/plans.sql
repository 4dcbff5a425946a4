select plan(10);

-- What dequeue and ack read depends neither on what else is in the queue nor on statistics. Measured in buffers and
-- in scans; never in time. A queue for each condition, and one with nothing but what is taken to compare with.
create temp table figures (condition text, n int, buffers numeric, seq_scans bigint);

create function pg_temp.seq_scans() returns bigint language sql as $$
    select coalesce(sum(t.seq_scan), 0)::bigint from pg_stat_xact_all_tables as t
    where t.schemaname = 'mq' and t.relname ~ '^(log|block|lease|settlement|deferred|timer)_'
$$;

create procedure pg_temp.make(queue text) language plpgsql as $$
begin
    perform test.forget(queue);
    perform mq.create_queue(queue, notify => 'never');
    commit;
end $$;

create procedure pg_temp.fill(queue text, n int, delay interval default null) language plpgsql as $$
begin
    perform mq.enqueue_batch(queue, array(select to_jsonb(i) from generate_series(1, n) as i), delay => delay);
    commit;
end $$;

create procedure pg_temp.lease(queue text, times int, n int) language plpgsql as $$
begin
    for i in 1 .. times loop
        perform mq.dequeue(queue, n);
        commit;
    end loop;
end $$;

create procedure pg_temp.analyze_tables(queue text) language plpgsql as $$
declare
    v_table text;
begin
    for v_table in
        select c.relname from pg_class as c
        where c.relnamespace = 'mq'::regnamespace and c.relkind = 'r' and c.relname ~ ('_' || test.queue_id(queue) || '_\d+$')
    loop
        execute format('analyze mq.%I', v_table);
    end loop;
    commit;
end $$;

-- Buffers of a dequeue of n that acknowledges an earlier one, on average, and how often a table was read whole. More
-- than one block is opened on the way.
create procedure pg_temp.measure(condition text, queue text, n int, calls int) language plpgsql as $$
declare
    v_receipt text;
    v_sum     bigint := 0;
    v_scans   bigint := pg_temp.seq_scans();
begin
    for i in 1 .. calls loop
        select d.receipt into v_receipt from mq.dequeue(queue, n) as d limit 1;
        commit;
        v_sum := v_sum + test.buffers(format('select * from mq.dequeue(%L, %s, ack => %L)', queue, n, v_receipt));
        commit;
    end loop;
    insert into figures values (condition, n, v_sum::numeric / calls, pg_temp.seq_scans() - v_scans);
end $$;

-- The comparison.
call pg_temp.make('plans.small');
call pg_temp.fill('plans.small', 401);
call pg_temp.lease('plans.small', 1, 1);
call pg_temp.measure('small', 'plans.small', 1, 150);
call pg_temp.make('plans.small');
call pg_temp.fill('plans.small', 8050);
call pg_temp.lease('plans.small', 1, 50);
call pg_temp.measure('small', 'plans.small', 50, 70);
select mq.drop_queue('plans.small');

-- A backlog.
call pg_temp.make('plans');
call pg_temp.fill('plans', 40000);
call pg_temp.lease('plans', 1, 1);
call pg_temp.measure('backlog', 'plans', 1, 150);
call pg_temp.analyze_tables('plans');
call pg_temp.measure('analyzed', 'plans', 1, 150);
call pg_temp.make('plans');
call pg_temp.fill('plans', 40000);
call pg_temp.lease('plans', 1, 50);
call pg_temp.measure('backlog', 'plans', 50, 70);
call pg_temp.analyze_tables('plans');
call pg_temp.measure('analyzed', 'plans', 50, 70);

-- Single leases.
call pg_temp.make('plans');
call pg_temp.fill('plans', 4000);
call pg_temp.lease('plans', 3000, 1);
call pg_temp.measure('leases', 'plans', 1, 150);

-- Deferred into the future.
call pg_temp.make('plans');
call pg_temp.fill('plans', 10000, '1 hour');
call pg_temp.fill('plans', 4000);
call pg_temp.lease('plans', 1500, 1);               -- each block gives a thousand of them their timers
call pg_temp.measure('deferred', 'plans', 1, 150);

-- Statistics of tables that were empty; plans that this session made when they were.
call pg_temp.make('plans');
call pg_temp.lease('plans', 10, 1);
call pg_temp.analyze_tables('plans');
call pg_temp.fill('plans', 10000);
call pg_temp.lease('plans', 1, 1);
call pg_temp.measure('analyzed when empty', 'plans', 1, 150);
call pg_temp.make('plans');
call pg_temp.lease('plans', 10, 50);
call pg_temp.analyze_tables('plans');
call pg_temp.fill('plans', 20000);
call pg_temp.lease('plans', 1, 50);
call pg_temp.measure('analyzed when empty', 'plans', 50, 70);

-- One by one from slices that were cut for many.
call pg_temp.make('plans');
call pg_temp.fill('plans', 20000);
call pg_temp.lease('plans', 1, 500);
call pg_temp.lease('plans', 1500, 1);
call pg_temp.measure('mixed', 'plans', 1, 150);
select mq.drop_queue('plans');

select cmp_ok(f.buffers, '<=', s.buffers * 1.5, format('%s: a dequeue of %s reads as much as in a small queue, give or take a half', f.condition, f.n))
from figures as f join figures as s on s.n = f.n and s.condition = 'small'
where f.condition <> 'small' order by f.condition, f.n;
select is_empty('select condition, n, seq_scans from figures where seq_scans > 0', 'no table of messages was ever read whole');
select diag(string_agg(format('%s, %s: %s buffers', condition, n, round(buffers)), '; ')) from figures;

select * from finish();
