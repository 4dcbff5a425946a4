create or replace function mq.cancel(queue text, msg_id bigint) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off set lock_timeout = '2s' as $$
declare
    q mq.queue := mq._queue(cancel.queue);
    l record;
    m record;
begin
    perform mq._check_isolation('cancel');
    if cancel.msg_id is null then
        perform mq._null_argument('msg_id');
    end if;
    -- Where it waits is found first, for that may take long, and again behind the lock of whoever could move it from there,
    -- which is kept: a block is opened, and what is deferred is promoted, under those. So an opener either was before us, and
    -- it is found in his block, or he comes after us, and finds that it is cancelled.
    for v_try in 1 .. 5 loop
        select * into l from mq._locate(q.queue_id, cancel.msg_id) as x;
        if not found then
            return false;
        elsif l.block_no is not null then
            if mq._cancel_slice(q, l.slot, l.lane, l.block_no, l.slice, array[cancel.msg_id]) then
                return true;
            end if;
        else
            perform pg_advisory_xact_lock(mq._lock_class(), case when l.slot is null then mq._lock_key(q.queue_id, -2) else mq._lane_key(q.queue_id, l.slot, l.lane) end);
            select * into m from mq._locate(q.queue_id, cancel.msg_id) as x;
            if m = l then
                perform mq._use_cancel(q.queue_id, q.lanes);
                insert into mq.cancelled (queue_id, msg_id, due_at) values (q.queue_id, cancel.msg_id, l.due_at) on conflict do nothing;
                return found;
            end if;
        end if;
    end loop;
    perform mq._in_use();
    return false;
end $$;

comment on function mq.cancel(text, bigint) is
'Cancels a message that waits: once this commits it is not delivered any more. Commit soon: until then others may not get at what waits with it. Reads the whole queue: for people, not for programs.
queue: its name. msg_id: as enqueue returned it.
Returns: true: it waited, for its first attempt or for another; false: it is leased, settled, dead, cancelled before, or not there (yet).
Raises: MQ001 no such queue; 22004 a null msg_id; 55P03 others do not let go of where it is; 0A000 not in READ COMMITTED.
Role: mq_producer.';
