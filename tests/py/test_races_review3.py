"""What a third review of the engine found: each test lost before the commit that mended it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import psycopg
import pytest

from support import race, wait
from support.race import (
    Background,
    Connect,
    advisory_locks,
    drain,
    fill,
    from_elsewhere,
    in_another_cluster,
    maintain,
    number,
    put,
    rotate,
    take,
    unsettled,
    value,
)

database, session = race.database, race.session


@pytest.fixture(autouse=True)
def queue(database: str) -> str:
    # A test that failed may leave it as a copy.
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("update mq.queue set home = 'mq.queue'::regclass::oid || '.0'")
    race.fresh(database, "q")
    return "q"


def delay_many(conn: psycopg.Connection, count: int) -> None:
    """Messages for tomorrow, none of which has a timer."""
    conn.execute(
        "select mq.enqueue_batch('q', array_fill('1'::jsonb, array[%s]), delay => '1 day')",
        (count,),
    )


def ran_backwards(conn: psycopg.Connection) -> None:
    """As on a copy that only its transaction ids tell: producers do not notice."""
    assert conn.execute(
        f"update mq.block_{number(conn)}_1 set prev = '4000000000:4000000000:', cur = null"
    ).rowcount
    assert value(conn, "select mq._is_copy(q.queue_id, q.home) from mq.queue as q")


def until_five(get: Callable[[], list[Any]], got: Iterable[Any] = ()) -> list[str]:
    """Gets until five messages are there; sorted."""
    all_ = list(got)

    def look() -> bool:
        all_.extend(get())
        return len(all_) >= 5

    wait.until(look, "all to be delivered")
    return sorted(map(str, all_))


def test_a_cancelled_notification_keeps_no_lock(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    both = session(autocommit=True)  # waits for messages, and enqueues some itself
    both.execute("select mq.listen('q')")
    name = "mq._is_waiting(int)"
    source = value(conn, "select pg_get_functiondef(%s::regprocedure)", name)
    slow = source.replace("BEGIN", "begin").replace("begin", "begin perform pg_sleep(30);", 1)
    try:
        conn.execute(slow)
        call = background(lambda: put(both, "x"))
        wait.until_event(conn, wait.backend_pid(both), "PgSleep")
        conn.execute("select pg_cancel_backend(%s)", (wait.backend_pid(both),))
        with pytest.raises(psycopg.errors.QueryCanceled):
            call.result(wait.SECONDS)
    finally:
        conn.execute(source)
    conn.execute("set lock_timeout = '1s'; select mq.listen('q')")
    assert advisory_locks(both, conn) == 1


# -- many delayed messages -------------------------------------------------------------------------


def test_fresh_messages_do_not_wait_for_many_delayed_ones(conn: psycopg.Connection) -> None:
    delay_many(conn, 210_000)
    fill(conn, 20)
    for first in (1, 11):
        assert take(conn, 10) == list(range(first, first + 10))
        timers = value(conn, f"select count(*) from mq.timer_{number(conn)}_0")
        assert timers <= 512, "sorted on the way"


def test_an_empty_poll_behind_many_delayed_messages_writes_nothing(
    conn: psycopg.Connection, session: Connect
) -> None:
    delay_many(conn, 210_000)
    polling = session()
    for _ in range(50):
        assert take(polling) == []
    assert value(polling, "select pg_current_xact_id_if_assigned() is null")
    assert advisory_locks(polling, conn) == 0
    polling.commit()


def test_what_is_due_behind_very_many_is_delivered(conn: psycopg.Connection) -> None:
    delay_many(conn, 195_000)
    put(conn, "due", delay="1 hour")
    conn.execute(
        f"update mq.deferred_{number(conn)}_0 set due_at = now() where payload = to_jsonb('due'::text)"
    )
    wait.until(lambda: take(conn) == ["due"], "it to be delivered")


def test_what_was_rolled_back_does_not_wait_for_who_promotes(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2)
    assert take(conn) == [1]
    put(conn, "due", delay="100 ms")
    promoter, taker = session(), session()
    maintain(promoter)
    wait.until(lambda: value(conn, "select mq.next_due('q') < clock_timestamp()"), "it to be due")
    assert take(taker) == [2]
    taker.rollback()
    assert take(conn) == [2]
    promoter.commit()
    assert take(conn) == ["due"]


# -- repair ----------------------------------------------------------------------------------------


def test_a_repair_that_fails_leaves_all_as_it_was(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 3)
    assert take(conn, 3) == [1, 2, 3]
    idle = session()
    put(idle, "later", delay="1 hour")
    ran_backwards(conn)
    upkeep = session(autocommit=True)
    upkeep.execute("set statement_timeout = '500ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        maintain(upkeep)
    put(conn, "new")
    idle.commit()
    assert maintain(conn) == ["repaired"]
    assert unsettled(conn) == (4, 1, 0)
    assert take(conn, 10) == [1, 2, 3, "new"]


def test_a_repair_that_is_rolled_back_hides_nothing(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 3)
    put(conn, "later", delay="200 ms")
    in_another_cluster(conn, "q")
    upkeep = session()
    assert maintain(upkeep) == ["repaired"]
    upkeep.rollback()
    put(conn, "new")
    assert until_five(lambda: drain(conn)) == ["1", "2", "3", "later", "new"]
    assert "repaired" not in maintain(conn)
    assert drain(conn) == []


def test_who_waits_for_a_repair_goes_on_in_what_it_made(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    fill(conn, 3)
    assert take(conn, 3) == [1, 2, 3]
    maintain(conn)
    assert not value(conn, "select mq._is_fenced(%s)", f"log_{number(conn)}_1")
    ran_backwards(conn)
    holder = session()
    upkeep, producer, later, consumer = (session(autocommit=True) for _ in range(4))
    # In the middle: all is locked, and the register leads where it led before.
    holder.execute("select from mq.slot for update")
    repaired = background(value, upkeep, f"select mq._repair({number(conn)})")
    wait.until_blocked(conn, wait.backend_pid(upkeep), by=wait.backend_pid(holder))
    puts = [
        background(lambda: put(producer, "waited")),
        background(lambda: put(later, "later", delay="1 ms")),
    ]
    taken = background(lambda: drain(consumer))
    for waiting in (producer, later, consumer):
        wait.until_blocked(conn, wait.backend_pid(waiting), by=wait.backend_pid(upkeep))
    holder.rollback()
    assert repaired.result(wait.SECONDS)
    for call in puts:
        assert call.result(wait.SECONDS) > 0
    got = taken.result(wait.SECONDS)
    assert value(conn, f"select count(*) from mq.log_{number(conn)}_1") == 0
    assert until_five(lambda: drain(conn), got) == ["1", "2", "3", "later", "waited"]
    for _ in range(3):
        maintain(conn)
    assert unsettled(conn) == (0, 0, 0)


def test_a_copy_is_used_while_a_queue_is_created(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 3)
    from_elsewhere(conn, "q")
    creating = session()
    creating.execute("select mq.create_queue('other')")
    quick = session(autocommit=True)
    quick.execute("set statement_timeout = '2s'")
    put(quick, "new")
    assert drain(quick) == [1, 2, 3, "new"]
    creating.rollback()


def test_upkeep_of_a_copy_waits_for_nobody(conn: psycopg.Connection, session: Connect) -> None:
    fill(conn, 3)
    conn.execute("select mq._drop_slot(%s, mq._empty_slot(%s))", [number(conn)] * 2)  # none is free
    in_another_cluster(conn, "q")
    creating = session()
    creating.execute("select mq.create_queue('other')")
    assert maintain(conn) == ["busy"]
    creating.rollback()
    assert [maintain(conn)[0] for _ in range(2)] == ["prepared", "repaired"]
    assert drain(conn) == [1, 2, 3]


def test_the_first_calls_of_a_copy_wait_for_each_other(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    fill(conn, 3)
    from_elsewhere(conn, "q")
    upkeep, callers = session(), [session(autocommit=True) for _ in range(3)]
    upkeep.execute(
        "select pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(%s, -3))", (number(conn),)
    )
    calls = [background(put, caller, "new") for caller in callers]
    for caller in callers:
        wait.until_blocked(conn, wait.backend_pid(caller))
    upkeep.commit()
    for call in calls:
        assert call.result(wait.SECONDS) > 0
    assert drain(conn) == [1, 2, 3, "new", "new", "new"]


def test_a_repair_makes_a_slot_before_it_needs_one(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2)
    assert take(conn) == [1]
    queue_id = number(conn)
    conn.execute("select mq._drop_slot(%s, mq._empty_slot(%s))", [queue_id] * 2)
    # Transaction ids ran backwards, and nothing else says so.
    ran_backwards(conn)
    fill(conn, 1)
    assert take(conn, 10) == [2]
    failing = session()
    assert take(failing) == []
    failing.rollback()
    put(conn, "new")
    got = wait.until(lambda: drain(conn), "the repair")
    assert sorted(map(str, got)) == ["1", "1", "2", "new"]


def test_upkeep_repairs_one_copy_a_call(conn: psycopg.Connection) -> None:
    conn.execute("select mq.create_queue('other')")
    in_another_cluster(conn, "q", "other")
    done = [conn.execute("select queue, action from mq.maintain()").fetchall() for _ in range(3)]
    assert [[action for _, action in calls] for calls in done[:2]] == [["repaired"], ["repaired"]]
    assert "repaired" not in [action for _, action in done[2]]


def test_a_copy_in_use_does_not_stop_upkeep_of_the_others(
    conn: psycopg.Connection, session: Connect
) -> None:
    conn.execute("select mq.create_queue('other')")
    idle = session()
    put(idle, "idle")
    in_another_cluster(conn, "q", "other")
    done: list[tuple[str, str]] = []

    def look() -> bool:
        done.extend(conn.execute("select queue, action from mq.maintain()").fetchall())
        return ("other", "repaired") in done and ("q", "busy") in done

    wait.until(look, "upkeep")
    assert ("q", "repaired") not in done
    # Which of the two came first is chance, and so whether enqueue was told of the other one by now.
    assert {"busy", "prepared"} >= set(maintain(conn)) >= {"busy"}
    idle.commit()
    assert maintain(conn) == ["repaired"]
    assert drain(conn) == ["idle"]


@pytest.mark.parametrize("home", ["'1.1'", "'mq.queue'::regclass::oid || '.1'"])
def test_upkeep_of_a_copy_does_nothing_else(conn: psycopg.Connection, home: str) -> None:
    conn.execute("select mq.alter_queue('q', segment_bytes => 65536)")
    fill(conn, 2000)
    conn.execute(f"update mq.queue set home = {home} where name = 'q'")
    assert maintain(conn) == ["repaired"]  # not rotated, for it would not see what it appended
    for _ in range(4):
        maintain(conn)
    assert unsettled(conn) == (2000, 0, 0)
    assert sorted(drain(conn, 500)) == list(range(1, 2001))


def test_who_came_second_keeps_nothing(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    fill(conn, 3)
    from_elsewhere(conn, "q")
    first, second = session(), session()
    put(first, "first")
    call = background(put, second, "second")
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    first.commit()
    assert call.result(wait.SECONDS) > 0
    assert advisory_locks(second, conn) == 0
    assert "busy" not in maintain(conn)
    second.commit()
    assert drain(conn) == [1, 2, 3, "first", "second"]


def test_statistics_of_a_copy_whose_repair_was_rolled_back(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 3)
    conn.execute("select mq._drop_slot(%s, mq._empty_slot(%s))", [number(conn)] * 2)
    from_elsewhere(conn, "q")
    failing = session()
    put(failing, "x")
    failing.rollback()
    conn.execute("select mq.queue_stats()")
    conn.execute("select mq.sweep_stale()")
    assert drain(conn) == []  # repairs it
    assert drain(conn) == [1, 2, 3]


def test_who_waits_for_messages_makes_one_slot(conn: psycopg.Connection) -> None:
    fill(conn, 2)
    assert take(conn) == [1]
    queue_id = number(conn)
    conn.execute("select mq._drop_slot(%s, mq._empty_slot(%s))", [queue_id] * 2)
    ran_backwards(conn)
    assert take(conn, 10) == [2]
    assert take(conn, 10, wait="1 second") == []
    assert value(conn, "select count(*) from mq.slot where queue_id = %s", queue_id) == 2


def test_who_finds_that_ids_ran_backwards_waits_for_nobody(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2)
    assert take(conn) == [1]
    queue_id = number(conn)
    ran_backwards(conn)
    assert take(conn, 10) == [2]
    upkeep, consumer = session(), session(autocommit=True)
    upkeep.execute(
        "select pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(%s, -3))", (queue_id,)
    )
    consumer.execute("set statement_timeout = '5s'")
    assert take(consumer) == []
    assert take(consumer, wait="20 seconds") == []
    upkeep.commit()
    got = wait.until(lambda: drain(conn), "the repair")
    assert sorted(got) == [1, 2]


def test_a_copy_is_rotated(conn: psycopg.Connection) -> None:
    fill(conn, 3)
    from_elsewhere(conn, "q")
    rotate(conn)
    rotate(conn)
    assert drain(conn) == [1, 2, 3]


@pytest.mark.parametrize(
    "call",
    [
        "select mq.enqueue('q', '1')",
        "select mq.enqueue('q', '1', delay => '1 hour')",
        "select mq.enqueue_batch('q', array['1']::jsonb[])",
        "insert into mq.inbox (queue, payload) values ('q', '1')",
        "select mq.peek('q')",
        "select mq.next_due('q')",
    ],
)
def test_a_copy_that_is_dropped_before_it_is_repaired_is_not_found(
    conn: psycopg.Connection, session: Connect, background: Background, call: str
) -> None:
    from_elsewhere(conn, "q")
    dropping, caller = session(), session(autocommit=True)
    dropping.execute("select mq.drop_queue('q')")
    called = background(caller.execute, call)
    wait.until_blocked(conn, wait.backend_pid(caller), by=wait.backend_pid(dropping))
    dropping.commit()
    with pytest.raises(psycopg.DatabaseError, match="does not exist") as error:
        called.result(wait.SECONDS)
    assert error.value.sqlstate == "MQ001"
