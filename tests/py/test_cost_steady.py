"""What a message costs when nothing special happens: no update, no delete, and no trace of an empty poll."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from support import measure, wait

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

CHURN = """
select coalesce(sum(n_tup_ins), 0)::bigint, coalesce(sum(n_tup_upd + n_tup_del), 0)::bigint,
       coalesce(sum(n_dead_tup), 0)::bigint
from pg_stat_all_tables as t
where schemaname = 'mq'
   or exists (select from pg_class as c where c.relnamespace = 'mq'::regnamespace and c.reltoastrelid = t.relid)
"""
EMPTY_POLL = measure.LEASE.format(queue="q", n=1)


def churn(conn: Connection) -> tuple[int, int, int]:
    """Rows inserted, rows updated or deleted, dead rows: over all tables of mq and their TOAST."""
    row = conn.execute(CHURN).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def wal_position(conn: Connection) -> int:
    row = conn.execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("n", [1, 10])
def test_a_message_updates_and_deletes_nothing(
    n: int, connect: Connect, conn: Connection, queue: str
) -> None:
    messages = 2000 if n == 1 else 10_000
    before = churn(conn)
    lsn = wal_position(conn)
    with connect() as session:
        for _ in range(messages // n):
            session.execute(
                "select count(*) from mq.enqueue_batch('q', array_fill(%s::jsonb, array[%s]))",
                (measure.PAYLOAD, n),
                prepare=True,
            )
        enqueued = wal_position(conn)
        measure.consume(session, messages, n=n)
        done = wal_position(conn)
    # A session tells its figures at its end, at the latest.
    wait.until(lambda: churn(conn)[0] >= before[0] + messages, "the figures of the other session")
    after = churn(conn)
    print(
        f"n = {n}: {after[1] - before[1]} rows updated or deleted, {after[2] - before[2]} dead,"
        f" WAL per message: {(enqueued - lsn) / messages:.0f} bytes to enqueue,"
        f" {(done - enqueued) / messages:.0f} to dequeue and acknowledge,"
        f" payload {len(measure.PAYLOAD)} bytes"
    )
    assert after[1] - before[1] <= 0.01 * messages
    assert after[2] - before[2] <= 0.01 * messages
    stats = conn.execute("select ready, leased, settled_total from mq.queue_stats('q')").fetchone()
    assert stats == (0, 0, messages)


def never_used(conn: Connection) -> None:
    pass


def all_consumed(conn: Connection) -> None:
    measure.fill(conn, 200)
    measure.consume(conn, 200)


def all_leased(conn: Connection) -> None:
    measure.fill(conn, 200)
    for _ in range(20):
        conn.execute("select from mq.dequeue('q', 10, '1 hour')")


def all_deferred(conn: Connection) -> None:
    measure.fill(conn, 1000, delay="1 hour")


def priorities_consumed(conn: Connection) -> None:
    for priority in (0, 7, 9):
        conn.execute("select mq.enqueue('q', '1', priority => %s)", (priority,))
        measure.consume(conn, 1)


def paused(conn: Connection) -> None:
    measure.fill(conn, 10)
    conn.execute("select mq.pause_queue('q')")


def rotated(conn: Connection) -> None:
    all_consumed(conn)
    conn.execute("select mq.rotate_segment('q')")


@pytest.mark.parametrize(
    "prepare",
    [never_used, all_consumed, all_leased, all_deferred, priorities_consumed, paused, rotated],
    ids=lambda prepare: prepare.__name__,
)
def test_an_empty_poll_leaves_no_trace(
    prepare: Callable[[Connection], None], connect: Connect, conn: Connection, queue: str
) -> None:
    """No transaction id, no WAL, no lock: not in a transaction that sits open after it either."""
    prepare(conn)
    # Whoever reads a row after its update may prune the page, which is WAL; not what this is about.
    conn.execute("vacuum mq.queue, mq.segment, mq.slot")
    # What is deferred gets its timers once; looking for it thereafter is free.
    for _ in range(8):
        conn.execute(EMPTY_POLL)
    session = connect(autocommit=False)
    for n in (1, 10, 500):  # what a new session reads of the catalogue it may prune as well
        measure.call(session, measure.LEASE.format(queue="q", n=n))
    session.rollback()
    polls = [
        measure.call(session, measure.LEASE.format(queue="q", n=n))
        for n in (1, 10, 500)
        for _ in range(40)
    ]
    assert sum(poll.rows for poll in polls) == 0
    assert sum(poll.wal_records for poll in polls) == 0
    assert session.execute("select pg_current_xact_id_if_assigned()").fetchone() == (None,)
    # Reading tables and sequences locks them against DDL, as any query does; nothing else.
    locks = session.execute(
        "select l.locktype, l.mode, c.relname from pg_locks as l"
        " left join pg_class as c on c.oid = l.relation"
        " where l.pid = pg_backend_pid() and l.locktype <> 'virtualxid'"
        " and l.mode <> 'AccessShareLock'"
        " and not (l.mode = 'RowExclusiveLock' and c.relkind is not distinct from 'S')"
    ).fetchall()
    assert locks == []


def test_an_empty_poll_is_about_as_cheap_as_a_full_one(
    connect: Connect, conn: Connection, queue: str
) -> None:
    measure.fill(conn, 400)
    session = connect()
    full = measure.dequeues(session)
    measure.consume(conn, 400)
    polls = measure.cost([measure.call(session, EMPTY_POLL) for _ in range(50)][5:])
    print(f"empty: {polls}; full: {full}")
    assert polls.most <= 3 * full.median
