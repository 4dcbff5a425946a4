create or replace function mq.version() returns text
language plpgsql immutable security definer set search_path = pg_catalog, pg_temp as $$
begin
    return '0.1.0';
end $$;

comment on function mq.version() is
'The version of mq that is installed in this database.
Returns: such as 0.1.0.
Role: mq_producer, mq_consumer.';
