-- Notes: what consumers say of messages, how far they are and what came of it. A note is appended, and the newest of its kind
-- is what holds: nothing is updated, so a held snapshot makes no look-up slower. A note waits for nobody, and nobody for it.

create or replace function mq._newest_note(queue_id int, msg_id bigint, kind text) returns mq.note
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
    v_note mq.note;
begin
    select * into v_note from mq.note as n
    where n.queue_id = _newest_note.queue_id and n.msg_id = _newest_note.msg_id and n.kind = _newest_note.kind
    order by n.no desc limit 1;
    return v_note;
end $$;

-- Whether a message is still under the lease of a receipt, as extend sees it: one that ran out holds until it is taken back.
-- It may be lost in the next instant. That does no harm: what a lost lease reported late is older than what the next reports.
create or replace function mq._holds(queue text, queue_id int, receipt text, msg_id bigint) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    r       record;
    v_holds boolean := false;
begin
    r := mq._parse_receipt(_holds.queue, _holds.queue_id, _holds.receipt);
    if r.subscription = 0 then
        return mq._has_taken(_holds.queue_id, r.slot, r.token, _holds.msg_id);
    end if;
    if mq._has_slot(_holds.queue_id, r.slot) then
        execute replace($x$
            select exists (
                select from mq.lease_{t} as l
                where l.subscription = $1 and l.lane = $2 and l.block_no = $3 and l.slice = $4 and l.part = $5
                  and l.head_slice = l.slice and l.head_part = l.part and l.token = $6)
            and not exists (
                select from mq.settlement_{t} as s
                where s.subscription = $1 and s.lane = $2 and s.block_no = $3 and s.slice = $4 and s.part = $5
                  and (s.final or s.outcome in ('expired', 'hole') or s.msg_ids @> $7))
            and exists (select from mq._leased_{t}($1, $2, $3, $4, $5) as m where m.msg_id = $7)
            $x$, '{t}', _holds.queue_id || '_' || r.slot)
            into v_holds using r.subscription, r.lane, r.block_no, r.slice, r.part, r.token, _holds.msg_id;
    end if;
    -- Moved out of its segment, at the latest just now: then it is seen here.
    if not v_holds then
        v_holds := exists (select from mq.survivor as s
                           where s.queue_id = _holds.queue_id and s.token = r.token and s.msg_id = _holds.msg_id);
    end if;
    if not v_holds then
        perform mq._check_snapshot(_holds.queue_id, r.slot, r.xid);
    end if;
    return v_holds;
end $$;

-- Whether this transaction itself enqueued a message, or put it back: nobody else sees that before it commits. What it
-- locked to look is given back, as in _look_at.
create or replace function mq._is_own(q mq.queue, msg_id bigint) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
    v_own   xid8 := pg_current_xact_id_if_assigned();
    v_lanes smallint[] := mq._lanes(q.queue_id);
    v_slot  int;
    v_found boolean := false;
begin
    if v_own is null then
        return false;
    end if;
    for v_slot in
        select g.slot from mq.segment as g where g.queue_id = q.queue_id
        union select (pg_sequence_last_value(q.register) & 65535)::int
    loop
        execute format('select exists (select from mq.log_%s_%s as x where x.lane = any ($1) and x.xid = $2 and x.msg_id = $3)', q.queue_id, v_slot)
            into v_found using v_lanes, v_own, _is_own.msg_id;
        exit when v_found;
    end loop;
    if not v_found then
        execute replace('select exists (select from mq.deferred_{q}_0 as x where x.xid = $1 and x.msg_id = $2)'
                        ' or exists (select from mq.deferred_{q}_1 as x where x.xid = $1 and x.msg_id = $2)'
                        ' or exists (select from mq.parked_{q} as x where x.xid = $1 and x.event = $2)', '{q}', q.queue_id::text)
            into v_found using v_own, _is_own.msg_id;
    end if;
    raise exception using errcode = 'MQ0ZZ';
exception
    when sqlstate 'MQ0ZZ' then
        return v_found;
end $$;

-- message_status for one who asks again and again. It reads every table of the queue, and the locks would stay until the end of
-- the transaction: were there always somebody who waits, upkeep could never empty a segment. So they are given back.
create or replace function mq._look_at(q mq.queue, msg_id bigint) returns mq.message_state
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_state mq.message_state;
begin
    v_state := mq._message_state(q, _look_at.msg_id);
    raise exception using errcode = 'MQ0ZZ';
exception
    when sqlstate 'MQ0ZZ' then
        return v_state;
end $$;

-- Deletes notes that are older than the queue keeps them, the oldest first, at most 100,000; returns how many. The caller has
-- the upkeep lock. While a snapshot is held, what was deleted stays in the index: so this begins at the mark, where the last one
-- ended. What was written before that and committed after is found by those who begin at another time (since): now and then.
create or replace function mq._forget_notes(q mq.queue, since timestamptz default null) returns int
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
    v_mark  mq.note := mq._newest_note(q.queue_id, 0, 'mark');
    v_since timestamptz := coalesce(_forget_notes.since, v_mark.at, '-infinity');
    v_until timestamptz := clock_timestamp() - q.result_retention;
    v_last  timestamptz;
    v_count int;
begin
    -- By ctid: no note is ever updated.
    with gone as (
        delete from mq.note as n where n.ctid = any (array(
            select x.ctid from mq.note as x
            where x.queue_id = q.queue_id and x.at > v_since and x.at < v_until and x.kind <> 'mark'
            order by x.queue_id, x.at limit 100000))
        returning n.at)
    select count(*), max(g.at) into v_count, v_last from gone as g;
    if v_count > 0 then
        delete from mq.note as n where n.queue_id = q.queue_id and n.msg_id = 0 and n.kind = 'mark' and n.no = v_mark.no;
        insert into mq.note (queue_id, msg_id, kind, at, value) values (q.queue_id, 0, 'mark', greatest(v_last, v_mark.at), 'null');
    end if;
    return v_count;
end $$;
