begin;
select plan(21 + 4 * 36);

-- Who may call what: the contract, row by row. An administrator may do all of it.
create temp table allowed (name text, producer boolean, consumer boolean);
insert into allowed values
    ('enqueue', true, false), ('enqueue_batch', true, false), ('cancel', true, false),
    ('dequeue', false, true), ('ack', false, true), ('nack', false, true), ('extend', false, true), ('report', false, true), ('sweep_stale', false, true),
    ('maintain', false, true), ('next_due', false, true), ('listen', false, true), ('unlisten', false, true),
    ('dead_letters', false, true), ('peek', false, true), ('history', false, true),
    ('queues', true, true), ('queue_stats', true, true), ('message_status', true, true), ('wait_for', true, true), ('version', true, true), ('cron_next', true, true), ('schedules', true, true),
    ('create_queue', false, false), ('alter_queue', false, false), ('drop_queue', false, false), ('purge_queue', false, false),
    ('pause_queue', false, false), ('resume_queue', false, false), ('rotate_segment', false, false), ('redrive', false, false), ('rewind', false, false),
    ('purge_dead_letters', false, false), ('schedule', false, false), ('unschedule', false, false), ('run_schedule', false, false);

select set_eq(
    $$ select p.proname::text from pg_proc as p where p.pronamespace = 'mq'::regnamespace and p.proname !~ '^_' $$,
    'select name from allowed', 'the public functions are those of the contract');
select is(has_function_privilege('mq_producer', p.oid, 'execute'), a.producer,
    format('a producer may %scall %s', case when not a.producer then 'not ' else '' end, a.name))
from allowed as a join pg_proc as p on p.pronamespace = 'mq'::regnamespace and p.proname = a.name order by a.name;
select is(has_function_privilege('mq_consumer', p.oid, 'execute'), a.consumer,
    format('a consumer may %scall %s', case when not a.consumer then 'not ' else '' end, a.name))
from allowed as a join pg_proc as p on p.pronamespace = 'mq'::regnamespace and p.proname = a.name order by a.name;
select is(has_function_privilege('mq_admin', p.oid, 'execute'), true, format('an administrator may call %s', a.name))
from allowed as a join pg_proc as p on p.pronamespace = 'mq'::regnamespace and p.proname = a.name order by a.name;
select is(has_function_privilege('pg_monitor', p.oid, 'execute'), false, format('nobody else may call %s', a.name))
from allowed as a join pg_proc as p on p.pronamespace = 'mq'::regnamespace and p.proname = a.name order by a.name;

-- A queue made now has tables and functions of its own: nobody may touch these either.
select mq.create_queue('roles');
create temp table roles as select unnest(array['mq_producer', 'mq_consumer', 'mq_admin', 'pg_monitor']) as role;
select is_empty(format(
    $$ select p.proname from pg_proc as p where p.pronamespace = 'mq'::regnamespace and p.proname ~ '^_' and has_function_privilege(%L, p.oid, 'execute') $$, role),
    format('%s may call nothing private', role)) from roles;
select is_empty(format(
    $$ select c.relname from pg_class as c where c.relnamespace = 'mq'::regnamespace and c.relkind in ('r', 'v', 'p')
           and (has_table_privilege(%1$L, c.oid, 'select, update, delete, truncate, references, trigger')
                or has_any_column_privilege(%1$L, c.oid, 'select, update, references')
                or has_table_privilege(%1$L, c.oid, 'insert') and not (c.relname = 'inbox' and %1$L in ('mq_producer', 'mq_admin'))) $$, role),
    format('%s may touch no table but the inbox, if that', role)) from roles;
select is_empty(format(
    $$ select c.relname from pg_class as c where c.relnamespace = 'mq'::regnamespace
           and case when c.relkind = 'S' then has_sequence_privilege(%L, c.oid, 'usage, select, update') end $$, role),
    format('%s may use no sequence', role)) from roles;
select is(has_schema_privilege(role, 'mq', 'usage'), role <> 'pg_monitor', format('%s may %suse the schema', role, case role when 'pg_monitor' then 'not ' else '' end))
from roles;
select ok(bool_and(not has_schema_privilege(role, 'mq', 'create')), 'nobody may create anything in it') from roles;

-- By doing it.
select throws_ok($$ select test.run_as('mq_consumer', 'select * from mq.queue') $$, '42501', null, 'no table can be read');
select throws_ok($$ select test.run_as('mq_admin', 'update mq.queue set paused = true') $$, '42501', null, 'or changed');
select throws_ok($$ select test.run_as('mq_consumer', 'select mq._lock_class()') $$, '42501', null, 'no private function can be called');

select * from finish();
rollback;
