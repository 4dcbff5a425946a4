"""Acks, nacks, extends, expiry and sweeps that meet each other."""

from __future__ import annotations

import collections
import contextlib
import time
from typing import Any

import psycopg
import pytest

from support import race, wait
from support.race import (
    Background,
    Connect,
    ack,
    expire,
    fill,
    lease,
    put,
    sweep,
    take,
    take_rows,
    value,
)

pytestmark = pytest.mark.matrix
database, queue, session = race.database, race.queue, race.session


# -- the fence --------------------------------------------------------------------------------------


def test_a_late_ack_changes_nothing_and_says_so(conn: psycopg.Connection) -> None:
    fill(conn, 2)
    old = lease(conn, 2)
    expire(conn)
    assert sweep(conn) == 2
    for call in (
        "select mq.ack('q', %s)",
        "select mq.ack('q', %s, array[1::bigint])",
        "select mq.nack('q', %s)",
        "select mq.nack('q', %s, dead => true)",
    ):
        assert value(conn, call, old) == 0
    assert value(conn, "select mq.extend('q', %s)", old) is None
    for call in (
        "select mq.ack('q', %s, strict => true)",
        "select mq.ack('q', %s, array[1::bigint], strict => true)",
        "select * from mq.dequeue('q', ack => %s)",
    ):
        with pytest.raises(psycopg.DatabaseError) as error:
            conn.execute(call, (old,))
        assert error.value.sqlstate == "MQ003"
    rows = take_rows(conn, 10)
    assert [(row[5], row[2]) for row in rows] == [(1, 2), (2, 2)]
    assert ack(conn, rows[0][1]) == 2


def test_a_late_ack_is_refused_after_its_segment_was_dropped_and_used_again(
    conn: psycopg.Connection,
) -> None:
    put(conn, "a")
    old = lease(conn)
    assert ack(conn, old) == 1
    slot = old.split(".")[1]
    for _ in range(10):
        race.rotate(conn)
        put(conn, "b")
        new = lease(conn)
        race.maintain(conn)
        race.maintain(conn)
        if new.split(".")[:7] == old.split(".")[:7]:
            break
        assert ack(conn, new) == 1
        race.maintain(conn)
    assert new.split(".")[1] == slot, "else this test shows nothing"
    assert ack(conn, old) == ack(conn, old, [1]) == 0
    with pytest.raises(psycopg.DatabaseError) as error:
        ack(conn, old, strict=True)
    assert error.value.sqlstate == "MQ003"
    assert ack(conn, new) == 1
    gone = ".".join([old.split(".")[0], "999", *old.split(".")[2:]])
    assert ack(conn, gone) == 0  # a slot that is not there at all


def test_two_acks_of_one_lease_succeed_once(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    fill(conn, 2)
    receipt = lease(conn, 2)
    first, second = session(), session()
    assert ack(first, receipt) == 2
    waiting = background(ack, second, receipt)
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    first.commit()
    assert waiting.result(30) == 0
    second.commit()

    fill(conn, 2)
    receipt = lease(conn, 2)
    assert ack(first, receipt) == 2
    waiting = background(ack, second, receipt)
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    first.rollback()
    assert waiting.result(30) == 2


def test_parts_of_a_lease_acked_at_once_are_counted_once(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    fill(conn, 5)
    receipt = lease(conn, 5)
    first, second = session(), session()
    assert ack(first, receipt, [1, 2, 3]) == 3
    waiting = background(ack, second, receipt, [3, 4])
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    first.commit()
    assert waiting.result(30) == 1
    second.commit()
    with pytest.raises(psycopg.DatabaseError):
        ack(conn, receipt, [4, 5], strict=True)
    assert ack(conn, receipt) == 1
    assert ack(conn, receipt) == 0


def test_an_ack_of_part_leaves_the_rest_to_expire(conn: psycopg.Connection) -> None:
    fill(conn, 3)
    receipt = lease(conn, 3)
    assert ack(conn, receipt, [2]) == 1
    expire(conn)
    assert sweep(conn) == 2
    assert take(conn, 10) == [1, 3]
    assert ack(conn, receipt) == 0


# -- the sweep and open transactions ----------------------------------------------------------------


def test_the_sweep_leaves_what_an_open_transaction_is_settling(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2)
    first, second = lease(conn), lease(conn)
    settling = session()
    assert ack(settling, first) == 1
    expire(conn)
    began = time.monotonic()
    assert sweep(conn) == 1
    assert time.monotonic() - began < 5  # an upper bound; 20 ms it should be
    assert [row[0] for row in take_rows(conn, 5)] == [2]
    settling.commit()
    assert sweep(conn) == 0
    assert ack(conn, second) == 0


def test_an_ack_that_rolls_back_leaves_its_lease_to_the_sweep(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    receipt = lease(conn)
    settling = session()
    assert ack(settling, receipt) == 1
    expire(conn)
    assert sweep(conn) == 0
    settling.rollback()
    assert sweep(conn) == 1
    assert ack(conn, receipt) == 0


def test_open_acks_do_not_hide_what_else_ran_out(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 40)
    receipts = [lease(conn) for _ in range(40)]
    settling = session()
    for receipt in receipts[:30]:
        assert ack(settling, receipt) == 1
    expire(conn)
    got: set[Any] = set()

    def all_come() -> bool:
        sweep(conn)
        got.update(take(conn, 40))
        return len(got) >= 10

    wait.until(all_come)
    assert got == set(range(31, 41))


def test_an_ack_that_meets_an_uncommitted_sweep_gives_up_in_time(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 3)
    receipts = [lease(conn) for _ in range(3)]
    expire(conn)
    sweeping = session()
    assert sweep(sweeping) == 3
    late = session(autocommit=True)
    for call in ("select mq.ack('q', %s)", "select mq.nack('q', %s)", "select mq.extend('q', %s)"):
        with pytest.raises(psycopg.errors.LockNotAvailable):
            late.execute(call, (receipts.pop(),))
    sweeping.rollback()
    assert ack(conn, lease_of(conn, 1)) == 1


def lease_of(conn: psycopg.Connection, count: int) -> str:
    """After the sweep: the first lease there is."""
    assert sweep(conn) > 0
    return lease(conn, count)


def test_dequeue_does_not_sweep_in_a_transaction_that_wrote_before(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    receipt = lease(conn)
    expire(conn)
    busy = session()
    busy.execute("select pg_current_xact_id()")
    assert take(busy) == []
    assert ack(conn, receipt) == 1  # at once: nobody is in the way


def test_two_sweeps_at_once_take_back_once(conn: psycopg.Connection, session: Connect) -> None:
    fill(conn, 5)
    lease(conn, 5)
    expire(conn)
    first = session()
    assert sweep(first) == 5
    assert sweep(conn) == 0
    first.commit()
    assert sweep(conn) == 0
    assert take(conn, 10) == [1, 2, 3, 4, 5]


# -- extend -----------------------------------------------------------------------------------------


def test_a_granted_extend_is_not_overruled_by_the_sweep(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2)
    receipt = lease(conn, 2)
    expire(conn)
    extending = session()
    assert value(extending, "select mq.extend('q', %s, '1 hour')", receipt)
    assert sweep(conn) == 0  # not committed yet
    extending.commit()
    assert sweep(conn) == 0
    assert take(conn, 5) == []
    assert ack(conn, receipt) == 2


def test_a_sweep_that_waited_for_an_extend_sees_it(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    put(conn, "a")
    receipt = lease(conn)
    expire(conn)
    extending, settling = session(), session()
    assert value(extending, "select mq.extend('q', %s, '1 hour')", receipt)
    parts = receipt.split(".")
    # The sweep's own step, without its lock_timeout of 20 ms.
    waiting = background(
        value,
        settling,
        f"select count(*) from mq._settle_{parts[0]}_{parts[1]}(1::smallint, 0::smallint,"
        f" {parts[4]}, {parts[5]}, {parts[6]}, '{parts[8]}', 'expired', null)",
    )
    wait.until_blocked(conn, wait.backend_pid(settling), by=wait.backend_pid(extending))
    extending.commit()
    assert waiting.result(30) == 0
    settling.commit()
    assert ack(conn, receipt) == 1


def test_an_extended_lease_runs_out_in_its_turn(conn: psycopg.Connection) -> None:
    put(conn, "a")
    receipt = lease(conn)
    for _ in range(3):
        assert value(conn, "select mq.extend('q', %s, '1 hour')", receipt)
    assert sweep(conn) == 0
    expire(conn)
    assert sweep(conn) == 1
    assert value(conn, "select mq.extend('q', %s, '1 hour')", receipt) is None
    assert ack(conn, receipt) == 0


def test_an_extend_never_shortens(conn: psycopg.Connection) -> None:
    put(conn, "a")
    receipt = lease(conn)
    until = value(conn, "select mq.extend('q', %s, '1 hour')", receipt)
    assert value(conn, "select mq.extend('q', %s, '1 microsecond')", receipt) == until
    assert sweep(conn) == 0
    assert ack(conn, receipt) == 1


# -- time -------------------------------------------------------------------------------------------


def test_leases_of_a_long_transaction_are_not_born_expired(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2)
    long = session()
    long.execute("select pg_sleep(0.3)")
    before = value(long, "select clock_timestamp()")
    ((_, receipt, _, _, leased_until, _, _),) = take_rows(long, 1, visibility_timeout="0.2 s")
    assert leased_until > before
    late = value(long, "select clock_timestamp()")
    assert value(long, "select %s::timestamptz - now() > '0.3 s'", late)
    until = value(long, "select mq.extend('q', %s, '0.2 s')", receipt)
    assert until > late
    put(long, "x", delay="0.2 s")
    long.commit()
    rows = take_rows(conn, 1, visibility_timeout="1 hour")
    assert value(conn, "select %s - clock_timestamp() > '59 minutes'", rows[0][4])


def test_a_delay_counts_from_the_call(conn: psycopg.Connection, session: Connect) -> None:
    long = session()
    long.execute("select pg_sleep(0.2)")
    put(long, "x", delay="1 hour")
    long.commit()
    due, began = value(conn, "select mq.next_due('q')"), value(conn, "select clock_timestamp()")
    assert (due - began).total_seconds() > 3599


# -- attempts and retries ---------------------------------------------------------------------------


def test_attempts_are_counted_and_never_exceed_max_attempts(conn: psycopg.Connection) -> None:
    conn.execute("select mq.alter_queue('q', max_attempts => 4, retry_backoff => '0')")
    fill(conn, 2)
    seen = collections.defaultdict(list)
    for round_ in range(1, 20):
        rows = wait.until(
            lambda: take_rows(conn, 2) or value(conn, "select count(*) = 2 from mq.dead_letter")
        )
        if rows is True:
            break
        for msg_id, receipt, attempt, *_ in rows:
            seen[msg_id].append(attempt)
            if (round_ + msg_id) % 2:
                value(
                    conn,
                    "select mq.nack('q', %s, array[%s::bigint], reason => 'no')",
                    receipt,
                    msg_id,
                )
        expire(conn)
        sweep(conn)
    assert dict(seen) == {1: [1, 2, 3, 4], 2: [1, 2, 3, 4]}
    dead = conn.execute(
        "select attempts, reason, jsonb_array_length(history), history from mq.dead_letters('q')"
    ).fetchall()
    assert len(dead) == 2
    for attempts, reason, length, history in dead:
        assert attempts == length == 4
        assert reason in ("no", "lease expired")
        assert [entry["attempt"] for entry in history] == [1, 2, 3, 4]
        assert {entry["outcome"] for entry in history} == {"nacked", "expired"}


def test_retries_do_not_starve_fresh_messages_nor_these_them(conn: psycopg.Connection) -> None:
    conn.execute("select mq.alter_queue('q', retry_backoff => '0')")
    conn.execute(
        "select mq.enqueue_batch('q', array_fill('\"again\"'::jsonb, array[3000]), delay => '1 microsecond')"
    )
    conn.execute("select mq.enqueue_batch('q', array_fill('\"fresh\"'::jsonb, array[3000]))")
    for n in (1, 10):
        got = [payload for _ in range(1000 // n) for payload in take(conn, n)]
        count = collections.Counter(got)
        assert min(count["again"], count["fresh"]) > 100, (n, count)


def test_dead_letters_are_redriven_once(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    fill(conn, 4)
    receipt = lease(conn, 4)
    assert value(conn, "select mq.nack('q', %s, dead => true)", receipt) == 4
    first = session()
    assert value(first, "select mq.redrive('q', max_messages => 3)") == 3
    assert value(conn, "select mq.redrive('q')") == 1  # skips what the other has
    first.commit()
    rows = take_rows(conn, 10) + take_rows(conn, 10)
    assert sorted(row[0] for row in rows) == [1, 2, 3, 4]
    assert {row[2] for row in rows} == {1}
    assert value(conn, "select count(*) from mq.dead_letter") == 0


def test_a_redrive_that_rolls_back_loses_nothing(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    value(conn, "select mq.nack('q', %s, dead => true)", lease(conn))
    first = session()
    assert value(first, "select mq.redrive('q')") == 1
    assert take(first) == []  # not to its own transaction
    first.rollback()
    assert take(conn) == []
    assert value(conn, "select mq.redrive('q')") == 1
    assert take(conn) == ["a"]


# -- survivors of long leases -----------------------------------------------------------------------


@pytest.fixture
def survivor(conn: psycopg.Connection) -> str:
    """A receipt of messages 1 to 3 whose lease has outlived its segment."""
    conn.execute("select mq.alter_queue('q', segment_age => '1 microsecond')")
    fill(conn, 5)
    receipt = lease(conn, 3, visibility_timeout="1 hour")
    assert ack(conn, lease(conn, 2)) == 2
    slot = int(receipt.split(".")[1])
    race.rotate(conn)
    wait.until(
        lambda: (
            race.maintain(conn)
            and value(conn, "select not exists (select from mq.segment where slot = %s)", slot)
        )
    )
    assert value(conn, "select count(*) from mq.survivor") == 3
    return receipt


def test_a_survivor_can_be_acked(conn: psycopg.Connection, survivor: str) -> None:
    assert ack(conn, survivor, [2]) == 1
    assert ack(conn, survivor, [2]) == 0
    assert value(conn, "select mq.extend('q', %s, '2 hours') > now() + '1 hour'", survivor)
    assert ack(conn, survivor, strict=True) == 2
    assert ack(conn, survivor) == 0
    assert take(conn, 10) == []


def test_a_survivor_can_be_nacked(conn: psycopg.Connection, survivor: str) -> None:
    assert value(conn, "select mq.nack('q', %s, array[1::bigint], delay => '0')", survivor) == 1
    assert value(conn, "select mq.nack('q', %s, array[2::bigint], dead => true)", survivor) == 1
    assert [(row[5], row[2]) for row in take_rows(conn, 5)] == [(1, 2)]
    assert value(conn, "select msg_id from mq.dead_letters('q')") == 2
    assert ack(conn, survivor) == 1


def test_a_survivor_expires(conn: psycopg.Connection, survivor: str) -> None:
    assert take(conn, 10) == []
    expire(conn)
    assert [(row[5], row[2]) for row in take_rows(conn, 10)] == [(1, 2), (2, 2), (3, 2)]
    assert ack(conn, survivor) == 0


def test_a_survivor_acked_in_an_open_transaction_is_left_by_the_sweep(
    conn: psycopg.Connection, session: Connect, survivor: str
) -> None:
    settling = session()
    assert ack(settling, survivor, [1]) == 1
    expire_others = "update mq.survivor set leased_until = '2020-01-01' where msg_id > 1"
    conn.execute(expire_others)
    assert sweep(conn) == 0  # the whole lease: as in a segment
    settling.rollback()
    assert ack(conn, survivor) == 3


def test_moving_survivors_keeps_an_extend_that_was_granted_meanwhile(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    fill(conn, 3)
    receipts = [lease(conn, 1, visibility_timeout="1 minute") for _ in range(3)]
    race.rotate(conn)
    wait.until(lambda: "exhausted" in race.maintain(conn))
    settling, moving = session(), session()
    assert ack(settling, receipts[1]) == 1
    queue_id, slot = receipts[0].split(".")[:2]
    waiting = background(value, moving, f"select mq._move_survivors({queue_id}, {slot})")
    wait.until_blocked(conn, wait.backend_pid(moving), by=wait.backend_pid(settling))
    # One of the others was moved before, one comes after the one that it waits for.
    conn.execute("set lock_timeout = '50 ms'")
    granted = []
    for msg_id in (1, 3):
        with contextlib.suppress(psycopg.errors.LockNotAvailable):
            if value(
                conn,
                f"select mq._extend_{queue_id}_{slot}(1::smallint, 0::smallint, l.block_no, l.slice, l.part, l.token, '1 hour')"
                f" from mq.lease_{queue_id}_{slot} as l where l.first_id = %s",
                msg_id,
            ):
                granted.append(msg_id)
    assert len(granted) == 1, "else this test shows nothing"
    settling.rollback()
    assert waiting.result(30) == 3
    moving.commit()
    assert value(
        conn,
        "select leased_until > now() + '30 minutes' from mq.survivor where msg_id = %s",
        granted[0],
    )
