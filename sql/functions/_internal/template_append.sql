-- The branch of _append_0 for one queue: where messages go now, and one branch for each of its slots. It returns in the
-- common case of mq._notify: nobody waits, and an unregistered listener was told a moment ago.
--
-- What it knows of the queue is what it was made with: alter_queue makes it anew, and a copy has another home. After a
-- restore of everything this is not that place; where rows came or changed without it, the register does not have the bits of
-- its home. Then the slot is none of ours, as it is where the queue was dropped: null.
create or replace function mq._template_append(queue_id int, home text, notify text, slots int[]) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return replace(replace(replace(replace(replace(replace(replace($x$
            if {home} = 'mq.queue'::regclass::oid::text || '.' || current_setting('mq.system', true) then
                v_slot := (pg_sequence_last_value('mq.register_{q}') # {bits}) & {slot_and_bits};
                {slots}
                if v_msg_id is not null then
                    perform mq._notify({q}, p_queue, {notify}, 'mq.notified_{q}');
                    return v_msg_id;
                end if;
            end if;
            $x$,
        '{slots}', mq._branches('v_slot', slots::text[], array(
            select mq._fill_template($x$
                    v_msg_id := nextval('mq.msg_id_{q}');
                    insert into mq.log_{t} (msg_id, payload, headers) values (v_msg_id, p_payload, p_headers);
                    {unless_quiet}
                    $x$, _template_append.queue_id, x) from unnest(slots) as x))),
        '{unless_quiet}', case _template_append.notify when 'never' then 'return v_msg_id;' when 'always' then '' else $x$
                    if pg_sequence_last_value('mq.waiting_{q}') = 1
                        and abs(date_part('epoch', clock_timestamp()) * 2000 - pg_sequence_last_value('mq.notified_{q}')) < 200
                    then
                        return v_msg_id;
                    end if;
                    $x$ end),
        '{bits}', mq._home_bits(home)::text), '{slot_and_bits}', ((-1::bigint << 34) | 65535)::text),
        '{home}', quote_literal(home)), '{notify}', quote_literal(_template_append.notify)), '{q}', _template_append.queue_id::text);
end $f$;

-- _append_batch_<slot>: what enqueue_batch does once it knows the open segment.
create or replace function mq._template_append_batch() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
-- The ids of a batch are drawn in one go, so that they come out in the order of the payloads. A fence may lead the rows
-- elsewhere, so they are not read back with RETURNING. Arrays unnested in the select list are not stored in between.
create or replace function mq._append_batch_{t}(p_payloads jsonb[], p_headers jsonb[], p_lane smallint default 0, p_extra jsonb default null) returns bigint[]
language plpgsql as $$
declare
    a_ids bigint[] := array(select nextval('mq.msg_id_{q}') from generate_series(1, cardinality(p_payloads)));
begin
    insert into mq.log_{t} (msg_id, lane, payload, headers, extra)
    select m.i, p_lane, m.p, m.h, p_extra from (select unnest(a_ids) as i, unnest(p_payloads) as p, unnest(p_headers) as h) as m;
    return a_ids;
end $$;
    $x$;
end $f$;
