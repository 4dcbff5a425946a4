-- What pgTAP files may use besides pgTAP; loaded by tests/support/pgtap.py, explained in tests/sql/README.md.

create schema test;
grant usage on schema test to public;

-- pgTAP keeps its counts in temporary objects of whoever called plan(), so a file stays who it is
-- and lets single statements run as somebody else.
create function test.run_as(role name, statement text) returns void
language plpgsql as $$
begin
    execute format('set local role %I', run_as.role);
    execute run_as.statement;
    reset role;
end
$$;
comment on function test.run_as(name, text) is
    'Runs a statement as another role, for throws_ok and lives_ok; its rows are thrown away.';

create function test.value_as(role name, expression text) returns text
language plpgsql as $$
declare
    v_value text;
begin
    execute format('set local role %I', value_as.role);
    execute format('select (%s)::text', value_as.expression) into v_value;
    reset role;
    return v_value;
end
$$;
comment on function test.value_as(name, text) is 'What an expression yields to another role, as text.';

-- The buffers that one statement touches, from EXPLAIN: the measure of tests that must not look at a clock.
create function test.buffers(statement text) returns bigint
language plpgsql as $$
declare
    v_plan json;
begin
    execute 'explain (analyze, buffers, timing off, summary off, costs off, format json) ' || buffers.statement into v_plan;
    return (v_plan -> 0 -> 'Plan' ->> 'Shared Hit Blocks')::bigint
         + (v_plan -> 0 -> 'Plan' ->> 'Shared Read Blocks')::bigint;
end
$$;
comment on function test.buffers(text) is 'Shared buffers hit and read by one statement, planning left out.';

create function test.queue_id(queue text) returns int
language sql stable as $$ select q.queue_id from mq.queue as q where q.name = queue_id.queue $$;
comment on function test.queue_id(text) is 'The number of a queue, which names its tables.';

create function test.forget(queue text) returns void
language plpgsql as $$
begin
    if exists (select from mq.queue as q where q.name = forget.queue) then
        perform mq.drop_queue(forget.queue);
    end if;
end $$;
comment on function test.forget(text) is 'Drops a queue that an earlier run of the file may have left.';

-- The home stands in the row, in its register, and in what enqueue is made of.
create function test.become_copy(queue text, home text) returns void
language plpgsql as $$
begin
    update mq.queue as q set home = become_copy.home where q.name = become_copy.queue;
    update mq.queue as q set append_home = q.home where q.name = become_copy.queue;
    perform mq._set_home_bits(test.queue_id(become_copy.queue), mq._home_bits(become_copy.home));
    perform mq._lock_generated('test');
    perform mq._create_append();
end $$;
comment on function test.become_copy(text, text) is 'As after a restore from elsewhere.';

-- Time moves by editing rows.
create function test.expire_leases(queue text) returns void
language plpgsql as $$
declare
    v_table text;
begin
    for v_table in
        select format('%s_%s_%s', t, s.queue_id, s.slot)
        from mq.slot as s, unnest(array['lease', 'settlement']) as t where s.queue_id = test.queue_id(expire_leases.queue)
    loop
        execute format('update mq.%I set leased_until = clock_timestamp() - interval ''1 second'' '
                       'where leased_until > ''-infinity''', v_table);
    end loop;
    update mq.survivor as s set leased_until = clock_timestamp() - interval '1 second'
    where s.queue_id = test.queue_id(expire_leases.queue);
end $$;
comment on function test.expire_leases(text) is 'Every lease of the queue, extended or not, ran out a second ago.';

create function test.make_due(queue text) returns void
language plpgsql as $$
declare
    v_set text;
begin
    foreach v_set in array array['0', '1'] loop
        v_set := test.queue_id(make_due.queue) || '_' || v_set;
        -- Timers lie ahead of the promoter's cursor, and must stay there.
        execute replace(replace(replace($x$
            with p as (
                select l.lane, coalesce(x.due_at, '2000-01-01') as due_at, coalesce(x.due_xid, '0') as due_xid, coalesce(x.due_id, 0) as due_id
                from unnest(mq._lanes({q})) as l (lane) left join mq._promotions({q}, {g}) as x on x.lane = l.lane),
            t as (
                select x.*, greatest(p.due_at, '2000-01-01') + row_number() over (order by x.due_at, x.xid, x.msg_id) * interval '1 microsecond' as moved
                from mq.timer_{d} as x join p on p.lane = x.lane where (x.due_at, x.xid, x.msg_id) > (p.due_at, p.due_xid, p.due_id))
            update mq.timer_{d} as y set due_at = t.moved from t where t.xid = y.xid and t.msg_id = y.msg_id
            $x$, '{d}', v_set), '{q}', split_part(v_set, '_', 1)), '{g}', split_part(v_set, '_', 2));
        execute replace($x$
            with t as (
                select x.ctid, '2001-01-01'::timestamptz + row_number() over (order by x.due_at, x.xid, x.msg_id) * interval '1 microsecond' as moved
                from mq.deferred_{d} as x)
            update mq.deferred_{d} as y set due_at = t.moved from t where t.ctid = y.ctid
            $x$, '{d}', v_set);
    end loop;
end $$;
comment on function test.make_due(text) is 'Everything that the queue defers is due by now, in the order it was.';

create function test.move_tick(name text, tick timestamptz) returns void
language plpgsql as $$
declare
    s     mq.timetable;
    v_set text;
    v_xid xid8;
    v_id  bigint;
begin
    select * into strict s from mq.timetable as x where x.name = move_tick.name;
    foreach v_set in array array['0', '1'] loop
        v_set := s.queue_id || '_' || v_set;
        execute format('update mq.deferred_%1$s as x set due_at = $1, enqueued_at = $1 where (x.extra ->> ''s'')::bigint = $2 and x.due_at = mq._next_tick($3, $2) returning x.xid, x.msg_id', v_set)
            into v_xid, v_id using move_tick.tick, s.generation, s.queue_id;
        -- Timers lie ahead of the promoter's cursor, and must stay there.
        execute format('update mq.timer_%1$s as t set due_at = greatest($1, (select p.due_at + interval ''1 microsecond'' from mq.promotion_%1$s as p where p.lane = 0 order by p.no desc limit 1))'
                       ' where t.xid = $2 and t.msg_id = $3', v_set) using move_tick.tick, v_xid, v_id;
        exit when v_id is not null;
    end loop;
end $$;
comment on function test.move_tick(text, timestamptz) is 'The tick of a schedule that waits is another: as if it had been due at that time.';

create function test.age_segments(queue text, age interval) returns void
language sql as $$
    update mq.segment as s
    set opened_at = s.opened_at - age_segments.age, closed_at = s.closed_at - age_segments.age,
        sealed_at = s.sealed_at - age_segments.age, exhausted_at = s.exhausted_at - age_segments.age
    where s.queue_id = test.queue_id(age_segments.queue);
    update mq.slot as s set freed_at = s.freed_at - age_segments.age
    where s.queue_id = test.queue_id(age_segments.queue);
$$;
comment on function test.age_segments(text, interval) is 'Everything that happened to the queue''s segments and slots happened so long before.';

create function test.advisory_locks() returns bigint
language sql as $$ select count(*) from pg_locks as l where l.pid = pg_backend_pid() and l.locktype = 'advisory' $$;
comment on function test.advisory_locks() is 'How many advisory locks this session holds.';

create function test.wal_records(statement text) returns bigint
language plpgsql as $$
declare
    v_plan json;
begin
    execute 'explain (analyze, wal, timing off, summary off, costs off, format json) ' || wal_records.statement into v_plan;
    return (v_plan -> 0 -> 'Plan' ->> 'WAL Records')::bigint;
end
$$;
comment on function test.wal_records(text) is 'WAL records that one statement writes.';
