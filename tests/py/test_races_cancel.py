"""Messages that are cancelled, or expire, while others are about to claim them: each is delivered, or it is not."""

from __future__ import annotations

import random
import threading

import psycopg
import pytest

from support import race, wait
from support.race import (
    Background,
    Connect,
    ack,
    drain,
    fill,
    in_another_cluster,
    locks,
    maintain,
    number,
    put,
    rotate,
    segments,
    take,
    take_rows,
    unsettled,
    value,
)

pytestmark = pytest.mark.matrix
database, queue, session = race.database, race.queue, race.session

CANCEL = "select mq.cancel('q', %s)"


def cancel(conn: psycopg.Connection, msg_id: int) -> bool:
    return bool(value(conn, CANCEL, msg_id))


def put_for(conn: psycopg.Connection, what: str, ttl: str) -> int:
    """A message that has so much time."""
    return int(value(conn, "select mq.enqueue('q', to_jsonb(%s::text), ttl => %s)", what, ttl))


def dead(conn: psycopg.Connection) -> list[str]:
    """The payloads of what expired."""
    query = (
        "select payload #>> '{}' from mq.dead_letters('q') where reason = 'expired' order by msg_id"
    )
    return [row[0] for row in conn.execute(query)]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_nobody_opens_a_block_past_a_cancel_that_is_not_over(
    conn: psycopg.Connection, session: Connect, ends: str
) -> None:
    fill(conn, 3)
    cancelling = session()
    assert cancel(cancelling, 1)
    assert take(conn) == []
    getattr(cancelling, ends)()
    assert drain(conn) == ([2, 3] if ends == "commit" else [1, 2, 3])
    assert unsettled(conn) == (0, 0, 0)


@pytest.mark.parametrize("ends", ["commit", "rollback"])
@pytest.mark.parametrize("is_leased", [True, False])
def test_a_cancel_waits_for_who_opens_a_block(
    conn: psycopg.Connection, session: Connect, background: Background, is_leased: bool, ends: str
) -> None:
    fill(conn, 3)
    opening, cancelling = session(), session(autocommit=True)
    assert take(opening) == [1]
    done = background(cancel, cancelling, 1 if is_leased else 2)
    wait.until_blocked(conn, wait.backend_pid(cancelling), by=wait.backend_pid(opening))
    getattr(opening, ends)()
    cancelled = done.result(wait.SECONDS)
    # It is found in the block then, or behind the cursor still.
    assert cancelled == (not is_leased or ends == "rollback")
    left = {1, 2, 3} - ({1} if ends == "commit" else set())
    assert set(drain(conn)) == left - ({1 if is_leased else 2} if cancelled else set())


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_cancel_waits_for_who_claims_the_slice(
    conn: psycopg.Connection, session: Connect, background: Background, ends: str
) -> None:
    fill(conn, 3)
    assert take(conn) == [1]
    claiming, cancelling = session(), session(autocommit=True)
    assert take(claiming) == [2]
    done = background(cancel, cancelling, 2)
    wait.until_blocked(conn, wait.backend_pid(cancelling), by=wait.backend_pid(claiming))
    getattr(claiming, ends)()
    assert done.result(wait.SECONDS) == (ends == "rollback")
    assert drain(conn) == [3]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_who_claims_does_not_wait_for_a_cancel_in_the_block(
    conn: psycopg.Connection, session: Connect, ends: str
) -> None:
    fill(conn, 3)
    assert take(conn) == [1]
    cancelling = session()
    assert cancel(cancelling, 2)
    assert take(conn) == [3]
    getattr(cancelling, ends)()
    assert drain(conn) == ([] if ends == "commit" else [2])


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_cancel_of_what_is_deferred_waits_for_who_promotes(
    conn: psycopg.Connection, session: Connect, background: Background, ends: str
) -> None:
    put(conn, "due", delay="1 microsecond")
    promoting, cancelling = session(), session(autocommit=True)
    assert take(promoting) == ["due"]
    done = background(cancel, cancelling, 1)
    wait.until_blocked(conn, wait.backend_pid(cancelling), by=wait.backend_pid(promoting))
    getattr(promoting, ends)()
    assert done.result(wait.SECONDS) == (ends == "rollback")
    assert drain(conn) == []


def test_of_two_who_cancel_one_did(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    fill(conn, 2)
    first, second = session(), session(autocommit=True)
    assert cancel(first, 1)
    done = background(cancel, second, 1)
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    first.commit()
    assert not done.result(wait.SECONDS)
    assert drain(conn) == [2]


def test_what_is_cancelled_in_a_closed_segment_does_not_keep_it(conn: psycopg.Connection) -> None:
    fill(conn, 3)
    rotate(conn)
    assert cancel(conn, 2)
    assert drain(conn) == [1, 3]
    for _ in range(6):
        maintain(conn)
    assert segments(conn) == 1


def test_what_was_cancelled_stays_so_in_a_copy(conn: psycopg.Connection) -> None:
    fill(conn, 3)
    assert cancel(conn, 2)
    put(conn, "later", delay="1 microsecond")
    assert cancel(conn, 4)
    in_another_cluster(conn)
    conn.execute("select * from mq.maintain('q')")
    assert drain(conn) == [1, 3]
    assert unsettled(conn) == (0, 0, 0)


def test_a_cancel_in_an_old_snapshot_is_refused(session: Connect) -> None:
    conn = session()
    conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        cancel(conn, 1)


def test_a_look_for_what_expired_waits_for_nobody(
    conn: psycopg.Connection, session: Connect
) -> None:
    for what in ("a", "b", "c", "d"):
        put_for(conn, what, "1 hour")
    assert take(conn) == ["a"]
    claiming = session()
    assert take(claiming) == ["b"]
    past = "update mq.log_%s_1 set extra = jsonb_build_object('e', 1)"
    conn.execute((past % number(conn)) + " where payload <> '\"d\"'")
    assert take(conn) == ["d"]
    claiming.rollback()
    assert take(conn) == []
    assert dead(conn) == ["b", "c"]
    assert unsettled(conn) == (0, 0, 2)


def test_who_rolls_back_undoes_the_burial(conn: psycopg.Connection, session: Connect) -> None:
    put_for(conn, "late", "1 microsecond")
    put_for(conn, "in time", "1 hour")
    claiming = session()
    assert take(claiming) == ["in time"]
    assert dead(claiming) == ["late"]
    claiming.rollback()
    assert dead(conn) == []
    assert take(conn) == ["in time"]
    assert dead(conn) == ["late"]


def test_what_expires_in_the_course_of_a_transaction_is_not_delivered(
    conn: psycopg.Connection, session: Connect
) -> None:
    put_for(conn, "a", "1 hour")
    put_for(conn, "b", "1 hour")
    put_for(conn, "c", "1 hour")
    assert take(conn) == ["a"]
    consuming = session()
    consuming.execute("select 1")
    conn.execute(
        f"update mq.log_{number(conn)}_1 set extra ="
        " jsonb_build_object('e', mq._microseconds(clock_timestamp())) where payload = '\"b\"'"
    )
    assert take(consuming) == ["c"]
    assert dead(consuming) == ["b"]


def test_a_backlog_that_expired_is_buried_when_a_block_is_opened(conn: psycopg.Connection) -> None:
    """At once: each of its slices has been leased to nobody by the time that somebody claims."""
    payloads = "array(select to_jsonb(i) from generate_series(1, 250) as i)"
    conn.execute(f"select mq.enqueue_batch('q', {payloads}, ttl => '1 microsecond')")
    put_for(conn, "in time", "1 hour")
    assert take(conn) == ["in time"]
    delivered = f"select count(*) from mq.lease_{number(conn)}_1 where leased_until > '-infinity'"
    assert value(conn, delivered) == 1
    assert len(dead(conn)) == 100  # as many as dead_letters shows
    assert value(conn, "select dead from mq.queue_stats('q')") == 250


def test_an_empty_poll_of_lanes_leaves_nothing_behind(
    conn: psycopg.Connection, session: Connect
) -> None:
    put_for(conn, "late", "1 microsecond")
    assert take(conn) == []
    assert dead(conn) == ["late"]
    polling = session()
    assert take(polling) == []
    assert value(polling, "select pg_current_xact_id_if_assigned() is null")
    assert locks(polling, conn) == []


def test_many_who_cancel_and_many_who_consume(conn: psycopg.Connection, session: Connect) -> None:
    """Each message is cancelled, or consumed, or expires; and only one of these."""
    count = 600
    consumed: list[int] = []
    cancelled: list[int] = []
    for i in range(count):
        option = random.Random(i).choice(
            ["", ", priority => 7", ", ttl => '1 hour'", ", delay => '1 millisecond'"]
        )
        conn.execute(f"select mq.enqueue('q', '1'{option})")
        if i == count // 2:
            rotate(conn)
    sessions = [session(autocommit=True) for _ in range(5)]
    errors: list[Exception] = []

    def consume(own: psycopg.Connection, seed: int) -> None:
        chance = random.Random(seed)
        idle = 0
        while idle < 20:
            own.execute("begin")
            rows = take_rows(own, chance.choice([1, 1, 3, 10]))
            if chance.random() < 0.15:
                own.execute("rollback")
                continue
            own.execute("commit")
            idle = 0 if rows else idle + 1
            if rows and chance.random() < 0.1:
                own.execute("select mq.nack('q', %s, delay => '0')", (rows[0][1],))
            elif rows:
                assert ack(own, rows[0][1]) == len(rows)
                consumed.extend(row[0] for row in rows)

    def withdraw(own: psycopg.Connection, seed: int) -> None:
        chance = random.Random(seed)
        for msg_id in chance.sample(range(1, count + 1), 120):
            own.execute("begin")
            try:
                gone = cancel(own, msg_id)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                gone = False
                own.execute("rollback")
                continue
            if chance.random() < 0.2:
                own.execute("rollback")
            else:
                own.execute("commit")
                if gone:
                    cancelled.append(msg_id)

    def run(work: object, own: psycopg.Connection, seed: int) -> None:
        try:
            work(own, seed)  # type: ignore[operator]
        except Exception as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(consume if i < 3 else withdraw, own, i))
        for i, own in enumerate(sessions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    while rows := take_rows(conn, 50):
        consumed.extend(row[0] for row in rows)
        ack(conn, rows[0][1])
    assert cancelled
    assert sorted(consumed + cancelled) == list(range(1, count + 1))
    assert unsettled(conn) == (0, 0, 0)
