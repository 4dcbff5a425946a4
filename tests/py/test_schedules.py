"""Schedules: a tick comes once, whoever is at work, and whatever becomes of him."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import psycopg
import pytest

from support import conserve, race, wait
from support.race import (
    Background,
    Connect,
    ack,
    from_elsewhere,
    maintain,
    number,
    put,
    take,
    take_rows,
    unsettled,
    value,
)

database, queue, session = race.database, race.queue, race.session
Conn = psycopg.Connection[Any]

#: Ticks so far apart that none is due while a test runs.
RARE = "every 400 days"
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)


def schedule(conn: Conn, name: str = "s", cron: str = RARE, **more: Any) -> dt.datetime:
    named = "".join(f", {key} => %({key})s" for key in more)
    row = conn.execute(
        f"select mq.schedule(%(name)s, %(cron)s, 'q', to_jsonb(%(what)s::text){named})",
        {"name": name, "cron": cron, "what": name, **more},
    ).fetchone()
    assert row is not None
    at: dt.datetime = row[0]
    return at


def next_at(conn: Conn, name: str = "s") -> dt.datetime:
    at: dt.datetime = value(conn, "select next_at from mq.schedules() where name = %s", name)
    return at


def missed(conn: Conn, ticks: int, cron: str = RARE) -> list[dt.datetime]:
    """The last so many times."""
    query = "select mq.cron_next(%s, now() - %s * interval '400 days')"
    return [value(conn, query, cron, i) for i in range(ticks, 0, -1)]


def move_tick(conn: Conn, tick: dt.datetime = LONG_AGO, name: str = "s") -> None:
    """The tick that waits is another, as if it had been due then: as it was put there, in nobody's hands meanwhile."""
    with conn.transaction():
        queue_id, generation = conn.execute(
            "select queue_id, generation from mq.timetable where name = %s", (name,)
        ).fetchone() or (0, 0)
        conn.execute(
            "select pg_advisory_xact_lock(mq._lock_class(), mq._lock_key(%s, -2))", (queue_id,)
        )
        for which in (0, 1):
            row = conn.execute(
                f"update mq.deferred_{queue_id}_{which} set due_at = %(tick)s, enqueued_at = %(tick)s"
                " where (extra ->> 's')::bigint = %(s)s and due_at = mq._next_tick(%(q)s, %(s)s)"
                " returning xid::text, msg_id",
                {"tick": tick, "s": generation, "q": queue_id},
            ).fetchone()
            if row is None:
                continue
            # Its timer, if it has one, stays ahead of the promoter's cursor.
            conn.execute(
                f"update mq.timer_{queue_id}_{which} set due_at = greatest(%s, (select due_at + interval '1 us'"
                f" from mq.promotion_{queue_id}_{which} where lane = 0 order by no desc limit 1))"
                " where xid = %s::xid8 and msg_id = %s",
                (tick, *row),
            )
            return
        raise AssertionError("there is no tick")


def ticks(conn: Conn, n: int = 100) -> list[dt.datetime]:
    """Those that are delivered until nothing comes any more."""
    got = []
    for _ in range(2):  # what a call puts there the next one finds
        while rows := take_rows(conn, n):
            got += [row[3] for row in rows]
            assert ack(conn, rows[0][1]) == len(rows)
    return got


# -- who is at work -------------------------------------------------------------------------------------


@pytest.mark.parametrize("catch_up", ["one", "all", "none"])
def test_one_message_a_tick_however_many_are_at_work(
    conn: Conn, connect: Connect, background: Background, catch_up: str
) -> None:
    stop = threading.Event()
    got: list[dt.datetime] = []

    def consume() -> None:
        with connect() as mine:
            while not stop.is_set():
                for row in take_rows(mine, 3):
                    got.append(row[3])
                    ack(mine, row[1])

    def upkeep() -> None:
        with connect() as mine:
            while not stop.is_set():
                maintain(mine)

    schedule(conn, cron="every 30000 days", catch_up=catch_up)
    at_work = [background(work) for work in [consume, upkeep] * 8]
    due: list[dt.datetime] = []
    try:
        for i in range(20):
            due.append(dt.datetime(2024, 1, 1, i, tzinfo=dt.timezone.utc))  # its next is far ahead
            move_tick(conn, due[-1])
            wait.until(lambda: len(got) >= len(due) or any(one.done() for one in at_work))
            wait.until(lambda: next_at(conn) > due[-1] or any(one.done() for one in at_work))
    finally:
        stop.set()
    for one in at_work:
        one.result(wait.SECONDS)
    assert got + ticks(conn) == due


def test_who_rolls_back_gives_it_to_another(conn: Conn, session: Connect) -> None:
    schedule(conn)
    move_tick(conn)
    failing = session()
    assert take(failing) == ["s"]
    assert next_at(failing) > LONG_AGO
    assert take(conn) == []
    assert next_at(conn) == LONG_AGO
    failing.rollback()
    assert ticks(conn) == [LONG_AGO]
    assert next_at(conn) > LONG_AGO
    assert unsettled(conn) == (0, 1, 0)


def test_who_rolls_back_to_a_savepoint_as_well(conn: Conn, session: Connect) -> None:
    schedule(conn)
    move_tick(conn)
    working = session()
    working.execute("savepoint before")
    assert take(working) == ["s"]
    working.execute("rollback to savepoint before")
    assert next_at(working) == LONG_AGO
    assert take(working) == ["s"]
    working.commit()
    assert ticks(conn) == []
    assert unsettled(conn) == (0, 1, 1)


def test_who_is_killed_as_well(conn: Conn, session: Connect) -> None:
    schedule(conn)
    move_tick(conn)
    dying = session()
    assert take(dying) == ["s"]
    conn.execute("select pg_terminate_backend(%s)", (wait.backend_pid(dying),))
    wait.until_gone(conn, wait.backend_pid(dying))
    assert ticks(conn) == [LONG_AGO]
    assert unsettled(conn) == (0, 1, 0)


def test_upkeep_that_is_rolled_back_has_done_nothing(conn: Conn, session: Connect) -> None:
    schedule(conn)
    move_tick(conn)
    keeping = session()
    assert "scheduled" in maintain(keeping)
    assert take(conn) == []
    keeping.rollback()
    assert next_at(conn) == LONG_AGO
    assert "scheduled" in maintain(conn)
    assert ticks(conn) == [LONG_AGO]
    assert unsettled(conn) == (0, 1, 0)


def test_upkeep_does_not_wait_for_who_has_it(conn: Conn, session: Connect) -> None:
    schedule(conn)
    move_tick(conn)
    working = session()
    assert take(working) == ["s"]
    assert "scheduled" not in maintain(conn)
    working.commit()
    assert "scheduled" not in maintain(conn)
    assert unsettled(conn) == (0, 1, 1)


def test_a_retry_is_no_tick(conn: Conn) -> None:
    """It comes again, and with it no other tick."""
    schedule(conn)
    move_tick(conn)
    [(_, receipt, *_)] = take_rows(conn)
    conn.execute("select mq.nack('q', %s, delay => '0')", (receipt,))
    [(_, _, attempt, enqueued_at, *_)] = take_rows(conn)
    assert (attempt, enqueued_at) == (2, LONG_AGO)
    assert unsettled(conn) == (0, 1, 1)


# -- nobody dequeues ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("catch_up", "found"), [("one", [0]), ("all", [0, 1, 2, 3, 4]), ("none", [])]
)
def test_upkeep_sees_to_what_was_missed(conn: Conn, catch_up: str, found: list[int]) -> None:
    schedule(conn, catch_up=catch_up)
    due = missed(conn, 5)
    move_tick(conn, due[0])
    for _ in range(3):
        maintain(conn)
    assert unsettled(conn) == (len(found), 1, 0)
    assert next_at(conn) == value(conn, "select mq.cron_next(%s)", RARE)
    shown = conn.execute("select enqueued_at, state from mq.peek('q')").fetchall()
    assert shown[: len(found)] == [(due[i], "ready") for i in found]
    assert sorted(ticks(conn)) == [due[i] for i in found]


def test_with_upkeep_alone_each_tick_comes_in_time(conn: Conn) -> None:
    """So none of them is late, and all are there for who comes at last."""
    schedule(conn, catch_up="none")
    due = missed(conn, 1)[0]
    for _ in range(3):
        move_tick(conn, due)
        maintain(conn)
    assert unsettled(conn) == (3, 1, 0)
    assert ticks(conn) == [due] * 3


def test_upkeep_wakes_who_waits(conn: Conn, session: Connect) -> None:
    schedule(conn)
    waiting = session(autocommit=True)
    waiting.execute("select mq.listen('q')")
    move_tick(conn)
    maintain(conn)
    assert next(waiting.notifies(timeout=wait.SECONDS)).channel == "mq_q"


def test_what_is_due_in_a_queue_without_a_due_tick_stays_where_it_is(conn: Conn) -> None:
    """It would come behind the backlog."""
    put(conn, "delayed", delay="1 hour")
    conn.execute(f"update mq.deferred_{number(conn)}_0 set due_at = %s", (LONG_AGO,))
    assert "scheduled" not in maintain(conn)
    schedule(conn)
    assert "scheduled" not in maintain(conn)
    assert value(conn, f"select count(*) from mq.log_{number(conn)}_1") == 0
    assert take(conn) == ["delayed"]


def test_what_is_due_before_a_tick_comes_with_it_and_keeps_its_attempts(conn: Conn) -> None:
    put(conn, "retried")
    [(_, receipt, *_)] = take_rows(conn)
    conn.execute("select mq.nack('q', %s, delay => '1 hour')", (receipt,))
    conn.execute(f"update mq.deferred_{number(conn)}_0 set due_at = %s", (LONG_AGO,))
    schedule(conn)
    move_tick(conn, LONG_AGO + dt.timedelta(days=1))
    assert "scheduled" in maintain(conn)
    assert unsettled(conn) == (2, 1, 0)
    assert [(row[2], row[5]) for row in take_rows(conn, 2)] == [(2, "retried"), (1, "s")]


@pytest.mark.parametrize("upkeep", [False, True])
def test_a_tick_that_is_cancelled_is_left_out_and_the_next_one_comes(
    conn: Conn, upkeep: bool
) -> None:
    schedule(conn)
    assert value(conn, "select mq.cancel('q', msg_id) from mq.peek('q')")
    move_tick(conn)
    if upkeep:
        maintain(conn)
    assert ticks(conn) == []
    assert next_at(conn) > LONG_AGO
    move_tick(conn)
    assert ticks(conn) == [LONG_AGO]


# -- who changes it meanwhile ---------------------------------------------------------------------------


def test_until_it_is_unscheduled_it_comes(conn: Conn, session: Connect) -> None:
    schedule(conn)
    move_tick(conn)
    changing = session()
    assert value(changing, "select mq.unschedule('s')")
    assert take(conn) == ["s"]
    changing.commit()
    assert unsettled(conn) == (0, 0, 1)
    conn.execute(f"update mq.deferred_{number(conn)}_0 set due_at = %s", (LONG_AGO,))
    assert ticks(conn) == []


def test_then_it_is_in_nobodys_way(conn: Conn, session: Connect) -> None:
    """Who finds it skips it for good: it neither wakes anybody again, nor is any lock left."""
    schedule(conn)
    move_tick(conn)
    conn.execute("select mq.unschedule('s')")
    assert value(conn, "select mq.next_due('q')") == LONG_AGO
    assert take(conn) == []
    assert value(conn, "select mq.next_due('q')") is None
    polling = session()
    assert take(polling) == []
    assert race.locks(polling, conn) == []
    assert value(polling, "select pg_current_xact_id_if_assigned()") is None


def test_who_skips_it_finds_what_is_behind_it(conn: Conn) -> None:
    schedule(conn, name="gone")
    schedule(conn, name="late", catch_up="none")
    move_tick(conn, name="gone")
    move_tick(conn, name="late")
    conn.execute("select mq.unschedule('gone')")
    put(conn, "fresh")
    put(conn, "delayed", delay="1 hour")
    conn.execute(
        f"update mq.deferred_{number(conn)}_0 set due_at = %s where extra is null",
        (LONG_AGO + dt.timedelta(days=1),),
    )
    assert sorted(take(conn, 9) + take(conn, 9)) == ["delayed", "fresh"]


def test_two_who_schedule_one_name(conn: Conn, session: Connect, background: Background) -> None:
    first, second = session(), session()
    schedule(first, headers="1")
    done = background(schedule, second, headers="2")
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    first.commit()
    done.result(wait.SECONDS)
    second.commit()
    assert value(conn, "select array_agg(headers) from mq.schedules()") == [2]
    assert value(conn, "select array_agg(headers) from mq.peek('q')") == [2]
    conn.execute(f"update mq.deferred_{number(conn)}_0 set due_at = %s", (LONG_AGO,))
    assert [row[6] for row in take_rows(conn, 9) + take_rows(conn, 9)] == [2]


def test_of_two_in_repeatable_read_one_has_to_try_again(conn: Conn, session: Connect) -> None:
    changing = session()
    changing.execute("set transaction isolation level repeatable read")
    changing.execute("select 1")
    schedule(conn, headers="1")
    with pytest.raises(psycopg.errors.SerializationFailure):
        schedule(changing, headers="2")


def test_who_drops_the_queue_drops_it_too(
    conn: Conn, session: Connect, background: Background
) -> None:
    changing, dropping = session(), session(autocommit=True)
    schedule(changing)
    dropped = background(dropping.execute, "select mq.drop_queue('q')")
    wait.until_blocked(conn, wait.backend_pid(dropping), by=wait.backend_pid(changing))
    changing.commit()
    dropped.result(wait.SECONDS)
    assert value(conn, "select count(*) from mq.timetable") == 0


def test_there_is_none_of_a_queue_that_is_dropped(
    conn: Conn, session: Connect, background: Background
) -> None:
    changing, dropping = session(autocommit=True), session()
    dropping.execute("select mq.drop_queue('q')")
    done = background(schedule, changing)
    wait.until_blocked(conn, wait.backend_pid(changing), by=wait.backend_pid(dropping))
    dropping.commit()
    with pytest.raises(psycopg.Error) as error:
        done.result(wait.SECONDS)
    assert error.value.sqlstate == "MQ001"
    assert value(conn, "select count(*) from mq.timetable") == 0


@pytest.mark.parametrize("purge_first", [True, False])
def test_a_purge_leaves_one_tick(
    conn: Conn, session: Connect, background: Background, purge_first: bool
) -> None:
    schedule(conn, name="before")
    purge = "select mq.purge_queue('q')"
    first, second = session(), session()
    if purge_first:
        first.execute(purge)
        done = background(schedule, second)
    else:
        schedule(first)
        done = background(second.execute, purge)
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    first.commit()
    done.result(wait.SECONDS)
    second.commit()
    assert sorted(row[0] for row in conn.execute("select payload from mq.peek('q')")) == [
        "before",
        "s",
    ]
    assert next_at(conn) == next_at(conn, "before") == value(conn, "select mq.cron_next(%s)", RARE)
    conn.execute(f"update mq.deferred_{number(conn)}_0 set due_at = %s", (LONG_AGO,))
    assert sorted(take(conn, 9) + take(conn, 9)) == ["before", "s"]


# -- where it waits -------------------------------------------------------------------------------------


def change_over(conn: Conn) -> None:
    """To the other deferral set, as upkeep does when most of this one is used up."""
    conn.execute(
        "select mq._write_register(queue_id, register, 3::bigint << 32,"
        " (~pg_sequence_last_value(register) & (1::bigint << 32)) | (1::bigint << 33)) from mq.queue"
    )


def is_moved(conn: Conn) -> bool:
    maintain(conn)
    return bool(
        value(conn, "select (pg_sequence_last_value(register) >> 33) & 1 = 0 from mq.queue")
    )


def test_it_moves_with_what_waits(conn: Conn) -> None:
    at = schedule(conn)
    change_over(conn)
    assert next_at(conn) == at
    wait.until(lambda: is_moved(conn))
    assert value(conn, f"select count(*) from mq.deferred_{number(conn)}_0") == 0
    assert next_at(conn) == at
    assert unsettled(conn) == (0, 1, 0)
    move_tick(conn)
    assert ticks(conn) == [LONG_AGO]
    assert unsettled(conn) == (0, 1, 0)


@pytest.mark.parametrize("upkeep", [False, True])
def test_it_is_due_before_it_has_moved(conn: Conn, upkeep: bool) -> None:
    """The next one is put into the other set."""
    schedule(conn)
    move_tick(conn)
    change_over(conn)
    if not upkeep:
        assert ticks(conn) == [LONG_AGO]
    wait.until(lambda: is_moved(conn))
    assert ticks(conn) == ([LONG_AGO] if upkeep else [])
    assert unsettled(conn) == (0, 1, 0)
    move_tick(conn)
    assert ticks(conn) == [LONG_AGO]


def test_a_copy_has_it_once(conn: Conn) -> None:
    schedule(conn)
    move_tick(conn)
    assert take(conn) == ["s"]
    at = next_at(conn)
    from_elsewhere(conn)
    wait.until(lambda: "repaired" in maintain(conn))
    assert next_at(conn) == at
    assert unsettled(conn) == (1, 1, 0)  # what was leased, and what waits
    assert ticks(conn) == [LONG_AGO]
    move_tick(conn, LONG_AGO + dt.timedelta(days=1))
    assert ticks(conn) == [LONG_AGO + dt.timedelta(days=1)]
    assert unsettled(conn) == (0, 1, 0)


def test_a_clock_that_jumps_back(conn: Conn) -> None:
    """What was due does not come again, and then it goes on."""
    schedule(conn)
    move_tick(conn)
    assert ticks(conn) == [LONG_AGO]
    put(conn, "delayed", delay="1 hour")
    conn.execute(
        f"update mq.deferred_{number(conn)}_0 set due_at = clock_timestamp() where extra is null"
    )
    assert take(conn) == ["delayed"]  # so the promoter's cursor is at now
    conserve.pass_time(conn, "-1 hour")
    before = next_at(conn)
    for _ in range(5):
        assert ticks(conn) == []
        maintain(conn)
    assert next_at(conn) == before
    tick = value(conn, "select clock_timestamp()")
    move_tick(conn, tick)
    assert ticks(conn) == [tick]
    assert unsettled(conn)[1] == 1
