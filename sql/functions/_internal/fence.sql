-- The insert fences of sealed segments: a producer that read the register before a rotation, or that is older than
-- the sealing, is led to where messages go now. No producer ever fails for it.
create or replace function mq._redirect_message() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_queue_id int := split_part(tg_table_name, '_', 2);
begin
    if new.lane < 0 then        -- born in a block of this segment; its opener holds a lock that precludes sealing
        raise exception using errcode = 'serialization_failure', message = 'this segment was sealed; retry the transaction',
            hint = 'Retry the transaction.';
    end if;
    execute 'insert into mq.log_' || v_queue_id || '_' || (pg_sequence_last_value('mq.register_' || v_queue_id) & 65535)
        || ' select ($1).*' using new;
    return null;
end $$;

create or replace function mq._redirect_deferred() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_queue_id int := split_part(tg_table_name, '_', 2);
begin
    execute 'insert into mq.deferred_' || v_queue_id || '_' || ((pg_sequence_last_value('mq.register_' || v_queue_id) >> 32) & 1)
        || ' select ($1).*' using new;
    return null;
end $$;
