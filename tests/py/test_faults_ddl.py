"""Queues made, changed, emptied, rotated, upgraded and dropped all at once, under load."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from mqctl import migrate
from support import conserve, points, wait
from support.load import PASSING, Load
from support.race import Background, Connect, value

pytestmark = pytest.mark.faults

BRIEF = ("brief1", "brief2", "brief3")
CALLS = (
    *["create_queue({q}, segment_age => '50 ms', retry_backoff => '1 ms')"] * 3,
    "create_queue({q}, if_not_exists => true)",
    *["drop_queue({q})"] * 2,
    "alter_queue({q}, max_attempts => 3, visibility_timeout => '50 ms')",
    "alter_queue({q}, notify => 'always')",
    "pause_queue({q})",
    *["resume_queue({q})"] * 2,
    "purge_queue({q})",
    "rotate_segment({q})",
    "rotate_segment('kept')",
    "maintain({q})",
    "maintain()",
    "sweep_stale()",
    "redrive({q})",
    "purge_dead_letters({q})",
    "queue_stats()",
    "queues()",
    "peek({q}, 100)",
    "dead_letters({q})",
    "history({q})",
    "report({q}, 'none', 1, '{{}}')",
    "next_due({q})",
    "message_status({q}, 1)",
    "version()",
    "listen({q})",
    "unlisten({q})",
    "enqueue({q}, '{{}}')",
    "enqueue({q}, '{{}}', delay => '1 ms')",
    "enqueue_batch({q}, array_fill('{{}}'::jsonb, array[20]))",
    *["dequeue({q}, 5)"] * 2,
    *["schedule('s', 'every second', {q}, '{{}}', catch_up => 'all')"] * 2,
    "schedule('t', 'every second', {q}, '{{}}')",
    "unschedule('s')",
    "run_schedule('s')",
    "schedules()",
    "cron_next('@daily')",
)
ROUND_TRIP = ("ack", "nack", "extend")
# Of queues that come and go: no such queue, the queue exists, the lease is lost, a receipt of another queue (which had
# the name before), no such schedule.
EXPECTED = {"MQ001", "MQ002", "MQ003", "MQ004", "MQ011"}


def test_every_public_function_is_called(conn: psycopg.Connection) -> None:
    called = {call.partition("(")[0] for call in CALLS}
    assert called | {*ROUND_TRIP} == points.public(conn) - points.NOT_YET


class Fuzz:
    """Threads that call anything; `errors` are what nobody should ever be told."""

    def __init__(self, dsn: str, seconds: float, *, upgrades: bool) -> None:
        self.dsn = dsn
        self.until = time.monotonic() + seconds
        self.errors: list[str] = []
        self.done: dict[str, int] = {}
        steps: list[Callable[[psycopg.Connection[Any]], None]] = [self.call] * 6
        steps += [self.round_trip] * 2 + [self.upgrade] * upgrades
        self.threads = [threading.Thread(target=self.run, args=(step,)) for step in steps]

    def __call__(self) -> None:
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join(self.until - time.monotonic() + 60)
            assert not thread.is_alive()
        assert self.errors == []

    def run(self, step: Callable[[psycopg.Connection[Any]], None]) -> None:
        with psycopg.connect(self.dsn, autocommit=True, application_name="fuzz") as conn:
            while time.monotonic() < self.until and not self.errors:
                try:
                    step(conn)
                except PASSING as error:
                    self.count(type(error).__name__)
                except psycopg.Error as error:
                    if error.sqlstate in EXPECTED:
                        self.count(str(error.sqlstate))
                        time.sleep(0.01)
                    else:
                        self.errors.append(f"{error.sqlstate}: {error} {error.diag.context}")

    def count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1

    def call(self, conn: psycopg.Connection[Any]) -> None:
        call = random.choice(CALLS).format(q=f"'{random.choice(BRIEF)}'")
        with conn.transaction(force_rollback=random.random() < 0.1):
            conn.execute(f"select * from mq.{call}")
        self.count(call.partition("(")[0])

    def round_trip(self, conn: psycopg.Connection[Any]) -> None:
        queue = random.choice(BRIEF)
        conn.execute("select mq.enqueue(%s, '{}')", (queue,))
        for receipt in {
            receipt
            for (receipt,) in conn.execute(
                "select receipt from mq.dequeue(%s, 3)", (queue,)
            ).fetchall()
        }:
            how = random.choice(ROUND_TRIP)
            conn.execute(f"select mq.{how}(%s, %s)", (queue, receipt))
        self.count("round trip")

    def upgrade(self, conn: psycopg.Connection[Any]) -> None:
        time.sleep(0.2)
        upgrade(conn)
        self.count("upgrade")


def upgrade(conn: psycopg.Connection[Any]) -> None:
    """As if what is installed were older: all functions are made again, those of the queues too."""
    conn.execute("update mq.installed_object set definition = 'older' where kind = 'source'")
    migrate.upgrade(conn)


@pytest.mark.parametrize(
    ("upgrades", "seconds"),
    [
        (False, 2),
        *(pytest.param(upgrades, 25, marks=pytest.mark.slow) for upgrades in (False, True)),
    ],
)
@pytest.mark.timeout(400)
def test_queues_that_come_and_go_disturb_no_other(
    database: str, conn: psycopg.Connection, upgrades: bool, seconds: float
) -> None:
    conserve.prepare(database, "kept")
    fuzz = Fuzz(database, seconds, upgrades=upgrades)
    with Load(database, "kept", producers=1, consumers=2) as load:
        fuzz()
        load.goes_on(20)
    print(dict(sorted(fuzz.done.items())))
    for queue in BRIEF:
        conn.execute(f"select mq.create_queue('{queue}', if_not_exists => true)")
        conn.execute(f"select mq.drop_queue('{queue}')")
    conserve.check(database, known=load.committed)
    conn.execute("select mq.maintain()")
    assert leftovers(conn) == []


def leftovers(conn: psycopg.Connection) -> list[str]:
    """Tables, sequences and functions of queues that are not there, but for registers: they are kept for a day."""
    kept = value(conn, "select queue_id from mq.queue")
    return [
        name
        for (name,) in conn.execute(
            "with o as (select relname as name from pg_class where relnamespace = 'mq'::regnamespace and relkind in ('r', 'S')"
            " union all select proname from pg_proc where pronamespace = 'mq'::regnamespace)"
            " select name from o where name !~ '^register_'"
            " and substring(name from '_([0-9]+)(?:_[0-9]+)?$')::int not in (0, %s)",
            (kept,),
        ).fetchall()
    ]


@pytest.mark.parametrize("change", ["create_queue('new')", "drop_queue('old')"])
def test_an_upgrade_waits_for_whoever_makes_or_drops_a_queue(
    conn: psycopg.Connection, connect: Connect, background: Background, change: str
) -> None:
    conn.execute("select mq.create_queue('old')")
    other = connect(autocommit=False)
    other.execute(f"select mq.{change}")
    upgrading = connect()
    upgraded = background(upgrade, upgrading)
    wait.until_blocked(conn, wait.backend_pid(upgrading))
    other.commit()
    upgraded.result(wait.SECONDS)


def test_upkeep_passes_by_a_register_that_another_removed(
    conn: psycopg.Connection, connect: Connect, background: Background
) -> None:
    for queue in ("first", "second"):
        conn.execute(f"select mq.create_queue('{queue}')")
        conn.execute(f"select mq.drop_queue('{queue}')")
    for number in (1, 2):  # what is left of them is kept for a day
        conn.execute(f"comment on sequence mq.register_{number} is 'dropped 1577836800'")
    conn.execute("alter routine mq.maintain set lock_timeout = '30s'")
    holders = {}
    for number in (1, 2):
        holder = connect(autocommit=False)
        holder.execute(f"alter sequence mq.register_{number} no cycle")
        holders[wait.backend_pid(holder)] = (number, holder)
    upkeep = connect()
    maintained = background(upkeep.execute, "select mq.maintain()")
    wait.until_blocked(conn, wait.backend_pid(upkeep))
    (first,) = value(conn, "select pg_blocking_pids(%s)", wait.backend_pid(upkeep))
    _, in_the_way = holders.pop(first)
    ((number, other),) = holders.values()
    other.execute(f"drop sequence mq.register_{number}")  # as another maintain() does
    other.commit()
    in_the_way.rollback()
    maintained.result(wait.SECONDS)


@pytest.mark.parametrize("call", ["enqueue('q', '1')", "dequeue('q')", "queue_stats()"])
def test_a_snapshot_older_than_the_drop_and_the_next_upkeep_sees_no_queue_either(
    conn: psycopg.Connection, connect: Connect, call: str
) -> None:
    conn.execute("select mq.create_queue('q')")
    old = connect(autocommit=False)
    old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    old.execute("select 1")
    conn.execute("select mq.drop_queue('q')")
    conn.execute("select mq.maintain()")
    try:
        assert old.execute(f"select mq.{call}").fetchall() == []
    except psycopg.Error as error:
        if error.sqlstate not in ("MQ001", "0A000"):  # dequeue needs READ COMMITTED
            raise
