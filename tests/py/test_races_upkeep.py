"""Nobody meets a deadlock with upkeep: it waits for a table only with none in hand that others wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from support import race, wait
from support.race import (
    Background,
    Connect,
    fresh,
    maintain,
    number,
    put,
    rotate,
    slot,
    take,
    value,
)

pytestmark = pytest.mark.matrix
database, session = race.database, race.session


@pytest.fixture(autouse=True)
def queues(database: str) -> tuple[str, str]:
    fresh(database, "a", "b")
    return "a", "b"


@pytest.fixture
def patient(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Upkeep waits for as long as a slow machine, or many queues, make it at worst."""
    conn.execute("alter function mq.maintain(text) set lock_timeout = '1min'")
    yield
    conn.execute("alter function mq.maintain(text) set lock_timeout = '50ms'")


def open_log(conn: psycopg.Connection[Any], queue: str) -> str:
    return f"log_{number(conn, queue)}_{slot(conn, 'open', queue)}"


def is_fenced(conn: psycopg.Connection[Any], queue: str) -> bool:
    return bool(value(conn, "select mq._is_fenced(%s)", open_log(conn, queue)))


@pytest.fixture
def kept_waiting(
    conn: psycopg.Connection[Any], session: Connect, background: Background
) -> Callable[..., list[Any]]:
    """What upkeep of a queue (None: of all) says that waits for a session until that commits."""

    def kept_waiting_(
        by: psycopg.Connection[Any],
        queue: str | None = None,
        meanwhile: Callable[[int], None] = lambda _: None,
    ) -> list[Any]:
        keeping = session(autocommit=True)
        pid = wait.backend_pid(keeping)
        kept = background(keeping.execute, "select queue, action from mq.maintain(%s)", (queue,))
        wait.until_blocked(conn, pid, by=wait.backend_pid(by))
        meanwhile(pid)
        by.commit()
        return list(kept.result(wait.SECONDS).fetchall())

    return kept_waiting_


@pytest.mark.usefixtures("patient")
def test_a_producer_for_two_queues(
    conn: psycopg.Connection[Any], session: Connect, background: Background
) -> None:
    """Upkeep of all queues takes the fences off both open logs; he holds one, and wants the other."""
    for _ in range(8):  # which queue is first is left to chance
        for queue in "a", "b":
            conn.execute("select mq._fence(%s)", (open_log(conn, queue),))
        producing, keeping = session(), session(autocommit=True)
        producing.execute("set local deadlock_timeout = '10ms'")
        put(producing, "1", "b")
        kept = background(keeping.execute, "select action from mq.maintain()")
        wait.until_blocked_or_done(conn, wait.backend_pid(keeping), kept.done)
        put(producing, "1", "a")
        producing.commit()
        kept.result(wait.SECONDS)
        maintain(conn, "b")
        assert not is_fenced(conn, "a")
        assert not is_fenced(conn, "b")
    assert take(conn, 100, "a") == take(conn, 100, "b") == ["1"] * 8


@pytest.mark.usefixtures("patient")
def test_the_log_that_was_just_opened_is_waited_for(
    conn: psycopg.Connection[Any], session: Connect, kept_waiting: Callable[..., list[Any]]
) -> None:
    """Where it is busy all the time, the fence would slow it down for ever."""
    put(conn, "1", "a")
    rotate(conn, "a")
    producing = session()
    put(producing, "2", "a")
    assert ("a", "sealed") in kept_waiting(producing, "a")
    assert not is_fenced(conn, "a")


@pytest.mark.usefixtures("patient")
def test_an_open_log_is_waited_for_though_another_queue_was_sealed(
    conn: psycopg.Connection[Any], session: Connect, kept_waiting: Callable[..., list[Any]]
) -> None:
    """With many queues one is sealed in most calls, and a busy log would keep its fence."""
    put(conn, "1", "b")
    rotate(conn, "b")
    conn.execute("select mq._fence(%s)", (open_log(conn, "a"),))
    conn.execute("select mq._unfence(%s)", (open_log(conn, "b"),))
    producing = session()
    put(producing, "1", "a")
    assert ("b", "sealed") in kept_waiting(producing)
    assert not is_fenced(conn, "a")


@pytest.mark.usefixtures("patient")
def test_what_outlived_its_segment_is_waited_for_with_no_segment_sealed(
    conn: psycopg.Connection[Any], session: Connect, kept_waiting: Callable[..., list[Any]]
) -> None:
    """It waits for who is acknowledging it; had it sealed a log before, he might wait for that."""
    for queue in "a", "b":
        put(conn, "1", queue)
    receipt = value(conn, "select receipt from mq.dequeue('b')")
    rotate(conn, "b")
    wait.until(lambda: "exhausted" in maintain(conn, "b"))
    conn.execute(
        "update mq.segment set exhausted_at = exhausted_at - interval '1 day' where exhausted_at is not null"
    )
    rotate(conn, "a")
    acking = session()
    assert value(acking, "select mq.ack('b', %s)", receipt) == 1

    def has_no_log(pid: int) -> None:
        assert not conn.execute(
            "select from pg_locks where pid = %s and mode = 'ShareRowExclusiveLock'", (pid,)
        ).rowcount

    actions = kept_waiting(acking, meanwhile=has_no_log)
    assert ("a", "sealed") in actions
    assert ("b", "drained") in actions


@pytest.mark.usefixtures("patient")
def test_a_set_that_is_read_is_waited_for(
    conn: psycopg.Connection[Any], session: Connect, kept_waiting: Callable[..., list[Any]]
) -> None:
    """Consumers look into the old deferral set all the time: it would never be truncated."""
    queue_id = empty_old_set(conn)
    reading = session()
    reading.execute(f"select from mq.deferred_{queue_id}_0")
    assert kept_waiting(reading, "a") == [("a", "deferral")]
    assert value(conn, "select deferred from mq.queue_stats('a')") == 1


@pytest.mark.usefixtures("patient")
def test_a_set_that_is_read_is_not_waited_for_with_a_log_in_hand(
    conn: psycopg.Connection[Any], session: Connect
) -> None:
    queue_id = empty_old_set(conn)
    rotate(conn, "a")
    reading = session()
    reading.execute(f"select from mq.deferred_{queue_id}_0")
    conn.execute("set statement_timeout = '10s'")
    assert "sealed" in maintain(conn, "a")
    reading.commit()
    assert maintain(conn, "a").count("deferral") == 1


def empty_old_set(conn: psycopg.Connection[Any]) -> int:
    """Changed over to the other deferral set, and what waits moved; the number of the queue."""
    put(conn, "1", "a", delay="1 day")
    conn.execute(
        "select mq._write_register(queue_id, register, 3::bigint << 32, 3::bigint << 32) from mq.queue where name = 'a'"
    )
    put(conn, "1", "a")
    assert maintain(conn, "a") == ["deferral"]
    return number(conn, "a")


@pytest.mark.usefixtures("patient")
def test_a_table_that_was_just_dropped_is_in_hand(
    conn: psycopg.Connection[Any], session: Connect
) -> None:
    """Who acknowledges what was leased in an idle slot waits for that, and may have copied before."""
    put(conn, "1", "a")
    rotate(conn, "a")
    for _ in range(4):
        maintain(conn, "a")
    conn.execute("select mq._create_slot(%s, 9)", (number(conn, "a"),))
    conn.execute("update mq.slot set freed_at = now() - interval '1 day' where slot = 9")
    conn.execute("insert into mq.inbox (queue, payload) values ('b', '1')")
    copying = session()
    copying.execute("insert into mq.inbox (queue, payload) values ('b', '2')")
    conn.execute("set statement_timeout = '10s'")
    assert "removed" in maintain(conn, "a")  # it would wait for who copies
    copying.commit()


COPY = "insert into mq.inbox (queue, payload) values ('a', '1')"


@pytest.mark.usefixtures("patient")
def test_who_copies_meets_no_deadlock(
    conn: psycopg.Connection[Any], session: Connect, kept_waiting: Callable[..., list[Any]]
) -> None:
    """Upkeep waits for a log that he has written to; had it emptied the inbox before, he would wait for upkeep."""
    conn.execute(COPY)
    copying = session()
    copying.execute("set local deadlock_timeout = '10ms'")
    put(copying, "a", "a")
    rotate(conn, "a")

    def copies(_: int) -> None:
        copying.execute(COPY)

    assert ("a", "sealed") in kept_waiting(copying, "a", copies)
    assert value(conn, "select pg_relation_size('mq.inbox')") == 0
    assert sum(len(take(conn, 100, "a")) for _ in range(4)) == 3


@pytest.mark.usefixtures("patient")
def test_the_inbox_is_not_waited_for_with_a_log_in_hand(
    conn: psycopg.Connection[Any], session: Connect
) -> None:
    conn.execute(COPY)
    copying = session()
    copying.execute(COPY)
    rotate(conn, "b")
    conn.execute("set statement_timeout = '10s'")
    assert "sealed" in maintain(conn, "b")  # it would wait for who copies
    copying.commit()
    maintain(conn, "a")
    assert value(conn, "select pg_relation_size('mq.inbox')") == 0


def test_what_consumers_may_still_look_at_is_not_emptied(conn: psycopg.Connection[Any]) -> None:
    """Who read which segment is the oldest, before upkeep said that it no more is, would wait for the end of that call."""
    put(conn, "x", "a")
    receipt = value(conn, "select receipt from mq.dequeue('a')")
    assert value(conn, "select mq.ack('a', %s)", receipt) == 1
    oldest = slot(conn, "oldest", "a")
    rotate(conn, "a")
    while slot(conn, "oldest", "a") == oldest:
        done = maintain(conn, "a")
        assert "dropped" not in done, done
    assert "dropped" not in done
    wait.until(lambda: "dropped" in maintain(conn, "a"))
