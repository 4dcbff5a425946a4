create or replace function mq.report(
    queue text,
    receipt text,
    msg_id bigint,
    progress jsonb
) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
    q mq.queue := mq._queue(report.queue);
begin
    if report.msg_id is null then
        perform mq._null_argument('msg_id');
    elsif report.progress is null then
        perform mq._null_argument('progress');
    end if;
    if not mq._holds(report.queue, q.queue_id, report.receipt, report.msg_id) then
        return false;
    end if;
    insert into mq.note (queue_id, msg_id, kind, value) values (q.queue_id, report.msg_id, 'progress', report.progress);
    return true;
end $$;

comment on function mq.report(text, text, bigint, jsonb) is
'Says how far the work on a leased message is: mq.message_status shows what was reported last, once this commits. The lease is not made longer.
queue: its name.
receipt: of the dequeue that leased it.
msg_id: which of its messages.
progress: any JSON value. Each report is kept for the result_retention of the queue: report steps, not every row.
Returns: true; false: the lease is lost, or has no such message left, and nothing was noted.
Raises: MQ001 no such queue; MQ004 a malformed receipt; 22004 a null argument; 40001 in REPEATABLE READ when the lease is newer than the snapshot.
Role: mq_consumer.';
