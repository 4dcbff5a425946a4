"""While something holds the vacuum horizon back, priorities, ordering keys, delays, dedup keys and schedules keep their speed."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

from support import holders
from support.clock import Meter, Times
from support.server import Server
from support.server import database as temporary_database

Connection = psycopg.Connection[Any]
Options = dict[str, Any]

#: Of load; the first and the last fifth of it are compared.
SECONDS = float(os.environ.get("MQ_HORIZON_SECONDS", "600"))
FIFTHS = 5
BOUND = 1.3
BACKLOG = 200

pytestmark = [pytest.mark.perf, pytest.mark.timeout(2 * SECONDS + 300)]


def priorities(rng: random.Random) -> Options:
    return {"priority": rng.randrange(10)}


def ordering_keys(rng: random.Random) -> Options:
    """Half of the messages have one hot key."""
    return {"ordering_key": "hot" if rng.random() < 0.5 else f"key {rng.randrange(100)}"}


def delays(rng: random.Random) -> Options:
    return {"delay": "20 ms"} if rng.random() < 0.5 else {}


def dedup_keys(rng: random.Random) -> Options:
    return {"dedup_key": f"key {rng.randrange(50)}"}


def schedules(_: random.Random) -> Options:
    """Ten times a second a tick, beside the messages."""
    return {}


FEATURES = (priorities, ordering_keys, delays, dedup_keys, schedules)


class Worker:
    """One message in, one out, by turns; one in ten fails."""

    def __init__(self, conn: Connection, feature: Callable[[random.Random], Options]) -> None:
        self.conn = conn
        self.queue = feature.__name__
        self.feature = feature
        self.random = random.Random(1)
        self.enqueues = Meter(conn)
        self.dequeues = Meter(conn)
        self.receipt: str | None = None
        conn.execute(
            "select mq.create_queue(%s, retry_backoff => '10 ms', retry_backoff_max => '10 ms',"
            " max_attempts => 1000, dedup_window => '0')",
            (self.queue,),
        )
        if feature is schedules:
            for number in range(10):
                conn.execute(
                    "select mq.schedule(%s, 'every 1 second', %s, '1')",
                    (f"tick {number}", self.queue),
                )
        for _ in range(BACKLOG):
            self.enqueue()

    def enqueue(self) -> None:
        options = self.feature(self.random)
        named = "".join(f", {name} => %({name})s" for name in options)
        self.conn.execute(
            f"select mq.enqueue(%(queue)s, '1'{named})",
            {"queue": self.queue, **options},
            prepare=True,
        )

    def step(self) -> None:
        self.enqueues.time(self.enqueue)
        self.receipt = self.dequeues.time(self.dequeue)
        if self.receipt and self.random.random() < 0.1:
            self.conn.execute("select mq.nack(%s, %s)", (self.queue, self.receipt), prepare=True)
            self.receipt = None

    def dequeue(self) -> str | None:
        row = self.conn.execute(
            "select receipt from mq.dequeue(%s, 1, ack => %s)",
            (self.queue, self.receipt),
            prepare=True,
        ).fetchone()
        return str(row[0]) if row else None

    def take(self) -> dict[str, Times]:
        return {"enqueue": self.enqueues.take(), "dequeue": self.dequeues.take()}


@pytest.fixture
def connections(
    server: Server, database: str, mq_template: str
) -> Iterator[tuple[list[Connection], list[Connection]]]:
    """For each feature, one to the database in which the horizon is held, and one to another."""
    dbname = str(conninfo.conninfo_to_dict(database)["dbname"])
    with ExitStack() as stack:
        free = stack.enter_context(temporary_database(server, f"{dbname}_free", mq_template))
        both = [
            [stack.enter_context(psycopg.connect(dsn, autocommit=True)) for _ in FEATURES]
            for dsn in (database, free)
        ]
        for conn in (*both[0], *both[1]):
            conn.execute("set synchronous_commit = off")
        yield both[0], both[1]


def test_features_under_a_held_snapshot(
    server: Server,
    database: str,
    connections: tuple[list[Connection], list[Connection]],
) -> None:
    """The end against the start, beside workers in another database, where nothing is held."""
    held, free = (
        [Worker(conn, feature) for conn, feature in zip(side, FEATURES, strict=True)]
        for side in connections
    )
    workers = (*held, *free)
    found: list[list[dict[str, Times]]] = []
    dbname = str(conninfo.conninfo_to_dict(database)["dbname"])
    with holders.snapshot(server, dbname):
        for _ in range(BACKLOG):
            for worker in workers:
                worker.step()
        for worker in workers:
            worker.take()
        for _ in range(FIFTHS):
            until = time.monotonic() + SECONDS / FIFTHS
            count = 0
            while time.monotonic() < until:
                for worker in workers:
                    worker.step()
                count += 1
                if count % 1000 == 0:
                    for side in (held, free):
                        side[0].conn.execute("select mq.maintain()")
            found.append([worker.take() for worker in workers])
    wrong = []
    for number, worker in enumerate(held):
        for name in ("enqueue", "dequeue"):
            mine = found[-1][number][name].ratios(found[0][number][name])
            machine = found[-1][number + len(held)][name].ratios(found[0][number + len(held)][name])
            said = ", ".join(
                f"{what} {ratio:.2f} ({machine[what]:.2f})" for what, ratio in mine.items()
            )
            print(f"\n{worker.queue}, {name}, end by start (where nothing is held): {said}")
            wrong += [
                f"{worker.queue}, {name}, {what}: {said}"
                for what in ("cpu p50", "cpu mean")
                if mine[what] > BOUND * max(1.0, machine[what])
            ]
    assert not wrong
