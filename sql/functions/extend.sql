create or replace function mq.extend(
    queue text,
    receipt text,
    visibility_timeout interval default null
) returns timestamptz
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off
set lock_timeout = '2s' as $$
declare
    q       mq.queue := mq._queue(extend.queue);
    r       record;
    v_until timestamptz;
    v_vt    interval := coalesce(extend.visibility_timeout, q.visibility_timeout);
begin
    perform mq._check_timeout(extend.visibility_timeout);
    r := mq._parse_receipt(extend.queue, q.queue_id, extend.receipt);
    if r.subscription = 0 then      -- of mode transaction: until that ends
        return case when cardinality(mq._settle_taken(q.queue_id, r.slot, r.token, 'acked', null)) > 0 then mq._never() end;
    end if;
    if mq._has_slot(q.queue_id, r.slot) then
        execute 'select mq._extend_' || q.queue_id || '_' || r.slot || '($1, $2, $3, $4, $5, $6, $7)'
            into v_until using r.subscription, r.lane, r.block_no, r.slice, r.part, r.token, v_vt;
    end if;
    if v_until is null then
        with moved as (
            update mq.survivor as s set leased_until = greatest(s.leased_until, clock_timestamp() + v_vt)
            where s.queue_id = q.queue_id and s.token = r.token returning s.leased_until)
        select max(m.leased_until) into v_until from moved as m;
    end if;
    if v_until is null then
        perform mq._check_snapshot(q.queue_id, r.slot, r.xid);
    end if;
    return v_until;
end $$;

comment on function mq.extend(text, text, interval) is
'Moves the deadline of a lease, for work that takes longer; never to an earlier time.
queue: its name.
receipt: of the dequeue that leased.
visibility_timeout: the lease lasts so long from now; default the queue''s.
Returns: the new deadline; null: the lease is lost. In a queue of mode transaction a time in the year 9999.
Raises: MQ001 no such queue; MQ004 a malformed receipt; 22004 a null receipt; 22023 a timeout that is not above 0; 55P03 somebody else''s open transaction is settling the same lease; 40001 in REPEATABLE READ when the lease is newer than the snapshot.
Role: mq_consumer.';
