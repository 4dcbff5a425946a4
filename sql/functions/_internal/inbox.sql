-- The COPY target. The rows of a statement go on from its transition table, one insert per queue; what was copied
-- stays behind in the unlogged table until upkeep truncates it.
create or replace function mq._deliver_inbox() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    i          record;
    q          mq.queue;
    v_register bigint;
    v_lane     text;        -- SQL for the lane of a row
    e          record;          -- which message has the key of each row
    v_ends     boolean;         -- a key is free again when its message is settled
    v_now      constant timestamptz := clock_timestamp();     -- one for all: what is due meanwhile is not due twice, or never
begin
    -- No constraint: PostgreSQL would show the row in the error, and the payload is nobody's business.
    if exists (select from arrived as r where r.queue is null) then
        perform mq._null_argument('queue');
    elsif exists (select from arrived as r where r.payload is null) then
        perform mq._null_argument('payload');
    end if;
    for i in
        select r.queue, min(r.deliver_at) as first, max(r.deliver_at) as last, count(r.priority) > 0 as has_priorities,
               count(r.dedup_key) + count(r.ordering_key) > 0 as has_keys, count(*) as n
        from arrived as r group by r.queue order by r.queue
    loop
        select * into q from mq.queue as x where x.name = i.queue;
        if not mq._is_at_home(q.home) then
            perform mq._repair(q.queue_id);
        end if;
        v_register := pg_sequence_last_value(q.register);
        if v_register is null then
            perform mq._queue_not_found(i.queue);
        end if;
        perform mq._due_at(null, i.first), mq._due_at(null, i.last) where i.last is not null;
        v_lane := '0';
        if i.has_priorities then
            v_lane := 'mq._lane_of(r.priority)';        -- a function for each row
            perform mq._use_lane(q.queue_id, q.register, q.lanes, x.lane)
            from (select distinct mq._lane_of(r.priority) as lane from arrived as r where r.queue = i.queue) as x where x.lane <> 0;
        end if;
        if i.has_keys then
            perform mq._check_key('dedup_key', r.dedup_key), mq._check_key('ordering_key', r.ordering_key) from arrived as r where r.queue = i.queue;
            v_ends := q.dedup_window = '0';
            perform mq._use_lane(q.queue_id, q.register, q.lanes, x.lane, has_key => x.has_key, has_order => x.has_order)
            from (select distinct mq._lane_of(r.priority, false) as lane, v_ends and r.dedup_key is not null as has_key, r.ordering_key is not null as has_order
                  from arrived as r where r.queue = i.queue) as x where x.has_key or x.has_order;
            -- Rows come in the same order each time.
            e := mq._enter_keys(q, array(select r.dedup_key from arrived as r where r.queue = i.queue), 'keep');
            if q.max_depth is not null then
                perform mq._admit(q.queue_id, e.places);
            end if;
            for v_way in 0 .. 2 loop
                execute 'insert into mq.'
                    || case v_way when 0 then 'log_' || q.queue_id || '_' || (v_register & 65535) || ' (msg_id, lane, payload, headers, extra)'
                                  when 1 then 'deferred_' || q.queue_id || '_' || (v_register >> 32 & 1) || ' (msg_id, lane, payload, headers, extra, due_at)'
                                  else 'parked_' || q.queue_id || ' (event, lane, payload, headers, extra, ordering_key)' end
                    || ' select ($1)[r.no], mq._lane_of(r.priority, not r.ends and r.ordering_key is null), r.payload, r.headers,'
                       ' mq._extra(null, null, case when r.ends then r.dedup_key end, r.ordering_key)'
                    || case v_way when 0 then '' when 1 then ', r.deliver_at' else ', r.ordering_key' end
                    || ' from (select row_number() over () as no, $3 and x.dedup_key is not null as ends, x.* from arrived as x where x.queue = $4) as r'
                       ' where ($2)[r.no] and $6 = case when r.deliver_at > $5 then 1 when r.ordering_key is null then 0 else 2 end'
                    using e.ids, e.are_new, v_ends, i.queue, v_now, v_way;
            end loop;
            perform mq._notify(q.queue_id, i.queue, q.notify, q.notified) where true = any (e.are_new);
            continue;
        end if;
        if q.max_depth is not null then
            perform mq._admit(q.queue_id, i.n);
        end if;
        execute 'insert into mq.log_' || q.queue_id || '_' || (v_register & 65535) || ' (msg_id, lane, payload, headers)'
            ' select nextval($1), ' || v_lane || ', r.payload, r.headers from arrived as r where r.queue = $2 and (r.deliver_at is null or r.deliver_at <= $3)'
            using q.msg_ids, i.queue, v_now;
        if i.last > v_now then
            execute 'insert into mq.deferred_' || q.queue_id || '_' || ((v_register >> 32) & 1) || ' (msg_id, due_at, lane, payload, headers)'
                ' select nextval($1), r.deliver_at, ' || v_lane || ', r.payload, r.headers from arrived as r where r.queue = $2 and r.deliver_at > $3'
                using q.msg_ids, i.queue, v_now;
        end if;
        perform mq._notify(q.queue_id, i.queue, q.notify, q.notified);
    end loop;
    return null;
end $$;

create or replace trigger deliver after insert on mq.inbox
    referencing new table as arrived for each statement execute function mq._deliver_inbox();
alter table mq.inbox enable always trigger deliver;     -- also where session_replication_role is replica

-- The last step of upkeep, for who copies waits from here to its end.
create or replace function mq._empty_inbox() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if pg_relation_size('mq.inbox') > 0 then
        perform mq._take_tables('{inbox}', true);
        truncate mq.inbox;
    end if;
exception
    when lock_not_available then
        null;       -- somebody is copying, or a dump reads it: next time
end $$;
