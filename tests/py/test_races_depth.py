"""max_depth: what waits never gets above it by a new message, whoever meets whom."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from support import race, wait
from support.race import (
    Background,
    Connect,
    ack,
    drain,
    expire,
    fill,
    lease,
    maintain,
    put,
    rotate,
    sweep,
    take,
    value,
)
from support.server import Server

database, queue, session = race.database, race.queue, race.session


@pytest.fixture(autouse=True)
def limited(conn: psycopg.Connection, queue: str) -> None:
    conn.execute("select mq.alter_queue('q', max_depth => 10)")


def batch(conn: psycopg.Connection, count: int) -> None:
    conn.execute(
        "select from mq.enqueue_batch('q', array_fill('0'::jsonb, array[%s::int]))", (count,)
    )


def refused(conn: psycopg.Connection, count: int = 1) -> str | None:
    """The DETAIL of a refusal; None: it was let in."""
    try:
        with conn.transaction():
            batch(conn, count)
    except psycopg.DatabaseError as error:
        if error.sqlstate != "MQ008":
            raise
        return error.diag.message_detail
    return None


def waiting(conn: psycopg.Connection) -> int:
    """What waits, by the statistics, which count in another way; in one snapshot."""
    with conn.transaction():
        conn.execute("set transaction isolation level repeatable read")
        return int(value(conn, "select ready + deferred from mq.queue_stats('q')"))


def depth(conn: psycopg.Connection) -> int:
    return int(value(conn, "select mq._depth(%s)", race.number(conn)))


# -- the count --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_what_waits_is_counted_exactly_after_whatever_happened(
    seed: int, conn: psycopg.Connection, session: Connect
) -> None:
    """Against the statistics, which read everything; with marks to count from."""
    chance = random.Random(seed)
    conn.execute("select mq.alter_queue('q', max_depth => 1000000, max_attempts => 3)")
    late = session()
    receipts: list[str] = []

    def some(n: int) -> None:
        rows = race.take_rows(conn, n)
        receipts.extend({row[1] for row in rows})

    def settle(how: str) -> None:
        if receipts:
            receipt = receipts.pop(chance.randrange(len(receipts)))
            conn.execute(f"select mq.{how}('q', %s)", (receipt,))

    def undone() -> None:
        with contextlib.suppress(psycopg.Rollback), conn.transaction() as transaction:
            some(chance.choice((1, 3)))
            batch(conn, 2)
            receipts.clear()
            raise psycopg.Rollback(transaction)

    def straggle() -> None:
        put(late, "late", delay=chance.choice((None, "1 hour")))
        if chance.random() < 0.5:
            chance.choice((late.commit, late.rollback))()

    def mark() -> None:
        conn.execute("select mq._mark_depth(%s)", (race.number(conn),))

    def due() -> None:
        number = race.number(conn)
        for part in (0, 1):
            conn.execute(f"update mq.deferred_{number}_{part} set due_at = clock_timestamp()")

    def rank() -> None:
        conn.execute(
            "select from mq.enqueue_batch('q', array_fill('0'::jsonb, array[5]), priority => %s)",
            (chance.choice((1, 4, 9)),),
        )

    def cancel() -> None:
        rows = conn.execute("select msg_id from mq.peek('q', 50)").fetchall()
        for (msg_id,) in chance.sample(rows, min(3, len(rows))):
            conn.execute("select mq.cancel('q', %s)", (msg_id,))

    def run_out() -> None:
        expire(conn)
        sweep(conn)

    def purge() -> None:
        late.rollback()  # whose tables it needs
        conn.execute("select mq.purge_queue('q')")

    steps: list[Callable[[], object]] = [
        lambda: batch(conn, chance.randrange(1, 40)),
        lambda: batch(conn, 10_000),
        lambda: put(conn, "later", delay="1 hour"),
        rank,
        cancel,
        lambda: some(1),
        lambda: some(chance.randrange(2, 90)),
        lambda: settle("ack"),
        lambda: settle("nack"),
        undone,
        straggle,
        mark,
        due,
        run_out,
        lambda: rotate(conn),
        lambda: maintain(conn),
        purge,
    ]
    weights = [4, 1, 4, 3, 1, 4, 6, 4, 6, 2, 4, 3, 1, 2, 1, 3, 0.3]
    for _ in range(80):
        step = chance.choices(steps, weights)[0]
        with contextlib.suppress(psycopg.errors.LockNotAvailable):
            step()
        with conn.transaction():
            conn.execute("set transaction isolation level repeatable read")
            assert depth(conn) == value(conn, "select ready + deferred from mq.queue_stats('q')"), (
                f"seed {seed}"
            )


def test_the_own_messages_of_a_transaction_count(session: Connect) -> None:
    mine = session()
    batch(mine, 10)
    assert depth(mine) == 10
    assert refused(mine) is not None
    mine.commit()


def test_what_is_counted_is_what_came_since_the_mark(conn: psycopg.Connection) -> None:
    conn.execute("select mq.alter_queue('q', max_depth => 1000000)")
    batch(conn, 20_000)
    query = f"select mq._depth({race.number(conn)})"
    before = _buffers(conn, query)
    maintain(conn)
    marked = value(conn, "select sum(rows) from mq.depth_mark")
    batch(conn, 10)
    after = _buffers(conn, query)
    assert (marked, depth(conn)) == (20_000, 20_010)
    assert after * 5 < before
    conn.execute("select mq.purge_queue('q')")
    batch(conn, 3)
    assert depth(conn) == 3
    maintain(conn)
    assert value(conn, "select count(*) from mq.depth_mark") == 0


def _buffers(conn: psycopg.Connection, query: str) -> int:
    row = conn.execute(f"explain (analyze, buffers, format json) {query}").fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


# -- never above ------------------------------------------------------------------------------------


def test_64_producers_at_the_limit(
    conn: psycopg.Connection, server: Server, connect: Connect
) -> None:
    """No snapshot shows more than max_depth, and in the end all of it is used."""
    stop = threading.Event()
    seen: list[int] = []
    failures: list[BaseException] = []
    came = [0] * 64

    def produce(i: int) -> None:
        chance = random.Random(i)
        own = connect(autocommit=False)
        while not stop.is_set():
            try:
                if i < 8 and chance.random() < 0.3:
                    put(own, "later", delay="1 hour")
                batch(own, chance.choice((1, 1, 1, 4)))
                if chance.random() < 0.2:
                    own.rollback()
                elif i % 16 == 15 and chance.random() < 0.05:
                    own.close()  # a session that dies with what it drew
                    own = connect(autocommit=False)
                else:
                    own.commit()
                    came[i] += 1
            except psycopg.DatabaseError as error:
                own.rollback()
                if error.sqlstate != "MQ008":
                    failures.append(error)
                    return

    def consume() -> None:
        own = connect()
        chance = random.Random()
        while not stop.is_set():
            rows = race.take_rows(own, chance.choice((1, 5)))
            if rows:
                ack(own, rows[0][1])
        own.close()

    def look() -> None:
        own = connect()
        while not stop.is_set():
            seen.append(waiting(own))
        own.close()

    conn.execute("select mq.alter_queue('q', max_depth => 40)")
    threads = [threading.Thread(target=produce, args=(i,)) for i in range(64)]
    threads += [threading.Thread(target=consume) for _ in range(2)]
    threads += [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait.until(lambda: (sum(came) > 400 and len(seen) > 20) or failures, "traffic", seconds=120)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert max(seen) <= 40
    # What was drawn and rolled back is no loss: at rest it is used to the last.
    while refused(conn) is None:
        assert waiting(conn) <= 40
    assert waiting(conn) == 40


def test_two_who_have_not_committed_share_the_room(
    conn: psycopg.Connection, session: Connect
) -> None:
    first = session()
    batch(first, 6)
    detail = refused(conn, 6)
    assert detail is not None
    assert "not yet committed" in detail
    assert refused(conn, 4) is None, "the rest of the room"
    first.commit()
    assert waiting(conn) == 10
    assert "10 messages wait" in (refused(conn) or "")


def test_what_was_drawn_is_free_again_after_a_rollback_or_a_death(
    conn: psycopg.Connection, session: Connect
) -> None:
    first, second = session(), session()
    batch(first, 10)
    assert refused(conn) is not None
    first.rollback()
    assert refused(conn) is None
    batch(second, 9)
    pid = wait.backend_pid(second)
    conn.execute("select pg_terminate_backend(%s)", (pid,))
    wait.until_gone(conn, pid)
    assert refused(conn, 9) is None
    assert waiting(conn) == 10


def test_a_savepoint_gives_back_what_came_behind_it(session: Connect) -> None:
    mine = session()
    batch(mine, 4)
    with contextlib.suppress(psycopg.Rollback), mine.transaction() as transaction:
        batch(mine, 6)
        raise psycopg.Rollback(transaction)
    batch(mine, 6)
    mine.commit()
    assert waiting(mine) == 10


@pytest.mark.parametrize("how", ["dequeue", "cancel"])
def test_what_a_transaction_takes_out_is_no_room_before_it_commits(
    conn: psycopg.Connection, session: Connect, how: str
) -> None:
    """Else others fill it, and a rollback puts back what was there."""
    batch(conn, 10)
    mine = session()
    if how == "dequeue":
        take(mine, 10)
    else:
        mine.execute("select mq.cancel('q', i) from generate_series(1, 10) as i")
    assert "10 messages wait" in (refused(mine) or "")
    mine.rollback()
    assert refused(conn) is not None
    assert waiting(conn) == 10


def test_who_counted_keeps_nobody_from_enqueueing(
    conn: psycopg.Connection, session: Connect
) -> None:
    """It had the lock alone for the count only, though its transaction goes on."""
    mine = session()
    batch(mine, 1)
    query = "select distinct mode from pg_locks where locktype = 'advisory' and pid = %s"
    modes = conn.execute(query, (wait.backend_pid(mine),)).fetchall()
    assert modes == [("ShareLock",)]
    assert refused(conn, 9) is None
    mine.commit()
    assert waiting(conn) == 10


def test_two_who_have_both_enqueued_and_want_more(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    """Each waits for the other to end, for a moment; the limit holds."""
    first, second = session(), session()
    batch(first, 5)
    batch(second, 5)
    take(conn, 10)
    waits = background(refused, second, 5)
    mine = refused(first, 5)
    theirs = waits.result(wait.SECONDS)
    assert mine is not None or theirs is not None
    first.commit()
    second.commit()
    assert waiting(conn) <= 10


def test_freed_room_is_found_at_once(conn: psycopg.Connection) -> None:
    batch(conn, 10)
    for k in (1, 3, 7, 10):
        assert refused(conn) is not None
        freed = len(take(conn, k))
        assert refused(conn, freed) is None
        assert waiting(conn) == 10


# -- what comes back --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["nack", "expiry", "redrive", "rewind", "schedule"])
def test_what_comes_back_takes_the_room_of_the_new(conn: psycopg.Connection, how: str) -> None:
    conn.execute("select mq.alter_queue('q', retention => '1 day')")
    batch(conn, 10)
    receipt = lease(conn, 10)
    if how in ("rewind", "schedule"):
        ack(conn, receipt)
    elif how == "redrive":
        conn.execute("select mq.nack('q', %s, dead => true)", (receipt,))
    batch(conn, 1)  # counts: there is room for nine more
    if how == "nack":
        conn.execute("select mq.nack('q', %s)", (receipt,))
    elif how == "expiry":
        expire(conn)
        sweep(conn)
    elif how == "schedule":
        for i in range(10):
            conn.execute("select mq.schedule(%s, '@yearly', 'q', '0')", (f"s{i}",))
    else:
        conn.execute(f"select mq.{how}('q'{', to_msg_id => 1' * (how == 'rewind')})".encode())
    assert waiting(conn) == 11
    assert "11 messages wait" in (refused(conn) or "")


def test_what_is_coming_back_is_waited_for(conn: psycopg.Connection, session: Connect) -> None:
    """Who counts must not miss a nack that has not committed."""
    batch(conn, 10)
    receipt = lease(conn, 10)
    batch(conn, 1)
    back = session()
    back.execute("select mq.nack('q', %s)", (receipt,))
    assert refused(conn) is not None
    back.commit()
    assert waiting(conn) == 11
    assert "11 messages wait" in (refused(conn) or "")


# -- alter_queue ------------------------------------------------------------------------------------


def test_a_limit_below_what_waits(conn: psycopg.Connection) -> None:
    batch(conn, 10)
    conn.execute("select mq.alter_queue('q', max_depth => 4)")
    assert refused(conn) is not None
    assert len(take(conn, 6)) == 6
    assert refused(conn) is not None
    take(conn, 1)
    assert refused(conn) is None
    conn.execute("select mq.alter_queue('q', max_depth => 0)")
    batch(conn, 100)
    assert waiting(conn) == 104


def test_a_limit_that_is_being_lowered(conn: psycopg.Connection, session: Connect) -> None:
    """Nobody counts by the old one while the new one is not committed."""
    changing = session()
    changing.execute("select mq.alter_queue('q', max_depth => 3)")
    assert refused(conn) is not None
    changing.commit()
    assert refused(conn, 4) is not None
    assert refused(conn, 3) is None
    changing.execute("select mq.alter_queue('q', max_depth => 1)")
    changing.rollback()
    take(conn, 1)
    assert refused(conn) is None


def test_room_for_who_was_there_before_the_limit_was_lowered(
    conn: psycopg.Connection, session: Connect
) -> None:
    late = session()
    batch(late, 8)
    conn.execute("select mq.alter_queue('q', max_depth => 9)")
    assert refused(conn, 2) is not None
    late.commit()
    assert refused(conn, 2) is not None
    assert refused(conn, 1) is None


# -- old snapshots ----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_an_old_snapshot_does_not_count(
    conn: psycopg.Connection, session: Connect, level: str
) -> None:
    old = session()
    old.execute(f"set transaction isolation level {level}")
    old.execute("select from mq.queues()")
    batch(conn, 10)  # it cannot see these
    detail = refused(old, 1)
    assert detail is not None
    assert "READ COMMITTED" in detail
    take(conn, 5)
    maintain(conn)  # counts for it
    assert refused(old, 5) is None
    assert refused(old, 1) is not None
    old.commit()
    assert waiting(conn) == 10


def test_an_old_snapshot_does_not_drop(conn: psycopg.Connection, session: Connect) -> None:
    conn.execute("select mq.alter_queue('q', overflow => 'drop_oldest')")
    batch(conn, 10)
    old = session()
    old.execute("set transaction isolation level repeatable read")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        batch(old, 1)


# -- drop_oldest, dead_letter -----------------------------------------------------------------------


def test_a_rollback_brings_back_what_was_dropped(
    conn: psycopg.Connection, session: Connect
) -> None:
    conn.execute("select mq.alter_queue('q', overflow => 'dead_letter')")
    fill(conn, 10)
    mine = session()
    put(mine, "new")
    assert waiting(conn) == 10, "for others nothing has happened"
    mine.rollback()
    assert value(conn, "select count(*) from mq.dead_letters('q')") == 0
    maintain(conn)
    assert sorted(drain(conn, 10)) == list(range(1, 11))


def test_those_who_drop_never_get_above_it(conn: psycopg.Connection, connect: Connect) -> None:
    """And lose nothing but what is among the dead letters."""
    conn.execute("select mq.alter_queue('q', max_depth => 20, overflow => 'dead_letter')")
    stop = threading.Event()
    seen: list[int] = []
    sent: list[str] = []
    failures: list[BaseException] = []

    def produce(i: int) -> None:
        own = connect(autocommit=False)
        chance = random.Random(i)
        for k in range(40):
            tag = f"{i}.{k}"
            try:
                put(own, tag)
                if chance.random() < 0.2:
                    own.rollback()
                else:
                    own.commit()
                    sent.append(tag)
            except psycopg.DatabaseError as error:
                own.rollback()
                if error.sqlstate != "MQ008":  # others have all of it in their hands
                    failures.append(error)
        own.close()

    def look() -> None:
        own = connect()
        while not stop.is_set():
            seen.append(waiting(own))
        own.close()

    producers = [threading.Thread(target=produce, args=(i,)) for i in range(8)]
    looks = threading.Thread(target=look)
    for thread in (*producers, looks):
        thread.start()
    for thread in producers:
        thread.join()
    stop.set()
    looks.join()
    assert not failures
    assert max(seen) <= 20
    dead = [row[0] for row in conn.execute("select payload from mq.dead_letters('q', 10000)")]
    maintain(conn)
    left: list[Any] = drain(conn, 10)
    assert sorted(dead + left) == sorted(sent)
