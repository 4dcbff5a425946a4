create or replace function mq.purge_dead_letters(queue text, older_than interval default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    q       mq.queue := mq._queue(purge_dead_letters.queue);
    v_count bigint;
begin
    delete from mq.dead_letter as d
    where d.queue_id = q.queue_id and (older_than is null or d.died_at < clock_timestamp() - older_than);
    get diagnostics v_count = row_count;
    return v_count;
end $$;

comment on function mq.purge_dead_letters(text, interval) is
'Deletes dead letters for good.
queue: its name. older_than: only those that died so long ago; default all.
Returns: how many.
Raises: MQ001 no such queue.
Role: mq_admin.';
