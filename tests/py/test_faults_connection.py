"""A connection that is cut at every point of what a client does, and in the middle of a message."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import psycopg.conninfo
import pytest

import mq
from support import conserve, wait
from support.proxy import Proxy
from support.race import value
from support.server import Server

pytestmark = pytest.mark.faults

DIRECTIONS = ("requests", "answers")
OPTIONS: dict[str, Any] = {
    "maintain_every": None,
    "poll_max": timedelta(milliseconds=20),
    "visibility_timeout": timedelta(milliseconds=300),
    "signals": False,
}
INSERT = """
insert into done select %s, 'q', %s
"""


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server) as proxy:
        yield proxy


def tags(numbers: Iterator[int], count: int) -> list[int]:
    return list(itertools.islice(numbers, count))


def work(dsn: str, numbers: Iterator[int], known: set[int]) -> None:
    """What a client does, each thing once; `known` are the tags whose commit it was told of."""
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=2) as conn:
        for delay in (None, "1 ms"):
            one = tags(numbers, 2)
            conserve.send(conn, one, delay=delay)
            known.update(one)
        one = tags(numbers, 2)
        with conn.transaction():
            conserve.send(conn, one)
            conn.execute("select 1 from sent limit 1")
        known.update(one)
        one = tags(numbers, 2)
        with conn.transaction():
            mq.Client(conn).copy_in("q", [{"tag": tag} for tag in one])
            conn.execute("insert into sent select unnest(%s::bigint[]), 'q'", (one,))
        known.update(one)
        for _ in range(2):
            conserve.settle(conn, conserve.receive(conn, 1))
        rows = conserve.receive(conn, 2)
        conn.execute("select mq.extend('q', %s)", (rows[0].receipt,))
        with conn.transaction():
            conserve.settle(conn, rows)
        with conn.transaction():
            rows = conserve.receive(conn, 1)
            conn.execute("select mq.nack('q', %s, delay => '0')", (rows[0].receipt,))
        conn.execute("select mq.listen('q')")
        conn.execute("select mq.maintain('q')")


def points(proxy: Proxy, direction: str, step: int, **how: bool) -> Iterator[int]:
    """Points to cut at, the end of the work excluded."""
    for point in itertools.count(0, step):
        proxy.cut(direction, point, **how)
        yield point
        if not proxy.fired:
            return


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("step", "count_bytes"),
    [(3, False), *(pytest.param(*how, marks=pytest.mark.slow) for how in ((1, False), (7, True)))],
)
@pytest.mark.timeout(600)
def test_a_client_cut_off_at_any_point_loses_nothing(
    proxy: Proxy, database: str, direction: str, step: int, count_bytes: bool
) -> None:
    conserve.prepare(database, "q")
    numbers = itertools.count(1)
    known: set[int] = set()
    cuts = 0
    dsn = proxy.dsn(name_of(database))
    for _ in points(proxy, direction, step, count_bytes=count_bytes):
        try:
            work(dsn, numbers, known)
        except (psycopg.OperationalError, mq.ConnectionLost):
            cuts += 1
    assert cuts > 15
    until_alone(database)
    conserve.check(database, known=known)


def name_of(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


def until_alone(dsn: str) -> None:
    """Until the server has noticed every cut."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        wait.until(
            lambda: value(
                conn,
                "select count(*) = 1 from pg_stat_activity"
                " where datname = current_database() and backend_type = 'client backend'",
            ),
            "the sessions to end",
        )


# -- consumers --------------------------------------------------------------------------------------


def consume(dsn: str, **options: Any) -> None:
    """Takes all that is there, with an effect in the same transaction."""
    with mq.consume(dsn, "q", **OPTIONS, **options) as jobs:
        for job in jobs:
            with job.transaction() as conn:
                conn.execute(INSERT, (job.payload["tag"], job.msg_id))


def consume_async(dsn: str, **options: Any) -> None:
    async def run() -> None:
        async with mq.consume_async(dsn, "q", **OPTIONS, **options) as jobs:
            async for job in jobs:
                async with job.transaction() as conn:
                    await conn.execute(INSERT, (job.payload["tag"], job.msg_id))

    asyncio.run(run())


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("take", "step"),
    [
        (consume, 13),
        (consume_async, 13),
        pytest.param(consume, 1, marks=pytest.mark.slow),
        pytest.param(consume_async, 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(600)
def test_a_consumer_cut_off_at_any_point_has_each_effect_once(
    proxy: Proxy, database: str, conn: psycopg.Connection, direction: str, take: Any, step: int
) -> None:
    conserve.prepare(database, "q")
    numbers = itertools.count(1)
    dsn = proxy.dsn(name_of(database))
    cuts = 0
    for point in points(proxy, direction, step):
        conserve.send(conn, tags(numbers, 4))
        try:
            take(dsn, n=2, listen=point % 2 == 0, stop_when_empty=True)
        except mq.ConnectionLost:
            assert point < 30  # the first connection must succeed, and is not made anew
        cuts += proxy.fired
    assert cuts >= 30 // step
    conn.close()
    until_alone(database)
    conserve.check(database)
