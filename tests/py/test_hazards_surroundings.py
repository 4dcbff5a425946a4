"""What the rest of a database does to a queue: publications, held snapshots, copies, listeners."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import psycopg
import pytest

from support import race, wait
from support.race import (
    Connect,
    ack,
    expire,
    fill,
    lease,
    maintain,
    number,
    put,
    sweep,
    take,
    take_rows,
    value,
)
from support.server import Server
from support.server import database as server_database

database, queue, session = race.database, race.queue, race.session


# -- publications -----------------------------------------------------------------------------------


def test_a_publication_for_all_tables_refuses_nothing(conn: psycopg.Connection) -> None:
    conn.execute("create publication everything for all tables")
    try:
        conn.execute("select mq.alter_queue('q', max_attempts => 1)")
        fill(conn, 6)
        put(conn, "later", delay="1 microsecond")
        receipt = lease(conn, 2)
        assert ack(conn, receipt, [1]) == 1
        assert value(conn, "select mq.nack('q', %s)", receipt) == 1
        assert value(conn, "select mq.redrive('q')") == 1
        assert value(conn, "select mq.extend('q', %s)", lease(conn))
        for _ in range(3):
            race.rotate(conn)
            maintain(conn)
        got = [row for _ in range(5) for row in take_rows(conn, 10)]
        assert len(got) > 3
        for receipt in {row[1] for row in got}:
            ack(conn, receipt)
        expire(conn)
        sweep(conn)
        for _ in range(5):
            maintain(conn)
        with conn.cursor().copy("copy mq.inbox (queue, payload) from stdin") as copy:
            copy.write_row(("q", "1"))
        maintain(conn)
        conn.execute("select mq.purge_dead_letters('q')")
        conn.execute("select mq.purge_queue('q')")
        conn.execute("select mq.drop_queue('q')")
    finally:
        conn.execute("drop publication everything")


# -- held snapshots ---------------------------------------------------------------------------------


def buffers(conn: psycopg.Connection, call: str) -> int:
    """Buffers that a call touches, all that it calls included."""
    (plan,) = conn.execute(
        f"explain (analyze, buffers, timing off, summary off, costs off, format json) {call}"
    ).fetchone() or (None,)
    node = plan[0]["Plan"] if isinstance(plan, list) else json.loads(plan)[0]["Plan"]
    return int(node["Shared Hit Blocks"]) + int(node["Shared Read Blocks"])


@pytest.mark.parametrize(
    ("writes", "retries"),
    [
        (True, True),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
    ],
)
def test_a_held_snapshot_makes_dequeue_read_no_more(
    conn: psycopg.Connection, session: Connect, writes: bool, retries: bool
) -> None:
    conn.execute("select mq.alter_queue('q', retry_backoff => '0')")

    def work(messages: int) -> list[int]:
        """What dequeue of one message reads, each time."""
        read = []
        for i in range(messages):
            fill(conn, 1)
            if retries and i % 10 == 0:
                put(conn, "soon", delay="1 microsecond")
            read.append(buffers(conn, "select * from mq.dequeue('q')"))
            for row in conn.execute(
                "select r, i from unnest(%s::text[]) with ordinality as u (r, i)", (leased(conn),)
            ).fetchall():
                if retries and i % 10 == 5:
                    value(conn, "select mq.nack('q', %s, delay => '0')", row[0])
                else:
                    ack(conn, row[0])
        return sorted(read)

    fill(conn, 5)
    work(200)
    before = work(100)
    holder = session()
    holder.execute("set statement_timeout = 0")
    holder.execute("set transaction isolation level repeatable read")
    holder.execute("select count(*) from mq.queues()")
    if writes:
        holder.execute("select pg_current_xact_id()")
    work(800)
    after = work(100)
    holder.rollback()
    for quantile in (50, 90):
        assert after[quantile] <= before[quantile] * 1.3 + 5, (quantile, before, after)


def leased(conn: psycopg.Connection) -> list[str]:
    """Receipts of what explain (analyze) has just leased and thrown away."""
    queue_id, slot = conn.execute(
        "select queue_id, pg_sequence_last_value(register) & 65535 from mq.queue where name = 'q'"
    ).fetchone() or (0, 0)
    t = f"{queue_id}_{slot}"
    return [
        row[0]
        for row in conn.execute(
            f"select format('{queue_id}.{slot}.1.0.%s.%s.%s.3.%s', block_no, slice, part, token)"
            f" from (select * from mq.lease_{t} order by block_no desc, slice desc, part desc limit 3) as l"
            " where slice = head_slice and part = head_part and leased_until > '-infinity' and not exists"
            f" (select from mq.settlement_{t} as s where (s.block_no, s.slice, s.part) = (l.block_no, l.slice, l.part))"
        ).fetchall()
    ]


def test_rotation_catches_up_after_a_dump(conn: psycopg.Connection, session: Connect) -> None:
    dump = session()
    dump.execute("set transaction isolation level repeatable read")
    queue_id = number(conn)
    dump.execute(f"lock table mq.log_{queue_id}_1, mq.log_{queue_id}_2 in access share mode")
    for _ in range(5):
        fill(conn, 2)
        race.rotate(conn)
        assert ack(conn, lease(conn, 2)) == 2
        maintain(conn)
    assert race.segments(conn) >= 3
    dump.rollback()
    wait.until(lambda: race.segments(conn) == 1 or (maintain(conn) and None))


# -- deferral ---------------------------------------------------------------------------------------


def test_a_delayed_message_of_a_slow_transaction_is_not_passed_by(
    conn: psycopg.Connection, session: Connect
) -> None:
    slow = session()
    put(slow, "early", delay="1 microsecond")
    put(conn, "late", delay="1 millisecond")
    wait.until(lambda: take(conn) == ["late"])  # the cursor of what was promoted is beyond "early"
    slow.commit()
    assert take(conn) == ["early"]
    assert take(conn) == []


# -- notifications ----------------------------------------------------------------------------------


def notified(listener: psycopg.Connection, *, seconds: float = 0.2) -> int:
    """How many notifications come within so long."""
    return sum(1 for _ in listener.notifies(timeout=seconds))


def test_a_registered_consumer_is_notified_of_each_message(
    conn: psycopg.Connection, connect: Connect
) -> None:
    listener = connect()
    listener.execute("select mq.listen('q')")
    for _ in range(5):
        put(conn, "a")
        assert sum(1 for _ in listener.notifies(timeout=10, stop_after=1)) == 1
    with conn.transaction():
        fill(conn, 3)
        put(conn, "b")
    assert sum(1 for _ in listener.notifies(timeout=10, stop_after=1)) == 1  # one a transaction
    listener.execute("select mq.unlisten('q')")
    put(conn, "c")
    assert notified(listener) == 0


def test_a_rollback_notifies_nobody(
    conn: psycopg.Connection, connect: Connect, session: Connect
) -> None:
    conn.execute("select mq.alter_queue('q', notify => 'always')")
    listener = connect()
    listener.execute("select mq.listen('q')")
    producer = session()
    put(producer, "a")
    producer.rollback()
    assert notified(listener) == 0


@pytest.mark.parametrize("registered", [True, False])
def test_never_and_always_mean_it(
    conn: psycopg.Connection, connect: Connect, registered: bool
) -> None:
    listener = connect()
    listener.execute("select mq.listen('q')" if registered else "listen mq_q")
    conn.execute("select mq.alter_queue('q', notify => 'never')")
    for _ in range(3):
        put(conn, "a")
    assert notified(listener) == 0
    conn.execute("select mq.alter_queue('q', notify => 'always')")
    for _ in range(20):
        put(conn, "a")
    assert sum(1 for _ in listener.notifies(timeout=10, stop_after=20)) == 20


def test_a_plain_listener_is_notified_now_and_then_while_nobody_takes(
    conn: psycopg.Connection, connect: Connect
) -> None:
    listener = connect()
    listener.execute("listen mq_q")
    put(conn, "a")
    assert sum(1 for _ in listener.notifies(timeout=10, stop_after=1)) == 1
    notified(listener)
    began = time.monotonic()
    count = 0
    while time.monotonic() - began < 1 or count <= 30:
        put(conn, "a")
        count += 1
    lasted = time.monotonic() - began
    assert 1 <= notified(listener) <= lasted * 10 + 1


def test_a_plain_listener_is_notified_again_once_somebody_took(
    conn: psycopg.Connection, connect: Connect
) -> None:
    listener = connect()
    listener.execute("listen mq_q")
    for _ in range(10):  # faster than ten a second
        put(conn, "a")
        assert sum(1 for _ in listener.notifies(timeout=10, stop_after=1)) == 1
        assert take(conn, 10) == ["a"]


def test_producers_do_not_wait_for_each_other_when_somebody_listens(
    conn: psycopg.Connection, connect: Connect, session: Connect
) -> None:
    listener = connect()
    listener.execute("select mq.listen('q')")
    open_ones = [session() for _ in range(5)]
    for producer in open_ones:
        put(producer, "a")
    for producer in open_ones:
        producer.commit()
    assert len(take(conn, 10)) == 5


def test_a_test_of_listeners_leaves_no_lock(conn: psycopg.Connection, session: Connect) -> None:
    producer = session()
    queue_id = number(conn)
    conn.execute("select mq.listen('q')")  # the register says that somebody waits ...
    conn.execute("select mq.unlisten('q')")  # ... and the lock that nobody does
    for _ in range(3):
        put(producer, "a")
    left = {row[3] for row in race.locks(producer, conn) if row[0] == "advisory"}
    waiting = value(conn, f"select mq._lock_key({queue_id}, -4)")
    assert waiting not in left


# -- copies -----------------------------------------------------------------------------------------


def make_history(conn: psycopg.Connection) -> tuple[set[Any], str]:
    """A queue with everything in it; what is not settled, and a receipt that holds."""
    conn.execute("select mq.alter_queue('q', retry_backoff => '1 microsecond')")
    fill(conn, 40)
    assert ack(conn, lease(conn, 10)) == 10
    receipt = lease(conn, 5)
    assert ack(conn, receipt, [11, 12]) == 2
    put(conn, "delayed", delay="1 hour")
    put(conn, "due", delay="1 microsecond")
    assert value(conn, "select mq.nack('q', %s, array[13::bigint], dead => true)", receipt) == 1
    race.rotate(conn)
    maintain(conn)
    put(conn, "new")
    return {*range(14, 41), "due", "new"}, receipt


def assert_repaired(conn: psycopg.Connection, expected: set[Any], receipt: str) -> None:
    assert ack(conn, receipt) == 0  # void
    got = []
    for _ in range(20):
        rows = take_rows(conn, 10)
        got += [row[5] for row in rows]
        for one in {row[1] for row in rows}:
            assert ack(conn, one) == sum(1 for row in rows if row[1] == one)
    assert sorted(map(str, got)) == sorted(map(str, expected))
    assert value(conn, "select deferred from mq.queue_stats('q')") == 1
    assert value(conn, "select count(*) from mq.dead_letters('q')") == 1
    assert put(conn, "after") > 43
    rows = take_rows(conn)
    assert [row[5] for row in rows] == ["after"]
    assert ack(conn, rows[0][1]) == 1
    race.rotate(conn)
    wait.until(lambda: race.segments(conn) == 1 or (maintain(conn) and None))


def copied(server: Server, database: str, target: str) -> None:
    """The database by pg_dump into another, by psql's reading of plain SQL."""
    dump = server.run("pg_dump", "--dbname", database, "--no-owner").stdout
    server_psql = server.installation.bin / "psql"
    subprocess.run(
        [server_psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", target],
        input=dump,
        text=True,
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("first", ["ack", "enqueue", "maintain", "stats"])
def test_a_restored_dump_is_noticed_and_repaired(
    server: Server, conn: psycopg.Connection, database: str, first: str
) -> None:
    expected, receipt = make_history(conn)
    with server_database(server, "restored") as target:
        copied(server, database, target)
        with psycopg.connect(target, autocommit=True) as restored:
            if first == "enqueue":
                put(restored, "first")
                expected.add("first")
            elif first == "maintain":
                restored.execute("select * from mq.maintain()")
            elif first == "stats":
                restored.execute("select * from mq.queue_stats()")
            assert_repaired(restored, expected, receipt)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True])
def test_a_dump_restored_into_another_cluster_is_noticed_and_repaired(
    server: Server, conn: psycopg.Connection, database: str, ahead: bool
) -> None:
    expected, receipt = make_history(conn)
    with Server(server.name) as other:
        other.create_database("restored")
        target = other.dsn("restored")
        with psycopg.connect(target, autocommit=True) as restored:
            for role in ("mq_producer", "mq_consumer", "mq_admin"):
                restored.execute(f"create role {role}")
            for _ in range(5000 if ahead else 0):
                restored.execute("select pg_current_xact_id()")
        copied(server, database, target)
        with psycopg.connect(target, autocommit=True) as restored:
            assert_repaired(restored, expected, receipt)


def test_transaction_ids_that_ran_backwards_are_noticed(conn: psycopg.Connection) -> None:
    fill(conn, 3)
    assert take(conn) == [1]
    queue_id = number(conn)
    # As in a copy of another cluster's data under the same oids: the cursor lies in the future.
    for table, column in (("log", "xid"), ("block", "xid")):
        conn.execute(f"update mq.{table}_{queue_id}_1 set {column} = '900000000'")
    conn.execute(
        f"update mq.block_{queue_id}_1 set prev = '900000001:900000001:',"
        " first_xids = array_fill('900000000'::xid8, array[cardinality(first_xids)])"
    )
    conn.execute(f"update mq.lease_{queue_id}_1 set first_xid = '900000000'")
    conn.execute("update mq.slot set made_by = '900000000'")
    got = [payload for _ in range(8) for payload in take(conn)]
    assert sorted(got)[-3:] == [1, 2, 3] or set(got) == {1, 2, 3}
    put(conn, "new")
    assert "new" in take(conn, 10)
