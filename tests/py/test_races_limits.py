"""max_in_flight and rate_limit: never one above, whoever meets whom, and all of it used."""

from __future__ import annotations

import bisect
import contextlib
import random
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from support import race, wait
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
    take,
    take_rows,
    value,
)

database, queue, session = race.database, race.queue, race.session

Connection = psycopg.Connection[Any]


def limit(conn: Connection, most: int) -> None:
    conn.execute("select mq.alter_queue('q', max_in_flight => %s)", (most,))


def in_flight(conn: Connection) -> int:
    return int(value(conn, "select mq._in_flight(%s)", number(conn)))


def leased(conn: Connection) -> int:
    """What is leased, by the statistics, which count in another way; in one snapshot."""
    with conn.transaction():
        conn.execute("set transaction isolation level repeatable read")
        return int(value(conn, "select leased from mq.queue_stats('q')"))


def until_waiting(observer: Connection, conn: Connection) -> None:
    """dequeue only tries the lock, now and then."""
    wait.until_event(observer, wait.backend_pid(conn), "PgSleep")


# -- the count --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_what_is_out_is_counted_exactly_after_whatever_happened(
    seed: int, conn: Connection, session: Connect
) -> None:
    """Against the statistics, which read everything."""
    chance = random.Random(seed)
    conn.execute("select mq.alter_queue('q', max_in_flight => 1000, max_attempts => 3)")
    receipts: list[tuple[str, list[int]]] = []

    def take_some() -> None:
        rows = take_rows(conn, chance.choice((1, 1, 3, 20)))
        if rows:
            receipts.append((rows[0][1], [row[0] for row in rows]))

    def settle(how: str) -> None:
        if receipts:
            receipt, ids = receipts.pop(chance.randrange(len(receipts)))
            part = chance.sample(ids, (len(ids) + 1) // 2)
            if how == "ack":
                conn.execute("select mq.ack('q', %s)", (receipt,))
            elif how == "part":
                conn.execute("select mq.ack('q', %s, %s)", (receipt, part))
                receipts.append((receipt, ids))
            else:
                conn.execute("select mq.nack('q', %s, %s, delay => '0')", (receipt, part))

    def roll_back() -> None:
        other = session()
        take(other, 5)
        other.rollback()
        other.close()

    def survive() -> None:
        conn.execute("update mq.segment set exhausted_at = exhausted_at - interval '1 day'")
        maintain(conn)

    steps: list[Callable[[], object]] = [
        *[lambda: fill(conn, chance.choice((1, 30)))] * 2,
        lambda: conn.execute(
            "select mq.enqueue('q', '1', priority => %s, ttl => %s)",
            (chance.randrange(10), chance.choice((None, "1 microsecond", "1 hour"))),
        ),
        *[take_some] * 5,
        *[lambda: settle(chance.choice(("ack", "ack", "part", "nack")))] * 4,
        roll_back,
        lambda: maintain(conn),
        survive,
        lambda: rotate(conn),
        lambda: race.sweep(conn),
    ]
    for _ in range(150):
        step = chance.choice(steps)
        try:
            step()
        except psycopg.errors.ObjectNotInPrerequisiteState:
            maintain(conn)  # no spare slot
        assert in_flight(conn) == leased(conn)
    expire(conn)
    race.sweep(conn)
    assert in_flight(conn) == 0


def test_what_is_out_for_long_is_counted(conn: Connection) -> None:
    """Though blocks from far behind it are all that is looked at."""
    limit(conn, 2)
    fill(conn, 1)
    lease(conn)
    for _ in range(8):
        fill(conn, 1)
        assert ack(conn, lease(conn)) == 1
    laggards = f"select max(cardinality(laggards)) from mq.block_{number(conn)}_1"
    assert value(conn, laggards) == 1
    assert in_flight(conn) == 1
    fill(conn, 5)
    assert len(take(conn, 5)) == 1


def test_what_outlived_its_segment_is_counted(conn: Connection) -> None:
    limit(conn, 3)
    fill(conn, 2)
    receipt = lease(conn, 2)
    race.outlive(conn)
    fill(conn, 10)
    assert in_flight(conn) == 2
    assert len(take(conn, 10)) == 1
    assert ack(conn, receipt) == 2
    assert len(take(conn, 10)) == 2


def test_what_moves_out_of_its_segment_is_counted_once(
    conn: Connection, session: Connect, background: Background
) -> None:
    """All in one snapshot: who counts has looked at the survivors when it becomes one."""
    limit(conn, 3)
    fill(conn, 1)
    lease(conn)
    mover, counter = session(), session()
    place = f"{number(conn)}_{race.slot(conn, 'open')}"
    queue_id = number(counter)
    counter.rollback()
    mover.execute("lock table mq.segment in access exclusive mode")
    counting = background(lambda: value(counter, "select mq._in_flight(%s)", queue_id))
    wait.until_blocked(conn, wait.backend_pid(counter))
    assert value(mover, "select mq._move_survivors(%s, %s)", *map(int, place.split("_"))) == 1
    mover.commit()
    assert counting.result() == 1
    assert in_flight(conn) == 1


# -- who meets whom ---------------------------------------------------------------------------------


@pytest.mark.parametrize("commits", [True, False])
def test_who_leases_is_waited_for(
    commits: bool, conn: Connection, session: Connect, background: Background
) -> None:
    limit(conn, 1)
    fill(conn, 2)
    first, second = session(), session(autocommit=True)
    assert take(first) == [1]
    taking = background(take, second)
    until_waiting(conn, second)
    if commits:
        first.commit()
        assert taking.result() == []
    else:
        first.rollback()
        assert taking.result() == [1]


def test_who_does_not_end_is_waited_for_no_longer(conn: Connection, session: Connect) -> None:
    limit(conn, 5)
    fill(conn, 2)
    first, second = session(), session()
    assert take(first) == [1]
    assert take(second) == []
    assert advisory_locks(second, conn) == 0
    first.close()  # dies
    wait.until(lambda: take(second) == [1])


def test_nothing_is_locked_where_nothing_is_delivered(conn: Connection, session: Connect) -> None:
    limit(conn, 1)
    poller = session()
    poller.execute("create temp table anything (i int)")
    assert take(poller) == []
    assert advisory_locks(poller, conn) == 0
    fill(conn, 1)
    assert take(conn) == [1]
    assert take(poller) == []
    assert advisory_locks(poller, conn) == 0


def test_an_ack_counts_when_it_is_committed(conn: Connection, session: Connect) -> None:
    limit(conn, 1)
    fill(conn, 2)
    receipt = lease(conn)
    acking = session()
    assert ack(acking, receipt) == 1
    assert take(conn) == []
    assert take(acking) == [2]  # it sees its own
    acking.rollback()
    assert take(conn) == []
    assert ack(conn, receipt) == 1
    assert take(conn) == [2]


def test_a_savepoint_gives_the_place_back(conn: Connection, session: Connect) -> None:
    limit(conn, 1)
    fill(conn, 2)
    own = session()
    own.execute("select 1")
    own.execute("savepoint s")
    assert take(own) == [1]
    own.execute("rollback to s")
    assert advisory_locks(own, conn) == 0
    assert take(conn) == [1]


# -- alter_queue ------------------------------------------------------------------------------------


def test_the_first_limit_waits_for_who_leases_without(
    conn: Connection, session: Connect, background: Background
) -> None:
    fill(conn, 5)
    early, changing = session(), session(autocommit=True)
    assert take(early, 2) == [1, 2]
    altering = background(limit, changing, 3)
    until_waiting(conn, changing)
    early.commit()
    altering.result()
    assert len(take(conn, 5)) == 1
    assert in_flight(conn) == 3


def test_the_first_limit_waits_for_what_is_prepared(
    conn: Connection, session: Connect, background: Background
) -> None:
    """Such a transaction has locks, but no process."""
    conn.execute("select mq.alter_queue('q', notify => 'never')")
    fill(conn, 5)
    early, changing = session(), session(autocommit=True)
    assert take(early, 2) == [1, 2]
    name = f"{conn.info.dbname} limit"
    early.execute(f"prepare transaction '{name}'")
    try:
        altering = background(limit, changing, 3)
        until_waiting(conn, changing)
    finally:
        conn.execute(f"commit prepared '{name}'")
    altering.result()
    assert len(take(conn, 5)) == 1
    assert in_flight(conn) == 3


def test_what_a_new_rate_has_counted_is_not_forgotten(conn: Connection) -> None:
    """By an upkeep that read the queue's row before it had a rate."""
    fill(conn, 5)
    before = value(conn, "select q::text from mq.queue as q where q.name = 'q'")
    conn.execute("select mq.alter_queue('q', rate_limit => 2, rate_period => '1 hour')")
    assert take(conn, 5) == [1, 2]
    conn.execute("select mq._forget_delivered(%s::mq.queue)", (before,))
    assert take(conn, 5) == []


def test_who_comes_while_the_first_limit_is_set_waits_for_it(
    conn: Connection, session: Connect, background: Background
) -> None:
    fill(conn, 5)
    changing, taking = session(), session(autocommit=True)
    limit(changing, 1)
    assert take(taking, 5) == []  # for a while
    later = background(take, taking, 5)
    until_waiting(conn, taking)
    changing.commit()
    assert later.result() == [1]
    assert in_flight(conn) == 1


def test_a_limit_that_was_not_set_after_all(conn: Connection, session: Connect) -> None:
    fill(conn, 5)
    changing = session()
    limit(changing, 1)
    changing.rollback()
    assert sum(len(take(conn, 5)) for _ in range(5)) == 5


def test_where_a_limit_was_removed_the_next_waits_too(
    conn: Connection, session: Connect, background: Background
) -> None:
    limit(conn, 1)
    limit(conn, 0)
    fill(conn, 6)
    early, other, changing = session(), session(), session(autocommit=True)
    assert take(conn) == [1]  # the block is there
    assert take(early) == [2]
    assert take(other) == [3]  # without a limit nobody waits
    altering = background(limit, changing, 4)
    wait.until_blocked(conn, wait.backend_pid(changing))
    other.rollback()
    wait.until_blocked(conn, wait.backend_pid(changing))
    early.commit()
    altering.result()
    assert sum(len(take(conn, 5)) for _ in range(3)) == 2
    assert in_flight(conn) == 4


def test_who_waits_in_dequeue_minds_the_limit_that_is_set_meanwhile(
    conn: Connection, session: Connect, background: Background
) -> None:
    waiting = session(autocommit=True)
    taking = background(lambda: take(waiting, 5, wait="5 seconds"))
    wait.until_event(conn, wait.backend_pid(waiting), "PgSleep")
    with conn.transaction():
        # As _begin_limits does it, but for waiting for who has read the register: he is our sleeper.
        conn.execute("select mq._mind_limits(q) from mq.queue as q")
        conn.execute("update mq.queue set max_in_flight = 2")
        fill(conn, 5)
    assert len(taking.result()) == 2


# -- copies -----------------------------------------------------------------------------------------


def test_a_copy_minds_the_limit(conn: Connection) -> None:
    """Where registers did not come along: a logical copy has none of their values."""
    limit(conn, 2)
    fill(conn, 5)
    assert len(take(conn, 5)) == 2
    queue_id = number(conn)
    conn.execute(f"select setval('mq.lanes_{queue_id}', 1, false)")
    conn.execute(
        f"select setval('mq.register_{queue_id}', pg_sequence_last_value('mq.register_{queue_id}') & ~(1::bigint << 31))"
    )
    race.from_elsewhere(conn)
    wait.until(lambda: "repaired" in maintain(conn))
    assert in_flight(conn) == 0  # receipts are void
    assert sum(len(take(conn, 5)) for _ in range(3)) == 2


# -- who sleeps is woken ----------------------------------------------------------------------------


def listener(connect: Connect) -> Connection:
    conn = connect()
    conn.execute("select mq.listen('q')")
    return conn


def woken(conn: Connection) -> bool:
    conn.execute("select 1")  # what was sent before is here with it
    return bool(list(conn.notifies(timeout=0)))


@pytest.mark.parametrize(
    "how",
    [
        "select mq.ack('q', %(r)s)",
        "select mq.ack('q', %(r)s, %(ids)s)",
        "select mq.nack('q', %(r)s, dead => true)",
        "select mq.nack('q', %(r)s, delay => '1 hour')",
        "select count(*) from mq.dequeue('q', 1, ack => %(r)s)",
        "select mq.alter_queue('q', max_in_flight => 3) where %(r)s::text > ''",
    ],
)
def test_who_found_it_full_is_woken(how: str, conn: Connection, connect: Connect) -> None:
    limit(conn, 2)
    fill(conn, 4)
    rows = take_rows(conn, 2)
    sleeper = listener(connect)
    assert take(sleeper) == []
    assert not woken(sleeper)
    conn.execute(how, {"r": rows[0][1], "ids": [row[0] for row in rows]})
    assert woken(sleeper)
    assert len(take(sleeper)) == 1


def test_who_takes_the_place_that_he_leaves_wakes_nobody(
    conn: Connection, connect: Connect
) -> None:
    limit(conn, 1)
    fill(conn, 3)
    receipt = lease(conn)
    sleeper = listener(connect)
    assert take(conn, 1, ack=receipt) == [2]
    assert not woken(sleeper)


def test_who_sleeps_is_woken_when_what_ran_out_is_buried(
    conn: Connection, connect: Connect
) -> None:
    conn.execute("select mq.alter_queue('q', max_in_flight => 1, max_attempts => 1)")
    fill(conn, 2)
    lease(conn)
    sleeper = listener(connect)
    expire(conn)
    race.sweep(conn)
    assert woken(sleeper)
    assert take(sleeper) == [2]


def test_an_ack_without_a_limit_wakes_nobody(conn: Connection, connect: Connect) -> None:
    fill(conn, 2)
    receipt = lease(conn)
    sleeper = listener(connect)
    ack(conn, receipt)
    assert not woken(sleeper)


# -- many -------------------------------------------------------------------------------------------


class Fleet:
    """Consumers at work in threads until `stop`. `most` is what they had in hand at a time, by their own account."""

    def __init__(self, connect: Connect, count: int) -> None:
        self.connect = connect
        self.stop = threading.Event()
        self.failures: list[BaseException] = []
        self.got = 0
        self.most = 0
        self._out = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()
        assert not self.failures

    def _account(self, count: int) -> None:
        with self._lock:
            self._out += count
            self.got += max(count, 0)
            self.most = max(self.most, self._out)

    def _run(self, i: int) -> None:
        try:
            self._work(random.Random(i))
        except BaseException as error:
            self.failures.append(error)

    def _work(self, chance: random.Random) -> None:
        own = self.connect(autocommit=False)
        receipt: str | None = None
        in_hand = 0
        while not self.stop.is_set():
            # With it in the same transaction, he is done when it commits; then it is not in hand any more.
            if receipt is not None and chance.random() < 0.5:
                self._account(-in_hand)
                rows = take_rows(own, chance.choice((1, 2, 5)), ack=receipt)
            else:
                if receipt is not None:
                    self._account(-in_hand)
                    if chance.random() < 0.8:
                        ack(own, receipt)
                    else:
                        own.execute("select mq.nack('q', %s, delay => '0')", (receipt,))
                    own.commit()
                rows = take_rows(own, chance.choice((1, 2, 5)))
            receipt, in_hand = None, 0
            if chance.random() < 0.1:
                # The ack is undone with it: that lease runs out some day.
                own.rollback()
                continue
            if chance.random() < 0.01:
                own.close()
                own = self.connect(autocommit=False)
                continue
            own.commit()
            if rows:
                receipt, in_hand = rows[0][1], len(rows)
                self._account(in_hand)
                self.stop.wait(chance.random() * 0.02)
        own.close()


def test_64_consumers_are_never_above_it(conn: Connection, connect: Connect) -> None:
    """By the statistics, each look in one snapshot, and by what consumers have in hand; with rollbacks,
    lost sessions, leases that ran out, priorities, retries, and rotations."""
    limit(conn, 12)
    conn.execute("select mq.alter_queue('q', max_attempts => 30000)")
    fill(conn, 400)
    seen: list[int] = []
    fleet = Fleet(connect, 64)
    other = connect()

    def look() -> bool:
        for _ in range(20):
            seen.append(leased(conn))
        for priority in (1, 4, 9):
            other.execute("select mq.enqueue('q', '1', priority => %s)", (priority,))
        fill(other, 100)
        expire(other)
        if len(seen) % 40 == 0:
            maintain(other)
            if value(other, "select count(*) from mq.segment") < 4:
                with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState):
                    rotate(other)
        return bool(fleet.failures) or (fleet.got > 500 and len(seen) >= 100)

    try:
        wait.until(look, "traffic", seconds=120)
    finally:
        fleet.join()
    assert max(seen) <= 12
    assert 12 in seen
    # Nothing has leaked: at rest all of it can be had.
    expire(conn)
    race.sweep(conn)
    assert in_flight(conn) == leased(conn) == 0
    assert sum(len(take(conn, 100)) for _ in range(12)) == 12


def most_in_a_window(times: list[datetime], period: timedelta) -> int:
    """The most of them that lie in a half-open window of that length."""
    times.sort()
    return max(i + 1 - bisect.bisect_right(times, at - period) for i, at in enumerate(times))


def test_no_window_has_more_than_the_rate(conn: Connection, connect: Connect) -> None:
    """By the time of each lease, which its deadline tells; those that are rolled back were not delivered."""
    conn.execute("select mq.alter_queue('q', rate_limit => 40, rate_period => '400 ms')")
    fill(conn, 2000)
    stop = threading.Event()
    times: list[datetime] = []
    failures: list[BaseException] = []

    def consume(i: int) -> None:
        try:
            chance = random.Random(i)
            own = connect(autocommit=False)
            while not stop.is_set():
                rows = take_rows(own, chance.choice((1, 3, 30)))
                if chance.random() < 0.1:
                    own.rollback()
                    continue
                own.commit()
                times.extend(row[4] - timedelta(hours=1) for row in rows)
            own.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=consume, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    try:
        wait.until(lambda: failures or len(times) >= 400, "traffic", seconds=60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert most_in_a_window(times, timedelta(milliseconds=400)) == 40


def test_who_waits_gets_what_the_rate_lets_through(conn: Connection) -> None:
    """In the server he sleeps until then, and no longer."""
    conn.execute("select mq.alter_queue('q', rate_limit => 2, rate_period => '150 ms')")
    fill(conn, 5)
    assert take(conn, 5) == [1, 2]
    assert take(conn, 5, wait="10 seconds") == [3, 4]
    assert take(conn, 5, wait="10 seconds") == [5]


def test_a_limit_of_one_keeps_the_order(conn: Connection, connect: Connect) -> None:
    """Whatever sizes are asked for, and whoever asks."""
    limit(conn, 3)
    others = [connect() for _ in range(3)]
    fill(conn, 300)
    chance = random.Random(1)
    got: list[Any] = []
    while rows := take_rows(chance.choice(others), chance.choice((1, 2, 3, 10))):
        got += [row[5] for row in rows]
        ack(conn, rows[0][1])
    assert sorted(got) == list(range(1, 301))
    assert drain(conn) == []
    assert put(conn, "last")
    assert take(conn) == ["last"]
