create or replace function mq.queue_stats(queue text default null) returns setof mq.queue_statistics
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
declare
    q       mq.queue;
    m       record;
    v       mq.queue_statistics;
    v_slot  int;
    a_slots int[];
    v_count bigint;
    v_oldest timestamptz;
begin
    if queue_stats.queue is not null then
        perform mq._queue(queue_stats.queue);
    end if;
    for q in select * from mq.queue as x where (queue_stats.queue is null or x.name = queue_stats.queue) and pg_sequence_last_value(x.register) > 0 order by x.name loop
        -- What is drained is in the tally, however long it is kept: one snapshot says which are.
        select coalesce(sum(t.delivered), 0), coalesce(sum(t.settled), 0),
               array(select g.slot from mq.segment as g where g.queue_id = q.queue_id and g.drained_at is null
                     union select y.slot from mq.slot as y where y.queue_id = q.queue_id and y.slot = pg_sequence_last_value(q.register) & 65535),
               (select count(*) from mq.segment as g where g.queue_id = q.queue_id and g.drained_at is not null)
          into v.delivered_total, v.settled_total, a_slots, v.segments
        from mq.tally as t where t.queue_id = q.queue_id;
        v.ready := 0;
        v.deferred := 0;
        v.leased := (select count(*) from mq.survivor as y where y.queue_id = q.queue_id);
        v.oldest_ready_age := null;
        foreach v_slot in array a_slots loop
            select * into m from mq._count_slot(q.queue_id, v_slot);
            v.ready := v.ready + m.messages - m.leased;
            v.leased := v.leased + m.leased - m.settled;
            v.delivered_total := v.delivered_total + m.delivered;
            v.settled_total := v.settled_total + m.acked;
            v.segments := v.segments + 1;
            v.oldest_ready_age := greatest(v.oldest_ready_age, clock_timestamp() - m.oldest);
        end loop;
        for v_generation in 0 .. 1 loop
            select * into m from mq._count_deferral(q.queue_id, v_generation);
            v.ready := v.ready + m.due;
            v.deferred := v.deferred + m.waiting - m.due;
            v.oldest_ready_age := greatest(v.oldest_ready_age, clock_timestamp() - m.oldest);
        end loop;
        execute format('select count(*), min(p.enqueued_at) from mq.parked_%s as p where p.lane is not null', q.queue_id) into v_count, v_oldest;
        v.ready := v.ready + v_count;
        v.oldest_ready_age := greatest(v.oldest_ready_age, clock_timestamp() - v_oldest);
        v.queue := q.name;
        v.dead := (select count(*) from mq.dead_letter as d where d.queue_id = q.queue_id);
        select count(*) filter (where x.due_at > clock_timestamp()) as deferred, count(*) as n into m from mq.cancelled as x
        where x.queue_id = q.queue_id and (x.generation is null or exists (select from mq.timetable as s where s.generation = x.generation));      -- else it is not counted above
        v.deferred := v.deferred - m.deferred;
        v.ready := v.ready - (m.n - m.deferred);
        if mq._uses_ttl(q.queue_id) then
            select count(*) filter (where x.expired_at is not null) as expired,
                   min(coalesce(x.due_at, x.enqueued_at)) filter (where x.state = 'ready' and x.expired_at is null) as oldest
            into m from mq._messages(q) as x;
            v.ready := v.ready - m.expired;
            v.dead := v.dead + m.expired;
            v.oldest_ready_age := clock_timestamp() - m.oldest;
        end if;
        v.enqueued_total := coalesce(pg_sequence_last_value(q.msg_ids), 0);
        v.bytes := (
            select sum(pg_total_relation_size(to_regclass('mq.' || x.relation)))
            from (select t || '_' || y.queue_id || '_' || y.slot as relation
                  from mq.slot as y, unnest(array['log', 'block', 'lease', 'settlement', 'taken', 'mark']) as t where y.queue_id = q.queue_id
                  union all
                  select t || '_' || q.queue_id || '_' || g
                  from generate_series(0, 1) as g, unnest(array['deferred', 'timer', 'promotion']) as t
                  union all
                  select t || '_' || q.queue_id from unnest(array['parked', 'line', 'key', 'turn']) as t) as x);
        v.paused := q.paused;
        -- A minute late means that nobody calls maintain().
        v.maintenance_overdue := exists (
            select from mq.segment as g where g.queue_id = q.queue_id
              and (g.closed_at is null and g.opened_at < clock_timestamp() - q.segment_age - interval '1 minute' and mq._wants_rotation(q.queue_id)
                   or g.closed_at < clock_timestamp() - interval '10 minutes' and g.sealed_at is null));
        return next v;
    end loop;
end $$;

comment on function mq.queue_stats(text) is
'Counts what is in the queues. Reads them whole: every few seconds is fine, every few milliseconds is not. What moves while it counts may be in two of its figures, or in none; in REPEATABLE READ all of them are of one moment.
queue: its name; default all queues.
Returns: queue, ready, deferred, leased (in mode transaction: taken by open transactions), dead, oldest_ready_age, enqueued_total (ids given out, those rolled back too), delivered_total, settled_total (acknowledged; these two count a message again each time that it was rewound), segments, bytes (of those that are kept, too), paused, maintenance_overdue (nobody calls maintain()).
Raises: MQ001 no such queue.
Role: mq_producer, mq_consumer.';
