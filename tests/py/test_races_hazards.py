"""Hazards that were known when mq was designed, and that no other test would notice."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from support import measure, race
from support.race import (
    Connect,
    ack,
    drain,
    expire,
    fill,
    lease,
    maintain,
    number,
    put,
    rotate,
    take,
    take_rows,
    value,
)

pytestmark = pytest.mark.matrix
database, queue, session = race.database, race.queue, race.session


def until_one_segment(conn: psycopg.Connection) -> None:
    for _ in range(10):
        maintain(conn)
    assert race.segments(conn) == 1


def test_settings_of_the_caller_are_left_alone(session: Connect) -> None:
    caller = session()

    def settings() -> list[Any]:
        return caller.execute(
            "select name, setting from pg_settings where name not like 'mq.%' order by name"
        ).fetchall()

    maintain(caller)
    before = settings()
    fill(caller, 20)
    caller.commit()
    receipts = [lease(caller, 3) for _ in range(3)]
    value(caller, "select mq.extend('q', %s)", receipts[0])
    value(caller, "select mq.nack('q', %s)", receipts[1])
    assert ack(caller, receipts[0], [1]) == 1
    assert take(caller, ack=receipts[2])
    put(caller, "later", delay="1 hour")
    for call in ("sweep_stale", "queue_stats", "rotate_segment", "pause_queue", "resume_queue"):
        caller.execute(f"select mq.{call}('q')")
    assert settings() == before
    caller.rollback()


def test_one_call_of_upkeep_drops_a_few_segments(conn: psycopg.Connection) -> None:
    """Of all queues together, for each takes a dozen locks of those that the server has for all."""
    conn.execute("select mq.create_queue('other')")
    for queue in "q", "other":
        for _ in range(10):
            put(conn, "a", queue)
            receipt = value(conn, "select receipt from mq.dequeue(%s)", queue)
            assert value(conn, "select mq.ack(%s, %s)", queue, receipt) == 1
            rotate(conn, queue)
    upkeep = "select count(*) filter (where action = 'dropped') from mq.maintain()"
    calls = [value(conn, upkeep) for _ in range(6)]
    assert sum(calls) == 20
    assert max(calls) == 8
    assert race.segments(conn) == race.segments(conn, "other") == 1


@pytest.mark.parametrize("n", [1, 20])
def test_a_segment_that_ends_with_a_full_block_goes_too(conn: psycopg.Connection, n: int) -> None:
    fill(conn, 256 if n == 1 else 64 * n)
    assert len(drain(conn, n)) == (256 if n == 1 else 64 * n)
    blocks = value(conn, f"select count(*) from mq.block_{number(conn)}_1")
    assert blocks == 1
    rotate(conn)
    until_one_segment(conn)


def test_an_ack_after_its_slot_was_dropped_is_lost(conn: psycopg.Connection) -> None:
    put(conn, "a")
    receipt = lease(conn)
    assert ack(conn, receipt) == 1
    rotate(conn)
    until_one_segment(conn)
    conn.execute("select mq._create_slot(%s, 9)", (number(conn),))
    conn.execute("update mq.slot set freed_at = now() - interval '1 day' where slot = 1")
    assert "removed" in maintain(conn)
    assert value(conn, "select to_regclass(%s)", f"mq.lease_{number(conn)}_1") is None
    assert ack(conn, receipt) == 0
    assert ack(conn, receipt, [1]) == 0
    assert value(conn, "select mq.nack('q', %s)", receipt) == 0
    assert value(conn, "select mq.extend('q', %s)", receipt) is None


def test_one_transaction_delivers_again_twice(conn: psycopg.Connection, session: Connect) -> None:
    consumer = session()
    for payload in ("a", "b"):
        put(conn, payload, delay="1 microsecond")
        assert take(consumer) == [payload]
    consumer.commit()
    assert take(conn) == []
    expire(conn)
    rows = take_rows(conn, 10)
    assert sorted(row[5] for row in rows) == ["a", "b"]


def test_what_is_due_is_found_without_reading_what_is_not(conn: psycopg.Connection) -> None:
    empty = "select * from mq.dequeue('q')"
    fresh = measure.cost([measure.call(conn, empty) for _ in range(5)])
    measure.fill(conn, 20_000, delay="1 hour")
    maintain(conn)
    idle = measure.cost([measure.call(conn, empty) for _ in range(5)])
    assert idle.median <= fresh.median + 20, f"{fresh}; with 20,000 delayed: {idle}"


def test_what_is_born_in_a_block_stays_with_it(conn: psycopg.Connection) -> None:
    put(conn, "a")
    lease(conn)
    rotate(conn)
    assert "sealed" in maintain(conn)
    log = f"mq.log_{number(conn)}"
    for lane, stays in ((-1, 1), (0, 0)):
        conn.execute(
            f"insert into {log}_1 (msg_id, xid, lane, payload) values (9, '9', %s, '9')", (lane,)
        )
        found = value(conn, f"select count(*) from {log}_1 where msg_id = 9 and lane = %s", lane)
        assert found == stays


def test_slices_of_two_queues_have_locks_of_their_own(
    conn: psycopg.Connection, session: Connect
) -> None:
    conn.execute("select mq.create_queue('other')")
    for name in ("q", "other"):
        fill(conn, 3, name)
        assert take(conn, queue=name) == [1]  # opens the block
    holding = session()
    assert take(holding) == [2]
    assert take(conn, queue="other") == [2]
    holding.rollback()


def test_keys_of_locks_are_those_of_our_tables(conn: psycopg.Connection, session: Connect) -> None:
    fill(conn, 3)
    assert take(conn) == [1]  # opens a block
    listening = session(autocommit=True)
    listening.execute("select mq.listen('q')")
    upkeep, consumer = session(), session()
    maintain(upkeep)
    assert take(consumer) == [2]
    tables = {
        row[0]
        for row in conn.execute(
            "select oid::bigint & 2147483647 from pg_class where relnamespace = 'mq'::regnamespace"
        ).fetchall()
    }
    taken = conn.execute(
        "select classid::bigint, objsubid from pg_locks where locktype = 'advisory'"
        " and database = (select oid from pg_database where datname = current_database())"
    ).fetchall()
    assert len(taken) >= 3
    assert all(key in tables and form == 2 for key, form in taken)


def test_a_producer_that_looks_for_listeners_keeps_no_lock(
    conn: psycopg.Connection, session: Connect
) -> None:
    conn.execute("select mq.listen('q')")  # the register says that somebody waits ...
    conn.execute("select mq.unlisten('q')")  # ... and the lock that nobody does
    producer = session(autocommit=True)
    for _ in range(3):
        put(producer, "a")
    assert race.locks(producer, conn) == []


def test_an_empty_poll_does_not_walk_what_is_not_committed(
    conn: psycopg.Connection, session: Connect
) -> None:
    empty = "select * from mq.dequeue('q')"
    put(conn, "a")
    assert drain(conn) == ["a"]
    fresh = measure.cost([measure.call(conn, empty) for _ in range(5)])
    producer = session()
    measure.fill(producer, 10_000)
    conn.execute("select pg_current_xact_id()")  # snapshots list it from now on
    idle = measure.cost([measure.call(conn, empty) for _ in range(5)])
    assert idle.median <= fresh.median + 20, f"{fresh}; with 10,000 uncommitted: {idle}"
    producer.rollback()


def test_an_empty_poll_that_sets_thousands_of_timers_keeps_no_lane(
    conn: psycopg.Connection, session: Connect
) -> None:
    measure.fill(conn, 20_000, delay="1 hour")
    sitting = session()
    assert take(sitting) == []
    put(conn, "fresh")
    assert take(conn) == ["fresh"]
    sitting.commit()
