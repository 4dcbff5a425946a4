"""What else goes on in a database while its queue is used: context managers, by name."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator

import psycopg

from bench.peers import Absent
from support.holders import writer
from support.server import Server

Scenario = Callable[[Server, str], "contextlib.AbstractContextManager[None]"]


@contextlib.contextmanager
def clean(server: Server, dbname: str) -> Iterator[None]:
    """Nothing."""
    yield


@contextlib.contextmanager
def snapshot(server: Server, dbname: str) -> Iterator[None]:
    """A REPEATABLE READ transaction that looked once, at what any peer's database has, and sits there."""
    with server.connect(dbname, autocommit=False) as conn:
        conn.execute("set transaction isolation level repeatable read")
        conn.execute("select count(*) from pg_class")
        yield
        conn.rollback()


@contextlib.contextmanager
def analytics(server: Server, dbname: str) -> Iterator[None]:
    """Three queries of 60 seconds each, one every 20 seconds, so that there are always some."""
    stop = threading.Event()
    open_connections: list[psycopg.Connection] = []

    def query(first: float) -> None:
        stop.wait(first)
        while not stop.is_set():
            with (
                contextlib.suppress(psycopg.Error),
                server.connect(dbname, autocommit=True) as conn,
            ):
                open_connections.append(conn)
                # It sleeps instead of computing: what is measured is what its snapshot does.
                conn.execute("select count(*), pg_sleep(60) from pg_class")

    threads = [threading.Thread(target=query, args=(20.0 * i,), daemon=True) for i in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for conn in open_connections:
            with contextlib.suppress(psycopg.Error):
                conn.cancel_safe()
        for thread in threads:
            thread.join(10)


@contextlib.contextmanager
def dump(server: Server, dbname: str) -> Iterator[None]:
    """A pg_dump whose reader has stopped reading: it holds its snapshot, and a lock on every table."""
    program = server.installation.bin / "pg_dump"
    if not program.exists():
        raise Absent(f"this server has no pg_dump ({program})")
    with server.connect(dbname) as conn:
        conn.execute(
            "create table if not exists ballast as select repeat('x', 1000) as x from generate_series(1, 1000)"
        )
    process = subprocess.Popen(
        [program, "--dbname", server.dsn(dbname)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        process.stdout.read(1)  # it has its locks, and begins to write
        yield
        if process.poll() is not None:
            raise RuntimeError("pg_dump was not held")
    finally:
        process.stdout.close()
        process.wait(60)


ALL: dict[str, Scenario] = {
    "clean": clean,
    "snapshot": snapshot,
    "writer": writer,  # holds back the horizon of every database
    "analytics": analytics,
    "dump": dump,
    "deep": clean,
}
# Messages that wait where the scenario is about that.
BACKLOGS = {"deep": 10_000_000}
