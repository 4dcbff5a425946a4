"""While something holds the vacuum horizon back, enqueue and dequeue take the time they took."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

from support import holders, measure, wait
from support.clock import Meter, Times
from support.holders import Holder
from support.server import Server

pytestmark = pytest.mark.perf

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

MESSAGES = 25_000
WARM = 2_000
FIFTHS = 5
ENQUEUE = "select mq.enqueue('q', '{\"a\": 1}', delay => %s::interval)"
DEQUEUE = "select receipt from mq.dequeue('q', 1, ack => %s)"


def dequeue(conn: Connection, receipt: str | None) -> list[Any]:
    return conn.execute(DEQUEUE, (receipt,), prepare=True).fetchall()


def work(conn: Connection, share: float, messages: int) -> tuple[list[Times], list[Times]]:
    """One message in, one out; `share` of them delayed, `share` of them failing. Enqueue, dequeue: by fifths."""
    rnd = random.Random(1)
    enqueues, dequeues = Meter(conn), Meter(conn)
    receipt: str | None = None
    for i in range(messages + WARM):
        if i == WARM:
            enqueues.take()
            dequeues.take()
        delay = "20 ms" if rnd.random() < share else None
        enqueues.time(partial(conn.execute, ENQUEUE, (delay,), prepare=True))
        rows = dequeues.time(partial(dequeue, conn, receipt))
        receipt = rows[0][0] if rows else None
        if receipt and rnd.random() < share:
            conn.execute("select mq.nack('q', %s)", (receipt,), prepare=True)
            receipt = None
    if receipt:
        conn.execute("select mq.ack('q', %s)", (receipt,))
    found = []
    for meter in (enqueues, dequeues):
        times = meter.take()
        meter.close()
        size = len(times.cpu) // FIFTHS
        found.append(
            [
                Times(times.cpu[k * size :][:size], times.wall[k * size :][:size])
                for k in range(FIFTHS)
            ]
        )
    return found[0], found[1]


@pytest.mark.parametrize("share", [0.0, 0.1], ids=["plain", "retries-and-delays"])
@pytest.mark.parametrize("holder", holders.ALL, ids=lambda holder: holder.__name__)
def test_a_held_horizon(
    holder: Holder, share: float, server: Server, database: str, connect: Connect, conn: Connection
) -> None:
    conn.execute(
        "select mq.create_queue('q', retry_backoff => '10 ms', retry_backoff_max => '10 ms',"
        " max_attempts => 1000)"
    )
    measure.fill(conn, 300)
    session = connect()
    session.execute("set synchronous_commit = off")
    with holder(server, str(conninfo.conninfo_to_dict(database)["dbname"])):
        enqueues, dequeues = work(session, share, MESSAGES)
    factor = 1.3 if share else 1.2
    wrong = []
    for name, fifths in (("enqueue", enqueues), ("dequeue", dequeues)):
        ratios = fifths[-1].ratios(fifths[0])
        said = ", ".join(f"{what} {ratio:.2f}" for what, ratio in ratios.items())
        print(f"\n{name}, end by start: {said}")
        # The processor's time: the wall's tail is other people's load, printed all the same.
        if ratios["cpu p50"] > factor or ratios["cpu p99"] > factor or ratios["wall p50"] > factor:
            wrong.append(f"{name}: {said}")
    assert not wrong

    conn.execute("select mq.rotate_segment('q')")

    def caught_up() -> bool:
        conn.execute("select mq.ack('q', receipt) from mq.dequeue('q', 500) limit 1")
        conn.execute("select mq.maintain('q')")
        row = conn.execute("select count(*) from mq.segment").fetchone()
        return bool(row and row[0] == 1)

    wait.until(caught_up, "rotation to catch up")
