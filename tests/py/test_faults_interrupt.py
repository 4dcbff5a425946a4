"""Cancels, timeouts and kills that hit every public function at each of its steps: nothing half done, no lock left."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from support import conserve, points, race, wait
from support.load import Load
from support.race import Background, Connect, value

pytestmark = pytest.mark.faults

Interrupt = Callable[[psycopg.Connection, psycopg.Connection], None]

# What is refused in this version is interrupted up to there; what is in the inbox is enqueued by a trigger.
CALLS = points.CALLS | {"cancel": "mq.cancel('q', 1)", "inbox": "public.put_into_inbox()"}
INBOX = """
create function public.put_into_inbox() returns void language sql as $$
    insert into mq.inbox (queue, payload) values ('q', '{"tag": 0}')
$$
"""


def fill(conn: psycopg.Connection) -> dict[str, object]:
    """Makes queue q, something of everything in it, and what CALLS need."""
    conserve.prepare(conn.info.dsn, "q")
    conn.execute(INBOX)
    return points.state(conn)


def cancel(observer: psycopg.Connection, conn: psycopg.Connection) -> None:
    observer.execute("select pg_cancel_backend(%s)", (wait.backend_pid(conn),))


def nothing(observer: psycopg.Connection, conn: psycopg.Connection) -> None:
    """The server does it."""


# What is done, and the settings that a call is made under.
INTERRUPTS: dict[str, tuple[Interrupt, str, type[psycopg.Error]]] = {
    "cancel": (cancel, "set statement_timeout = 0", psycopg.errors.QueryCanceled),
    "statement_timeout": (
        nothing,
        "set statement_timeout = '30ms'",
        psycopg.errors.QueryCanceled,
    ),
    "lock_timeout": (nothing, "set lock_timeout = '15ms'", psycopg.errors.LockNotAvailable),
}


def test_every_public_function_is_called(conn: psycopg.Connection) -> None:
    called = {name.partition(" ")[0] for name in CALLS}
    assert called - {"inbox"} | points.NOT_YET == points.public(conn)


@pytest.mark.parametrize(
    ("how", "everywhere"),
    [("cancel", False), *(pytest.param(how, True, marks=pytest.mark.slow) for how in INTERRUPTS)],
)
@pytest.mark.timeout(900)
def test_an_interrupted_call_did_nothing_and_leaves_no_lock(
    database: str,
    conn: psycopg.Connection,
    connect: Connect,
    background: Background,
    how: str,
    everywhere: bool,
) -> None:
    interrupt, setting, expected = INTERRUPTS[how]
    state = fill(conn)
    # The functions' own must not come before a cancel.
    set_lock_timeouts(conn, "15ms" if how == "lock_timeout" else "60s")
    holder, caller, observer = connect(), connect(), connect()
    caller.execute(setting)
    met = set()
    for relation, lock in points.relations(conn, everywhere=everywhere):
        before = totals(observer)
        for name, call in CALLS.items():
            with points.held(holder, lock):
                called = points.begin(caller, background, call, state)
                if points.waits(observer, caller, called):
                    interrupt(observer, caller)
                try:
                    called.result(wait.SECONDS)
                except expected:
                    met.add(name)
                except psycopg.errors.FeatureNotSupported:
                    assert name in points.NOT_YET
                caller.execute("rollback")
            caller.execute("select mq.unlisten('q')")
            assert session_locks(observer, caller) == [], f"{name} at {relation}"
        assert totals(observer) == before, relation
    assert met >= CALLS.keys() - points.WAITS_FOR_NOBODY
    conserve.check(database, known=range(1, 36), least=35)


def set_lock_timeouts(conn: psycopg.Connection, to: str) -> None:
    """Other bounds than those of the functions themselves: so that a test need not wait, or has the time to look."""
    for (routine,) in conn.execute(
        "select oid::regprocedure::text from pg_proc where pronamespace = 'mq'::regnamespace"
        " and array_to_string(proconfig, ' ') ~ 'lock_timeout'"
    ).fetchall():
        conn.execute(f"alter routine {routine} set lock_timeout = '{to}'")
    # Who drops or purges a queue tries again, for ten seconds.
    lock_tables = value(
        conn, "select pg_get_functiondef('mq._lock_tables(int, boolean, interval)'::regprocedure)"
    )
    assert "'00:00:10'" in lock_tables
    conn.execute(lock_tables.replace("'00:00:10'", f"'{to}'"))


def totals(observer: psycopg.Connection) -> object:
    return observer.execute(
        "select ready, leased, deferred, delivered_total, settled_total, dead from mq.queue_stats('q')"
    ).fetchone()


def session_locks(observer: psycopg.Connection, conn: psycopg.Connection) -> list[Any]:
    return observer.execute(
        "select locktype, mode, relation::regclass, objid from pg_locks where pid = %s and locktype <> 'virtualxid'",
        (wait.backend_pid(conn),),
    ).fetchall()


# -- at any moment ----------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["statement_timeout=4ms", "lock_timeout=1ms"])
def test_a_load_under_a_short_timeout_loses_nothing(database: str, setting: str) -> None:
    conserve.prepare(database, "a", "b")
    with Load(database, "a", "b", options=f"-c {setting}") as load:
        load.goes_on(200)
    conserve.check(database, known=load.committed)


def test_a_load_that_is_cancelled_all_the_time_loses_nothing(
    database: str, conn: psycopg.Connection
) -> None:
    conserve.prepare(database, "a", "b")
    with Load(database, "a", "b") as load:
        while load.passed < 200:
            conn.execute(
                "select pg_cancel_backend(pid) from pg_stat_activity where application_name = 'load'"
                " and datname = current_database() and state = 'active' order by random() limit 1"
            )
            assert load.errors == []
        load.goes_on(50)
    conserve.check(database, known=load.committed)


def test_a_load_whose_sessions_are_terminated_loses_nothing(
    database: str, conn: psycopg.Connection
) -> None:
    conserve.prepare(database, "a", "b")
    with Load(database, "a", "b") as load:
        for _ in range(15):
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'load'"
                " and datname = current_database() order by random() limit 1"
            )
            load.goes_on(5)
    conserve.check(database, known=load.committed)


# -- kill -9 ----------------------------------------------------------------------------------------


def crash(dsn: str, pids: list[int]) -> None:
    """Kills backends. Returns when the server has gone down for that and come up again."""
    with contextlib.closing(psycopg.connect(dsn, autocommit=True)) as witness:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # the server was faster
                os.kill(pid, signal.SIGKILL)
        wait.until(lambda: not answers(witness), "the server to end its sessions")

    def look() -> bool:
        try:
            with psycopg.connect(dsn, autocommit=True) as conn:
                return answers(conn)
        except psycopg.OperationalError:
            return False

    wait.until(look, "the server to recover")


def answers(conn: psycopg.Connection) -> bool:
    try:
        return bool(value(conn, "select true"))
    except psycopg.OperationalError:
        return False


@pytest.mark.parametrize("everywhere", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_backends_killed_inside_every_function_lose_nothing(
    own_database: str, background: Background, everywhere: bool
) -> None:
    killed = set()
    with psycopg.connect(own_database, autocommit=True) as first:
        state = fill(first)
        locks = points.relations(first, everywhere=everywhere)
        set_lock_timeouts(first, "60s")  # they are still inside when they are killed
    for _, lock in locks:
        with (
            contextlib.closing(psycopg.connect(own_database, autocommit=True)) as holder,
            contextlib.closing(psycopg.connect(own_database, autocommit=True)) as observer,
        ):
            holder.execute("begin")
            holder.execute(lock)
            sessions = {name: psycopg.connect(own_database, autocommit=True) for name in CALLS}
            calls = {
                name: points.begin(sessions[name], background, call, state)
                for name, call in CALLS.items()
            }
            inside = {
                name
                for name, called in calls.items()
                if points.waits(observer, sessions[name], called)
            }
            crash(own_database, [wait.backend_pid(sessions[name]) for name in inside])
            killed |= inside
            for name, called in calls.items():
                error = called.exception(wait.SECONDS)
                assert error is None or isinstance(error, psycopg.Error), name
                sessions[name].close()
    assert killed >= CALLS.keys() - points.WAITS_FOR_NOBODY
    conserve.check(own_database, known=range(1, 36), least=35)


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_backends_killed_under_load_lose_nothing(own_database: str, times: int) -> None:
    conserve.prepare(own_database, "a", "b")
    with Load(own_database, "a", "b") as load:
        for _ in range(times):
            load.goes_on(random.randint(5, 60))
            with psycopg.connect(own_database, autocommit=True) as conn:
                pid = value(
                    conn,
                    "select pid from pg_stat_activity where application_name = 'load' order by random() limit 1",
                )
            crash(own_database, [pid])
        load.goes_on()
    conserve.check(own_database, known=load.committed)


@pytest.mark.parametrize("table", ["block", "lease"])
def test_a_locked_table_of_one_queue_leaves_upkeep_of_the_others_alone(
    database: str, conn: psycopg.Connection, connect: Connect, table: str
) -> None:
    """As by VACUUM FULL of the whole database."""
    conserve.prepare(database, "a", "b")
    for queue in ("a", "b"):
        conserve.send(conn, [ord(queue)], queue)
        conserve.settle(conn, conserve.receive(conn, 1, queue), queue)
        conn.execute("select mq.rotate_segment(%s)", (queue,))
    number = value(conn, "select queue_id from mq.queue where name = 'a'")
    with points.held(connect(), f"lock table mq.{table}_{number}_1 in access exclusive mode"):
        for _ in range(4):
            conn.execute("select mq.maintain()")
        assert race.segments(conn, "b") == 1
    conserve.check(database)
