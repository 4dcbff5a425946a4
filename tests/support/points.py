"""Calls of every public function of mq, and the places inside them where they can be made to wait.

A call waits where it first uses a table or a sequence that another session has locked. So, taken with each table and
sequence of the schema, it is caught at all its steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import psycopg

from support import conserve, wait
from support.race import Background, value

# What `state` makes is there: receipts of three leases, something deferred, dead letters, a closed segment.
CALLS = {
    "ack": "mq.ack('q', %(receipt)s)",
    "ack of one": "mq.ack('q', %(receipt)s, array[%(msg_id)s::bigint])",
    "alter_queue": "mq.alter_queue('q', max_attempts => 900)",
    "create_queue": "mq.create_queue('new')",
    "dead_letters": "mq.dead_letters('q')",
    "dequeue": "mq.dequeue('q', 2)",
    "dequeue of many": "mq.dequeue('q', 500)",
    "dequeue with ack": "mq.dequeue('q', 1, ack => %(receipt)s)",
    "drop_queue": "mq.drop_queue('q')",
    "cron_next": "mq.cron_next('@yearly')",
    "enqueue": "mq.enqueue('q', '{\"tag\": 0}')",
    "history": "mq.history('q')",
    "enqueue deferred": "mq.enqueue('q', '{\"tag\": 0}', delay => '1 s')",
    "enqueue_batch": "mq.enqueue_batch('q', array['{\"tag\": 0}', '{\"tag\": 0}']::jsonb[])",
    "enqueue_batch deferred": "mq.enqueue_batch('q', array['{\"tag\": 0}']::jsonb[], delay => '1 s')",
    "extend": "mq.extend('q', %(receipt)s)",
    "listen": "mq.listen('q')",
    "maintain": "mq.maintain('q')",
    "message_status": "mq.message_status('q', 3)",
    "nack": "mq.nack('q', %(receipt)s)",
    "nack at once": "mq.nack('q', %(receipt)s, delay => '0')",
    "nack to the dead": "mq.nack('q', %(receipt)s, dead => true)",
    "next_due": "mq.next_due('q')",
    "pause_queue": "mq.pause_queue('q')",
    "peek": "mq.peek('q', 100)",
    "purge_dead_letters": "mq.purge_dead_letters('q')",
    "purge_queue": "mq.purge_queue('q')",
    "queue_stats": "mq.queue_stats('q')",
    "queues": "mq.queues()",
    "report": "mq.report('q', %(receipt)s, %(msg_id)s::bigint, '{}')",
    "redrive": "mq.redrive('q')",
    "resume_queue": "mq.resume_queue('q')",
    "rotate_segment": "mq.rotate_segment('q')",
    "run_schedule": "mq.run_schedule('s')",
    "schedule": "mq.schedule('new', '@yearly', 'q', '{\"tag\": 0}')",
    "schedule again": "mq.schedule('s', '@daily', 'q', '{\"tag\": 0}')",
    "schedules": "mq.schedules()",
    "sweep_stale": "mq.sweep_stale('q')",
    "unlisten": "mq.unlisten('q')",
    "unschedule": "mq.unschedule('s')",
    "version": "mq.version()",
}
NOT_YET = {
    "cancel",
    "rewind",
    "wait_for",
}  # not interrupted here: see test_races_cancel, _replay, _results
WAITS_FOR_NOBODY = {"version", "cron_next"}  # use no table
MAIN = {"queue", "log_1_1", "settlement_1_2", "register_1", "timetable"}  # where calls come by


def public(conn: psycopg.Connection) -> set[str]:
    """The names of the public functions."""
    return {
        name
        for (name,) in conn.execute(
            "select proname from pg_proc where pronamespace = 'mq'::regnamespace and left(proname, 1) <> '_'"
        ).fetchall()
    }


def state(conn: psycopg.Connection) -> dict[str, Any]:
    """Gives queue q, which is empty, something of everything. Returns what the calls need."""
    conserve.send(conn, range(1, 11))
    assert len(conserve.receive(conn, 4, timeout="1 hour")) == 4
    buried = conserve.receive(conn, 2)
    conn.execute("select mq.nack('q', %s, dead => true)", (buried[0].receipt,))
    conn.execute("select mq.maintain('q')")
    conn.execute("select mq.rotate_segment('q')")
    conserve.send(conn, range(11, 14), delay="1 hour")
    conn.execute("select mq.schedule('s', '@yearly', 'q', '{\"tag\": 0}')")
    conserve.send(conn, range(14, 34))
    kept = conserve.receive(conn, 3, timeout="1 hour")
    lost = conserve.receive(conn, 1, timeout="1 ms")
    conserve.send(conn, range(34, 36), delay="1 ms")
    wait.until(
        lambda: value(conn, "select leased_until < clock_timestamp() from mq.message_status('q', %s)", lost[0].msg_id),
        "a lease to run out",
    )  # fmt: skip
    return {"receipt": kept[0].receipt, "msg_id": kept[0].msg_id}


def relations(conn: psycopg.Connection, *, everywhere: bool) -> list[tuple[str, str]]:
    """Every relation of mq, else the main ones, and the statement that locks it."""
    rows = conn.execute(
        "select relname, relkind from pg_class where relnamespace = 'mq'::regnamespace and relkind in ('r', 'S')"
        " and relname <> 'migration' order by relkind, oid"
    ).fetchall()
    return [
        (
            name,
            f"lock table mq.{name} in access exclusive mode"
            if kind == "r"
            else f"alter sequence mq.{name} no cycle",
        )
        for name, kind in rows
        if everywhere or name in MAIN
    ]


@contextmanager
def held(conn: psycopg.Connection, lock: str) -> Iterator[None]:
    """Keeps a lock of a session in autocommit for the length of a `with`."""
    conn.execute("begin")
    try:
        conn.execute(lock)
        yield
    finally:
        if not conn.closed:
            conn.execute("rollback")


def begin(
    conn: psycopg.Connection, background: Background, call: str, parameters: dict[str, Any]
) -> Future[Any]:
    """Makes a call in a transaction that is not committed."""
    conn.execute("begin")
    return background(lambda: conn.execute(f"select * from {call}", parameters).fetchall())


def waits(observer: psycopg.Connection, conn: psycopg.Connection, called: Future[Any]) -> bool:
    """Whether the call came to wait for somebody; False: it has ended."""

    def look() -> str:
        if called.done():
            return "done"
        blocked = value(
            observer, "select cardinality(pg_blocking_pids(%s)) > 0", wait.backend_pid(conn)
        )
        return "waits" if blocked else ""

    return wait.until(look, "a call to wait or end") == "waits"
