"""What an adversarial review of the engine found: each test lost before the commit that mended it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from support import measure, race, wait
from support.race import (
    Background,
    Connect,
    ack,
    advisory_locks,
    drain,
    expire,
    fill,
    lease,
    maintain,
    number,
    put,
    rotate,
    segments,
    sweep,
    take,
    take_rows,
    unsettled,
    value,
)

pytestmark = pytest.mark.matrix
database, queue, session = race.database, race.queue, race.session


def open_slot(conn: psycopg.Connection) -> int:
    """Where producers write to now, whatever the catalogue says."""
    return int(value(conn, "select pg_sequence_last_value(register) & 65535 from mq.queue"))


def age(conn: psycopg.Connection) -> None:
    """A day passes for the segments: they are old enough to be closed, and to be cleared of long leases."""
    conn.execute(
        "update mq.segment set opened_at = opened_at - interval '1 day', closed_at = closed_at - interval '1 day',"
        " sealed_at = sealed_at - interval '1 day', exhausted_at = exhausted_at - interval '1 day'"
    )


def make_due(conn: psycopg.Connection) -> None:
    """What is deferred, and has no timer yet, is due."""
    for generation in (0, 1):
        conn.execute(
            f"update mq.deferred_{number(conn)}_{generation} set due_at = '2001-01-01' where due_at > now()"
        )


def until_waiting_for(observer: psycopg.Connection, pid: int, relation: str) -> None:
    """Until backend `pid` waits for a lock on a table; it gives up after 50 ms, so this looks without a rest."""
    deadline = time.monotonic() + wait.SECONDS
    while not observer.execute(
        "select from pg_locks where pid = %s and not granted and relation = %s::regclass",
        (pid, relation),
    ).rowcount:
        assert time.monotonic() < deadline, f"backend {pid} never waited for {relation}"


# -- upkeep -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["rotate_segment", "maintain"])
def test_upkeep_in_a_transaction_that_wrote_does_not_drop_what_it_wrote(
    conn: psycopg.Connection, session: Connect, by: str
) -> None:
    put(conn, "settled")
    assert drain(conn) == ["settled"]
    writing = session()
    put(writing, "precious")
    if by == "rotate_segment":
        rotate(writing)
    else:
        age(conn)
    said = [maintain(writing) for _ in range(3)]
    writing.commit()
    for _ in range(3):
        maintain(conn)
    assert drain(conn) == ["precious"]
    assert said == [["busy"]] * 3


def test_upkeep_in_a_transaction_that_wrote_does_not_drop_what_it_deferred(
    conn: psycopg.Connection, session: Connect
) -> None:
    conn.execute(
        "select mq.enqueue_batch('q', array_fill(to_jsonb(repeat('x', 1000)), array[6000]), delay => '1 microsecond')"
    )
    assert len(drain(conn, 1000)) == 6000
    writing = session()
    put(writing, "precious", delay="1 hour")
    assert "deferral" in maintain(conn)  # messages are deferred elsewhere from now on
    said = [maintain(writing) for _ in range(6)]
    writing.commit()
    for _ in range(6):
        maintain(conn)
    assert unsettled(conn) == (0, 1, 0)
    assert said == [["busy"]] * 6


def test_the_slot_that_a_rotation_opened_is_neither_dropped_nor_freed(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    # Slot 2 is closed and still written to; slot 1 is open; slot 3 was free for long, and is not the only one.
    rotate(conn)
    wait.until(lambda: segments(conn) == 1 or (maintain(conn) and None))
    elder = session()
    put(elder, "elder")
    rotate(conn)
    assert open_slot(conn) == 1
    conn.execute("select mq._create_slot(%s, 4)", (number(conn),))
    conn.execute("update mq.slot set freed_at = now() - interval '1 day' where slot = 3")
    put(conn, "before")
    age(conn)
    # A producer that chose its log long ago is led to the open one, and keeps a lock on the next one.
    late, upkeep = session(), session(autocommit=True)
    late.execute(
        f"insert into mq.log_{number(conn)}_3 (msg_id, payload) select nextval(msg_ids), '\"late\"' from mq.queue"
    )
    maintained = background(maintain, upkeep)
    until_waiting_for(conn, wait.backend_pid(upkeep), f"mq.log_{number(conn)}_2")
    late.commit()
    maintained.result(30)
    expected = ["before", "elder", "late"]
    got: list[object] = []
    for count in range(5):
        put(conn, f"after {count}")
        expected.append(f"after {count}")
        got += drain(conn)
        maintain(conn)
        opened = value(conn, "select array_agg(slot) from mq.slot where freed_at is null")
        assert open_slot(conn) in opened
    elder.commit()
    got += drain(conn)
    assert sorted(map(str, got)) == sorted(expected)


def test_upkeep_goes_on_while_a_producer_holds_the_next_log(
    conn: psycopg.Connection, session: Connect
) -> None:
    rotate(conn)
    wait.until(lambda: segments(conn) == 1 or (maintain(conn) and None))
    conn.execute(
        "update mq.slot set freed_at = now() - interval '1 day' where freed_at is not null"
    )
    producer = session()
    expected: list[object] = []
    got: list[object] = []
    for count in range(5):
        log = value(conn, "select min(slot) from mq.slot where slot <> %s", open_slot(conn))
        with contextlib.suppress(psycopg.errors.UndefinedTable), producer.transaction():
            producer.execute(
                f"insert into mq.log_{number(conn)}_{log} (msg_id, payload)"
                " select nextval(msg_ids), to_jsonb(%s::text) from mq.queue",
                (f"late {count}",),
            )
            expected.append(f"late {count}")
        put(conn, f"new {count}")
        expected.append(f"new {count}")
        age(conn)
        maintain(conn)
        put(conn, f"newer {count}")
        expected.append(f"newer {count}")
        got += drain(conn)
        maintain(conn)
        assert value(conn, "select count(*) from mq.slot where slot = %s", open_slot(conn)) == 1
    producer.commit()
    for _ in range(5):
        maintain(conn)
        got += drain(conn)
    assert sorted(map(str, got)) == sorted(map(str, expected))


def test_an_ack_that_is_not_committed_does_not_fail_the_upkeep_of_all_queues(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2)
    first, second = lease(conn), lease(conn)
    rotate(conn)
    conn.execute("select mq.create_queue('later')")
    put(conn, "x", "later")
    lease(conn, queue="later")
    expire(conn, "later")
    wait.until(lambda: "exhausted" in maintain(conn))
    age(conn)
    settling = session()
    assert ack(settling, first) == 1
    said = conn.execute("select queue, action from mq.maintain()").fetchall()
    assert ("q", "busy") in said
    assert ("later", "swept") in said
    settling.rollback()
    wait.until(lambda: "moved" in maintain(conn))
    assert ack(conn, first) == 1
    assert ack(conn, second) == 1
    assert take(conn, queue="later") == ["x"]


# -- redelivery -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 100])
def test_an_empty_poll_delivers_from_a_big_lease_that_ran_out(
    conn: psycopg.Connection, n: int
) -> None:
    fill(conn, 1000)
    lease(conn, 1000)
    expire(conn)
    first = take_rows(conn, n)
    assert 1 <= len(first) <= n
    assert {row[2] for row in first} == {2}
    assert ack(conn, first[0][1]) == len(first)
    got = [row[5] for row in first]
    got += drain(conn)
    assert sorted(got) == list(range(1, 1001))
    assert unsettled(conn) == (0, 0, 0)


@pytest.mark.parametrize("n", [1, 4])
def test_a_hole_in_an_older_block_is_delivered_without_upkeep(
    conn: psycopg.Connection, session: Connect, n: int
) -> None:
    count = 128 * n  # one block
    fill(conn, count)
    opener = take_rows(conn, n)
    ack(conn, opener[0][1])
    claiming = session()
    held = take(claiming, n)
    assert len(held) == n
    put(conn, "next")
    assert drain(conn, n)[-1] == "next"  # of the next block; what is held may be taken still
    claiming.rollback()
    rows = take_rows(conn, n)
    assert [row[5] for row in rows] == held
    assert {row[2] for row in rows} == {1}  # nobody was given it before
    assert ack(conn, rows[0][1]) == n
    assert take(conn, n) == []


def test_a_hole_in_an_older_segment_is_delivered_without_upkeep(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2)
    assert ack(conn, lease(conn)) == 1
    claiming = session()
    assert take(claiming) == [2]
    put(conn, "next block")
    assert ack(conn, lease(conn)) == 1
    rotate(conn)
    put(conn, "next segment")
    assert drain(conn) == ["next segment"]
    claiming.rollback()
    assert drain(conn) == [2]


def test_a_redelivery_opens_no_block_over_one_that_is_not_used_up(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    conn.execute("select mq.alter_queue('q', max_attempts => 2)")
    last = put(conn, "last attempt")
    lease(conn)
    expire(conn)
    assert take(conn) == ["last attempt"]
    put(conn, "again")
    lease(conn)
    expire(conn)
    # It buries one message, and there waits in the middle of its sweep.
    burying, sweeping = session(), session(autocommit=True)
    burying.execute(
        "insert into mq.dead_letter (queue_id, msg_id, enqueued_at, attempts, reason, history, payload)"
        " values (%s, %s, now(), 2, '', '[]', '1')",
        (number(conn), last),
    )
    swept = background(take_rows, sweeping)
    wait.until_blocked(conn, wait.backend_pid(sweeping), by=wait.backend_pid(burying))
    fill(conn, 100)
    assert take(conn) == [1]  # opens a block
    burying.rollback()
    rows = swept.result(30)
    assert [row[5] for row in rows] == [2]
    assert ack(conn, rows[0][1]) == 1
    assert drain(conn, 1) == [*range(3, 101), "again"]


def test_a_waiting_consumer_does_not_sit_on_what_it_swept(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    put(conn, "a")
    lease(conn)
    expire(conn)
    opener, waiter = session(), session(autocommit=True)
    put(conn, "b")
    assert take(opener) == ["b"]  # keeps the lane: nobody else can open a block
    assert background(take, waiter, wait="1 s").result(30) == []
    opener.rollback()
    assert sorted(map(str, drain(conn))) == ["a", "b"]


def test_a_waiting_consumer_does_not_sit_on_what_it_buried(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    conn.execute("select mq.alter_queue('q', max_attempts => 1)")
    put(conn, "a")
    lease(conn)
    expire(conn)
    waiter = session(autocommit=True)
    assert background(take, waiter, wait="20 s").result(30) == []
    assert value(conn, "select count(*) from mq.dead_letters('q')") == 1


# -- empty polls ------------------------------------------------------------------------------------


def test_an_empty_poll_keeps_no_lane_for_what_another_promotes(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "x")
    assert drain(conn) == ["x"]
    promoting, polling = session(), session()
    maintain(promoting)
    put(conn, "due", delay="1 hour")
    make_due(conn)
    assert take(polling) == []
    assert advisory_locks(polling, conn) == 0
    fill(conn, 5)
    assert take(conn, 5) == [1, 2, 3, 4, 5]
    promoting.commit()
    assert take(conn) == ["due"]


def test_an_empty_poll_that_sets_timers_keeps_no_lane(
    conn: psycopg.Connection, session: Connect
) -> None:
    conn.execute(
        "select mq.enqueue_batch('q', array_fill('1'::jsonb, array[600]), delay => '1 hour')"
    )
    polling = session()
    assert take(polling) == []
    fill(conn, 3)
    assert take(conn, 2) == [1, 2]
    assert take(conn) == [3]


def test_an_empty_poll_after_many_leases_reads_little(conn: psycopg.Connection) -> None:
    empty = "select * from mq.dequeue('q')"
    put(conn, "x")
    assert drain(conn) == ["x"]
    maintain(conn)
    fresh = measure.cost([measure.call(conn, empty) for _ in range(5)])
    fill(conn, 2000)
    receipts = [
        row[0]
        for _ in range(4)
        for row in conn.execute(
            "select (mq.dequeue('q', 1, '1 hour')).receipt from generate_series(1, 500)"
        ).fetchall()
    ]
    assert value(conn, "select sum(mq.ack('q', r)) from unnest(%s::text[]) as r", receipts) == 2000
    maintain(conn)
    idle = measure.cost([measure.call(conn, empty) for _ in range(5)])
    assert idle.median <= fresh.median + 20, f"{fresh}; after leases: {idle}"
    put(conn, "y")
    assert drain(conn) == ["y"]


# -- settling ---------------------------------------------------------------------------------------


def around_a_rotation(conn: psycopg.Connection) -> None:
    rotate(conn)
    put(conn, "new")


def paused(conn: psycopg.Connection) -> None:
    conn.execute("select mq.pause_queue('q')")


def paused_around_a_rotation(conn: psycopg.Connection) -> None:
    around_a_rotation(conn)
    paused(conn)


def twice_around_a_rotation(conn: psycopg.Connection) -> None:
    around_a_rotation(conn)
    maintain(conn)
    around_a_rotation(conn)


def sealed(conn: psycopg.Connection) -> None:
    assert take(conn, 2) == [2, 3]
    rotate(conn)
    maintain(conn)
    maintain(conn)
    put(conn, "new")


@pytest.mark.parametrize(
    "change",
    [
        lambda conn: None,
        around_a_rotation,
        twice_around_a_rotation,
        sealed,
        paused,
        paused_around_a_rotation,
    ],
)
def test_dequeue_acknowledges_once_whatever_the_register_says(
    conn: psycopg.Connection, change: Callable[[psycopg.Connection], None]
) -> None:
    fill(conn, 3)
    receipt = lease(conn)
    change(conn)
    before = value(conn, "select settled_total from mq.queue_stats('q')")
    take(conn, ack=receipt)
    assert value(conn, "select settled_total from mq.queue_stats('q')") == before + 1
    assert ack(conn, receipt) == 0
    with pytest.raises(psycopg.DatabaseError) as lost:
        take(conn, ack=receipt)
    assert lost.value.sqlstate == "MQ003"
    assert value(conn, "select settled_total from mq.queue_stats('q')") == before + 1
    conn.execute("select mq.resume_queue('q')")
    expire(conn)
    assert 1 not in drain(conn)
    assert unsettled(conn) == (0, 0, 0)


def removed(conn: psycopg.Connection) -> None:
    """The old segment's tables are gone, not only empty."""
    queue_id = number(conn)
    for _ in range(2):  # so that others are free
        rotate(conn)
        put(conn, "x")
        assert drain(conn) == ["x"]
        maintain(conn)
    wait.until(lambda: segments(conn) == 1 or (maintain(conn) and None))
    gone = f"select to_regclass('mq.lease_{queue_id}_1') is null"
    conn.execute(
        "update mq.slot set freed_at = now() - interval '1 day' where freed_at is not null"
    )
    wait.until(lambda: value(conn, gone) or (maintain(conn) and None))


def test_a_long_lease_outlives_its_slot(conn: psycopg.Connection) -> None:
    fill(conn, 1)
    receipt = lease(conn, visibility_timeout="1 hour")
    race.outlive(conn)
    wait.until(lambda: segments(conn) == 1 or (maintain(conn) and None))
    removed(conn)
    assert ack(conn, receipt) == 1
    assert ack(conn, receipt) == 0


@pytest.mark.parametrize("state", ["moved", "truncated", "removed"])
def test_an_old_snapshot_is_not_told_that_a_lease_is_lost_that_moved(
    conn: psycopg.Connection, session: Connect, state: str
) -> None:
    calls = [
        ("ack", "repeatable read"),
        ("ack", "serializable"),
        ("extend", "repeatable read"),
        ("nack", "repeatable read"),
    ]
    fill(conn, len(calls))
    receipts = [lease(conn, visibility_timeout="1 hour") for _ in calls]
    rotate(conn)
    wait.until(lambda: "exhausted" in maintain(conn))
    olds = [session() for _ in calls]
    for old, (_, level) in zip(olds, calls, strict=True):
        old.execute(f"set transaction isolation level {level}")
        old.execute("select 1")
    age(conn)
    assert "moved" in maintain(conn)
    if state != "moved":
        wait.until(lambda: segments(conn) == 1 or (maintain(conn) and None))
    if state == "removed":
        removed(conn)
    for old, (call, level), receipt in zip(olds, calls, receipts, strict=True):
        with pytest.raises(psycopg.errors.SerializationFailure):
            old.execute(f"select mq.{call}('q', %s)", (receipt,))
        old.rollback()
        old.execute(f"set transaction isolation level {level}")
        assert value(old, f"select mq.{call}('q', %s)", receipt)  # tried again
        old.commit()
    # What is lost is lost: trying again would not help.
    old.execute("set transaction isolation level repeatable read")
    assert value(old, "select mq.ack('q', %s)", receipts[0]) == 0


def deadline(conn: psycopg.Connection) -> Any:
    return value(conn, "select leased_until from mq.message_status('q', 1)")


def test_an_extend_never_shortens_a_lease(conn: psycopg.Connection) -> None:
    put(conn, "a")
    receipt = lease(conn, visibility_timeout="1 hour")
    granted = deadline(conn)
    assert value(conn, "select mq.extend('q', %s, '1 second')", receipt) == granted
    assert deadline(conn) == granted
    longer = value(conn, "select mq.extend('q', %s, '2 hours')", receipt)
    assert longer > granted
    assert value(conn, "select mq.extend('q', %s, '1 minute')", receipt) == longer
    assert deadline(conn) == longer


def test_an_extended_lease_is_swept_after_the_deadline_that_was_granted(
    conn: psycopg.Connection,
) -> None:
    put(conn, "a")
    receipt = lease(conn)
    value(conn, "select mq.extend('q', %s, '1 hour')", receipt)
    value(conn, "select mq.extend('q', %s, '1 second')", receipt)
    table = f"{number(conn)}_1"
    conn.execute(f"update mq.lease_{table} set leased_until = now() - interval '1 ms'")
    assert sweep(conn) == 0
    # Of two extends, the one that granted more counts, whichever came last.
    conn.execute(
        f"update mq.settlement_{table} set leased_until = now() - interval '1 ms' where seq = 2"
    )
    assert sweep(conn) == 0
    assert take(conn) == []
    assert ack(conn, receipt) == 1


def test_an_extend_never_shortens_a_lease_that_outlived_its_segment(
    conn: psycopg.Connection,
) -> None:
    put(conn, "a")
    receipt = lease(conn, visibility_timeout="1 hour")
    granted = deadline(conn)
    rotate(conn)
    wait.until(lambda: "exhausted" in maintain(conn))
    age(conn)
    assert "moved" in maintain(conn)
    assert value(conn, "select mq.extend('q', %s, '1 second')", receipt) == granted
    assert deadline(conn) == granted
    assert value(conn, "select mq.extend('q', %s, '2 hours')", receipt) > granted


def test_a_pause_holds_for_those_who_wait_already(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    waiter = session(autocommit=True)
    waiting = background(take, waiter, wait="1 s")
    wait.until_event(conn, wait.backend_pid(waiter), "PgSleep")
    conn.execute("select mq.pause_queue('q')")
    put(conn, "a")
    assert waiting.result(30) == []
    conn.execute("select mq.resume_queue('q')")
    assert take(conn) == ["a"]
