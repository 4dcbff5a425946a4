-- The three roles. They are shared by the whole cluster, so they may be there already, and the installing role may
-- lack CREATEROLE: then mq works all the same, for its owner and for whoever the owner grants rights by hand.
do $$
declare
    v_role text;
begin
    foreach v_role in array array['mq_producer', 'mq_consumer', 'mq_admin'] loop
        continue when exists (select from pg_catalog.pg_roles r where r.rolname = v_role);
        begin
            execute pg_catalog.format('create role %I nologin', v_role);
        exception
            when insufficient_privilege then
                raise warning using
                    message = pg_catalog.format('role "%s" was not created: this user lacks CREATEROLE', v_role),
                    hint = pg_catalog.format('Have an administrator run: create role %I nologin; then run mqctl install again.', v_role);
            when duplicate_object or unique_violation then
                null;       -- another install in another database of this cluster was faster
        end;
    end loop;
end $$;
