-- Who may do what. Everything is taken away first, every time: old rights survive "create or replace".
do $$
declare
    c_producer constant text[] := array['enqueue', 'enqueue_batch', 'cancel', 'queues', 'queue_stats', 'message_status', 'wait_for', 'cron_next', 'schedules', 'version'];
    c_consumer constant text[] := array['dequeue', 'ack', 'nack', 'extend', 'report', 'sweep_stale', 'maintain', 'next_due', 'listen', 'unlisten',
                                        'dead_letters', 'peek', 'history', 'queues', 'queue_stats', 'message_status', 'wait_for', 'cron_next', 'schedules', 'version'];
    c_admin    constant text[] := array['create_queue', 'alter_queue', 'drop_queue', 'purge_queue', 'pause_queue', 'resume_queue',
                                        'rotate_segment', 'redrive', 'rewind', 'purge_dead_letters', 'schedule', 'unschedule', 'run_schedule'];
    v_role     text;
    v_routine  regprocedure;
    v_name     text;
    v_grantee  text;
begin
    -- What is private is nobody's, whatever the owner's default privileges say. Public functions and the inbox may be
    -- granted to others by hand.
    for v_name, v_grantee in
        select o.object, case a.grantee when 0 then 'public' else a.grantee::pg_catalog.regrole::text end
        from (select 'table ' || c.oid::pg_catalog.regclass, c.relowner, c.relacl from pg_catalog.pg_class as c
              where c.relnamespace = 'mq'::pg_catalog.regnamespace and c.relkind = 'r' and c.relname <> 'inbox'
              union all
              select 'table ' || c.oid::pg_catalog.regclass, c.relowner, t.attacl from pg_catalog.pg_class as c
              join pg_catalog.pg_attribute as t on t.attrelid = c.oid and t.attacl is not null
              where c.relnamespace = 'mq'::pg_catalog.regnamespace and c.relkind = 'r' and c.relname <> 'inbox'
              union all
              select 'sequence ' || c.oid::pg_catalog.regclass, c.relowner, c.relacl from pg_catalog.pg_class as c
              where c.relnamespace = 'mq'::pg_catalog.regnamespace and c.relkind = 'S'
              union all
              select 'function ' || p.oid::pg_catalog.regprocedure, p.proowner, p.proacl from pg_catalog.pg_proc as p
              where p.pronamespace = 'mq'::pg_catalog.regnamespace and pg_catalog.left(p.proname, 1) = '_') as o (object, owner, acl),
             pg_catalog.aclexplode(o.acl) as a
        where a.grantee <> o.owner
        group by 1, 2
    loop
        execute pg_catalog.format('revoke all on %s from %s cascade', v_name, v_grantee);
    end loop;
    for v_grantee in
        select a.grantee::pg_catalog.regrole::text from pg_catalog.pg_namespace as n, pg_catalog.aclexplode(n.nspacl) as a
        where n.nspname = 'mq' and a.privilege_type = 'CREATE' and a.grantee not in (0, n.nspowner)
    loop
        execute pg_catalog.format('revoke create on schema mq from %s', v_grantee);
    end loop;
    for v_name, v_grantee in
        select distinct a.privilege_type, a.grantee::pg_catalog.regrole::text
        from (select c.relacl as acl, c.relowner from pg_catalog.pg_class as c where c.oid = 'mq.inbox'::pg_catalog.regclass
              union all
              select t.attacl, c.relowner from pg_catalog.pg_class as c join pg_catalog.pg_attribute as t on t.attrelid = c.oid
              where c.oid = 'mq.inbox'::pg_catalog.regclass) as c, pg_catalog.aclexplode(c.acl) as a
        where a.privilege_type <> 'INSERT' and a.grantee not in (0, c.relowner)
    loop
        execute pg_catalog.format('revoke %s on mq.inbox from %s', v_name, v_grantee);
    end loop;
    revoke all on schema mq from public;
    -- Not "on all tables": nothing is left there, and TRUNCATE by whoever is at work fails where it meets that (XX000).
    revoke all on mq.inbox from public;
    revoke all on all routines in schema mq from public;
    alter default privileges in schema mq revoke all on routines from public;
    foreach v_role in array array['mq_producer', 'mq_consumer', 'mq_admin'] loop
        continue when not exists (select from pg_catalog.pg_roles r where r.rolname = v_role);
        execute pg_catalog.format('revoke all on schema mq from %I', v_role);
        execute pg_catalog.format('revoke all on mq.inbox from %I', v_role);
        execute pg_catalog.format('revoke all on all routines in schema mq from %I', v_role);
        execute pg_catalog.format('grant usage on schema mq to %I', v_role);
        for v_routine, v_name in
            select p.oid, p.proname from pg_catalog.pg_proc p where p.pronamespace = 'mq'::pg_catalog.regnamespace
        loop
            if (v_role in ('mq_producer', 'mq_admin') and v_name = any (c_producer))
                or (v_role in ('mq_consumer', 'mq_admin') and v_name = any (c_consumer))
                or (v_role = 'mq_admin' and v_name = any (c_admin))
            then
                execute pg_catalog.format('grant execute on routine %s to %I', v_routine, v_role);
            end if;
        end loop;
        if v_role in ('mq_producer', 'mq_admin') then
            execute pg_catalog.format('grant insert on mq.inbox to %I', v_role);
        end if;
    end loop;
end $$;
