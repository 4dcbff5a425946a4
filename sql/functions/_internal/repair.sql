-- After a restore, or a copy into another database or cluster, the stored transaction ids mean nothing: everything
-- that was not settled is appended anew, in order, with the receipts void; the registers are set again.
create or replace function mq._repair(queue_id int) returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $f$
declare
    q       mq.queue;
    s       record;
    v_open  int;
    v_kept  mq._taken[] := '{}'::mq._taken[];
    v_more  mq._taken[];
    v_due   timestamptz[];
begin
    select * into q from mq.queue as x where x.queue_id = _repair.queue_id for update;
    if q.home_relation = 'mq.queue'::regclass::oid and q.home_system in (0, mq._system_identifier())
        and not exists (select from mq.slot as x where x.queue_id = q.queue_id and x.made_by >= pg_snapshot_xmax(pg_current_snapshot()))
    then
        return;         -- somebody else was faster
    end if;
    for s in select x.segment, x.slot from mq.segment as x where x.queue_id = q.queue_id order by x.segment loop
        execute replace('lock table mq.log_{t}, mq.block_{t}, mq.lease_{t}, mq.settlement_{t} in access exclusive mode', '{t}', q.queue_id || '_' || s.slot);
        execute format('select array_agg((u.msg_id, u.enqueued_at, u.attempt, u.payload, u.headers, u.history, null, null)::mq._taken order by u.msg_id) '
                       'from mq._fates(%s, %s) as u where u.state in (''ready'', ''leased'')', q.queue_id, s.slot) into v_more;
        v_kept := v_kept || v_more;
        perform mq._add_to_tally(q.queue_id, s.slot);
        execute replace('truncate mq.log_{t}, mq.block_{t}, mq.lease_{t}, mq.settlement_{t}',
                        '{t}', q.queue_id || '_' || s.slot);
        v_open := s.slot;
    end loop;
    delete from mq.segment as x where x.queue_id = q.queue_id and x.slot <> v_open;
    update mq.segment as x set closed_at = null, sealed_at = null, exhausted_at = null, drained_at = null where x.queue_id = q.queue_id;
    update mq.slot as x set made_by = '3' where x.queue_id = q.queue_id;
    with gone as (delete from mq.survivor as x where x.queue_id = q.queue_id returning x.*)
    select v_kept || array_agg((g.msg_id, g.enqueued_at, g.attempt, g.payload, g.headers, g.history, null, null)::mq._taken) into v_kept from gone as g;

    -- What is deferred: both sets, whatever their cursors say about windows; timers know what was taken.
    v_more := null;
    execute replace($x$
        select array_agg((d.msg_id, d.enqueued_at, d.attempt, d.payload, d.headers, d.history, null, null)::mq._taken), array_agg(d.due_at)
        from (
            select x.* from mq.deferred_{q}_0 as x
            left join mq.timer_{q}_0 as t on t.xid = x.xid and t.msg_id = x.msg_id
            left join (select * from mq.promotion_{q}_0 order by no desc limit 1) as p on true
            where t.msg_id is null or p.no is null or (t.due_at, t.xid, t.msg_id) > (p.due_at, p.due_xid, p.due_id)
            union all
            select x.* from mq.deferred_{q}_1 as x
            left join mq.timer_{q}_1 as t on t.xid = x.xid and t.msg_id = x.msg_id
            left join (select * from mq.promotion_{q}_1 order by no desc limit 1) as p on true
            where t.msg_id is null or p.no is null or (t.due_at, t.xid, t.msg_id) > (p.due_at, p.due_xid, p.due_id)) as d
        $x$, '{q}', q.queue_id::text) into v_more, v_due;
    execute replace('truncate mq.deferred_{q}_0, mq.timer_{q}_0, mq.promotion_{q}_0, mq.deferred_{q}_1, mq.timer_{q}_1, mq.promotion_{q}_1',
                    '{q}', q.queue_id::text);

    -- Sequences are not copied by logical replication.
    perform setval(q.msg_ids, greatest(coalesce(pg_sequence_last_value(q.msg_ids), 1),
                                       (select max(m.msg_id) from unnest(v_kept || v_more) as m),
                                       (select max(d.msg_id) from mq.dead_letter as d where d.queue_id = q.queue_id)));
    perform setval(q.notified, 1);
    perform mq._set_register(q.register, v_open, v_open, 0, false);
    if cardinality(v_kept) > 0 then
        execute 'insert into mq.log_' || q.queue_id || '_' || v_open || ' (msg_id, enqueued_at, attempt, payload, headers, history)'
            ' select m.msg_id, m.enqueued_at, m.attempt, m.payload, m.headers, m.history from unnest($1) as m order by m.msg_id' using v_kept;
    end if;
    if v_more is not null then
        perform mq._defer(q.queue_id, q.register, v_more, v_due);
    end if;
    update mq.queue as x set home_relation = 'mq.queue'::regclass::oid, home_system = mq._system_identifier()
    where x.queue_id = q.queue_id;
end $f$;
