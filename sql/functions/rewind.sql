create or replace function mq.rewind(queue text, to_time timestamptz default null, to_msg_id bigint default null) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_nestloop = off set jit = off set lock_timeout = '10s' as $f$
declare
    q       mq.queue := mq._queue(rewind.queue, false);
    v_count bigint;
    a_lanes smallint[];
    v_is_keyed boolean;
begin
    perform mq._check_isolation('rewind');
    if num_nonnulls(rewind.to_time, rewind.to_msg_id) <> 1 then
        perform mq._invalid('to_time', 'Not just one of to_time and to_msg_id is given.', 'Give one of them.');
    end if;
    -- Upkeep's lock: so nothing is dropped, and no other segment opened, between this look and the commit; and one rewind
    -- comes after the other, and sees what that has put back. All that follows is one statement, and what it finds
    -- acknowledged stays so: nobody but a rewind makes such a message wait again.
    perform pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(q.queue_id, -3));
    select * into q from mq.queue as x where x.queue_id = q.queue_id;
    if not found then
        perform mq._queue_not_found(rewind.queue);      -- dropped meanwhile
    end if;
    perform mq._mend_segments(q.queue_id, q.register);
    perform mq._check_kept(q, rewind.to_time, rewind.to_msg_id);
    -- As enqueue_batch does it; with its priority, but no ttl. The last delivery counts: what was rewound before and rejected
    -- then is not acknowledged now.
    execute format($x$
        with l as materialized (
            select x.* from (select distinct on (s.msg_id) s.* from mq._settled($1, $2, $3, null) as s order by s.msg_id, s.settled_at desc) as x
            where x.state = 'completed'
              and not exists (select from mq._messages($1) as m where m.msg_id = x.msg_id)
              and not exists (select from mq.dead_letter as d where d.queue_id = ($1).queue_id and d.msg_id = x.msg_id)
              and not exists (select from mq.cancelled as c where c.queue_id = ($1).queue_id and c.msg_id = x.msg_id)),
        keyed as (
            insert into mq.parked_%1$s (event, ordering_key, enqueued_at, payload, headers, lane, extra)
            select l.msg_id, l.extra ->> 'k', l.enqueued_at, l.payload, l.headers, l.lane,
                   jsonb_build_object('k', l.extra ->> 'k', 'h', coalesce(l.extra -> 'h', '[]') || jsonb_build_object('outcome', 'rewound', 'at', clock_timestamp()))
            from l where l.extra ? 'k'
            returning lane),
        back as (
            insert into mq.log_%1$s_%2$s (msg_id, enqueued_at, payload, headers, lane, extra)
            select l.msg_id, l.enqueued_at, l.payload, l.headers, l.lane,
                   jsonb_build_object('h', coalesce(l.extra -> 'h', '[]') || jsonb_build_object('outcome', 'rewound', 'at', clock_timestamp()))
            from l where (l.extra ? 'k') is not true
            order by l.msg_id
            returning lane)
        select count(*), array_agg(distinct b.lane), bool_or(b.is_keyed) from (select lane, false as is_keyed from back union all select lane, true from keyed) as b
        $x$, q.queue_id, pg_sequence_last_value(q.register) & 65535) into v_count, a_lanes, v_is_keyed using q, rewind.to_time, rewind.to_msg_id;
    perform mq._use_lane(q.queue_id, q.register, q.lanes, x, has_order => v_is_keyed and x >= 10) from unnest(a_lanes) as x;
    -- As with redrive: it is not refused, but new messages have less room.
    perform mq._enter(q.queue_id, v_count) where q.max_depth is not null;
    if v_count > 0 then
        perform mq._notify(q.queue_id, q.name, q.notify, q.notified);
    end if;
    return v_count;
end $f$;

-- Refuses what is not kept, or not any more. Nothing is said where nothing was dropped.
create or replace function mq._check_kept(q mq.queue, to_time timestamptz, to_msg_id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    m record;
begin
    if q.retention = '0' then
        perform mq._invalid('queue', format('Queue "%s" keeps nothing: its retention is 0.', q.name),
                            format('Set it, for what is settled from then on: select mq.alter_queue(%L, retention => ''7 days'').', q.name));
    end if;
    select max(t.forgotten_until) as until, max(t.forgotten_id) as id into m from mq.tally as t where t.queue_id = q.queue_id;
    if _check_kept.to_time <= m.until then
        perform mq._invalid('to_time', format('Only what was enqueued after %s is still kept.', m.until),
                            'Rewind to a later time. A longer retention keeps more.');
    elsif _check_kept.to_msg_id <= m.id then
        perform mq._invalid('to_msg_id', format('Only messages from %s on are still kept.', m.id + 1),
                            'Rewind to a later message. A longer retention keeps more.');
    end if;
end $$;

comment on function mq.rewind(text, timestamptz, bigint) is
'Delivers again what was acknowledged, from a time or a message on, as far as it is kept: in order of msg_id, each with its msg_id, headers, priority and ordering_key, its attempts counted from 1. What waits, is leased or delayed stays as it is; dead letters are left to redrive. The more it is the longer it takes, in one transaction, while upkeep of the queue waits.
queue: its name. It must have a retention.
to_time: messages that were enqueued then or later. to_msg_id: messages with this number or a higher one. One of the two.
Returns: how many.
Raises: MQ001 no such queue; 22023 neither or both, a retention of 0, or some of it was dropped already (the detail says what is kept); 55P03 the queue is being maintained; 0A000 not in READ COMMITTED.
Role: mq_admin.';
