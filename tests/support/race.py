"""What tests with two sessions say all the time: put something in, take something out, who has a lock.

Its fixtures are for files whose tests share one database. A file names those that it wants:

    database, queue, session = race.database, race.queue, race.session
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest

from support import wait
from support.server import Server
from support.server import database as temporary_database

Connect = Callable[..., psycopg.Connection]
Background = Callable[..., "Future[Any]"]


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest, server: Server, mq_template: str) -> Iterator[str]:
    """One for all tests of a file, named after it: each drops the queues of the one before."""
    name = request.path.stem.removeprefix("test_")
    with temporary_database(server, name, mq_template) as dsn:
        yield dsn


@pytest.fixture(autouse=True)
def queue(database: str) -> str:
    fresh(database, "q")
    return "q"


@pytest.fixture
def session(connect: Connect) -> Connect:
    """A session that is in a transaction as soon as it does something, and never hangs."""

    def session_(*, autocommit: bool = False, **params: Any) -> psycopg.Connection:
        return connect(autocommit=autocommit, options="-c statement_timeout=15s", **params)

    return session_


def fresh(dsn: str, *queues: str) -> None:
    """Drops every queue that an earlier test left, and makes these; no lease runs out by itself, however slow the machine."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select mq.drop_queue(q.name) from mq.queues() as q")
        for queue in queues:
            conn.execute("select mq.create_queue(%s, visibility_timeout => '1 hour')", (queue,))


def value(conn: psycopg.Connection, query: str, *parameters: Any) -> Any:
    """The one value of a query."""
    row = conn.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def number(conn: psycopg.Connection, queue: str = "q") -> int:
    """The number of a queue, which names its tables."""
    return int(value(conn, "select queue_id from mq.queue where name = %s", queue))


def slot(conn: psycopg.Connection, which: str, queue: str = "q") -> int:
    """That of the "oldest" segment of a queue, or of the "open" one, by the register."""
    bits = {"oldest": 16, "open": 0}[which]
    query = "select (pg_sequence_last_value(register) >> %s) & 32767 from mq.queue where name = %s"
    return int(value(conn, query, bits, queue))


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


def drain(conn: psycopg.Connection, n: int = 100) -> list[Any]:
    """Takes and acknowledges what plain dequeues give, until one gives nothing; the payloads."""
    got = []
    while rows := take_rows(conn, n):
        got += [row[5] for row in rows]
        assert ack(conn, rows[0][1]) == len(rows)
    return got


def sweep(conn: psycopg.Connection) -> int:
    return int(value(conn, "select mq.sweep_stale('q')"))


def unsettled(conn: psycopg.Connection) -> tuple[int, int, int]:
    """Ready, deferred, leased."""
    row = conn.execute("select ready, deferred, leased from mq.queue_stats('q')").fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def deferred(conn: psycopg.Connection) -> int:
    """How many messages lie in the two deferral sets, due or not."""
    return sum(
        int(value(conn, f"select count(*) from mq.deferred_{number(conn)}_{generation}"))
        for generation in (0, 1)
    )


def expire(conn: psycopg.Connection, queue: str = "q") -> None:
    """Lets every lease and every deferral of a queue run out: rows are edited, nobody sleeps."""
    queue_id = number(conn, queue)
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


def advisory_locks(conn: psycopg.Connection, observer: psycopg.Connection) -> int:
    """How many advisory locks a session has."""
    return observer.execute(
        "select from pg_locks where pid = %s and locktype = 'advisory'", (wait.backend_pid(conn),)
    ).rowcount


def maintain(conn: psycopg.Connection, queue: str = "q") -> list[str]:
    """The actions of one maintain()."""
    return [
        row[0] for row in conn.execute("select action from mq.maintain(%s)", (queue,)).fetchall()
    ]


def rotate(conn: psycopg.Connection, queue: str = "q") -> None:
    conn.execute("select mq.rotate_segment(%s)", (queue,))


def outlive(conn: psycopg.Connection) -> None:
    """What is leased outlives its segment, and moves out of it with its receipts."""
    rotate(conn)
    wait.until(lambda: "exhausted" in maintain(conn))
    conn.execute("update mq.segment set exhausted_at = exhausted_at - interval '1 day'")
    assert "moved" in maintain(conn)


def from_elsewhere(conn: psycopg.Connection, *queues: str) -> None:
    """As after a restore: what these queues (default: all) hold came from another database."""
    _move_home(conn, "'1.1'", queues)


def in_another_cluster(conn: psycopg.Connection, *queues: str) -> None:
    """As after pg_upgrade, or a restore into a fresh cluster, which gives mq.queue the oid that it had."""
    _move_home(conn, "'mq.queue'::regclass::oid || '.1'", queues)


def _move_home(conn: psycopg.Connection, home: str, queues: tuple[str, ...]) -> None:
    which = {"q": list(queues)}
    those = "where name = any (%(q)s) or %(q)s = '{}'"
    conn.execute(f"update mq.queue set home = {home} {those}", which)
    # Its home stands in what enqueue is made of, too, and in the register, and comes with a restore as that does.
    conn.execute(f"update mq.queue set append_home = home {those}", which)
    conn.execute(
        f"select mq._set_home_bits(queue_id, mq._home_bits(home)) from mq.queue {those}", which
    )
    conn.execute("select mq._lock_generated('test'), mq._create_append()")


def rows_from_elsewhere(conn: psycopg.Connection) -> None:
    """As after a restore of the rows alone, or logical replication, where the same queues had been made before."""
    with conn.transaction():
        conn.execute("set local session_replication_role = replica")
        conn.execute("update mq.queue set home = '1.1'")


def segments(conn: psycopg.Connection, queue: str = "q") -> int:
    return int(
        value(
            conn,
            "select count(*) from mq.segment join mq.queue using (queue_id) where name = %s",
            queue,
        )
    )
