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
from support.server import database as temporary_database

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


class Worker:
    """One message in, one out; `share` of them delayed, `share` of them failing."""

    def __init__(self, conn: Connection, share: float) -> None:
        conn.execute(
            "select mq.create_queue('q', retry_backoff => '10 ms', retry_backoff_max => '10 ms',"
            " max_attempts => 1000)"
        )
        conn.execute("set synchronous_commit = off")
        measure.fill(conn, 300)
        self.conn = conn
        self.share = share
        self.enqueues = Meter(conn)
        self.dequeues = Meter(conn)
        self.random = random.Random(1)
        self.receipt: str | None = None

    def step(self) -> None:
        delay = "20 ms" if self.random.random() < self.share else None
        self.enqueues.time(partial(self.conn.execute, ENQUEUE, (delay,), prepare=True))
        self.receipt = self.dequeues.time(self.dequeue)
        if self.receipt and self.random.random() < self.share:
            self.conn.execute("select mq.nack('q', %s)", (self.receipt,), prepare=True)
            self.receipt = None

    def dequeue(self) -> str | None:
        row = self.conn.execute(DEQUEUE, (self.receipt,), prepare=True).fetchone()
        return str(row[0]) if row else None

    def take(self) -> dict[str, Times]:
        return {"enqueue": self.enqueues.take(), "dequeue": self.dequeues.take()}


def fifths(workers: list[Worker]) -> list[list[dict[str, Times]]]:
    """What each worker's calls took, by fifths of the whole; the workers take turns, call by call."""
    for _ in range(WARM):
        for worker in workers:
            worker.step()
    for worker in workers:
        worker.take()
    found = []
    for _ in range(FIFTHS):
        for _ in range(MESSAGES // FIFTHS):
            for worker in workers:
                worker.step()
        found.append([worker.take() for worker in workers])
    return found


@pytest.mark.parametrize("share", [0.0, 0.1], ids=["plain", "retries-and-delays"])
@pytest.mark.parametrize("holder", holders.ALL, ids=lambda holder: holder.__name__)
def test_a_held_horizon(
    holder: Holder, share: float, server: Server, database: str, connect: Connect, mq_template: str
) -> None:
    """The end against the start, beside a worker in another database, where nothing is held.

    By how much the other one changed, the machine did.
    """
    factor = 1.3 if share else 1.2
    dbname = str(conninfo.conninfo_to_dict(database)["dbname"])
    conn = connect()
    with (
        temporary_database(server, f"{dbname}_free", mq_template) as free,
        psycopg.connect(free, autocommit=True) as other,
    ):
        held, control = Worker(conn, share), Worker(other, share)
        with holder(server, dbname):
            found = fifths([held, control])
        for worker in (held, control):
            if worker.receipt:
                worker.conn.execute("select mq.ack('q', %s)", (worker.receipt,))
    wrong = []
    for name in ("enqueue", "dequeue"):
        mine = found[-1][0][name].ratios(found[0][0][name])
        machine = found[-1][1][name].ratios(found[0][1][name])
        said = ", ".join(
            f"{what} {ratio:.2f} ({machine[what]:.2f})" for what, ratio in mine.items()
        )
        print(f"\n{name}, end by start (where nothing is held): {said}")
        for what in ("cpu p50", "cpu p99", "wall p50"):
            if mine[what] > factor * max(1.0, machine[what]):
                wrong.append(f"{name}, {what}: {said}")
    assert not wrong

    conn.execute("select mq.rotate_segment('q')")

    def caught_up() -> bool:
        conn.execute("select mq.ack('q', receipt) from mq.dequeue('q', 500) limit 1")
        conn.execute("select mq.maintain('q')")
        row = conn.execute("select count(*) from mq.segment").fetchone()
        return bool(row and row[0] == 1)

    wait.until(caught_up, "rotation to catch up")
