"""Through PgBouncer in transaction mode: everything but LISTEN works, and consumers poll."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import psycopg.conninfo
import pytest

import mq
from support import conserve, points, wait
from support.load import Load
from support.pooler import Pooler
from support.race import value
from support.server import Server

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        Pooler.program is None, reason="there is no pgbouncer (apt install pgbouncer)"
    ),
]

# What psycopg keeps on a server's session would be met by others.
unprepared = functools.partial(psycopg.connect, prepare_threshold=None)


@pytest.fixture
def pooler(server: Server) -> Iterator[Pooler]:
    with Pooler(server) as running:
        yield running


@pytest.fixture
def pooled(pooler: Pooler, database: str) -> str:
    return pooler.dsn(str(psycopg.conninfo.conninfo_to_dict(database)["dbname"]))


def test_every_public_function_works(database: str, pooled: str) -> None:
    conserve.prepare(database, "q")
    with unprepared(pooled, autocommit=True) as conn:
        state = points.state(conn)
        for call in points.CALLS.values():
            if "listen" not in call:
                with conn.transaction(force_rollback=True):
                    conn.execute(f"select * from {call}", state)
        with conn.cursor().copy("copy mq.inbox (queue, payload) from stdin") as copy:
            copy.write_row(("q", '{"tag": 36}'))
        conn.execute("insert into sent values (36, 'q')")
    conserve.check(database, known=range(1, 37), least=36)


def test_a_load_through_it_loses_nothing(database: str, pooled: str) -> None:
    conserve.prepare(database, "a", "b")
    with Load(pooled, "a", "b", consumers=5, producers=4, connect=unprepared) as load:
        load.goes_on(300)
    conserve.check(database, known=load.committed)


@pytest.mark.parametrize("listen", [False, True])
def test_a_consumer_polls(database: str, pooled: str, listen: bool) -> None:
    conserve.prepare(database, "q")
    seen: list[int] = []
    consumer = mq.consume(
        # With listen=True, who makes the connection must not prepare statements.
        (lambda: unprepared(pooled, autocommit=True)) if listen else pooled,
        "q",
        listen=listen,
        poll_min=timedelta(milliseconds=20),
        poll_max=timedelta(milliseconds=100),
        maintain_every=timedelta(milliseconds=50),
    )

    def run() -> None:
        with consumer as jobs:
            for job in jobs:
                with job.transaction() as conn:
                    conn.execute(
                        "insert into done values (%s, 'q', %s)", (job.payload["tag"], job.msg_id)
                    )
                seen.append(job.payload["tag"])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with unprepared(pooled, autocommit=True) as conn:
            for tag in range(1, 31):
                conserve.send(conn, [tag])
                if tag % 10 == 0:  # idle, and then polls
                    wait.until(lambda tag=tag: len(seen) == tag, f"message {tag}")  # type: ignore[misc]
    finally:
        consumer.stop()
        thread.join(wait.SECONDS)
    assert sorted(seen) == list(range(1, 31))
    if listen:  # a registration stays with a session that is somebody else's now
        end_server_sessions(database)
    conserve.check(database, known=range(1, 31))


def end_server_sessions(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        wait.until(
            lambda: value(conn, "select count(*) = 0 from pg_locks where locktype = 'advisory'"),
            "the sessions to end",
        )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_clients_share_a_few_sessions(server: Server, database: str) -> None:
    conserve.prepare(database, "q")
    with Pooler(server, size=10) as pooler, ThreadPoolExecutor(32) as pool:
        dsn = pooler.dsn(str(psycopg.conninfo.conninfo_to_dict(database)["dbname"]))
        clients = list(pool.map(lambda _: unprepared(dsn, autocommit=True), range(1000)))

        def work(numbered: tuple[int, psycopg.Connection[Any]]) -> None:
            number, conn = numbered
            conserve.send(conn, [number])
            conserve.settle(conn, conserve.receive(conn, 1))

        list(pool.map(work, enumerate(clients, start=1)))
        with psycopg.connect(database, autocommit=True) as conn:
            assert value(
                conn,
                "select count(*) <= 11 from pg_stat_activity"
                " where datname = current_database() and backend_type = 'client backend'",
            )
        for client in clients:
            client.close()
    conserve.check(database, known=range(1, 1001), least=1000)
