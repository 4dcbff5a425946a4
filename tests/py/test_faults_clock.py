"""Clocks that jump: an hour forward, an hour back, and there and back again, with messages in every state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from support import conserve, faketime, race, template, wait
from support.load import Load
from support.race import value
from support.server import Server

pytestmark = pytest.mark.faults

HOUR = 3600
Jump = Callable[[int], None]  # to so many seconds before or after the real time


@pytest.fixture(scope="module")
def clockwork(server: Server) -> Iterator[faketime.FakeTimeServer]:
    if faketime.library() is None:
        pytest.skip("there is no libfaketime (apt install faketime)")
    with faketime.FakeTimeServer(server.name, settings={"full_page_writes": "on"}) as own:
        own.create_database("clock", template.make(own))
        yield own


@pytest.fixture(params=["stored times", pytest.param("faketime", marks=pytest.mark.slow)])
def clock(request: pytest.FixtureRequest) -> Iterator[tuple[str, Jump]]:
    """A database, and what moves the clock: all that is stored gets older or younger, or the server's own time jumps."""
    if request.param == "faketime":
        own: faketime.FakeTimeServer = request.getfixturevalue("clockwork")
        own.create_database("jumps", template.MQ)
        dsn = own.dsn("jumps")
        try:
            yield dsn, own.jump
        finally:
            own.jump(0)
        own.drop_database("jumps")
        return
    dsn = request.getfixturevalue("database")
    with psycopg.connect(dsn, autocommit=True) as conn:
        at = 0

        def jump(seconds: int) -> None:
            nonlocal at
            conserve.pass_time(conn, f"{seconds - at}.000003 s")
            at = seconds

        yield dsn, jump


def every_state(conn: psycopg.Connection) -> dict[str, list[conserve.Row]]:
    """Messages 1 to 40, ready, leased, extended, nacked, deferred and buried, in two segments."""
    conserve.send(conn, range(1, 31))
    leases = {
        "leased": conserve.receive(conn, 3, timeout="1 min"),
        "extended": conserve.receive(conn, 3, timeout="1 min"),
        "long": conserve.receive(conn, 3, timeout="3 hours"),
    }
    conn.execute("select mq.extend('q', %s, '2 min')", (leases["extended"][0].receipt,))
    for reason, how in (("back", "delay => '10 min'"), ("dead", "dead => true")):
        rows = conserve.receive(conn, 2)
        conn.execute(f"select mq.nack('q', %s, {how}, reason => '{reason}')", (rows[0].receipt,))
    race.maintain(conn)
    race.rotate(conn)
    conserve.send(conn, range(31, 36), delay="30 min")
    conserve.send(conn, range(36, 41))
    return leases


def taken(conn: psycopg.Connection) -> set[int]:
    """All that can be had now, not acknowledged, for three hours."""
    found: set[int] = set()
    for _ in range(6):
        while rows := conserve.receive(conn, 50, timeout="3 hours"):
            found |= {row.tag for row in rows}
    return found


def test_a_jump_forward_redelivers_and_loses_nothing(clock: tuple[str, Jump]) -> None:
    dsn, jump = clock
    conserve.prepare(dsn, "q")
    with psycopg.connect(dsn, autocommit=True) as conn:
        leases = every_state(conn)
        jump(HOUR)
        again = taken(conn)
        assert again >= {row.tag for name in ("leased", "extended") for row in leases[name]}
        assert again >= set(range(31, 36))
        assert not conserve.settle(conn, leases["leased"])
        assert not conserve.settle(conn, leases["extended"])
        assert conserve.settle(conn, leases["long"])
    conserve.check(dsn, known=range(1, 41))


def test_a_jump_back_keeps_leases_and_loses_nothing(clock: tuple[str, Jump]) -> None:
    dsn, jump = clock
    conserve.prepare(dsn, "q")
    with psycopg.connect(dsn, autocommit=True) as conn:
        leases = every_state(conn)
        jump(-HOUR)
        race.maintain(conn)
        now = taken(conn)
        assert not now & {row.tag for rows in leases.values() for row in rows}
        assert not now & set(range(31, 36))
        for rows in leases.values():
            assert conserve.settle(conn, rows)
    conserve.check(dsn, known=range(1, 41))


def test_delays_hold_after_a_jump_there_and_back(clock: tuple[str, Jump]) -> None:
    """What a wrong clock promoted must not hold back what is deferred once it is right again."""
    dsn, jump = clock
    conserve.prepare(dsn, "q")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conserve.send(conn, [1], delay="59 min")
        jump(HOUR)
        assert taken(conn) == {1}
        jump(0)
        conserve.send(conn, [2], delay="1 ms")

        def came_after_upkeep() -> bool:  # which changes over to a set without that cursor
            race.maintain(conn)
            return taken(conn) == {2}

        wait.until(came_after_upkeep, "a message that was delayed by 1 ms")
    conserve.check(dsn, known=[1, 2])


def test_segments_and_notifications_after_a_jump_back(clock: tuple[str, Jump]) -> None:
    dsn, jump = clock
    conserve.prepare(dsn, "q", segment_age="1 min")
    with (
        psycopg.connect(dsn, autocommit=True) as conn,
        psycopg.connect(dsn, autocommit=True) as listener,
    ):
        conserve.send(conn, range(1, 11))
        conn.execute("select mq.rotate_segment('q')")
        jump(-HOUR)
        listener.execute("listen mq_q")
        for tag in range(11, 16):  # one every 100 ms is announced
            conserve.send(conn, [tag])
            time.sleep(0.05)
        assert sum(1 for _ in listener.notifies(timeout=10, stop_after=1)) >= 1
        while rows := conserve.receive(conn, 5):
            assert conserve.settle(conn, rows)
        for _ in range(5):
            race.maintain(conn)
        assert race.segments(conn) == 1
        assert value(conn, "select oldest_ready_age is null from mq.queue_stats('q')")
    conserve.check(dsn, known=range(1, 16))


@pytest.mark.slow
def test_a_load_under_a_clock_that_jumps_loses_nothing(
    clockwork: faketime.FakeTimeServer,
) -> None:
    dsn = clockwork.dsn("clock")
    conserve.prepare(dsn, "a", "b")
    with Load(dsn, "a", "b") as load:
        for seconds in (HOUR, 0, -HOUR, 0, 25 * HOUR, -HOUR, 0, 5, -5, 0) * 3:
            load.goes_on(50)
            clockwork.jump(seconds)
    conserve.check(dsn, known=load.committed)
