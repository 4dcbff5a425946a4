"""Transactions that are prepared, isolated or never end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from support import conserve, race, template, wait
from support.load import Load
from support.race import Connect, value
from support.server import Server

pytestmark = pytest.mark.faults

# -- PREPARE TRANSACTION ----------------------------------------------------------------------------


@pytest.fixture
def prepared(database: str, conn: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A session in no transaction; what it has prepared is rolled back at the end."""
    # A transaction that has notified somebody cannot be prepared.
    conserve.prepare(database, "q", notify="never")
    yield conn
    for (gid,) in conn.execute("select gid from pg_prepared_xacts where database = current_database()").fetchall():  # fmt: skip
        conn.execute(f"rollback prepared '{gid}'")


def gid(conn: psycopg.Connection, name: str) -> str:
    return f"{conn.info.dbname} {name}"  # one for the whole server


def prepare(conn: psycopg.Connection, name: str) -> None:
    conn.execute(f"prepare transaction '{gid(conn, name)}'")


def finish(conn: psycopg.Connection, name: str, how: str = "commit") -> None:
    conn.execute(f"{how} prepared '{gid(conn, name)}'")


def test_prepared_messages_are_delivered_once_committed(
    database: str, prepared: psycopg.Connection
) -> None:
    conn = prepared
    for first, name, delay in (
        (1, "committed", None),
        (11, "given up", None),
        (21, "delayed", "1 ms"),
    ):
        conn.execute("begin")
        conserve.send(conn, range(first, first + 5), delay=delay)
        prepare(conn, name)
    race.rotate(conn)
    race.maintain(conn)
    assert conserve.receive(conn, 10) == []
    conserve.send(conn, [31])
    assert [row.tag for row in conserve.receive(conn, 10, timeout="1 ms")] == [31]
    finish(conn, "given up", "rollback")
    finish(conn, "delayed")
    finish(conn, "committed")
    conserve.check(database, known=[1, 2, 3, 4, 5, 21, 22, 23, 24, 25, 31])


@pytest.mark.parametrize("how", ["commit", "rollback"])
def test_a_prepared_dequeue_keeps_its_messages_from_others(
    database: str, prepared: psycopg.Connection, how: str
) -> None:
    conn = prepared
    conserve.send(conn, range(1, 11))
    assert conserve.receive(conn, 2)  # opens the block
    conn.execute("begin")
    rows = conserve.receive(conn, 2)
    prepare(conn, "dequeue")
    others = [row.tag for _ in range(5) for row in conserve.receive(conn, 2)]
    assert not {row.tag for row in rows} & set(others)
    assert len(others) == 6
    finish(conn, "dequeue", how)
    assert conserve.settle(conn, rows) == (how == "commit")
    conserve.check(database, known=range(1, 11))


@pytest.mark.parametrize("how", ["commit", pytest.param("rollback", marks=pytest.mark.slow)])
def test_a_prepared_ack_counts_once(database: str, prepared: psycopg.Connection, how: str) -> None:
    conn = prepared
    conserve.send(conn, range(1, 11))
    rows = conserve.receive(conn, 5, timeout="1 ms")
    conn.execute("begin")
    assert conserve.settle(conn, rows)
    prepare(conn, "ack")
    conn.execute("alter routine mq.ack set lock_timeout = '50ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):  # undecided
        conserve.settle(conn, rows)
    assert value(conn, "select mq.sweep_stale('q')") == 0  # bounded, and left to whoever decides
    race.maintain(conn)
    finish(conn, "ack", how)
    assert conserve.settle(conn, rows) == (how == "rollback")
    conserve.check(database, known=range(1, 11))


def test_a_whole_round_is_prepared_and_survives_a_crash(server: Server) -> None:
    """Enqueue, dequeue, ack, nack and extend in prepared transactions over an immediate shutdown."""
    with Server(server.name, settings={"full_page_writes": "on"}) as own:
        own.create_database("prepared", template.make(own))
        dsn = own.dsn("prepared")
        conserve.prepare(dsn, "q", notify="never")
        with psycopg.connect(dsn, autocommit=True) as conn:
            conserve.send(conn, range(1, 41))
            leases = [conserve.receive(conn, 4, timeout="1 hour") for _ in range(6)]
            for number, lease in enumerate(leases):
                conn.execute("begin")
                conserve.send(conn, [100 + number])
                conserve.send(conn, [200 + number], delay="1 ms")
                conserve.settle(conn, conserve.receive(conn, 1))
                if number < 2:
                    assert conserve.settle(conn, lease)
                elif number < 4:
                    conn.execute("select mq.nack('q', %s)", (lease[0].receipt,))
                else:
                    conn.execute("select mq.extend('q', %s, '2 hours')", (lease[0].receipt,))
                prepare(conn, str(number))
            race.rotate(conn)
            race.maintain(conn)
        own.restart("immediate")
        with psycopg.connect(dsn, autocommit=True) as conn:
            race.maintain(conn)
            conserve.send(conn, [300])
            while rows := conserve.receive(conn, 3):
                assert conserve.settle(conn, rows)
            for number in range(6):
                finish(conn, str(number), "commit" if number % 2 == 0 else "rollback")
        conserve.check(dsn, known=[*range(1, 41), 100, 102, 104, 200, 202, 204, 300])


@pytest.mark.parametrize("how", ["commit", "rollback"])
def test_what_a_prepared_transaction_took_is_its_own(
    prepared: psycopg.Connection, connect: Connect, how: str
) -> None:
    """In mode transaction, too, the locks outlive the session."""
    conn = prepared
    conn.execute("select mq.create_queue('tx', mode => 'transaction', notify => 'never')")
    race.fill(conn, 6, "tx")
    conn.execute("begin")
    assert race.take(conn, 2, "tx") == [1, 2]
    prepare(conn, "took")
    other = connect()
    assert race.take(other, 1, "tx") == [3]
    for _ in range(3):
        race.maintain(conn, "tx")
    finish(conn, "took", how)
    left = [(r[5], r[2]) for _ in range(5) for r in race.take_rows(other, 1, "tx")]
    assert left == [*([(1, 2), (2, 2)] if how == "rollback" else []), (4, 1), (5, 1), (6, 1)]


def test_what_was_taken_when_the_server_crashed_is_there_again(server: Server) -> None:
    """In mode transaction: what committed is consumed, the rest is not, and a prepared one still decides."""
    with Server(server.name, settings={"full_page_writes": "on"}) as own:
        own.create_database("crashed", template.make(own))
        with psycopg.connect(own.dsn("crashed"), autocommit=True) as conn:
            conn.execute("select mq.create_queue('tx', mode => 'transaction', notify => 'never')")
            race.fill(conn, 6, "tx")
            assert race.take(conn, 1, "tx") == [1]
            conn.execute("begin")
            assert race.take(conn, 2, "tx") == [2, 3]
            prepare(conn, "took")
            conn.execute("begin")
            assert race.take(conn, 1, "tx") == [4]
            own.restart("immediate")
            conn.close()
        with psycopg.connect(own.dsn("crashed"), autocommit=True) as conn:
            assert [payload for _ in range(3) for payload in race.take(conn, 1, "tx")] == [4, 5, 6]
            finish(conn, "took", "rollback")
            assert [race.take_rows(conn, 1, "tx")[0][2] for _ in range(2)] == [2, 2]
            assert race.take(conn, 1, "tx") == []


def test_a_transaction_that_has_notified_cannot_be_prepared(
    database: str, conn: psycopg.Connection
) -> None:
    conserve.prepare(database, "q", notify="always")
    conn.execute("begin")
    conserve.send(conn, [1])
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        prepare(conn, "notified")
    conserve.send(conn, [2])
    conserve.check(database, known=[2])


# -- isolation --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE]
)
def test_producers_and_acks_in_older_snapshots_lose_nothing(
    database: str, connect: Connect, level: psycopg.IsolationLevel
) -> None:
    conserve.prepare(database, "a", "b")
    with Load(database, "a", "b", isolation=level) as load:
        old, new = connect(), connect()
        old.isolation_level = level
        refused = 0
        for turn in range(30):
            rows = conserve.receive(new, 3, "a", "1 s")
            if not rows:
                continue
            with old.transaction():
                value(old, "select count(*) from mq.queues()")  # the snapshot
                late = conserve.receive(new, 1, "b", "1 s")
                with contextlib.suppress(psycopg.errors.SerializationFailure), old.transaction():
                    if turn % 3 == 0:
                        old.execute("select mq.nack('a', %s)", (rows[0].receipt,))
                    elif turn % 3 == 1:
                        old.execute("select mq.extend('a', %s)", (rows[0].receipt,))
                    conserve.settle(old, rows, "a")
                if late:
                    with pytest.raises(psycopg.errors.SerializationFailure), old.transaction():
                        conserve.settle(old, late, "b")  # newer than the snapshot
                    refused += 1
        load.goes_on(30)
    assert refused
    conserve.check(database, known=load.committed)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_database_of_another_default_refuses_what_needs_read_committed(
    database: str, conn: psycopg.Connection, connect: Connect, level: str
) -> None:
    conserve.prepare(database, "q")
    old = connect(options=f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}")
    conserve.send(old, [1, 2, 3])
    for call in ("mq.dequeue('q')", "mq.sweep_stale('q')", "mq.maintain('q')"):
        with pytest.raises(psycopg.errors.FeatureNotSupported) as caught:
            old.execute(f"select {call}")
        assert caught.value.diag.message_hint
    rows = conserve.receive(conn, 2)
    assert conserve.settle(old, rows)
    conserve.check(database, known=[1, 2, 3])


# -- a consumer that never commits ------------------------------------------------------------------


@pytest.mark.parametrize("opened", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_consumer_that_never_commits_loses_nothing(
    database: str, conn: psycopg.Connection, connect: Connect, opened: bool
) -> None:
    conserve.prepare(database, "a", "b")
    conserve.send(conn, range(10_001, 10_201), "a")
    if not opened:
        assert conserve.receive(conn, 1, "a", "1 hour")  # somebody else opened the block
    idle = connect(autocommit=False, application_name="never commits")
    kept = {row.tag for row in conserve.receive(idle, 1, "a", "1 ms")}
    assert kept
    if opened:  # the block is seen by nobody else: nothing of this segment until it ends
        assert conserve.receive(conn, 1, "a") == []
    with Load(database, "a", "b") as load:
        load.goes_on(100)  # the other queue, and all producers
        if not opened:
            wait.until(
                lambda: value(conn, "select count(*) > 150 from done where tag > 10000"),
                "the others' messages to be delivered",
            )
        assert not kept & {tag for (tag,) in conn.execute("select tag from done").fetchall()}
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'never commits'"
        )
        wait.until(
            lambda: value(conn, "select count(*) >= 199 from done where tag > 10000"),
            "what it kept to be delivered",
        )
        load.goes_on(50)
    idle.close()
    conserve.check(database, known=load.committed | set(range(10_001, 10_201)))


def test_upkeep_goes_on_while_a_consumer_never_commits(
    database: str, conn: psycopg.Connection, connect: Connect
) -> None:
    conserve.prepare(database, "q")
    conserve.send(conn, range(1, 21))
    idle = connect(autocommit=False)
    conserve.receive(idle, 1, timeout="1 ms")
    for first in range(21, 121, 20):
        race.rotate(conn)
        conserve.send(conn, range(first, first + 20))
        while rows := conserve.receive(conn, 7):
            conserve.settle(conn, rows)
        for _ in range(3):
            race.maintain(conn)
    # The segments behind the one it reads are reclaimed all the same.
    assert race.segments(conn) <= 3
    idle.rollback()
    conserve.check(database, known=range(1, 121))
