-- _take_<slot>: leases up to n messages of a lane of this slot, or returns none.
--
-- Two consumers never meet: a slice is taken under an advisory lock that is only ever tried (this engine's SKIP
-- LOCKED) and held to the end of the transaction, so a lease that is not committed yet is seen as a taken lock, and
-- one that is committed as a row: the lease's primary key decides, in a statement with a snapshot newer than the lock.
create or replace function mq._template_take() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
create or replace function mq._take_{t}(p_sub smallint, p_lane smallint, p_n int, p_vt interval, p_fresh boolean, p_due boolean, p_give_up timestamptz)
returns setof mq.delivery language plpgsql as $$
declare
    c_class constant int := {class};
    b       record;
    g       int;
    v_own   boolean;
    v_count int;
    v_token uuid;
    v_until timestamptz;
    v_ready boolean;
    v_had   boolean := pg_current_xact_id_if_assigned() is not null;
begin
    for v_round in 1 .. 100 loop
        select x.*, l.slice as last_slice, l.rest as last_rest, cardinality(x.counts) as slices into b
        from (select y.* from mq.block_{t} as y where y.subscription = p_sub and y.lane = p_lane
              order by y.subscription desc, y.lane desc, y.block_no desc limit 1) as x
        left join lateral (
            select z.slice, z.rest from mq.lease_{t} as z
            where z.subscription = p_sub and z.lane = p_lane and z.block_no = x.block_no
            order by z.subscription desc, z.lane desc, z.block_no desc, z.slice desc, z.part desc limit 1) as l on true;

        if b.block_no is not null then
            -- The slices of a block of our own need no locks: nobody else can see it.
            v_own := b.xid is not distinct from pg_current_xact_id_if_assigned();
            g := coalesce(b.last_slice, -1) + 1;

            -- The common case: the next fresh slice is just what is wanted.
            while coalesce(b.last_rest, 0) = 0 and g < b.slices
                and (b.counts[g + 1] = p_n or (b.counts[g + 1] < p_n and g = b.slices - 1))
            loop
                if v_own or pg_try_advisory_xact_lock(c_class, (hashint8extended(b.block_no * 65536 + g, {seed}) & 2147483647)::int) then
                    if v_had and not v_own then
                        perform mq._count_claim();
                    end if;
                    v_token := gen_random_uuid();
                    v_until := clock_timestamp() + p_vt;
                    return query
                        with claim as (
                            insert into mq.lease_{t} as e (subscription, lane, block_no, slice, part, head_slice, head_part, n, total, rest,
                                                           first_id, first_xid, leased_until, token)
                            values (p_sub, p_lane, b.block_no, g, 0, g, 0, b.counts[g + 1], b.counts[g + 1], 0,
                                    b.first_ids[g + 1], b.first_xids[g + 1], v_until, v_token)
                            on conflict do nothing returning 1)
                        select m.msg_id,
                               '{q}.{k}.' || p_sub || '.' || p_lane || '.' || b.block_no || '.' || g || '.0.'
                                   || pg_current_xact_id()::text || '.' || v_token::text,
                               m.attempt::int, m.enqueued_at, v_until, m.payload, m.headers
                        from (select * from mq.log_{t} as l
                              where l.lane = case when g < b.born then -1 - p_lane else p_lane end
                                and (l.xid, l.msg_id) >= (b.first_xids[g + 1], b.first_ids[g + 1])
                              order by l.lane, l.xid, l.msg_id limit b.counts[g + 1]) as m
                        where exists (select from claim);
                    get diagnostics v_count = row_count;
                    if v_count > 0 then
                        return;
                    end if;
                end if;
                g := g + 1;
            end loop;

            -- Slices that are smaller or bigger than n; then the holes that a rollback left, and what is left of slices
            -- that were begun.
            if g < b.slices or b.last_rest > 0 then
                return query select * from mq._gather_{t}(p_sub, p_lane, b.block_no,
                    array(select generate_series(g - (coalesce(b.last_rest, 0) > 0)::int, b.slices - 1)), v_own, v_had, p_n, p_vt);
                get diagnostics v_count = row_count;
                if v_count > 0 then
                    return;
                end if;
            end if;
            if (select count(*) from mq.lease_{t} as z where z.subscription = p_sub and z.lane = p_lane and z.block_no = b.block_no and z.rest = 0) < b.slices then
                return query select * from mq._gather_{t}(p_sub, p_lane, b.block_no,
                    array(select s from generate_series(0, b.slices - 1) as s
                          where not exists (select from mq.lease_{t} as z where z.subscription = p_sub and z.lane = p_lane and z.block_no = b.block_no
                                              and z.slice = s and z.rest = 0)), v_own, v_had, p_n, p_vt);
                get diagnostics v_count = row_count;
                if v_count > 0 then
                    return;
                end if;
            end if;
        end if;

        -- Nothing is free. Look before locking: a lock taken for nothing would stay to the end of the transaction.
        v_ready := mq._look_{t}(p_lane, b.prev, b.cur, p_fresh, p_due);
        if v_ready is null then
            perform mq._repair({q});
            return;
        elsif not v_ready then
            return;
        end if;
        -- Take the lane and look again, with a snapshot newer than the lock; where there is nothing to open after
        -- all, the subtransaction gives the lock back.
        v_ready := false;
        begin
            if pg_try_advisory_xact_lock(c_class, (hashint8extended(-1, {seed} + p_lane) & 2147483647)::int) then
                v_ready := not exists (select from mq.block_{t} as x where x.subscription = p_sub and x.lane = p_lane and x.block_no > coalesce(b.block_no, 0))
                    and mq._look_{t}(p_lane, b.prev, b.cur, p_fresh, p_due);
                if not v_ready then
                    raise exception using errcode = 'MQ000';
                end if;
            elsif clock_timestamp() > p_give_up then
                return;
            else
                perform mq._wait_for_lane(c_class, (hashint8extended(-1, {seed} + p_lane) & 2147483647)::int);
            end if;
        exception
            when sqlstate 'MQ000' then
                null;
        end;
        if v_ready and not mq._open_{t}(p_sub, p_lane, p_n, p_fresh, p_due, null) then
            return;
        end if;
    end loop;
end $$;
    $x$;
end $f$;

-- Every claim of another's slice keeps a lock to the end of the transaction, and the lock table is finite.
create or replace function mq._count_claim() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_claims int := coalesce(nullif(current_setting('mq.claims', true), ''), '0')::int + 1;
begin
    if v_claims > 1000 then
        perform mq._too_many_claims();
    end if;
    perform set_config('mq.claims', v_claims::text, true);
end $$;
