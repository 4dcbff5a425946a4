"""Waiting for what another session does: by looking, never by sleeping for a guess."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psycopg

T = TypeVar("T")

SECONDS = 30.0
LOOK_EVERY = 0.01


def until(look: Callable[[], T], what: str = "it", *, seconds: float = SECONDS) -> T:
    """The first true answer of `look`. Raises: TimeoutError, an upper bound and not a measure."""
    deadline = time.monotonic() + seconds
    while not (answer := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(LOOK_EVERY)
    return answer


def backend_pid(conn: psycopg.Connection) -> int:
    """The process id of the server's end of a connection."""
    return conn.info.backend_pid


def until_blocked(observer: psycopg.Connection, pid: int, *, by: int | None = None) -> None:
    """Until backend `pid` waits for a lock (that backend `by` holds)."""

    def look() -> bool:
        row = observer.execute(
            "select pg_blocking_pids(%(pid)s) @> array[%(by)s]::int[]"
            " or (%(by)s::int is null and cardinality(pg_blocking_pids(%(pid)s)) > 0)",
            {"pid": pid, "by": by},
        ).fetchone()
        return bool(row and row[0])

    until(look, f"backend {pid} to be blocked")


def until_blocked_or_done(observer: psycopg.Connection, pid: int, done: Callable[[], bool]) -> None:
    """Until backend `pid` waits for a lock, or its call is done."""
    query = "select from pg_stat_activity where pid = %s and cardinality(pg_blocking_pids(pid)) > 0"
    until(lambda: done() or observer.execute(query, (pid,)).rowcount == 1)


def until_state(observer: psycopg.Connection, pid: int, state: str) -> None:
    """Until backend `pid` is idle, active, or idle in transaction."""

    def look() -> bool:
        found = observer.execute(
            "select from pg_stat_activity where pid = %s and state = %s", (pid, state)
        )
        return found.rowcount == 1

    until(look, f'backend {pid} to be "{state}"')


def until_event(observer: psycopg.Connection, pid: int, event: str) -> None:
    """Until backend `pid` waits for `event` (its wait_event: PgSleep, advisory, ...)."""

    def look() -> bool:
        found = observer.execute(
            "select from pg_stat_activity where pid = %s and wait_event = %s", (pid, event)
        )
        return found.rowcount == 1

    until(look, f"backend {pid} to wait for {event}")


def until_gone(observer: psycopg.Connection, pid: int) -> None:
    """Until backend `pid` has ended."""

    def look() -> bool:
        found = observer.execute("select from pg_stat_activity where pid = %s", (pid,))
        return found.rowcount == 0

    until(look, f"backend {pid} to end")
