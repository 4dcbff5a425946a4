"""dequeue takes the same time whatever else is there; COPY is a fast way in."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest

from support import clock, measure
from support.clock import Consumer

pytestmark = pytest.mark.perf

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

FACTOR = 1.5
PAIRS = 5
CALLS = 512
WARM = 100


def compare(connect: Connect, almost_empty: str, other: str) -> dict[str, float]:
    """The ratios of the queue `other` to an almost empty one: medians of interleaved pairs.

    Call by call, so that what else the machine does falls on both.
    """
    filler = connect()
    consumers = []
    for queue in (almost_empty, other):
        conn = connect()
        conn.execute("set synchronous_commit = off")
        consumers.append(Consumer(conn, queue))
    pairs: list[dict[str, float]] = []
    for _ in range(PAIRS):
        measure.fill(filler, WARM + CALLS, almost_empty)
        for call in range(WARM + CALLS):
            for consumer in consumers:
                if call == WARM:
                    consumer.meter.take()
                consumer.step()
        base, loaded = (consumer.meter.take() for consumer in consumers)
        pairs.append(loaded.ratios(base))
    return {name: statistics.median(pair[name] for pair in pairs) for name in pairs[0]}


def check(ratios: dict[str, float], factor: float = FACTOR) -> None:
    said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    print(f"\n{said}")
    # The tail is block openings and other people's load.
    assert all(ratio <= factor for name, ratio in ratios.items() if "p99" not in name), said


@pytest.fixture
def almost_empty(conn: Connection, queue: str) -> str:
    conn.execute("select mq.create_queue('almost_empty')")
    return "almost_empty"


def test_a_million_messages_of_backlog(
    connect: Connect, conn: Connection, almost_empty: str
) -> None:
    measure.fill(conn, 1_000_000)
    check(compare(connect, almost_empty, "q"))


def test_100000_leases_of_single_messages(
    connect: Connect, conn: Connection, almost_empty: str
) -> None:
    measure.fill(conn, 110_000)
    conn.execute(
        "do $$ begin for i in 1 .. 100000 loop"
        " perform from mq.dequeue('q', 1, '1 hour'); commit; end loop; end $$"
    )
    check(compare(connect, almost_empty, "q"))


def test_100000_deferred_into_the_future(
    connect: Connect, conn: Connection, almost_empty: str
) -> None:
    measure.fill(conn, 100_000, delay="1 hour")
    measure.fill(conn, 10_000)
    check(compare(connect, almost_empty, "q"))


def test_600000_uncommitted_rows_of_another_session(
    connect: Connect, conn: Connection, almost_empty: str
) -> None:
    other = connect(autocommit=False)
    measure.fill(other, 600_000)
    measure.fill(conn, 10_000)
    check(compare(connect, almost_empty, "q"))
    other.rollback()


def test_100_closed_segments_that_somebody_reads(
    connect: Connect, conn: Connection, almost_empty: str
) -> None:
    reader = connect(autocommit=False)
    reader.execute("set transaction isolation level repeatable read")
    for _ in range(100):
        row = conn.execute(
            "select s.queue_id, s.slot from mq.segment as s join mq.queue as q using (queue_id)"
            " where q.name = 'q' order by s.segment desc limit 1"
        ).fetchone()
        assert row is not None
        reader.execute(f"select count(*) from mq.log_{row[0]}_{row[1]}")
        measure.fill(conn, 20)
        measure.consume(conn, 40, n=10)
        conn.execute("select mq.rotate_segment('q')")
        conn.execute("select mq.maintain('q')")
    measure.fill(conn, 10_000)
    check(compare(connect, almost_empty, "q"))


@pytest.mark.parametrize("belief", ["none", "empty", "stale"])
def test_statistics(belief: str, connect: Connect, conn: Connection, almost_empty: str) -> None:
    if belief == "stale":
        measure.fill(conn, 50)
        measure.consume(conn, 50)
    if belief != "none":
        conn.execute("analyze")
    measure.fill(conn, 100_000)
    check(compare(connect, almost_empty, "q"))


def test_copy_reaches_half_the_rate_of_enqueue_batch(connect: Connect, queue: str) -> None:
    """20,000 messages: one COPY each 1,000, and one COPY of all, by the batches of 1,000."""
    conn = connect()
    payloads = [measure.PAYLOAD] * 1000
    meter = clock.Meter(conn)

    def batches() -> None:
        for _ in range(20):
            conn.execute("select count(*) from mq.enqueue_batch('q', %s::jsonb[])", (payloads,))

    def copies(rows: int) -> None:
        for _ in range(20_000 // rows):
            with (
                conn.cursor() as cursor,
                cursor.copy("copy mq.inbox (queue, payload) from stdin") as copy,
            ):
                for _ in range(rows):
                    copy.write_row(("q", measure.PAYLOAD))

    ratios: dict[str, list[float]] = {}
    for _ in range(PAIRS):
        meter.time(batches)
        base = meter.take()
        for rows in (1000, 20_000):
            meter.time(partial(copies, rows))
            one = meter.take()
            ratios.setdefault(f"{rows} rows, CPU", []).append(base.cpu[0] / one.cpu[0])
            ratios.setdefault(f"{rows} rows, wall", []).append(base.wall[0] / one.wall[0])
    found = {name: round(statistics.median(values), 2) for name, values in ratios.items()}
    print(f"\nrate of COPY by rate of enqueue_batch: {found}")
    assert all(ratio >= 0.5 for ratio in found.values()), found
