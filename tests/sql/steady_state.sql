select plan(13);

select test.forget('steady_state');
select mq.create_queue('steady_state', notify => 'never');

-- Enqueue, dequeue, ack: nothing is updated, nothing is deleted. The counters are those of this session, which are
-- kept up to date while one statement runs, commits in it included.
create function pg_temp.churn() returns bigint language sql as $$
    select coalesce(sum(t.n_tup_upd + t.n_tup_del), 0)::bigint from pg_stat_xact_all_tables as t where t.schemaname in ('mq', 'pg_toast')
$$;
create temp table figures (name text, value numeric);
do $$
declare
    v_churn    bigint;
    v_receipt  text;
    v_settled  int := 0;
    v_messages int := 0;
begin
    v_churn := pg_temp.churn();
    for i in 1 .. 1000 loop                                 -- one by one, ack on its own
        perform mq.enqueue('steady_state', to_jsonb(i));
        commit;
        select d.receipt into v_receipt from mq.dequeue('steady_state') as d;
        commit;
        v_settled := v_settled + mq.ack('steady_state', v_receipt);
        commit;
    end loop;
    v_receipt := null;
    for i in 1 .. 40 loop                                   -- in batches, ack in the next dequeue
        perform mq.enqueue_batch('steady_state', array(select to_jsonb(x) from generate_series(1, 50) as x));
        commit;
        select d.receipt, count(*) into v_receipt, v_messages from mq.dequeue('steady_state', 50, ack => v_receipt) as d group by d.receipt;
        commit;
        v_settled := v_settled + v_messages;
    end loop;
    v_settled := v_settled + 0 * mq.ack('steady_state', v_receipt);
    commit;
    insert into figures values ('messages', v_settled), ('churn', pg_temp.churn() - v_churn);
end $$;
select is((select value from figures where name = 'messages'), 3000::numeric, 'three thousand messages went through');
select is((select concat_ws(' ', ready, leased, settled_total) from mq.queue_stats('steady_state')), '0 0 3000', 'and are settled');
select cmp_ok((select value from figures where name = 'churn'), '<=', 30::numeric, 'at most one row in a hundred messages was updated or deleted');
select is((select value from figures where name = 'churn'), 0::numeric, 'in fact none: no tuple died');

-- The inbox, retries and delays neither.
do $$
declare
    v_churn bigint := pg_temp.churn();
begin
    insert into mq.inbox (queue, payload) select 'steady_state', to_jsonb(i) from generate_series(1, 500) as i;
    perform mq.enqueue_batch('steady_state', array(select to_jsonb(x) from generate_series(1, 500) as x), delay => '1 microsecond');
    commit;
    for i in 1 .. 30 loop
        perform mq.nack('steady_state', d.receipt, delay => '0')
        from (select distinct x.receipt from mq.dequeue('steady_state', 100) as x) as d;
        commit;
    end loop;
    insert into figures values ('retries', pg_temp.churn() - v_churn);
end $$;
select is((select value from figures where name = 'retries'), 0::numeric, 'nor by copies, delays and retries');

-- So that the counters above mean something.
do $$
declare
    v_churn bigint := pg_temp.churn();
begin
    update mq.queue set paused = paused where name = 'steady_state';
    commit;
    insert into figures values ('an update', pg_temp.churn() - v_churn);
end $$;
select is((select value from figures where name = 'an update'), 1::numeric, 'an update would have been counted');

-- An empty poll.
select mq.purge_queue('steady_state');
select mq.enqueue('steady_state', '1');
select mq.ack('steady_state', receipt) from mq.dequeue('steady_state');
select count(*) from mq.dequeue('steady_state');            -- sets hint bits, which may be logged
select is(test.wal_records($$ select * from mq.dequeue('steady_state', 10) $$), 0::bigint, 'an empty poll writes no WAL');
begin;
select count(*) as rows from mq.dequeue('steady_state', 10) \gset
select pg_current_xact_id_if_assigned() is null as without, test.advisory_locks() as locks \gset
commit;
select is(:rows, 0, 'nor anything else');
select ok(:'without', 'it takes no transaction id');
select is(:locks, 0, 'and keeps no lock');
begin;
select 1 from (select pg_current_xact_id()) as x;
select 1 from mq.dequeue('steady_state', 10);
select 1 from mq.dequeue('steady_state', 10, wait => '1 millisecond');
select test.advisory_locks() as locks \gset
commit;
select is(:locks, 0, 'nor in a transaction that has written, nor after a wait');
begin;
select mq.enqueue('steady_state', '2');
select 1 from mq.dequeue('steady_state');
select test.advisory_locks() as locks \gset
rollback;
select is(:locks, 0, 'nor with a message of its own that it cannot have');
select mq.enqueue('steady_state', '3', delay => '1 hour');
select count(*) from mq.dequeue('steady_state');
select is(test.wal_records($$ select * from mq.dequeue('steady_state', 10) $$), 0::bigint, 'nor does it write anything for what is not due');
select mq.drop_queue('steady_state');

select * from finish();
