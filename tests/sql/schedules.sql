select plan(6);

select test.forget(q) from unnest(array['schedules', 'schedules.other']) as q;
select mq.create_queue('schedules');
select mq.create_queue('schedules.other');
select mq.schedule('b', '0 9 * * mon', 'schedules', '{"p": 1}', 'Europe/Berlin', '{"h": 1}', 'all');
select mq.schedule('a', 'every 90 seconds', 'schedules.other', '2');
select results_eq('select name, queue, cron, timezone, payload, headers, catch_up from mq.schedules()',
    $$ values ('a', 'schedules.other', 'every 90 seconds', 'UTC', '2'::jsonb, null::jsonb, 'one'),
              ('b', 'schedules', '0 9 * * mon', 'Europe/Berlin', '{"p": 1}', '{"h": 1}', 'all') $$, 'by name, as they were made');
select is((select next_at from mq.schedules() where name = 'b'), mq.cron_next('0 9 * * mon', now(), 'Europe/Berlin'), 'and when each is due next');
select ok((select bool_and(created_at between now() - interval '1 minute' and now()) from mq.schedules()), 'and since when');
select test.move_tick('b', '2020-01-01');
select is((select next_at from mq.schedules() where name = 'b'), '2020-01-01', 'in the past, where nobody sees to it');
select mq.drop_queue('schedules');
select results_eq('select name from mq.schedules()', $$ values ('a') $$, 'those of a queue go with it');
select is(test.value_as('mq_producer', '(select count(*) from mq.schedules())'), '1', 'a producer may look at them');

select mq.drop_queue('schedules.other');
select * from finish();
