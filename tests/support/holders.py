"""What holds the vacuum horizon back: an old snapshot, an old writer, a dump."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator

import psycopg

from support import wait
from support.server import Server


@contextlib.contextmanager
def snapshot(server: Server, dbname: str) -> Iterator[None]:
    """A REPEATABLE READ transaction that looked once and sits there."""
    with server.connect(dbname, autocommit=False) as conn:
        conn.execute("set transaction isolation level repeatable read")
        conn.execute("select count(*) from mq.queue")
        yield
        conn.rollback()


@contextlib.contextmanager
def writer(server: Server, dbname: str) -> Iterator[None]:
    """A transaction that wrote something of its own and sits there."""
    with server.connect(dbname) as conn:
        conn.execute("create table if not exists held (n int)")
    with server.connect(dbname, autocommit=False) as conn:
        conn.execute("insert into held values (1)")
        yield
        conn.rollback()


@contextlib.contextmanager
def dump(server: Server, dbname: str) -> Iterator[None]:
    """A pg_dump whose reader has stopped reading; where there is none, a session that does as it would."""
    program = server.installation.bin / "pg_dump"
    if not program.exists():
        with server.connect(dbname, autocommit=False) as conn:
            conn.execute("set transaction isolation level repeatable read, read only")
            tables = conn.execute(
                "select oid::regclass::text from pg_class"
                " where relnamespace = 'mq'::regnamespace and relkind in ('r', 'S')"
            ).fetchall()
            for (table,) in tables:
                conn.execute(f"select from {table} limit 1")
            yield
            conn.rollback()
        return
    # What it writes is bigger than a pipe holds, so it waits for us in the middle.
    process = subprocess.Popen(
        [program, "--dbname", server.dsn(dbname)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        with server.connect(dbname) as conn:
            wait.until(lambda: _locked(conn), "pg_dump to hold its locks")
            assert process.poll() is None
            yield
            assert process.poll() is None, "pg_dump was not held"
    finally:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(60)
    with server.connect() as conn:
        wait.until(lambda: not _sessions(conn, dbname), "pg_dump's session to end")


def _locked(conn: psycopg.Connection) -> bool:
    row = conn.execute(
        "select count(*) = (select count(*) from pg_class as c"
        "    where c.relnamespace = 'mq'::regnamespace and c.relkind = 'r')"
        " from pg_locks as l join pg_stat_activity as a using (pid)"
        " join pg_class as c on c.oid = l.relation"
        " where a.application_name = 'pg_dump' and l.mode = 'AccessShareLock' and l.granted"
        "   and c.relnamespace = 'mq'::regnamespace and c.relkind = 'r'"
    ).fetchone()
    return bool(row and row[0])


def _sessions(conn: psycopg.Connection, dbname: str) -> int:
    return conn.execute(
        "select from pg_stat_activity where application_name = 'pg_dump' and datname = %s",
        (dbname,),
    ).rowcount


Holder = Callable[[Server, str], "contextlib.AbstractContextManager[None]"]
ALL: tuple[Holder, ...] = (snapshot, writer, dump)


@contextlib.contextmanager
def everything(server: Server, dbname: str) -> Iterator[None]:
    """All of them at once."""
    with contextlib.ExitStack() as stack:
        for holder in ALL:
            stack.enter_context(holder(server, dbname))
        yield
