-- The branches of _take_one_0 and _claim_0 for one slot: the common case of a dequeue, in a single statement. It draws a
-- ticket of the current block and leases that slice if its lock is free. One message is delivered by the same statement;
-- of more, _read_0 delivers what the claim names. A ticket drawn in vain comes back in place of the receipt.
--
-- The statement's snapshot is older than the lock. That is safe here, and only here: what was leased since is seen by
-- ON CONFLICT, which looks at the index as it is now, and the messages of a block were committed before the block was.
--
-- A third of its time is making its plan ready, node by node, function by function and column by column (each column that a
-- node hands on is a look into a catalogue cache, which is cold with many sessions). So it has few: the ticket is drawn in
-- the select list above LIMIT 1, so for the one block that is found; what cannot be had is told by nulls, not by a filter
-- of its own; and the token, a default of the lease, comes back from its INSERT.
create or replace function mq._template_take_one() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    -- Its slices are single messages, which their position names.
    return mq._template_claim('1', '1', '', '', $x$
                           case when m.msg_id is not null
                                then row(m.msg_id, concat('{q}.{k}.1.0.', d.block_no, '.', d.g, '.0.', pg_current_xact_id(), '.', c.token),
                                         m.attempt, m.enqueued_at, d.leased_until, m.payload, m.headers)::mq.delivery
                                else row(null, d.first_ticket + d.g, null, null, null, null, null)::mq.delivery end$x$, $x$
                left join lateral (
                    select l.msg_id, l.attempt, l.enqueued_at, l.payload, l.headers from mq.log_{t} as l
                    where l.lane = case when c.token is not null then case when d.g < d.born then -1 else 0 end end
                      and l.xid = d.xid and l.msg_id = d.msg_id) as m on true$x$);
end $f$;

create or replace function mq._template_claim_many() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return mq._template_claim('p_n', 'd.n', ' y.counts,', ' c.counts[c.g + 1] as n,', $x$
                           case when c.token is not null
                                then row(d.n, case when d.g < d.born then -1 else 0 end, d.xid, d.msg_id,
                                         concat('{q}.{k}.1.0.', d.block_no, '.', d.g, '.0.', pg_current_xact_id(), '.', c.token), d.leased_until)::mq._claim
                                else row(null, null, null, null, d.first_ticket + d.g, null)::mq._claim end$x$, '');
end $f$;

create or replace function mq._template_claim(n text, count text, counts text, counted text, result text, messages text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return replace(replace(replace(replace(replace(replace($x$
            if pg_sequence_last_value('mq.last_ticket_{t}') & 16383 = {n}
                and pg_sequence_last_value('mq.ticket_{t}') < pg_sequence_last_value('mq.last_ticket_{t}') >> 14
            then
                with drawn as materialized (
                    select c.block_no, c.g, c.first_ticket, c.born, c.first_xids[c.g + 1] as xid, c.first_ids[c.g + 1] as msg_id,{counted} clock_timestamp() + p_vt as leased_until,
                           case when c.g >= 0 and c.g < cardinality(c.first_ids)
                                then pg_try_advisory_xact_lock({class}, (hashint8extended(c.block_no * 65536 + c.g, {seed}) & 2147483647)::int) end as is_free,
                           c.g = cardinality(c.first_ids) / 8 and c.g > 1 as is_early
                    from (select y.block_no, y.first_ticket, y.born, y.first_xids, y.first_ids,{counts}
                                 case when y.size = {n} and coalesce(pg_sequence_last_value('mq.ticket_{t}'), 0) < y.first_ticket + cardinality(y.first_ids) - 1
                                      then (nextval('mq.ticket_{t}') - y.first_ticket)::int end as g
                          from mq.block_{t} as y
                          where y.subscription = 1 and y.lane = 0 and y.first_ticket <= coalesce(pg_sequence_last_value('mq.ticket_{t}'), 0) + 1
                          order by y.subscription desc, y.lane desc, y.block_no desc limit 1) as c),
                claim as (
                    insert into mq.lease_{t} (subscription, lane, block_no, slice, part, head_slice, head_part, n, total, rest,
                                              first_id, first_xid, leased_until)
                    select 1, 0, d.block_no, d.g, 0, d.g, 0, {count}, {count}, 0, d.msg_id, d.xid, d.leased_until from drawn as d where d.is_free
                    on conflict do nothing returning token)
                select d.is_early and c.token is not null as opens,{result} as taken
                into r from drawn as d left join claim as c on true{messages};
                if r.opens then
                    -- What is fresh comes from the oldest segment, what is due is born into the open one.
                    perform mq._open_ahead_{t}(1::smallint, 0::smallint, {n}, (pg_sequence_last_value('mq.register_{q}') >> 16) & 32767 = {k},
                        pg_sequence_last_value('mq.register_{q}') & 65535 = {k});
                end if;
                return r.taken;
            end if;
            $x$, '{counts}', counts), '{counted}', counted), '{count}', count), '{n}', n), '{result}', result), '{messages}', messages);
end $f$;

-- The branch of _read_0 for one slot: the messages of a claim.
create or replace function mq._template_read() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
            return query
                select m.msg_id, p_claim.receipt, m.attempt::int, m.enqueued_at, p_claim.leased_until, m.payload, m.headers
                from mq.log_{t} as m
                where m.lane = p_claim.lane and (m.xid, m.msg_id) >= (p_claim.xid, p_claim.msg_id)
                order by m.lane, m.xid, m.msg_id limit p_claim.n;
            return;
            $x$;
end $f$;

-- _take_<slot>: leases up to n messages of a lane of this slot, or returns none. p_ticket was drawn already, and in vain;
-- p_had: the transaction has written before.
--
-- Tickets are drawn one after the other, through the blocks in turn: the current block is the newest whose first ticket
-- was reached. Whoever draws the ticket an eighth into a block opens the next one behind it, so that there is no moment
-- at which all consumers wait for one. A block opened by who found nothing takes the next ticket for its first.
--
-- Two consumers never meet: a slice is taken under an advisory lock that is only ever tried (this engine's SKIP
-- LOCKED) and held to the end of the transaction, so a lease that is not committed yet is seen as a taken lock, and
-- one that is committed as a row: the lease's primary key decides, in a statement with a snapshot newer than the lock.
create or replace function mq._template_take() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
-- The position of the first of these lanes in which _take_ might find something here: a slice that nobody leased to its end, in
-- the current block or a later one; something fresh, or due; a hole. Null: in none. Much cheaper than to try each.
create or replace function mq._first_ready_{t}(p_sub smallint, p_lanes smallint[]) returns int
language plpgsql as $$
declare
    b record;
begin
    for i in 1 .. cardinality(p_lanes) loop
        select x.prev, x.cur into b from mq.block_{t} as x where x.subscription = p_sub and x.lane = p_lanes[i]
        order by x.subscription desc, x.lane desc, x.block_no desc limit 1;
        if mq._look_{t}(p_lanes[i], b.prev, b.cur) is not false         -- null: a copy, which _take_ repairs
            or exists (
                select from mq.block_{t} as x
                where x.subscription = p_sub and x.lane = p_lanes[i] and x.block_no >= (select mq._current_{t}(p_sub, p_lanes[i]))
                  and cardinality(x.counts) > (select count(*) from mq.lease_{t} as e
                        where e.subscription = p_sub and e.lane = p_lanes[i] and e.block_no = x.block_no and e.rest = 0))
            or mq._is_due_{q}(p_lanes[i]) is not false
            or mq._hole_{t}(p_sub, p_lanes[i]) is not null
        then
            return i;
        end if;
    end loop;
    return null;
end $$;

create or replace function mq._take_{t}(p_ticket bigint, p_sub smallint, p_lane smallint, p_n int, p_vt interval, p_fresh boolean, p_due boolean, p_had boolean, p_give_up timestamptz)
returns setof mq.delivery language plpgsql as $$
declare
    c_class constant int := {class};
    b       record;
    g       bigint;
    v_ticket bigint := p_ticket;
    v_after bigint := 0;
    v_ahead boolean := false;
    v_vain  boolean := p_ticket is not null;
    v_own   boolean;
    v_count int;
    v_token bigint;
    v_until timestamptz;
    v_receipt text;
    v_ready boolean;
    v_hole  boolean;
    v_from  bigint;             -- the block with the hole
    v_opened boolean;
    v_empty boolean;
    v_mine  boolean;
    v_due   boolean;
    a_slices int[];
begin
    -- Who began a slice and comes this way again goes on there, though others may be in a later block by now: so it neither
    -- leaves the rest of one slice after the other behind, nor, in a long transaction, keeps the locks of them.
    if current_setting('mq.begun_{t}', true) ~ ('^' || p_sub || '[.]' || p_lane || '[.][0-9]{1,18}[.][0-9]{1,5}$') then
        return query select * from mq._gather_{t}(p_sub, p_lane, split_part(current_setting('mq.begun_{t}'), '.', 3)::bigint, null, p_had, p_n, p_vt,
            split_part(current_setting('mq.begun_{t}'), '.', 4)::int);
        if found then
            return;
        end if;
        perform set_config('mq.begun_{t}', '', false);
    end if;
    for v_round in 1 .. 100 loop
        select y.block_no, y.xid, y.prev, y.cur, y.first_ticket, y.size, y.born, y.first_xids, y.first_ids, y.counts,
               cardinality(y.counts) as slices into b
        from mq.block_{t} as y
        where y.subscription = p_sub and y.lane = p_lane
          and (v_after > 0 or y.first_ticket <= coalesce(pg_sequence_last_value('mq.ticket_{t}'), 0) + 1)
        order by y.subscription desc, y.lane desc, y.block_no desc limit 1;

        -- The slices of a block of our own need no locks: nobody else can see it.
        v_own := b.xid is not distinct from pg_current_xact_id_if_assigned();
        while p_lane = 0 and b.size <= p_n
            and (v_ticket is not null or coalesce(pg_sequence_last_value('mq.ticket_{t}'), 0) between b.first_ticket - 1 and b.first_ticket + b.slices - 2)
        loop
            v_ticket := coalesce(v_ticket, nextval('mq.ticket_{t}'));
            g := v_ticket - b.first_ticket;
            exit when g >= b.slices;        -- of a block that is not seen yet: perhaps in the next round
            v_ticket := null;
            continue when g < 0;
            v_ahead := v_ahead or g = b.slices / 8 and b.slices >= 16;
            a_slices := null;
            -- The common case: a slice is just what is wanted.
            if b.counts[g + 1] = p_n or g = b.slices - 1 then
                -- Where somebody came without a ticket, look before locking: the lock of what is done would be kept.
                continue when (p_had or v_vain) and not v_own and exists (
                    select from mq.lease_{t} as x
                    where x.subscription = p_sub and x.lane = p_lane and x.block_no = b.block_no and x.slice = g and x.rest = 0);
                continue when not (v_own or pg_try_advisory_xact_lock(c_class, (hashint8extended(b.block_no * 65536 + g, {seed} + p_lane) & 2147483647)::int));
                if p_had and not v_own then
                    perform mq._count_claim();
                end if;
                v_token := {token};
                v_until := clock_timestamp() + p_vt;
                v_receipt := '{q}.{k}.' || p_sub || '.' || p_lane || '.' || b.block_no || '.' || g || '.0.'
                    || pg_current_xact_id()::text || '.' || v_token::text;
                return query
                    with claim as (
                        insert into mq.lease_{t} as e (subscription, lane, block_no, slice, part, head_slice, head_part, n, total, rest,
                                                       first_id, first_xid, leased_until, token)
                        values (p_sub, p_lane, b.block_no, g::int, 0, g::int, 0, b.counts[g + 1], b.counts[g + 1], 0,
                                b.first_ids[g + 1], b.first_xids[g + 1], v_until, v_token)
                        on conflict do nothing returning 1)
                    select m.msg_id, v_receipt, m.attempt::int, m.enqueued_at, v_until, m.payload, m.headers
                    from (select * from mq.log_{t} as l
                          where l.lane = case when g < b.born then -1 - p_lane else p_lane end
                            and (l.xid, l.msg_id) >= (b.first_xids[g + 1], b.first_ids[g + 1])
                          order by l.lane, l.xid, l.msg_id limit b.counts[g + 1]) as m
                    where exists (select from claim);
            else
                -- Slices are smaller than n: draw more.
                a_slices := array[g::int];
                v_count := b.counts[g + 1];
                while v_count < p_n and coalesce(pg_sequence_last_value('mq.ticket_{t}'), 0) < b.first_ticket + b.slices - 1 loop
                    g := nextval('mq.ticket_{t}') - b.first_ticket;
                    if g >= b.slices then
                        v_ticket := g + b.first_ticket;
                        exit;
                    end if;
                    a_slices := a_slices || g::int;
                    v_count := v_count + b.counts[g + 1];
                    v_ahead := v_ahead or g = b.slices / 8 and b.slices >= 16;
                end loop;
                return query select * from mq._gather_{t}(p_sub, p_lane, b.block_no, a_slices, p_had, p_n, p_vt);
            end if;
            get diagnostics v_count = row_count;
            if v_count = 0 and a_slices is null then
                -- Somebody who wanted less has begun it: the rest.
                return query select * from mq._gather_{t}(p_sub, p_lane, b.block_no, array[g::int], p_had, p_n, p_vt);
                get diagnostics v_count = row_count;
            end if;
            -- Not in a long transaction, whose block others would have to wait for.
            if v_ahead and not p_had then
                perform mq._open_ahead_{t}(p_sub, p_lane, p_n, p_fresh, p_due);
                v_ahead := false;
            end if;
            if v_count > 0 then
                return;
            end if;
            v_vain := true;
        end loop;
        -- Slices that are bigger than n, in order: each is a cursor of its own. And those of other lanes, which have no tickets.
        if b.size > p_n or p_lane <> 0 then
            return query select * from mq._gather_{t}(p_sub, p_lane, b.block_no, null, p_had, p_n, p_vt);
            get diagnostics v_count = row_count;
            if v_count > 0 then
                return;
            end if;
            -- It opened this one, and all of it had expired: for a second at most, and the rest by the next call.
            exit when v_opened and clock_timestamp() > p_give_up + interval '1 second';
        end if;

        -- Nothing is free in the current block: there may be one behind it.
        select y.block_no into v_after from mq.block_{t} as y where y.subscription = p_sub and y.lane = p_lane
        order by y.subscription desc, y.lane desc, y.block_no desc limit 1;
        continue when v_after > b.block_no;
        v_after := 0;

        -- Look before locking: a lock taken for nothing would stay to the end of the transaction.
        v_ready := case when p_fresh then mq._look_{t}(p_lane, b.prev, b.cur) else false end;
        v_due := p_due and (v_ready or mq._is_due_{q}(p_lane));       -- where there is something in any case, only the opener asks
        if v_ready is null then
            -- Not waited for: who repairs it needs the tables that this call has used.
            if pg_try_advisory_xact_lock(c_class, mq._lock_key({q}, -3)) then
                perform mq._repair({q});
            end if;
            return;
        elsif not v_ready and v_due is not true then
            exit;
        end if;
        -- Take the lane and look again, with a snapshot newer than the lock; where there is nothing to open after
        -- all, the subtransaction gives the locks back. Who fails waits, shared, for the gate that the opener holds:
        -- all who wait wake together. Each block has a gate of its own, so who has woken but not run yet is not in
        -- the way of the next opener.
        v_ready := false;
        v_hole := false;
        v_opened := false;
        v_empty := false;
        v_mine := false;
        begin
            if pg_try_advisory_xact_lock(c_class, (hashint8extended(-1, {seed} + p_lane) & 2147483647)::int) then
                v_mine := mq._enter_lane(c_class, (hashint8extended(-2 - coalesce(b.block_no, 0), {seed} + p_lane) & 2147483647)::int)
                    and not exists (select from mq.block_{t} as x where x.subscription = p_sub and x.lane = p_lane and x.block_no > coalesce(b.block_no, 0));
                -- What is due can be had only by who may promote. Ordering keys have a lock of their own, for which _open_ sees.
                v_due := v_mine and coalesce(v_due, true) and coalesce(mq._is_due_{q}(p_lane), true)
                    and (pg_try_advisory_xact_lock(c_class, mq._lock_key({q}, -2)) or p_lane >= 10 and mq._uses_order({q}));
                v_ready := v_mine and (p_fresh and mq._look_{t}(p_lane, b.prev, b.cur) or v_due and coalesce(mq._is_due_{q}(p_lane), true));
                -- What a rollback left in this block would be a hole once there is a newer one: taken below, without
                -- the lane, which would be held for nothing. So is what is left of ordering keys in an older one: somebody was at another
                -- key of that slice, or had begun it and does not come back; and the later ones of these keys wait for it.
                if v_ready then
                    v_from := b.block_no;
                    perform from mq._gather_{t}(p_sub, p_lane, v_from, null, p_had, p_n, p_vt);
                    v_hole := found;
                    if not v_hole and not p_had and p_lane >= 10 and mq._uses_order({q}) then
                        v_from := mq._hole_{t}(p_sub, p_lane);
                        v_hole := v_from is not null;
                    end if;
                end if;
                if v_ready and not v_hole then
                    v_opened := mq._open_{t}(p_sub, p_lane, p_n, p_fresh, v_due, null, false);
                    -- Without a block it has only read events of keys, which is not worth locks in a long transaction.
                    v_empty := v_opened and not exists (select from mq.block_{t} as x
                                                        where x.subscription = p_sub and x.lane = p_lane and x.block_no > coalesce(b.block_no, 0));
                    v_opened := v_opened and not (p_had and v_empty and p_lane >= 10 and mq._uses_order({q}));
                end if;
                if not v_opened then
                    raise exception using errcode = 'MQ0ZZ';
                end if;
            elsif clock_timestamp() > p_give_up then
                return;
            else
                -- Ordering keys take their opener longer, who would be the slower the more come back for another look.
                perform mq._wait_for_lane(c_class, (hashint8extended(-2 - coalesce(b.block_no, 0), {seed} + p_lane) & 2147483647)::int,
                    case when p_lane >= 10 and mq._uses_order({q}) then '250ms' end);
            end if;
        exception
            when sqlstate 'MQ0ZZ' then
                null;
        end;
        if v_hole then
            v_ready := false;
            return query select * from mq._gather_{t}(p_sub, p_lane, v_from, null, p_had, p_n, p_vt);
            get diagnostics v_count = row_count;
            if v_count > 0 then
                return;
            end if;
        end if;
        exit when v_hole and clock_timestamp() > p_give_up;     -- what was left there had expired, or others were faster
        exit when v_mine and not v_opened and not v_hole;       -- what was there another promotes, or leads elsewhere
        exit when v_empty and clock_timestamp() > p_give_up;        -- the next call goes on from there
    end loop;
    -- Nothing fresh: what others left. In older blocks only where nothing else is looked for after this.
    return query select * from mq._gather_{t}(p_sub, p_lane, b.block_no, null, p_had, p_n, p_vt);
    if not found and not p_had and p_fresh and p_due then
        return query select * from mq._gather_{t}(p_sub, p_lane, mq._hole_{t}(p_sub, p_lane), null, p_had, p_n, p_vt);
    end if;
end $$;
    $x$;
end $f$;

-- Every claim of another's slice keeps a lock to the end of the transaction, and the lock table is finite.
create or replace function mq._count_claim() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_claims int := case when current_setting('mq.claims', true) ~ '^[0-9]{1,6}$' then current_setting('mq.claims', true) else '0' end::int + 1;
begin
    if v_claims > 1000 then
        perform mq._too_many_claims();
    end if;
    perform set_config('mq.claims', v_claims::text, true);
end $$;
