"""Deduplication under concurrency: one message a key, whoever else is about, and whatever becomes of them."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Any

import psycopg
import pytest

from support import race, wait
from support.race import Background, Connect, ack, expire, lease, maintain, sweep, take, value

database, queue, session = race.database, race.queue, race.session


def put(conn: psycopg.Connection, what: str, key: str | None = None, **more: Any) -> int:
    """One message of a key; the number of the message that has it."""
    named = "".join(f", {name} => %({name})s" for name in more)
    row = conn.execute(
        f"select mq.enqueue('q', to_jsonb(%(what)s::text), dedup_key => %(key)s{named})",
        {"what": what, "key": key or what, **more},
    ).fetchone()
    assert row is not None
    return int(row[0])


def put_all(conn: psycopg.Connection, keys: list[str], **more: Any) -> list[int]:
    """A batch, each message with its key for payload."""
    named = "".join(f", {name} => %({name})s" for name in more)
    rows = conn.execute(
        "select mq.enqueue_batch('q', array(select to_jsonb(x) from unnest(%(keys)s::text[]) as x),"
        f" dedup_keys => %(keys)s{named})",
        {"keys": keys, **more},
    ).fetchall()
    return [row[0] for row in rows]


def until_settled(conn: psycopg.Connection) -> None:
    conn.execute("select mq.alter_queue('q', dedup_window => '0')")


def is_free(conn: psycopg.Connection, key: str) -> bool:
    """Whether a key could be had, by trying."""
    try:
        with conn.transaction(force_rollback=True):
            put(conn, key, on_duplicate="reject")
    except psycopg.DatabaseError as error:
        if error.sqlstate != "MQ009":
            raise
        return False
    return True


# -- one message a key ------------------------------------------------------------------------------


def test_1000_concurrent_enqueues_of_one_key_make_one_message(
    conn: psycopg.Connection, connect: Connect, background: Background
) -> None:
    sessions = [connect() for _ in range(64)]
    together = threading.Barrier(64)

    def some(number: int) -> list[int]:
        together.wait(60)
        return [put(sessions[number], str(i), "k") for i in range(number, 1000, 64)]

    ids = [
        i for done in [background(some, number) for number in range(64)] for i in done.result(120)
    ]
    assert len(ids) == 1000
    assert len(set(ids)) == 1
    assert race.unsettled(conn) == (1, 0, 0)


@pytest.mark.parametrize("end", ["commit", "rollback", "terminate", "savepoint"])
def test_the_second_waits_for_the_first(
    conn: psycopg.Connection, session: Connect, background: Background, end: str
) -> None:
    first, second = session(), session(autocommit=True)
    first.execute("select 1")
    first.execute("savepoint s")
    one = put(first, "first", "k")
    waiting = background(put, second, "second", "k")
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    if end == "commit":
        first.commit()
    elif end == "rollback":
        first.rollback()
    elif end == "savepoint":
        first.execute("rollback to s")
    else:
        conn.execute("select pg_terminate_backend(%s)", (wait.backend_pid(first),))
    two = waiting.result(30)
    if end == "savepoint":
        first.commit()
    assert (two == one) == (end == "commit")
    assert take(conn, 10) == ["first" if end == "commit" else "second"]


def test_the_second_may_refuse_to_wait(conn: psycopg.Connection, session: Connect) -> None:
    first, second = session(), session(autocommit=True)
    put(first, "k")
    second.execute("set lock_timeout = '50ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        put(second, "k")
    assert put(second, "another") > 0, "other keys are not waited for"


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_what_an_old_snapshot_hides_is_no_second_message(
    conn: psycopg.Connection, session: Connect, isolation: str
) -> None:
    for is_known in (False, True):
        old = session()
        old.execute(f"set transaction isolation level {isolation}")
        old.execute("select count(*) from mq.dedup")
        one = put(conn, "k")
        with pytest.raises(psycopg.errors.SerializationFailure):
            put(old, "k")
        old.rollback()
        assert put(old, "k") == one, "a retry cures it"
        old.commit()
        if not is_known:  # the next round has an entry that is over, and one that is hidden
            conn.execute("update mq.dedup set until = until - interval '5 minutes'")
    assert race.unsettled(conn)[0] == 2


def test_crosswise_keys_are_a_deadlock_that_postgresql_ends(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    first, second = session(), session()
    put(first, "a")
    put(second, "b")
    waiting = background(put, second, "a")
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    errors = []
    for call in (lambda: put(first, "b"), lambda: waiting.result(30)):
        try:
            call()
        except psycopg.errors.DeadlockDetected as error:
            errors.append(error)
            (first if len(errors) == 1 and not waiting.done() else second).rollback()
    assert len(errors) == 1


def test_batches_take_their_keys_in_one_order(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    first, second = session(), session(autocommit=True)
    ones = put_all(first, ["b", "d", "c"])
    waiting = background(put_all, second, ["e", "d", "a", "c", "b", "a"])
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    assert put(first, "e") == put(first, "e"), "the second has nothing behind what it waits for"
    first.commit()
    twos = waiting.result(30)
    assert [twos[1], twos[3], twos[4]] == [ones[1], ones[2], ones[0]]
    assert twos[2] == twos[5]
    assert sorted(take(conn, 10)) == ["a", "b", "c", "d", "e"]


def test_batches_at_once_make_one_message_a_key(
    conn: psycopg.Connection, connect: Connect, background: Background
) -> None:
    keys = [f"key {i}" for i in range(40)]

    def some(number: int) -> dict[str, int]:
        own = connect()
        chance = random.Random(number)
        mine: dict[str, int] = {}
        for _ in range(5):
            chosen = chance.choices(keys, k=30)
            for key, msg_id in zip(chosen, put_all(own, chosen), strict=True):
                assert mine.setdefault(key, msg_id) == msg_id
        return mine

    seen: dict[str, int] = {}
    for done in [background(some, number) for number in range(8)]:
        for key, msg_id in done.result(120).items():
            assert seen.setdefault(key, msg_id) == msg_id
    assert sorted(take(conn, 100)) == sorted(seen)


# -- until it is settled ----------------------------------------------------------------------------


def test_a_lease_that_outlives_its_segment_keeps_the_key(conn: psycopg.Connection) -> None:
    until_settled(conn)
    put_all(conn, ["a", "b", "c"])
    receipt = lease(conn, 3)
    race.outlive(conn)
    assert not is_free(conn, "a")
    assert ack(conn, receipt, [1]) == 1
    assert [is_free(conn, key) for key in "abc"] == [True, False, False]
    assert value(conn, "select mq.nack('q', %s, array[2::bigint], dead => true)", receipt) == 1
    assert [is_free(conn, key) for key in "bc"] == [True, False]
    expire(conn)
    assert sweep(conn) == 1
    assert not is_free(conn, "c")
    assert ack(conn, lease(conn)) == 1
    assert is_free(conn, "c")


def test_a_copy_knows_whose_keys_are(conn: psycopg.Connection) -> None:
    until_settled(conn)
    put_all(conn, ["a", "b"])
    put(conn, "c", delay="1 hour")
    assert ack(conn, lease(conn)) == 1
    race.from_elsewhere(conn)
    conn.execute("select count(*) from mq.dequeue('q')")
    assert [is_free(conn, key) for key in "abc"] == [True, False, False]
    receipt = lease(conn)
    assert ack(conn, receipt) == 1
    assert is_free(conn, "b")


def test_an_ack_in_an_old_snapshot_frees_the_key(
    conn: psycopg.Connection, session: Connect
) -> None:
    until_settled(conn)
    put(conn, "a")
    receipt = lease(conn)
    old = session()
    old.execute("set transaction isolation level repeatable read")
    old.execute("select 1 from mq.dedup")
    assert put(conn, "b") == 2
    assert ack(old, receipt) == 1
    assert not is_free(conn, "a"), "not before it commits"
    old.commit()
    assert is_free(conn, "a")


def test_a_key_has_at_most_one_unsettled_message(
    conn: psycopg.Connection, connect: Connect, background: Background
) -> None:
    """Producers and consumers who commit, roll back, fail, give up and replace."""
    conn.execute(
        "select mq.alter_queue('q', dedup_window => '0', max_attempts => 2, retry_backoff => '0')"
    )
    keys = ["a", "b", "c", "d", "e"]

    def produce(number: int) -> None:
        own, chance = connect(), random.Random(number)
        for _ in range(60):
            with own.transaction(force_rollback=chance.random() < 0.2):
                if chance.random() < 0.5:
                    put(own, chance.choice(keys), delay=chance.choice([None, "1 ms"]))
                else:
                    put_all(own, chance.choices(keys, k=3), priority=chance.choice([None, 9]))

    def consume(number: int) -> None:
        own, chance = connect(), random.Random(number)
        for _ in range(80):
            with own.transaction():
                rows = race.take_rows(own, chance.choice([1, 3]))
            if not rows:
                continue
            receipt, ids = rows[0][1], [row[0] for row in rows]
            with own.transaction(force_rollback=chance.random() < 0.2):
                for msg_id in ids if chance.random() < 0.3 else [None]:
                    call = chance.choice(
                        [
                            "ack('q', %s, %s::bigint[])",
                            "nack('q', %s, %s::bigint[])",
                            "nack('q', %s, %s::bigint[], dead => true)",
                        ]
                    )
                    own.execute(
                        f"select mq.{call}", (receipt, None if msg_id is None else [msg_id])
                    )

    def unsettled_keys(own: psycopg.Connection) -> Counter[str]:
        rows = own.execute("select payload #>> '{}' from mq.peek('q', 10000)").fetchall()
        return Counter(row[0] for row in rows)

    work = [background(produce, i) for i in range(4)] + [
        background(consume, 10 + i) for i in range(4)
    ]
    while not all(done.done() for done in work):
        assert all(count == 1 for count in unsettled_keys(conn).values())
    for done in work:
        done.result(60)
    for _ in range(20):
        expire(conn)
        sweep(conn)
        race.drain(conn)
        if race.unsettled(conn) == (0, 0, 0):
            break
    assert race.unsettled(conn) == (0, 0, 0)
    assert all(is_free(conn, key) for key in keys)


# -- replace ----------------------------------------------------------------------------------------


def test_who_replaces_waits_for_who_replaces(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    put(conn, "one", "k", delay="1 hour")
    first, second = session(), session(autocommit=True)
    put(first, "two", "k", on_duplicate="replace")
    waiting = background(put, second, "three", "k", on_duplicate="replace")
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    first.commit()
    waiting.result(30)
    rows = conn.execute("select payload #>> '{}' from mq.peek('q')").fetchall()
    assert rows == [("three",)]


def test_what_is_about_to_be_leased_is_replaced_or_not(
    conn: psycopg.Connection, session: Connect
) -> None:
    """The consumer has it, and has not committed: who replaces waits for a moment, then says so."""
    for end in ("commit", "rollback"):
        race.fresh(conn.info.dsn, "q")
        put(conn, "one", "k")
        consumer, producer = session(), session(autocommit=True)
        assert take(consumer) == ["one"]
        with pytest.raises(psycopg.errors.LockNotAvailable):
            put(producer, "two", "k", on_duplicate="replace")
        getattr(consumer, end)()
        put(producer, "three", "k", on_duplicate="replace")
        rows = conn.execute("select payload #>> '{}', state from mq.peek('q')").fetchall()
        assert rows == ([("one", "leased")] if end == "commit" else []) + [("three", "ready")]


def test_one_of_many_that_replace_each_other_is_delivered(
    conn: psycopg.Connection, connect: Connect, background: Background
) -> None:
    def some(number: int) -> None:
        own = connect()
        for i in range(15):
            put(own, f"{number}.{i}", "k", delay="1 hour", on_duplicate="replace")

    for done in [background(some, number) for number in range(4)]:
        done.result(120)
    left = conn.execute("select msg_id from mq.peek('q')").fetchall()
    assert left == [(value(conn, "select msg_id from mq.dedup order by no desc limit 1"),)]


# -- an old snapshot --------------------------------------------------------------------------------


def test_a_key_that_is_used_again_and_again_costs_the_same_under_an_old_snapshot(
    conn: psycopg.Connection, session: Connect
) -> None:
    """Entries pass, and are deleted, and nothing that is deleted can be taken away."""

    def buffers() -> int:
        row = value(
            conn,
            "explain (analyze, buffers, timing off, summary off, costs off, format json)"
            " select mq.enqueue('q', '1', dedup_key => 'hot')",
        )
        return int(row[0]["Plan"]["Shared Hit Blocks"] + row[0]["Plan"]["Shared Read Blocks"])

    conn.execute("select mq.alter_queue('q', dedup_window => '1 microsecond')")
    old = session()
    old.execute("set transaction isolation level repeatable read")
    old.execute("select count(*) from mq.dedup")
    costs = []
    for no in range(500):
        costs.append(buffers())
        if no % 10 == 9:  # ten minutes pass, but for the newest
            conn.execute(
                "update mq.dedup set until = until - interval '11 minutes'"
                " where no < (select max(no) from mq.dedup where dedup_key = 'hot')"
            )
            assert "forgot" in maintain(conn)
    assert value(conn, "select max(no) from mq.dedup where dedup_key = 'hot'") == 500
    assert value(conn, "select count(*) from mq.dedup where dedup_key = 'hot'") <= 10
    medians = [sorted(costs[no : no + 50])[25] for no in range(0, 500, 50)]
    assert max(medians) <= medians[0] + 6, f"a level of an index or two, and no more: {medians}"
