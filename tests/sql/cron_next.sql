select plan(13);

-- tests/py/test_cron.py compares with croniter, and looks at every clock that is put forward or back.
select is(mq.cron_next('*/15 * * * *', '2026-11-28 12:00+00'), '2026-11-28 12:15+00', 'strictly after');
select is(mq.cron_next('0 9 * * mon-fri', '2026-11-28 12:00+00'), '2026-11-30 09:00+00', 'names and ranges');
select is(mq.cron_next('0 9 * * *', '2026-11-28 12:00+00', 'America/New_York'), '2026-11-28 14:00+00', 'by the clocks of a time zone');
select is(mq.cron_next('30 0 0 1 1 *', '2026-11-28 12:00+00'), '2027-01-01 00:00:30+00', 'six fields: seconds first');
select is(mq.cron_next('@monthly', '2026-11-28 12:00+00'), '2026-12-01 00:00+00', 'by name');
select is(mq.cron_next('every 90 seconds', '2026-11-28 12:00+00'), '2026-11-28 12:01:30+00', 'every so many seconds');
select is(mq.cron_next('30 2 * * *', '2026-03-28 12:00+00', 'Europe/Berlin'), '2026-03-29 01:00+00', 'put forward over it: when that is done');
select is(mq.cron_next('30 2 * * *', '2026-10-24 12:00+00', 'Europe/Berlin'), '2026-10-25 00:30+00', 'put back over it: the first time');
select is(mq.cron_next('30 2 * * *', '2026-10-25 00:30+00', 'Europe/Berlin'), '2026-10-26 01:30+00', 'and only once');
select ok(mq.cron_next('* * * * *') between now() and now() + interval '1 minute', 'from now, if nothing is said');
select throws_ok($$ select mq.cron_next('0 25 * * *') $$, '22023', 'invalid value for argument "expression"', 'a bad expression is an error');
select throws_ok($$ select mq.cron_next('0 0 * * *', now(), 'Europe/Nowhere') $$, '22023', 'invalid value for argument "timezone"', 'so is an unknown time zone');
select is((test.value_as('mq_consumer', $$ mq.cron_next('@yearly', '2026-11-28 12:00+00') at time zone 'UTC' $$))::timestamp, '2027-01-01 00:00', 'a consumer may ask');

select * from finish();
