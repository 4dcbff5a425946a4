"""A backlog of several segments: taken from the oldest one, as short a way as from the open one."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from concurrent.futures import Future

import psycopg
import pytest

from support import race, wait
from support.race import (
    Background,
    Connect,
    ack,
    drain,
    fill,
    lease,
    locks,
    maintain,
    number,
    put,
    rotate,
    segments,
    slot,
    take,
    value,
)

database, queue, session = race.database, race.queue, race.session

TAKE = (
    "p_ticket bigint, p_sub smallint, p_lane smallint, p_n int, p_vt interval,"
    " p_fresh boolean, p_due boolean, p_had boolean, p_give_up timestamptz"
)


@pytest.fixture(autouse=True)
def dispatchers(conn: psycopg.Connection) -> Iterator[None]:
    """As they were, whatever a test put in their place."""
    yield
    with conn.transaction():
        conn.execute("drop function if exists mq._take_one_was, mq._claim_was")
        conn.execute("drop sequence if exists public.calls")
        conn.execute("select mq._lock_generated('test'), mq._create_dispatchers()")


def backlog(conn: psycopg.Connection, count: int) -> None:
    """Messages 1 to count wait in a closed segment, "new" ones in the open one."""
    fill(conn, count)
    rotate(conn)
    put(conn, "new")
    put(conn, "newer")


def key(conn: psycopg.Connection, which: str) -> int:
    return number(conn) * 65536 + slot(conn, which)


def look_for_what_is_due(conn: psycopg.Connection) -> str:
    """As one call in sixty does: it opens a block of single messages for it, and takes the first."""
    return str(
        value(
            conn,
            f"select payload from mq._take_{number(conn)}_{slot(conn, 'open')}"
            "(null, 1::int2, 0::int2, 1, '1 hour', false, true, false, clock_timestamp())",
        )
    )


def count_calls(conn: psycopg.Connection, which: str) -> None:
    """Of the long way to a segment."""
    name = f"{number(conn)}_{slot(conn, which)}"
    conn.execute("create sequence public.calls")
    conn.execute(f"alter function mq._take_{name} rename to _take_was_{name}")
    conn.execute(
        f"create function mq._take_{name} ({TAKE}) returns setof mq.delivery language plpgsql as $$ begin"
        f" perform nextval('public.calls'); return query select * from mq._take_was_{name}"
        " (p_ticket, p_sub, p_lane, p_n, p_vt, p_fresh, p_due, p_had, p_give_up); end $$"
    )


@pytest.mark.parametrize("n", [1, 2])
def test_most_calls_go_the_short_way(conn: psycopg.Connection, n: int) -> None:
    backlog(conn, 200 * n)
    count_calls(conn, "oldest")
    got = [message for _ in range(200) for message in take(conn, n)]
    assert got == list(range(1, 200 * n + 1))
    assert value(conn, "select last_value from public.calls") <= 30  # of 200, most likely 3 or 4
    assert take(conn, 2) == ["new", "newer"]


def next_chance(conn: psycopg.Connection, near: float) -> None:
    """What random() gives the session next."""
    for i in range(1000):
        conn.execute("select setseed(%s)", (i / 1000,))
        if abs(value(conn, "select random()") - near) < 0.02:
            conn.execute("select setseed(%s)", (i / 1000,))
            return
    raise AssertionError(near)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("chance", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("receipt", [None, "1.2.1.0.1.1.0.1.1", "7..1.0.1.1.0.1.1"])
def test_the_queue_goes_between_its_row_and_its_register(
    conn: psycopg.Connection,
    session: Connect,
    background: Background,
    n: int,
    chance: float,
    receipt: str | None,
) -> None:
    backlog(conn, 10)
    consumer, dropping = session(autocommit=True), session()
    take(consumer, n)  # plans and caches are there
    next_chance(consumer, chance)
    if receipt and receipt.startswith("7"):
        receipt = f"{number(conn)}{receipt[1:]}"
    dropping.execute("select mq.drop_queue('q')")
    taking = background(take, consumer, n, ack=receipt)
    wait.until_blocked(conn, wait.backend_pid(consumer), by=wait.backend_pid(dropping))
    dropping.commit()
    error = taking.exception(30)
    assert isinstance(error, psycopg.DatabaseError)
    assert error.sqlstate == "MQ001", error


def test_what_is_due_again_does_not_wait_for_it_nor_it_for_that(conn: psycopg.Connection) -> None:
    conn.execute("select mq.enqueue_batch('q', array_fill('\"fresh\"'::jsonb, array[4000]))")
    rotate(conn)
    conn.execute(
        "select mq.enqueue_batch('q', array_fill('\"again\"'::jsonb, array[3000]), delay => '1 microsecond')"
    )
    for n, calls in (1, 1000), (10, 200):
        count = collections.Counter(message for _ in range(calls) for message in take(conn, n))
        assert 0.1 < count["again"] / count.total() < 0.45, (n, count)


def test_what_is_due_in_slices_of_another_size_does_not_wait_either(
    conn: psycopg.Connection,
) -> None:
    backlog(conn, 2000)
    conn.execute(
        "select mq.enqueue_batch('q', array_fill('\"again\"'::jsonb, array[500]), delay => '1 microsecond')"
    )
    next_chance(conn, 0.8)
    assert take(conn, 10) == list(range(1, 11))
    assert look_for_what_is_due(conn) == "again"
    next_chance(conn, 0.1)
    assert take(conn, 10) == ["again"] * 10
    assert sum("again" in take(conn, 10) for _ in range(100)) > 10


def test_a_segment_that_is_used_up_sends_few_the_long_way(conn: psycopg.Connection) -> None:
    """Though upkeep has not said yet that it is not the oldest any more."""
    fill(conn, 10)
    rotate(conn)
    conn.execute("select mq.enqueue_batch('q', array_fill('\"new\"'::jsonb, array[300]))")
    assert drain(conn, 10)[:10] == list(range(1, 11))
    conn.execute("select mq.enqueue_batch('q', array_fill('\"new\"'::jsonb, array[300]))")
    take(conn)
    count_calls(conn, "open")
    assert len([message for _ in range(200) for message in take(conn)]) == 200
    assert 50 <= value(conn, "select last_value from public.calls") <= 110  # 40 in 100


def test_nobody_stops_to_open_blocks_of_the_oldest_while_much_is_due(
    conn: psycopg.Connection,
) -> None:
    """Though there always are tickets for what is due, and none for what is fresh."""
    backlog(conn, 3000)
    conn.execute(
        "select mq.enqueue_batch('q', array_fill('\"again\"'::jsonb, array[3000]), delay => '1 microsecond')"
    )
    assert look_for_what_is_due(conn) == "again"
    oldest = f"{number(conn)}_{slot(conn, 'oldest')}"
    got = []
    for _ in range(800):
        got += take(conn)
        if len(got) == 100:  # others drew all, and rolled back
            conn.execute(
                f"select setval('mq.ticket_{oldest}', last_value >> 14) from mq.last_ticket_{oldest}"
            )
    assert got.count("again") < 600


def test_what_is_due_again_brings_nothing_fresh_with_it(conn: psycopg.Connection) -> None:
    """Or a quarter of the calls would overtake the backlog."""
    backlog(conn, 900)
    conn.execute(
        "select mq.enqueue_batch('q', array_fill('\"again\"'::jsonb, array[110]), delay => '1 microsecond')"
    )
    assert look_for_what_is_due(conn) == "again"
    got = [message for _ in range(900) for message in take(conn)]
    assert got.count("again") == 109
    assert not {"new", "newer"} & set(got)


def draw_in_vain(conn: psycopg.Connection, which: str = "oldest") -> None:
    """The short way gives nothing but a ticket, as where the block that it is of is not visible yet."""
    ticket = f"nextval('mq.ticket_{number(conn)}_{slot(conn, which)}')"
    if_other = f"if p_key <> {key(conn, which)} then return null; end if"
    conn.execute(
        "create or replace function mq._take_one_0(p_key bigint, p_vt interval) returns mq.delivery language plpgsql"
        f" as $$ begin {if_other}; return row(null, {ticket}, null, null, null, null, null)::mq.delivery; end $$"
    )
    conn.execute(
        "create or replace function mq._claim_0(p_key bigint, p_n int, p_vt interval) returns mq._claim language plpgsql"
        f" as $$ begin {if_other}; return row(null, null, null, null, {ticket}, null)::mq._claim; end $$"
    )


@pytest.mark.parametrize("n", [1, 2])
def test_a_ticket_drawn_in_vain_is_not_lost(conn: psycopg.Connection, n: int) -> None:
    backlog(conn, 100 * n)
    got = take(conn, n)
    draw_in_vain(conn)
    got += [message for _ in range(50) for message in take(conn, n)]
    assert got == list(range(1, 51 * n + 1))


def test_nor_is_one_of_the_open_segment(conn: psycopg.Connection) -> None:
    backlog(conn, 10)
    for due in "abc":
        put(conn, due, delay="1 microsecond")
    assert look_for_what_is_due(conn) == "a"
    draw_in_vain(conn, "open")
    next_chance(conn, 0.1)
    assert take(conn) == ["b"]


def test_what_is_due_is_left_to_who_opens_a_block_of_the_open_segment(
    conn: psycopg.Connection, session: Connect
) -> None:
    """Who opens the next block of the oldest one does not keep others from it meanwhile."""
    backlog(conn, 1000)
    take(conn)
    put(conn, "due", delay="1 microsecond")
    consumer = session()
    promotion = value(conn, "select mq._lock_key(%s, -2)", number(conn))
    lane = 0
    for _ in range(40):
        consumer.execute("select mq._take_one_0(%s, '1 hour')", (key(conn, "oldest"),))
        held = [row[3] for row in locks(consumer, conn)]
        assert promotion not in held
        lane = max(lane, len(held))
        consumer.commit()
    assert lane > 2  # one of them opened a block
    assert "due" in [message for _ in range(900) for message in take(conn)]


def test_receipts_of_the_oldest_and_of_the_open_one_are_settled_the_short_way(
    conn: psycopg.Connection,
) -> None:
    def receipts() -> tuple[str, str]:
        old = lease(conn)
        return old, value(
            conn,
            f"select receipt from mq._take_{number(conn)}_{slot(conn, 'open')}"
            "(null, 1::int2, 0::int2, 1, '1 hour', true, true, false, clock_timestamp())",
        )

    backlog(conn, 100)
    between = lease(conn)
    old, young = receipts()
    assert [receipt.split(".")[1] for receipt in (old, young)] == [
        str(slot(conn, which)) for which in ("oldest", "open")
    ]
    with conn.transaction(force_rollback=True):
        conn.execute(
            "create or replace function mq._ack(queue text, queue_id int, receipt text) returns int"
            " language plpgsql as $$ begin raise 'the long way'; end $$"
        )
        assert ack(conn, old) == ack(conn, young) == 1
    # With a dequeue, too, and of what is neither any more.
    with conn.transaction(force_rollback=True):
        conn.execute(
            "create or replace function mq._ack(queue text, queue_id int, receipt text) returns int"
            " language plpgsql as $$ begin raise 'the long way'; end $$"
        )
        for receipt in old, young:
            assert len(take(conn, ack=receipt)) == 1
    assert ack(conn, between) == 1
    rotate(conn)
    maintain(conn)
    assert len(take(conn, ack=young)) == 1
    assert ack(conn, young) == 0


def pause_between_register_and_claim(conn: psycopg.Connection) -> None:
    """Who has read which segment is the oldest waits for advisory lock 1 before he claims there."""
    for name, arguments, result, call in (
        ("take_one", "p_key bigint, p_vt interval", "mq.delivery", "p_key, p_vt"),
        ("claim", "p_key bigint, p_n int, p_vt interval", "mq._claim", "p_key, p_n, p_vt"),
    ):
        conn.execute(f"alter function mq._{name}_0 rename to _{name}_was")
        conn.execute(
            f"create function mq._{name}_0({arguments}) returns {result} language plpgsql set lock_timeout = 0"
            " as $$ begin perform pg_advisory_lock(1), pg_advisory_unlock(1);"
            f" return mq._{name}_was({call}); end $$"
        )


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("reopened", [False, True])
def test_the_oldest_segment_goes_between_register_and_claim(
    conn: psycopg.Connection, session: Connect, background: Background, n: int, reopened: bool
) -> None:
    """It was emptied; or is the open one by now, with a block from which others draw."""
    backlog(conn, 10 * n)
    got = take(conn, n)
    old = slot(conn, "oldest")
    consumer, holder = session(), session(autocommit=True)
    holder.execute("select pg_advisory_lock(1)")
    pause_between_register_and_claim(conn)
    consumers: list[Future[list[object]]] = []
    while not consumers or consumers[-1].done():  # until one goes the short way
        if consumers:
            got += consumers[-1].result()
            consumer.commit()
        consumers.append(background(take, consumer, n))
        wait.until_blocked_or_done(conn, wait.backend_pid(consumer), consumers[-1].done)
    conn.execute("select mq._lock_generated('test'), mq._create_dispatchers()")
    while len(got) < 10 * n + 2:
        rows = take(conn, n)
        assert rows
        got += rows
    conn.execute(
        f"insert into mq.settlement_{number(conn)}_{old} (subscription, lane, block_no, slice, part, seq, final, outcome, n)"
        f" select subscription, lane, block_no, slice, part, 1, true, 'acked', total from mq.lease_{number(conn)}_{old}"
        " where slice = head_slice and part = head_part"
    )
    wait.until(
        lambda: (
            not value(
                conn,
                "select count(*) from mq.segment where queue_id = %s and slot = %s",
                number(conn),
                old,
            )
            or maintain(conn) is None
        )
    )
    # Tickets are left where an opener rolled back, or others drew none: he goes on to look at the tables.
    conn.execute(
        f"select setval('mq.ticket_{number(conn)}_{old}', (last_value >> 14) - 1) from mq.last_ticket_{number(conn)}_{old}"
    )
    if reopened:
        while slot(conn, "open") != old:
            rotate(conn)
            maintain(conn)
        assert segments(conn) > 1
    for message in range(100, 100 + 10 * n):
        put(conn, str(message))
    if reopened:
        maintain(conn)
        rows = take(conn, n)
        assert rows == [str(message) for message in range(100, 100 + n)]
        got += rows
    holder.execute("select pg_advisory_unlock(1)")
    late = consumers[-1].result(30)
    consumer.commit()
    assert len(late) == n
    got += late + drain(conn)
    assert sorted(map(str, got)) == sorted(
        [str(i) for i in (*range(1, 10 * n + 1), "new", "newer", *range(100, 100 + 10 * n))]
    )
