-- The branch of _append_0 for one slot. It returns in the common case of mq._notify: nobody waits, and an unregistered
-- listener was told a moment ago.
create or replace function mq._template_append() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
                v_msg_id := nextval('mq.msg_id_{q}');
                insert into mq.log_{t} (msg_id, payload, headers) values (v_msg_id, p_payload, p_headers);
                if p_notify = 'never'
                    or p_notify = 'auto' and pg_sequence_last_value('mq.waiting_{q}') = 1
                       and abs(date_part('epoch', clock_timestamp()) * 2000 - pg_sequence_last_value('mq.notified_{q}')) < 200
                then
                    return v_msg_id;
                end if;
            $x$;
end $f$;

-- _append_batch_<slot>: what enqueue_batch does once it knows the open segment.
create or replace function mq._template_append_batch() returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
begin
    return $x$
-- The ids of a batch are drawn in one go, so that they come out in the order of the payloads. A fence may lead the rows
-- elsewhere, so they are not read back with RETURNING. Arrays unnested in the select list are not stored in between.
create or replace function mq._append_batch_{t}(p_payloads jsonb[], p_headers jsonb[]) returns bigint[]
language plpgsql as $$
declare
    a_ids bigint[] := array(select nextval('mq.msg_id_{q}') from generate_series(1, cardinality(p_payloads)));
begin
    insert into mq.log_{t} (msg_id, payload, headers)
    select m.i, m.p, m.h from (select unnest(a_ids) as i, unnest(p_payloads) as p, unnest(p_headers) as h) as m;
    return a_ids;
end $$;
    $x$;
end $f$;
