select plan(13);

-- What is deferred lives in two sets. When most of one is consumed, upkeep changes over to the other and empties it.
select test.forget('deferral');
select mq.create_queue('deferral', notify => 'never');
create temp table seen (msg_id bigint, payload jsonb);
create temp table done (no serial, detail text);
create procedure pg_temp.consume() language plpgsql as $$
declare
    v_receipt text;
    v_idle    int := 0;
begin
    while v_idle < 2 loop       -- an empty poll may have given timers only
        select d.receipt into v_receipt from mq.dequeue('deferral', 1000) as d limit 1;
        v_idle := case when found then 0 else v_idle + 1 end;
        commit;
        insert into seen
            select m.msg_id, m.payload from mq.peek('deferral', 100000) as m where m.state = 'leased' and v_receipt is not null;
        perform mq.ack('deferral', v_receipt) where v_receipt is not null;
        commit;
    end loop;
end $$;
create procedure pg_temp.maintain(steps int) language plpgsql as $$
begin
    for i in 1 .. steps loop
        insert into done (detail) select m.detail from mq.maintain('deferral') as m where m.action = 'deferral';
        commit;
    end loop;
end $$;

select mq.enqueue('deferral', to_jsonb(i), deliver_at => '2100-01-01'::timestamptz + i * interval '1 day') from generate_series(1, 20) as i \g /dev/null
do $$
begin
    for i in 1 .. 6 loop
        perform mq.enqueue_batch('deferral', array(select to_jsonb(x || ' ' || repeat(md5(x::text), 30)) from generate_series(1, 1000) as x), delay => '1 microsecond');
        commit;
    end loop;
end $$;
select mq.enqueue('deferral', to_jsonb(i), deliver_at => '2110-01-01'::timestamptz + i * interval '1 day') from generate_series(1, 20) as i \g /dev/null

call pg_temp.maintain(1);
select is_empty('select * from done', 'while most of a set waits, nothing is changed over');
call pg_temp.consume();
select is((select count(*) || ' ' || count(distinct msg_id) from seen), '6000 6000', 'what was due is delivered, each message once');
call pg_temp.maintain(1);
select is((select detail from done), 'changed over', 'then arrivals go to the other set');
select is(mq.next_due('deferral'), '2100-01-02'::timestamptz, 'what waits in the old one is due still');
select mq.enqueue('deferral', '"new"', deliver_at => '2099-01-01');
select is(mq.next_due('deferral'), '2099-01-01'::timestamptz, 'and so is what waits in the new one');
select is((select deferred from mq.queue_stats('deferral')), 41::bigint, 'all are counted');

-- A step that is rolled back.
begin;
select count(*) from mq.maintain('deferral');
rollback;
select is((select deferred from mq.queue_stats('deferral')), 41::bigint, 'a step that is undone loses nothing');
call pg_temp.maintain(8);
select is((select detail from done order by no desc limit 1), 'the old set is empty', 'upkeep empties the old set');
select is((select count(*) from done where detail = 'truncated the old set'), 1::bigint, 'by moving what waits there, and truncating it');
select is((select deferred from mq.queue_stats('deferral')), 41::bigint, 'nothing is lost on the way');
select is(mq.next_due('deferral'), '2099-01-01'::timestamptz, 'nor is a due time');
select is((select (mq.message_status('deferral', msg_id)).due_at from mq.peek('deferral', 1000) order by msg_id limit 1), '2100-01-02'::timestamptz,
    'each message waits for its own');
truncate seen;
select test.make_due('deferral');
call pg_temp.consume();
select is((select count(*) || ' ' || count(distinct msg_id) from seen), '41 41', 'and is delivered then, once');
select mq.drop_queue('deferral');

select * from finish();
