"""Results, progress and wait_for where sessions meet: what is left of an ack that lost, and who waits for whom."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from support import measure, race, wait
from support.holders import snapshot
from support.race import (
    Background,
    Connect,
    expire,
    fill,
    lease,
    maintain,
    number,
    outlive,
    put,
    rotate,
    sweep,
    take,
    value,
)
from support.server import Server

database, queue, session = race.database, race.queue, race.session

WAIT = "select mq.wait_for('q', %s)"
ACK = "select mq.ack('q', %s, result => %s)"
OF_QUEUE = "^(log|block|lease|settlement|deferred|timer|promotion)_"


def results(conn: psycopg.Connection) -> list[Any]:
    """msg_id and value of every result that is kept."""
    return conn.execute(
        "select msg_id, value from mq.note where kind = 'result' order by no"
    ).fetchall()


def sqlstate(error: Any) -> str:
    with pytest.raises(psycopg.DatabaseError) as caught:
        error.result()
    assert caught.value.sqlstate is not None
    return caught.value.sqlstate


def until_waits(observer: psycopg.Connection, waiter: psycopg.Connection) -> None:
    wait.until_event(observer, wait.backend_pid(waiter), "PgSleep")


def until_looked(observer: psycopg.Connection, waiter: psycopg.Connection) -> None:
    """Until wait_for runs for so long that it has looked at the whole queue at least once."""
    query = (
        "select from pg_stat_activity where pid = %s and wait_event = 'PgSleep'"
        " and clock_timestamp() - query_start > interval '1.5 seconds'"
    )
    wait.until(lambda: observer.execute(query, (wait.backend_pid(waiter),)).rowcount == 1)


# -- request and reply ------------------------------------------------------------------------------


def test_a_waiter_gets_what_commits_meanwhile(
    conn: psycopg.Connection, connect: Connect, session: Connect, background: Background
) -> None:
    put(conn, "request")
    waiter, worker = connect(), session()
    reply = background(value, waiter, WAIT, 1)
    until_waits(conn, waiter)
    receipt = lease(worker)
    worker.commit()
    value(worker, ACK, receipt, '{"answer": 42}')
    assert value(conn, "select mq.wait_for('q', 1, '0')") is None  # not committed
    worker.rollback()
    assert value(conn, "select mq.wait_for('q', 1, '0')") is None  # never was
    assert value(worker, ACK, receipt, '{"answer": 43}') == 1
    worker.commit()
    assert reply.result() == {"answer": 43}


def test_a_waiter_hears_of_what_is_done_without_a_result(
    conn: psycopg.Connection, connect: Connect, background: Background
) -> None:
    put(conn, "request")
    waiter = connect()
    reply = background(value, waiter, "select mq.wait_for('q', %s)::text", 1)
    until_waits(conn, waiter)
    assert race.ack(conn, lease(conn)) == 1
    assert reply.result() == "null"


def test_a_waiter_hears_of_a_death(
    conn: psycopg.Connection, connect: Connect, background: Background
) -> None:
    put(conn, "request")
    waiter = connect()
    reply = background(value, waiter, WAIT, 1)
    until_waits(conn, waiter)
    conn.execute("select mq.nack('q', %s, dead => true, reason => 'bad')", (lease(conn),))
    assert sqlstate(reply) == "MQ010"


def test_what_is_not_committed_yet_is_not_forgotten(
    conn: psycopg.Connection, connect: Connect, session: Connect, background: Background
) -> None:
    """The number may be told to others before the commit: then nothing is known of it, but it comes."""
    producer, waiter = session(), connect()
    put(producer, "request")
    reply = background(value, waiter, WAIT, 1)
    until_looked(conn, waiter)
    producer.commit()
    assert value(conn, ACK, lease(conn), '"here"') == 1
    assert reply.result() == "here"


def test_what_vanishes_is_an_error_at_once(
    conn: psycopg.Connection, connect: Connect, background: Background
) -> None:
    put(conn, "request")
    waiter = connect()
    reply = background(value, waiter, WAIT, 1)
    until_looked(conn, waiter)
    assert value(conn, "select mq.purge_queue('q')") == 1  # a waiter is not in the way
    assert sqlstate(reply) == "22023"


def test_a_waiter_keeps_no_segment_from_being_emptied(
    conn: psycopg.Connection, session: Connect
) -> None:
    """It looks at every table of the queue, but does not keep the locks."""
    fill(conn, 2)
    waiter = session()
    put(waiter, "of its own")  # so that it looks for that, too
    waiter.execute("select mq.wait_for('q', 1, '0')")
    kept = waiter.execute(
        "select c.relname from pg_locks as l join pg_class as c on c.oid = l.relation"
        " where l.pid = pg_backend_pid() and c.relname ~ %s and l.mode = 'AccessShareLock'",
        (OF_QUEUE,),
    ).fetchall()
    assert kept == []


# -- the fence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("commits", [True, False])
def test_a_result_races_with_the_sweep(
    conn: psycopg.Connection,
    connect: Connect,
    session: Connect,
    background: Background,
    commits: bool,
) -> None:
    put(conn, "work")
    receipt = lease(conn)
    expire(conn)
    sweeper, worker = session(), connect()
    assert sweep(sweeper) == 1
    settled = background(value, worker, ACK, receipt, '"late"')
    wait.until_blocked(conn, wait.backend_pid(worker), by=wait.backend_pid(sweeper))
    if commits:
        sweeper.commit()
        assert settled.result() == 0
        assert results(conn) == []
    else:
        sweeper.rollback()
        assert settled.result() == 1
        assert results(conn) == [(1, "late")]


@pytest.mark.parametrize("ids", [None, [1], [1, 2]])
def test_of_two_acks_one_leaves_a_result(
    conn: psycopg.Connection,
    connect: Connect,
    session: Connect,
    background: Background,
    ids: list[int] | None,
) -> None:
    fill(conn, 2)
    receipt = lease(conn, 2)
    first, second = session(), connect()
    call = "select mq.ack('q', %s, %s, result => %s)"
    count = value(first, call, receipt, ids, '"first"')
    settled = background(value, second, call, receipt, ids, '"second"')
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    first.commit()
    assert settled.result() == 0
    assert [text for _, text in results(conn)] == ["first"] * count


def test_a_worker_that_dies_leaves_nothing(conn: psycopg.Connection, session: Connect) -> None:
    put(conn, "work")
    worker = session()
    receipt = lease(worker)
    worker.commit()
    worker.execute("savepoint s")
    assert value(worker, ACK, receipt, '"undone"') == 1
    worker.execute("rollback to s")
    worker.execute("select mq.report('q', %s, 1, '50')", (receipt,))
    assert value(worker, ACK, receipt, '"lost"') == 1
    pid = wait.backend_pid(worker)
    conn.execute("select pg_terminate_backend(%s)", (pid,))
    wait.until_gone(conn, pid)
    assert value(conn, "select count(*) from mq.note") == 0
    expire(conn)
    assert sweep(conn) == 1
    assert take(conn) == ["work"]


def test_a_report_of_a_lost_lease_is_older_than_the_next(
    conn: psycopg.Connection, session: Connect
) -> None:
    """It may commit after the lease was taken back, and yet hides nothing of who has the message now."""
    put(conn, "work")
    worker = session()
    receipt = lease(worker)
    worker.commit()
    report = "select mq.report('q', %s, 1, to_jsonb(%s::text))"
    assert value(worker, report, receipt, "old") is True
    expire(conn)
    assert sweep(conn) == 1
    again = lease(conn)
    assert value(conn, report, again, "new") is True
    worker.commit()
    assert value(conn, "select (mq.message_status('q', 1)).progress") == "new"
    assert value(worker, report, receipt, "lost") is False


@pytest.mark.parametrize("call", [ACK, "select mq.report('q', %s, 1, %s)"])
def test_an_old_snapshot_is_not_told_that_the_lease_is_lost(
    conn: psycopg.Connection, session: Connect, call: str
) -> None:
    put(conn, "work")
    old = session()
    old.execute("set transaction isolation level repeatable read")
    old.execute("select 1")
    with pytest.raises(psycopg.errors.SerializationFailure):
        value(old, call, lease(conn), "1")


def test_a_report_follows_a_lease_out_of_its_segment(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2)
    receipt = lease(conn, 2)
    outlive(conn)
    assert value(conn, "select mq.report('q', %s, 2, '1')", receipt) is True
    assert value(conn, "select mq.report('q', %s, 3, '1')", receipt) is False
    assert value(conn, ACK, receipt, '"done"') == 2
    assert results(conn) == [(1, "done"), (2, "done")]
    assert value(conn, "select mq.report('q', %s, 2, '1')", receipt) is False


def test_a_drop_waits_for_results_and_takes_them(
    conn: psycopg.Connection, connect: Connect, session: Connect, background: Background
) -> None:
    put(conn, "work")
    worker, dropper = session(), connect()
    receipt = lease(conn)
    assert value(worker, ACK, receipt, '"kept"') == 1
    dropped = background(dropper.execute, "select mq.drop_queue('q')")
    wait.until_blocked(conn, wait.backend_pid(dropper), by=wait.backend_pid(worker))
    worker.commit()
    dropped.result()
    assert value(conn, "select count(*) from mq.note") == 0


# -- upkeep, and a snapshot that somebody holds ------------------------------------------------------


def notes(conn: psycopg.Connection, count: int, age: str) -> None:
    conn.execute(
        "insert into mq.note (queue_id, msg_id, kind, at, value)"
        " select %s, i, 'result', clock_timestamp() - %s::interval, '1' from generate_series(1, %s) as i",
        (number(conn), age, count),
    )


def forget(conn: psycopg.Connection, since: str = "null") -> measure.Call:
    return measure.call(
        conn,
        f"select mq._forget_notes(q, {since}) from mq.queue as q where q.name = 'q'",
    )


def test_a_held_snapshot_makes_nothing_slower(
    conn: psycopg.Connection, database: str, server: Server
) -> None:
    """What was deleted stays in the index, and nobody walks over it: not upkeep, and not who looks for a note."""
    put(conn, "work")
    receipt = lease(conn)
    conn.execute("select mq.report('q', %s, 1, '1')", (receipt,))
    look = "select mq.report('q', '" + receipt + "', 1, '2'), mq._newest_note(1, 1, 'progress')"
    status = f"select mq._newest_note({number(conn)}, 1, 'progress')"
    forget(conn)
    few, idle = measure.call(conn, status).buffers, forget(conn).buffers
    with snapshot(server, conn.info.dbname):
        for _ in range(500):
            conn.execute(look)
        conn.execute("update mq.note set at = at - interval '1 day' where value = '2'")
        notes(conn, 20_000, "1 day")
        conn.execute("select mq._forget_notes(q) from mq.queue as q where q.name = 'q'")
        conn.execute("select mq.report('q', %s, 1, '3')", (receipt,))
        for _ in range(3):
            assert forget(conn).buffers <= idle + 10
        assert forget(conn, "'-infinity'").buffers > idle + 50  # what it would cost
        assert measure.call(conn, status).buffers <= few + 5


def test_upkeep_forgets_what_is_old_and_no_more_than_so_much(
    conn: psycopg.Connection,
) -> None:
    notes(conn, 150_000, "61 minutes")
    notes(conn, 10, "59 minutes")
    said = []
    for _ in range(3):
        said += conn.execute(
            "select detail from mq.maintain('q') where action = 'forgot'"
        ).fetchall()
    assert said == [("100000 results and reports",), ("50000 results and reports",)]
    assert value(conn, "select count(*) from mq.note where kind = 'result'") == 10


def test_results_outlive_segments(conn: psycopg.Connection) -> None:
    fill(conn, 3)
    assert value(conn, ACK, lease(conn, 3), "7") == 3
    rotate(conn)
    wait.until(lambda: "dropped" in maintain(conn))
    assert [value(conn, WAIT, i) for i in (1, 2, 3)] == [7, 7, 7]
    assert value(conn, "select (mq.message_status('q', 2)).state") == "completed"
