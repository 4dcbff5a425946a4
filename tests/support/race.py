"""What tests with two sessions say all the time: put something in, take something out, who has a lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg

from support import wait

Connect = Callable[..., psycopg.Connection]
Background = Callable[..., "Future[Any]"]


def fresh(dsn: str, *queues: str) -> None:
    """Drops every queue that an earlier test left, and makes these."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select mq.drop_queue(q.name) from mq.queues() as q")
        for queue in queues:
            conn.execute("select mq.create_queue(%s)", (queue,))


def value(conn: psycopg.Connection, query: str, *parameters: Any) -> Any:
    """The one value of a query."""
    row = conn.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def fill(conn: psycopg.Connection, count: int, queue: str = "q") -> None:
    """Messages 1 to count."""
    conn.execute(
        "select mq.enqueue_batch(%s, (select array_agg(to_jsonb(i)) from generate_series(1, %s) as i))",
        (queue, count),
    )


def put(conn: psycopg.Connection, what: str, queue: str = "q", delay: str | None = None) -> int:
    """One message; its msg_id."""
    return int(
        value(conn, "select mq.enqueue(%s, to_jsonb(%s::text), delay => %s)", queue, what, delay)
    )


def take_rows(conn: psycopg.Connection, n: int = 1, queue: str = "q", **more: Any) -> list[Any]:
    """What dequeue gives: msg_id, receipt, attempt, enqueued_at, leased_until, payload, headers."""
    named = "".join(f", {name} => %({name})s" for name in more)
    return conn.execute(
        f"select * from mq.dequeue(%(q)s, %(n)s{named})",
        {"q": queue, "n": n, **more},
    ).fetchall()


def take(conn: psycopg.Connection, n: int = 1, queue: str = "q", **more: Any) -> list[Any]:
    """The payloads of what dequeue gives."""
    return [row[5] for row in take_rows(conn, n, queue, **more)]


def lease(conn: psycopg.Connection, n: int = 1, queue: str = "q", **more: Any) -> str:
    """The receipt of a dequeue that must find n messages."""
    rows = take_rows(conn, n, queue, **more)
    assert len(rows) == n
    return str(rows[0][1])


def ack(conn: psycopg.Connection, receipt: str, ids: list[int] | None = None, **more: Any) -> int:
    named = "".join(f", {name} => %({name})s" for name in more)
    row = conn.execute(
        f"select mq.ack('q', %(r)s, %(ids)s{named})",
        {"r": receipt, "ids": ids, **more},
    ).fetchone()
    assert row is not None
    return int(row[0])


def expire(conn: psycopg.Connection, queue: str = "q") -> None:
    """Lets every lease and every deferral of a queue run out: rows are edited, nobody sleeps."""
    queue_id = value(conn, "select queue_id from mq.queue where name = %s", queue)
    slots = conn.execute("select slot from mq.slot where queue_id = %s", (queue_id,)).fetchall()
    for (slot,) in slots:
        for table in ("lease", "settlement"):
            conn.execute(
                f"update mq.{table}_{queue_id}_{slot} set leased_until = clock_timestamp() - interval '1 ms'"
                " where leased_until > '-infinity'"
            )
    conn.execute("update mq.survivor set leased_until = clock_timestamp() - interval '1 ms'")


def locks(conn: psycopg.Connection, observer: psycopg.Connection) -> list[Any]:
    """Locks of a session that somebody else could wait for."""
    return observer.execute(
        "select locktype, mode, classid, objid from pg_locks where pid = %s and not (locktype = 'virtualxid'"
        " or locktype = 'relation' and mode in ('AccessShareLock', 'RowExclusiveLock'))",
        (wait.backend_pid(conn),),
    ).fetchall()


def maintain(conn: psycopg.Connection, queue: str = "q") -> list[str]:
    """The actions of one maintain()."""
    return [
        row[0] for row in conn.execute("select action from mq.maintain(%s)", (queue,)).fetchall()
    ]


def rotate(conn: psycopg.Connection, queue: str = "q") -> None:
    conn.execute("select mq.rotate_segment(%s)", (queue,))


def segments(conn: psycopg.Connection, queue: str = "q") -> int:
    return int(
        value(
            conn,
            "select count(*) from mq.segment join mq.queue using (queue_id) where name = %s",
            queue,
        )
    )
