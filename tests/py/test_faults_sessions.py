"""Five hundred sessions at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from support import conserve, template
from support.race import value
from support.server import Server

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SESSIONS = 500


@pytest.mark.timeout(600)
def test_five_hundred_sessions_at_once(server: Server) -> None:
    with Server(server.name, settings={"max_connections": str(SESSIONS + 20)}) as own:
        own.create_database("many", template.make(own))
        dsn = own.dsn("many")
        conserve.prepare(dsn, "q")
        together = threading.Barrier(SESSIONS)

        def work(number: int) -> None:
            with psycopg.connect(dsn, autocommit=True) as conn:
                together.wait(300)
                for i in range(4):
                    conserve.send(conn, [number * 10 + i])
                    conserve.settle(conn, conserve.receive(conn, 1 + number % 3, timeout="5 min"))
                together.wait(300)  # all of them are there to the end
                with conn.transaction():  # idle, and polls
                    conserve.settle(conn, conserve.receive(conn, 10, timeout="5 min"))

        with (
            ThreadPoolExecutor(SESSIONS) as pool,
            psycopg.connect(dsn, autocommit=True) as observer,
        ):
            for done in [pool.submit(work, number) for number in range(1, SESSIONS + 1)]:
                done.result(300)
            assert value(observer, "select count(*) from sent") == 4 * SESSIONS
        known = [number * 10 + i for number in range(1, SESSIONS + 1) for i in range(4)]
        conserve.check(dsn, known=known)
