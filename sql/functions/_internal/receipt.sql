-- A receipt names one lease: queue.slot.subscription.lane.block.slice.part.xid.token. Positions are used again after a
-- rollback or a crash, and slots after a rotation; the token, which the lease row stores, is not. In transaction mode it
-- names one call of dequeue, by the token: subscription and position are 0.
create or replace function mq._parse_receipt(queue text, queue_id int, receipt text, out slot int, out subscription smallint,
                                             out lane smallint, out block_no bigint, out slice int, out part int, out xid xid8, out token bigint)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v text[];
begin
    if receipt is null then
        perform mq._null_argument('receipt');
    end if;
    -- Integers before they reach any SQL text. No backslash: what it means is a setting of the caller. No zero before the
    -- transaction id: xid8 would read an octal number.
    if receipt !~ '^[0-9]{1,9}[.][0-9]{1,9}[.][0-9]{1,4}[.][0-9]{1,4}[.][0-9]{1,18}[.][0-9]{1,9}[.][0-9]{1,9}[.][1-9][0-9]{0,17}[.][1-8][0-9]{18}$' then
        perform mq._malformed_receipt(_parse_receipt.queue, _parse_receipt.receipt);
    end if;
    v := string_to_array(receipt, '.');
    if v[1]::int <> _parse_receipt.queue_id then
        perform mq._malformed_receipt(_parse_receipt.queue, _parse_receipt.receipt);
    end if;
    slot := v[2]::int;
    subscription := v[3]::smallint;
    lane := v[4]::smallint;
    block_no := v[5]::bigint;
    slice := v[6]::int;
    part := v[7]::int;
    xid := v[8]::xid8;
    token := v[9]::bigint;
end $$;
