-- _expire_<slot>: buries what was not delivered in time. Only messages with a ttl have extra.e, and only lanes above 0 have
-- such messages. Whoever opens a block looks through it once; who claims looks at what he claimed, by a clock that is newer
-- than the lease, so nothing is delivered late.
create or replace function mq._template_expire() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
-- Free slices, or what is free of them, of which every message expired are leased to nobody, settled and buried. Who is about to lease one
-- has its lock, which is only tried; the lease's primary key decides.
create or replace function mq._expire_{t}(p_sub smallint, p_lane smallint, p_block_no bigint) returns void
language plpgsql as $$
declare
    c_class constant int := {class};
    v_now   constant bigint := mq._microseconds(clock_timestamp());
    b       record;
    a_slice int[];      a_part  int[];      a_n     int[];
    a_xid   xid8[];     a_id    bigint[];
    v_dead  mq._taken[];
begin
    select x.born, x.first_xids, x.first_ids, x.counts, x.xid is not distinct from pg_current_xact_id_if_assigned() as is_own into b
    from mq.block_{t} as x where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no;
    select array_agg(f.g), array_agg(f.part), array_agg(f.n), array_agg(f.xid), array_agg(f.id) into a_slice, a_part, a_n, a_xid, a_id
    from (select g, coalesce(e.part + 1, 0) as part, coalesce(e.rest, b.counts[g + 1]) as n,
                 coalesce(e.rest_xid, b.first_xids[g + 1]) as xid, coalesce(e.rest_id, b.first_ids[g + 1]) as id
          from generate_series(0, cardinality(b.counts) - 1) as g
          left join lateral (
            select x.part, x.rest, x.rest_xid, x.rest_id from mq.lease_{t} as x
            where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no and x.slice = g
            order by x.subscription desc, x.lane desc, x.block_no desc, x.slice desc, x.part desc limit 1) as e on true) as f
    where f.n > 0 and not exists (
        select from (select x.extra from mq.log_{t} as x
                     where x.lane = case when f.g < b.born then -1 - p_lane else p_lane end and (x.xid, x.msg_id) >= (f.xid, f.id)
                     order by x.lane, x.xid, x.msg_id limit f.n) as m
        where (m.extra ->> 'e')::bigint <= v_now is not true offset 0);
    with won as (
        insert into mq.lease_{t} as e (subscription, lane, block_no, slice, part, head_slice, head_part, n, total, rest,
                                       first_id, first_xid, leased_until)
        select p_sub, p_lane, p_block_no, u.g, u.part, u.g, u.part, u.n, u.n, 0, u.id, u.xid, '-infinity'
        from unnest(a_slice, a_part, a_n, a_xid, a_id) as u (g, part, n, xid, id)
        where b.is_own or pg_try_advisory_xact_lock(c_class, (hashint8extended(p_block_no * 65536 + u.g, {seed} + p_lane) & 2147483647)::int)
        on conflict do nothing returning e.slice, e.part, e.n, e.first_xid, e.first_id),
    settled as (
        insert into mq.settlement_{t} (subscription, lane, block_no, slice, part, seq, final, outcome, n)
        select p_sub, p_lane, p_block_no, w.slice, w.part, 1, true, 'undelivered', w.n from won as w),
    late as materialized (
        select m.* from won as w
        cross join lateral (
            select * from mq.log_{t} as x
            where x.lane = case when w.slice < b.born then -1 - p_lane else p_lane end and (x.xid, x.msg_id) >= (w.first_xid, w.first_id)
            order by x.lane, x.xid, x.msg_id limit w.n) as m),
    buried as (
        insert into mq.dead_letter (queue_id, msg_id, enqueued_at, attempts, reason, history, payload, headers, lane, ordering_key)
        select {q}, m.msg_id, m.enqueued_at, m.attempt - 1, 'expired', coalesce(m.extra -> 'h', '[]'), m.payload, m.headers, p_lane, m.extra ->> 'k'
        from late as m
        on conflict do nothing)
    select array_agg((m.msg_id, null, null, null, null, m.extra, null, null, null)::mq._taken) into v_dead from late as m where m.extra ?| '{d,k}';
    perform mq._end({q}, v_dead) where v_dead is not null;
end $$;
    $x$;
end $f$;

create or replace function mq._microseconds(at timestamptz) returns bigint
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return (extract(epoch from _microseconds.at) * 1000000)::bigint;
end $$;

-- Messages of a lease that expired before it.
create or replace function mq._bury_undelivered(queue_id int, taken mq._taken[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    insert into mq.dead_letter (queue_id, msg_id, enqueued_at, attempts, reason, history, payload, headers, lane, ordering_key)
    select _bury_undelivered.queue_id, t.msg_id, t.enqueued_at, t.attempt - 1, 'expired', coalesce(t.extra -> 'h', '[]'), t.payload, t.headers, t.lane, t.extra ->> 'k'
    from unnest(_bury_undelivered.taken) as t
    on conflict do nothing;
    perform mq._end(_bury_undelivered.queue_id, _bury_undelivered.taken);
end $$;
