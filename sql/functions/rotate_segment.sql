create or replace function mq.rotate_segment(queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s' as $$
declare
    v_copy constant boolean := exists (select from mq.queue as x where x.name = rotate_segment.queue and not mq._is_at_home(x.home));
    q      mq.queue := mq._queue(rotate_segment.queue, false);
    v_last bigint;
begin
    perform mq._check_isolation('rotate_segment');
    if v_copy then
        return;         -- it was repaired into a new segment
    end if;
    perform pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(q.queue_id, -3));
    perform mq._queue(rotate_segment.queue);        -- dropped meanwhile?
    v_last := (select max(s.segment) from mq.segment as s where s.queue_id = q.queue_id);
    perform mq._mend_segments(q.queue_id, q.register);
    -- Where a rotation was rolled back, its segment is the new one.
    if v_last = (select max(s.segment) from mq.segment as s where s.queue_id = q.queue_id) and not mq._rotate(q.queue_id) then
        perform mq._make_spare_slot(q.queue_id);
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('no slot is ready for the next segment of queue "%s"', q.name),
            hint = 'Commit and run mq.maintain(), which makes one, then try again: a transaction can rotate a queue once.';
    end if;
    perform mq._make_spare_slot(q.queue_id);
end $$;

comment on function mq.rotate_segment(text) is
'Begins a new segment now; the old one goes when all its messages are settled. maintain() does this by age and size.
queue: its name.
Raises: MQ001 no such queue; 55000 it was rotated in this transaction already; 55P03 the queue is being maintained; 0A000 not in READ COMMITTED.
Role: mq_admin.';
