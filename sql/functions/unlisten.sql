create or replace function mq.unlisten(queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    q       mq.queue := mq._queue(unlisten.queue);
    c_class constant int := mq._lock_class();
    v_key   int := mq._lock_key(q.queue_id, -4);
begin
    execute format('unlisten %I', 'mq_' || q.name);
    if exists (select from pg_locks as l where l.pid = pg_backend_pid() and l.locktype = 'advisory' and l.classid = c_class::oid
               and l.objid = v_key::oid and l.objsubid = 2 and l.database = (select d.oid from pg_database as d where d.datname = current_database())) then
        perform pg_advisory_unlock_shared(c_class, v_key);
    end if;
end $$;

comment on function mq.unlisten(text) is
'Undoes listen: while a consumer is busy, producers need not notify it.
queue: its name.
Raises: MQ001 no such queue.
Role: mq_consumer.';
