-- The branch of _ack_0 for one slot: acknowledges a whole lease that nothing has happened to yet. The receipt p_ack has
-- the right form; numbers that are too long are cut, so that they can be read. The differences are there so that the
-- planner does not put what p_ack says in their place, and take it apart once more.
create or replace function mq._template_ack() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
                    insert into mq.settlement_{t} (subscription, lane, block_no, slice, part, seq, final, outcome, n)
                    select x.subscription, x.lane, x.block_no, x.slice, x.part, 1, true, 'acked', x.total from mq.lease_{t} as x
                    where x.subscription = 1 and x.lane = 0 and x.block_no = left(split_part(p_ack, '.', 5), 18)::bigint
                      and x.slice = left(split_part(p_ack, '.', 6), 9)::int and x.part = left(split_part(p_ack, '.', 7), 9)::int
                      and x.head_slice - x.slice = 0 and x.head_part - x.part = 0 and x.token::text = split_part(p_ack, '.', 9)
                    on conflict do nothing returning n into v_count;
            $x$;
end $f$;

-- _ack_<slot>, _settle_<slot>, _extend_<slot>: what becomes of a lease. The fence is the settlement's primary key: who
-- inserts the next seq of a lease first wins, the other looks again.
create or replace function mq._template_settle() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
-- Acknowledges a whole lease that nothing has happened to yet, in one statement; null if it is not so. p is the receipt,
-- split, its numbers checked.
create or replace function mq._ack_{t}(p text[]) returns int
language plpgsql as $$
declare
    v_count int;
begin
    insert into mq.settlement_{t} (subscription, lane, block_no, slice, part, seq, final, outcome, n)
    select x.subscription, x.lane, x.block_no, x.slice, x.part, 1, true, 'acked', x.total from mq.lease_{t} as x
    where x.subscription = 1 and x.lane = p[4]::smallint and x.block_no = p[5]::bigint and x.slice = p[6]::int and x.part = p[7]::int
      and x.head_slice = x.slice and x.head_part = x.part and x.token::text = p[9]
    on conflict do nothing returning n into v_count;
    return v_count;
end $$;

-- The messages of a lease.
create or replace function mq._leased_{t}(p_sub smallint, p_lane smallint, p_block_no bigint, p_slice int, p_part int) returns setof mq._taken
language plpgsql as $$
begin
    return query
        select m.msg_id, m.enqueued_at, m.attempt::int, m.payload, m.headers, m.extra, null::text, null::timestamptz, p_lane
        from mq.block_{t} as b
        cross join lateral (
            select * from mq.lease_{t} as x
            where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no
              and x.head_slice = p_slice and x.head_part = p_part
            order by x.subscription, x.lane, x.block_no, x.slice, x.part limit 65536) as e
        cross join lateral (
            select * from mq.log_{t} as x
            where x.lane = case when e.slice < b.born then -1 - p_lane else p_lane end and (x.xid, x.msg_id) >= (e.first_xid, e.first_id)
            order by x.lane, x.xid, x.msg_id limit e.n) as m
        where b.subscription = p_sub and b.lane = p_lane and b.block_no = p_block_no;
end $$;

-- Settles what is left of a lease, or the given messages of it, and returns them. None: the lease is lost, or nothing
-- of it is left. What it returns as due_at is the deadline of the lease. Outcome "expired" looks at the deadline in the
-- round that decides, so it never overrules an extend. Of what is taken back, at most about 64 MB are, for it becomes one
-- array, and the rest by another call; once a part of a lease ran out, the lease is lost to its consumer as a whole.
create or replace function mq._settle_{t}(p_sub smallint, p_lane smallint, p_block_no bigint, p_slice int, p_part int, p_token bigint, p_outcome text, p_ids bigint[])
returns setof mq._taken language plpgsql as $$
declare
    v_until  timestamptz;
    s        record;
    v_ids    bigint[];
    v_left   bigint;
    v_seq    int;
begin
    select x.leased_until into v_until from mq.lease_{t} as x
    where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no and x.slice = p_slice and x.part = p_part
      and x.head_slice = x.slice and x.head_part = x.part and x.token = p_token;
    if not found then
        return;
    end if;
    loop
        select coalesce(max(x.seq), 0) as seq, coalesce(bool_or(x.final), false) as final, max(x.leased_until) as leased_until,
               coalesce(bool_or(x.outcome in ('expired', 'hole')), false) as ran_out,
               coalesce((select range_agg(y) from mq.settlement_{t} as z, unnest(z.msg_ids) as y
                         where z.subscription = p_sub and z.lane = p_lane and z.block_no = p_block_no and z.slice = p_slice and z.part = p_part),
                        '{}') as msg_ids
          into s from mq.settlement_{t} as x
        where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no and x.slice = p_slice and x.part = p_part;
        if s.final or (s.ran_out and p_outcome not in ('expired', 'hole')) or (p_outcome = 'expired' and coalesce(s.leased_until, v_until) >= clock_timestamp()) then
            return;
        end if;
        if p_outcome in ('acked', 'moved') then
            select array_agg(x.msg_id) filter (where p_ids is null or x.msg_id = any (p_ids)), count(*) into v_ids, v_left
            from mq._leased_{t}(p_sub, p_lane, p_block_no, p_slice, p_part) as x where not x.msg_id <@ s.msg_ids;
        else
            select array_agg(y.msg_id) filter (where y.is_wanted and y.bytes_before < 67108864), count(*) into v_ids, v_left
            from (select x.msg_id, p_ids is null or x.msg_id = any (p_ids) as is_wanted,
                         coalesce(sum(pg_column_size(x.payload) + coalesce(pg_column_size(x.headers), 0)) filter (where p_ids is null or x.msg_id = any (p_ids))
                                  over (order by x.msg_id rows between unbounded preceding and 1 preceding), 0) as bytes_before
                  from mq._leased_{t}(p_sub, p_lane, p_block_no, p_slice, p_part) as x where not x.msg_id <@ s.msg_ids) as y;
        end if;
        if v_ids is null then
            return;
        end if;
        insert into mq.settlement_{t} (subscription, lane, block_no, slice, part, seq, final, outcome, n, msg_ids)
        select p_sub, p_lane, p_block_no, p_slice, p_part, s.seq + 1, v_left = cardinality(v_ids), p_outcome, cardinality(v_ids),
               (select range_agg(int8range(i, i, '[]')) from unnest(v_ids) as i)
        on conflict do nothing returning seq into v_seq;
        exit when v_seq is not null;
    end loop;
    return query
        select x.msg_id, x.enqueued_at, x.attempt, case when p_outcome <> 'acked' then x.payload end,
               case when p_outcome <> 'acked' then x.headers end, x.extra, p_outcome, coalesce(s.leased_until, v_until), p_lane
        from mq._leased_{t}(p_sub, p_lane, p_block_no, p_slice, p_part) as x where x.msg_id = any (v_ids);
end $$;

-- Moves the deadline of a lease, never to an earlier time; null if it is lost.
create or replace function mq._extend_{t}(p_sub smallint, p_lane smallint, p_block_no bigint, p_slice int, p_part int, p_token bigint, p_vt interval) returns timestamptz
language plpgsql as $$
declare
    v_until timestamptz;
begin
    loop
        insert into mq.settlement_{t} (subscription, lane, block_no, slice, part, seq, final, outcome, n, leased_until)
        select p_sub, p_lane, p_block_no, p_slice, p_part, s.seq + 1, false, 'extended', 0,
               greatest(clock_timestamp() + p_vt, l.leased_until, s.leased_until)
        from mq.lease_{t} as l
        cross join lateral (
            select coalesce(max(x.seq), 0) as seq, coalesce(bool_or(x.final or x.outcome in ('expired', 'hole')), false) as final, max(x.leased_until) as leased_until
            from mq.settlement_{t} as x
            where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no and x.slice = p_slice and x.part = p_part) as s
        where l.subscription = p_sub and l.lane = p_lane and l.block_no = p_block_no and l.slice = p_slice and l.part = p_part
          and l.head_slice = l.slice and l.head_part = l.part and l.token = p_token and not s.final
        on conflict do nothing returning leased_until into v_until;
        if v_until is not null then
            return v_until;
        end if;
        if not exists (select from mq.lease_{t} as l where l.subscription = p_sub and l.lane = p_lane and l.block_no = p_block_no
                         and l.slice = p_slice and l.part = p_part and l.head_slice = l.slice and l.head_part = l.part and l.token = p_token)
            or exists (select from mq.settlement_{t} as x where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no
                         and x.slice = p_slice and x.part = p_part and (x.final or x.outcome in ('expired', 'hole')))
        then
            return null;
        end if;
    end loop;
end $$;

-- Whether every message of a block was leased and finally settled. A rolled-back claim leaves a hole: not settled.
create or replace function mq._is_settled_{t}(p_sub smallint, p_lane smallint, p_block_no bigint) returns boolean
language plpgsql as $$
declare
    l record;
begin
    select count(*) filter (where x.rest = 0) as slices, count(*) filter (where x.slice = x.head_slice and x.part = x.head_part) as leases
      into l from mq.lease_{t} as x where x.subscription = p_sub and x.lane = p_lane and x.block_no = p_block_no;
    return l.slices = (select cardinality(b.counts) from mq.block_{t} as b where b.subscription = p_sub and b.lane = p_lane and b.block_no = p_block_no)
       and l.leases = (select count(*) from mq.settlement_{t} as s
                       where s.subscription = p_sub and s.lane = p_lane and s.block_no = p_block_no and s.final);
end $$;
    $x$;
end $f$;
