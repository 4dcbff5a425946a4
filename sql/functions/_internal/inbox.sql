-- The COPY target. The rows of a statement go on from its transition table, one insert per queue; what was copied
-- stays behind in the unlogged table until upkeep truncates it.
create or replace function mq._deliver_inbox() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    i          record;
    q          record;
    v_register bigint;
    v_now      constant timestamptz := clock_timestamp();     -- one for all: what is due meanwhile is not due twice, or never
begin
    -- No constraint: PostgreSQL would show the row in the error, and the payload is nobody's business.
    if exists (select from arrived as r where r.queue is null) then
        perform mq._null_argument('queue');
    elsif exists (select from arrived as r where r.payload is null) then
        perform mq._null_argument('payload');
    end if;
    for i in
        select r.queue, min(r.deliver_at) as first, max(r.deliver_at) as last, array_agg(distinct mq._lane_of(r.priority)) as lanes, count(*) as n
        from arrived as r group by r.queue order by r.queue
    loop
        select x.queue_id, x.msg_ids, x.register, x.lanes, x.notify, x.notified, x.home, x.max_depth into q from mq.queue as x where x.name = i.queue;
        if not mq._is_at_home(q.home) then
            perform mq._repair(q.queue_id);
        end if;
        v_register := pg_sequence_last_value(q.register);
        if v_register is null then
            perform mq._queue_not_found(i.queue);
        end if;
        perform mq._due_at(null, i.first), mq._due_at(null, i.last) where i.last is not null;
        perform mq._use_lane(q.queue_id, q.register, q.lanes, u.lane) from unnest(i.lanes) as u (lane) where u.lane <> 0;
        if q.max_depth is not null then
            perform mq._admit(q.queue_id, i.n);
        end if;
        execute 'insert into mq.log_' || q.queue_id || '_' || (v_register & 65535) || ' (msg_id, lane, payload, headers)'
            ' select nextval($1), mq._lane_of(r.priority), r.payload, r.headers from arrived as r where r.queue = $2 and (r.deliver_at is null or r.deliver_at <= $3)'
            using q.msg_ids, i.queue, v_now;
        if i.last > v_now then
            execute 'insert into mq.deferred_' || q.queue_id || '_' || ((v_register >> 32) & 1) || ' (msg_id, due_at, lane, payload, headers)'
                ' select nextval($1), r.deliver_at, mq._lane_of(r.priority), r.payload, r.headers from arrived as r where r.queue = $2 and r.deliver_at > $3'
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
