create or replace function mq.drop_queue(queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
declare
    q         mq.queue;
    v_routine regprocedure;
    v_table   regclass;
begin
    -- Not by _queue: a copy need not be repaired to be dropped.
    select * into q from mq.queue as x where x.name = drop_queue.queue;
    if not found then
        perform mq._queue_not_found(drop_queue.queue);
    end if;
    -- Upkeep, then the row, then the register, as everybody: who waits for one of them finds that the queue is gone. (The
    -- row's trigger writes the register, and only shares it. If this is rolled back, enqueue goes the long way until upkeep.)
    perform mq._lock_generated('drop_queue');
    perform pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(q.queue_id, -3));
    delete from mq.queue as x where x.queue_id = q.queue_id;
    if not found then
        perform mq._queue_not_found(drop_queue.queue);
    end if;
    perform mq._lock_tables(q.queue_id, true);
    delete from mq.subscription as x where x.queue_id = q.queue_id;
    delete from mq.segment as x where x.queue_id = q.queue_id;
    delete from mq.depth_mark as x where x.queue_id = q.queue_id;
    delete from mq.slot as x where x.queue_id = q.queue_id;
    delete from mq.tally as x where x.queue_id = q.queue_id;
    delete from mq.dead_letter as x where x.queue_id = q.queue_id;
    delete from mq.cancelled as x where x.queue_id = q.queue_id;
    delete from mq.dedup as x where x.queue_id = q.queue_id;
    delete from mq.note as x where x.queue_id = q.queue_id;
    delete from mq.survivor as x where x.queue_id = q.queue_id;
    delete from mq.kept as x where x.queue_id = q.queue_id;
    delete from mq.meter as x where x.queue_id = q.queue_id;
    delete from mq.timetable as x where x.queue_id = q.queue_id;
    -- Cascade: whoever may use the schema may make a view of what he cannot read, and keep it from being dropped.
    for v_table in
        select c.oid from pg_class as c
        where c.relnamespace = 'mq'::regnamespace and c.relkind = 'r'
          and c.relname ~ ('^(log|block|lease|settlement|taken|mark|deferred|timer|promotion)_' || q.queue_id || '_[0-9]+$|^(parked|line|key|turn)_' || q.queue_id || '$')
    loop
        execute format('drop table %s cascade', v_table);
    end loop;
    for v_table in
        select c.oid from pg_class as c
        where c.relnamespace = 'mq'::regnamespace and c.relkind = 'S' and c.relname ~ ('^((last_)?ticket|mark_no|strike|strike_xid)_' || q.queue_id || '_[0-9]+$')
    loop
        execute format('drop sequence %s cascade', v_table);
    end loop;
    for v_routine in
        select p.oid from pg_proc as p
        where p.pronamespace = 'mq'::regnamespace and p.proname ~ ('^_[a-z_]+_' || q.queue_id || '(_[0-9]+)?$')
    loop
        execute format('drop function %s cascade', v_routine);
    end loop;
    perform mq._create_dispatchers();
    execute format('drop sequence mq.msg_id_%1$s, mq.notified_%1$s, mq.waiting_%1$s, mq.lanes_%1$s, mq.room_%1$s, mq.counted_%1$s cascade', q.queue_id);
    -- Every call reads the register as it looks up the queue, and keeps the lock that comes with it: so we waited for
    -- whoever is past that, and who waits for us there will read null, and say that there is no such queue. Were the
    -- register gone, they would get PostgreSQL's internal words. Upkeep removes it when nobody can know of it any more.
    execute format('alter sequence mq.register_%s restart', q.queue_id);
    execute format('comment on sequence mq.register_%s is %L', q.queue_id, 'dropped ' || extract(epoch from clock_timestamp()));
end $$;

-- A transaction may go on in a snapshot in which the queue is there; after a day that gets PostgreSQL's own error.
create or replace function mq._remove_old_registers() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_register name;
begin
    for v_register in
        select c.relname from pg_class as c join pg_description as d on d.objoid = c.oid and d.classoid = 'pg_class'::regclass and d.objsubid = 0
        where c.relname ~ '^register_[0-9]+$' and c.relnamespace = 'mq'::regnamespace and c.relkind = 'S'
          and substring(d.description from '^dropped ([0-9.]+)$')::numeric < extract(epoch from clock_timestamp() - interval '1 day')
        order by c.oid limit 64
    loop
        begin
            execute format('drop sequence if exists mq.%I cascade', v_register);
        exception
            when lock_not_available then
                null;       -- next time
        end;
    end loop;
end $$;

comment on function mq.drop_queue(text) is
'Drops a queue with all its messages and dead letters. Waits up to 10 seconds for transactions that still use it.
queue: its name.
Raises: MQ001 no such queue; 55P03 it stayed in use, nothing was dropped; 0A000 not in READ COMMITTED.
Role: mq_admin.';
