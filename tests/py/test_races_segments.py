"""Rotating, sealing, draining and dropping while others write, lease and settle."""

from __future__ import annotations

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
    number,
    put,
    rotate,
    segments,
    slot,
    sweep,
    take,
    take_rows,
    value,
)

pytestmark = pytest.mark.matrix
database, queue, session = race.database, race.queue, race.session


def open_log(conn: psycopg.Connection) -> str:
    """The log that producers write to now."""
    return f"mq.log_{number(conn)}_{slot(conn, 'open')}"


def late(conn: psycopg.Connection, log: str, payload: str) -> None:
    """What a producer does that read the register before a rotation."""
    conn.execute(
        f"insert into {log} (msg_id, payload) select nextval(msg_ids), to_jsonb(%s::text) from mq.queue",
        (payload,),
    )


def until_only_the_open_one_is_left(conn: psycopg.Connection) -> None:
    wait.until(lambda: segments(conn) == 1 or (maintain(conn) and None), "old segments to go")


# -- producers --------------------------------------------------------------------------------------


def test_a_producer_in_flight_keeps_a_segment_from_being_sealed(
    conn: psycopg.Connection, session: Connect
) -> None:
    producer = session()
    put(producer, "early")
    log = open_log(conn)
    rotate(conn)
    for _ in range(3):
        assert "sealed" not in maintain(conn)
    put(conn, "new")
    assert take(conn) == ["new"]
    put(producer, "later")  # into the open one
    late(producer, log, "late")
    producer.commit()
    assert drain(conn) == ["early", "late", "later"]
    wait.until(lambda: "sealed" in maintain(conn))
    until_only_the_open_one_is_left(conn)


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_a_late_producer_is_led_into_the_open_segment(
    conn: psycopg.Connection, session: Connect, level: str
) -> None:
    producer = session()
    producer.execute(f"set transaction isolation level {level}")
    producer.execute("select count(*) from mq.queues()")
    log = open_log(conn)
    put(conn, "a")
    rotate(conn)
    assert "sealed" in maintain(conn)
    late(producer, log, "late")
    assert value(conn, f"select count(*) from {log}") == 1  # a sealed segment never gains a row
    producer.commit()
    assert value(conn, f"select count(*) from {log}") == 1
    assert drain(conn) == ["a", "late"]


def test_a_producer_that_waits_for_the_seal_is_led_on(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    put(conn, "a")
    log = open_log(conn)
    rotate(conn)
    sealing, producer = session(), session()
    assert "sealed" in maintain(sealing)
    waiting = background(late, producer, log, "late")
    wait.until_blocked(conn, wait.backend_pid(producer), by=wait.backend_pid(sealing))
    sealing.commit()
    waiting.result(30)
    producer.commit()
    assert value(conn, f"select count(*) from {log}") == 1
    assert drain(conn) == ["a", "late"]


def test_a_producer_that_waits_for_the_truncate_is_led_on(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    put(conn, "a")
    log = open_log(conn)
    rotate(conn)
    assert drain(conn) == ["a"]
    dropping, producer = session(), session()

    def drops() -> bool:
        if "dropped" in maintain(dropping):
            return True
        dropping.commit()
        return False

    wait.until(drops)
    waiting = background(late, producer, log, "late")
    wait.until_blocked(conn, wait.backend_pid(producer), by=wait.backend_pid(dropping))
    dropping.commit()
    waiting.result(30)
    assert value(conn, f"select count(*) from {log}") == 0
    producer.commit()
    assert drain(conn) == ["late"]
    for _ in range(4):  # through all slots, the one of before too
        rotate(conn)
        maintain(conn)
        late(conn, log, "later")
        assert drain(conn) == ["later"]


def test_late_delayed_messages_are_led_into_the_open_set(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    queue_id = change_over(conn)
    assert value(conn, "select (pg_sequence_last_value(register) >> 32) & 1 from mq.queue") == 1
    moving, producer = session(), session()
    maintain(moving)  # puts the fence up

    def late_delayed() -> None:
        producer.execute(
            f"insert into mq.deferred_{queue_id}_0 (msg_id, due_at, payload)"
            " values (1000000, clock_timestamp(), '\"late\"')"
        )

    waiting = background(late_delayed)
    wait.until_blocked(conn, wait.backend_pid(producer), by=wait.backend_pid(moving))
    moving.commit()
    waiting.result(30)
    producer.commit()
    assert value(conn, f"select count(*) from mq.deferred_{queue_id}_0 where msg_id = 1000000") == 0
    wait.until(lambda: "late" in take(conn, 500))


def change_over(conn: psycopg.Connection) -> int:
    """Most of a set of more than 4 MB is consumed, 300 messages wait; the other set is the open one."""
    big = "jsonb_build_object('n', i, 'x', repeat(md5(i::text), 40))"
    conn.execute(
        f"select mq.enqueue_batch('q', (select array_agg({big}) from generate_series(1, 4000) as i),"
        " delay => '1 microsecond')"
    )
    conn.execute(
        "select mq.enqueue_batch('q', (select array_agg(to_jsonb(i)) from generate_series(1, 300) as i),"
        " delay => '1 hour')"
    )
    got = 0
    while got < 4000:
        rows = wait.until(lambda: take_rows(conn, 500))
        got += len(rows)
        ack(conn, rows[0][1])
    register = "select (pg_sequence_last_value(register) >> 32) & 1 from mq.queue"
    wait.until(lambda: (maintain(conn), value(conn, register))[1] == 1)
    return number(conn)


def test_what_waits_moves_when_the_deferral_sets_change_over(conn: psycopg.Connection) -> None:
    queue_id = change_over(conn)
    first = value(conn, "select mq.next_due('q')")
    wait.until(
        lambda: (
            (
                maintain(conn)
                and value(
                    conn, "select (pg_sequence_last_value(register) >> 33) & 1 = 0 from mq.queue"
                )
            )
            or None
        )
    )
    assert value(conn, f"select count(*) from mq.deferred_{queue_id}_0") == 0
    assert value(conn, f"select count(*) from mq.timer_{queue_id}_0") == 0
    assert value(conn, f"select count(*) from mq.deferred_{queue_id}_1") == 300
    assert value(conn, "select mq.next_due('q')") == first
    assert value(conn, "select deferred from mq.queue_stats('q')") == 300
    assert take(conn, 10) == []


@pytest.mark.parametrize("calls", [1, 2, 3, 5])
def test_a_change_over_that_rolls_back_loses_nothing(
    conn: psycopg.Connection, session: Connect, calls: int
) -> None:
    change_over(conn)
    failing = session()
    for _ in range(calls):
        maintain(failing)
    failing.rollback()
    wait.until(
        lambda: (
            maintain(conn) is not None
            and value(conn, "select (pg_sequence_last_value(register) >> 33) & 1 = 0 from mq.queue")
        )
    )
    queue_id, generation = conn.execute(
        "select queue_id, (pg_sequence_last_value(register) >> 32) & 1 from mq.queue"
    ).fetchone() or (0, 0)
    assert value(conn, f"select count(*) from mq._waiting_{queue_id}_{generation}()") == 300
    assert value(conn, f"select count(*) from mq.deferred_{queue_id}_{1 - generation}") == 0


# -- rotations that roll back -----------------------------------------------------------------------


@pytest.mark.parametrize("rotations", [1, 2, 3])
def test_a_rotation_that_rolls_back_is_mended(
    conn: psycopg.Connection, session: Connect, rotations: int
) -> None:
    for _ in range(4):  # slots enough to rotate more than once
        put(conn, "x")
        rotate(conn)
        maintain(conn)
    drain(conn)
    until_only_the_open_one_is_left(conn)
    put(conn, "before")
    failing = session()
    for i in range(rotations):
        failing.execute("savepoint s")
        try:
            rotate(failing)
        except psycopg.errors.ObjectNotInPrerequisiteState:
            failing.execute("rollback to savepoint s")
        put(conn, f"during {i}")  # into what the rollback makes nobody's
    failing.rollback()
    put(conn, "after")
    expected = ["before", *[f"during {i}" for i in range(rotations)], "after"]
    maintain(conn)
    assert sorted(map(str, drain(conn))) == sorted(expected)
    rotate(conn)
    until_only_the_open_one_is_left(conn)
    put(conn, "later")
    assert drain(conn) == ["later"]


def test_a_slot_is_not_used_again_by_the_transaction_that_emptied_it(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    log = open_log(conn)
    rotate(conn)
    drain(conn)
    failing = session()

    def drops() -> bool:
        if "dropped" in maintain(failing):
            return True
        failing.commit()
        return False

    wait.until(drops)
    rotate(failing)
    assert open_log(conn) != log
    failing.rollback()
    put(conn, "b")
    for _ in range(5):
        maintain(conn)
    assert drain(conn) == ["b"]


def test_a_rotation_goes_on_from_one_that_was_rolled_back(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    failing = session()
    rotate(failing)
    put(conn, "b")
    failing.rollback()
    rotate(failing)
    put(conn, "c")
    failing.rollback()
    rotate(conn)
    rotate(conn)
    put(conn, "d")
    assert drain(conn) == ["a", "b", "c", "d"]


def test_messages_come_while_a_rotation_is_not_committed(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "before")
    rotating = session()
    rotate(rotating)
    put(conn, "during")
    assert sorted(map(str, drain(conn))) == ["before", "during"]
    assert maintain(conn) == ["busy"]
    rotating.commit()
    put(conn, "after")
    assert drain(conn) == ["after"]


def test_a_receipt_is_settled_by_dequeue_across_a_rotation(conn: psycopg.Connection) -> None:
    fill(conn, 3)
    receipt = lease(conn)
    rotate(conn)
    put(conn, "new")
    for n in (1, 5):
        rows = take_rows(conn, n, ack=receipt)
        assert rows
        assert ack(conn, receipt) == 0  # it was settled on the way
        receipt = rows[0][1]
    assert ack(conn, receipt) > 0


# -- dropped only when nobody needs it --------------------------------------------------------------


def closed_with(conn: psycopg.Connection, count: int) -> None:
    fill(conn, count)
    rotate(conn)


def assert_it_stays(conn: psycopg.Connection) -> None:
    for _ in range(5):
        maintain(conn)
    assert segments(conn) == 2


def test_a_segment_stays_while_something_in_it_is_not_claimed(conn: psycopg.Connection) -> None:
    closed_with(conn, 3)
    assert_it_stays(conn)
    assert ack(conn, lease(conn, 2)) == 2
    assert_it_stays(conn)
    assert ack(conn, lease(conn)) == 1
    until_only_the_open_one_is_left(conn)


def test_a_segment_stays_while_something_in_it_is_leased(conn: psycopg.Connection) -> None:
    closed_with(conn, 3)
    receipt = lease(conn, 3)
    assert_it_stays(conn)
    assert ack(conn, receipt, [1, 3]) == 2
    assert_it_stays(conn)
    assert value(conn, "select mq.extend('q', %s, '1 hour')", receipt)
    assert_it_stays(conn)
    assert ack(conn, receipt) == 1
    until_only_the_open_one_is_left(conn)


def test_a_segment_stays_while_an_ack_is_not_committed(
    conn: psycopg.Connection, session: Connect
) -> None:
    closed_with(conn, 2)
    receipt = lease(conn, 2)
    settling = session()
    assert ack(settling, receipt) == 2
    assert_it_stays(conn)
    settling.rollback()
    assert_it_stays(conn)
    expire(conn)
    assert take(conn, 2) == [1, 2]


def test_a_segment_stays_while_a_claim_of_it_is_not_committed(
    conn: psycopg.Connection, session: Connect
) -> None:
    closed_with(conn, 3)
    assert ack(conn, lease(conn)) == 1
    claiming = session()
    assert take(claiming) == [2]
    assert ack(conn, lease(conn)) == 1
    assert_it_stays(conn)
    claiming.rollback()
    assert_it_stays(conn)
    assert ack(conn, lease(conn)) == 1
    until_only_the_open_one_is_left(conn)
    assert take(conn) == []


def test_a_segment_stays_while_its_opener_is_not_committed(
    conn: psycopg.Connection, session: Connect
) -> None:
    closed_with(conn, 2)
    claiming = session()
    assert take(claiming, 2) == [1, 2]
    assert_it_stays(conn)
    claiming.rollback()
    assert_it_stays(conn)
    assert drain(conn) == [1, 2]
    until_only_the_open_one_is_left(conn)


def test_a_hole_in_an_older_block_keeps_its_segment(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2)
    assert ack(conn, lease(conn)) == 1
    claiming = session()
    assert take(claiming) == [2]
    put(conn, "next block")
    rotate(conn)
    assert ack(conn, lease(conn)) == 1
    assert_it_stays(conn)
    claiming.rollback()
    wait.until(lambda: "swept" in maintain(conn))
    assert drain(conn) == [2]
    until_only_the_open_one_is_left(conn)


def test_a_claim_and_an_upkeep_that_roll_back_together_lose_nothing(
    conn: psycopg.Connection, session: Connect
) -> None:
    closed_with(conn, 3)
    assert "sealed" in maintain(conn)
    failing = session()
    receipt = lease(failing, 3)
    for _ in range(3):
        maintain(failing)
    assert ack(failing, receipt) == 3
    for _ in range(3):
        maintain(failing)
    failing.rollback()
    maintain(conn)
    assert drain(conn) == [1, 2, 3]
    until_only_the_open_one_is_left(conn)


def test_a_reader_delays_the_drop_and_nothing_else(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    log = open_log(conn)
    reader = session()
    reader.execute(f"select count(*) from {log}")
    rotate(conn)
    assert drain(conn) == ["a"]
    assert_it_stays(conn)
    put(conn, "b")
    assert drain(conn) == ["b"]
    reader.commit()
    until_only_the_open_one_is_left(conn)


def test_the_sweep_passes_by_a_segment_that_is_being_dropped(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    lease(conn)
    expire(conn)
    dropping = session()
    dropping.execute(
        f"lock table {open_log(conn).replace('log', 'block')} in access exclusive mode"
    )
    assert sweep(conn) == 0
    dropping.commit()
    assert sweep(conn) == 1


def test_two_at_upkeep_do_not_meet(conn: psycopg.Connection, session: Connect) -> None:
    closed_with(conn, 1)
    first = session()
    assert "busy" not in maintain(first)
    assert maintain(conn) == ["busy"]
    first.commit()
    assert "busy" not in maintain(conn)


# -- queues that are paused or go -------------------------------------------------------------------


def test_a_paused_queue_gives_nothing_and_settles(conn: psycopg.Connection) -> None:
    fill(conn, 3)
    receipt = lease(conn)
    conn.execute("select mq.pause_queue('q')")
    assert take(conn) == []
    put(conn, "more")
    assert take(conn, ack=receipt) == []
    assert ack(conn, receipt) == 0
    assert take(conn, wait="0.05 s") == []
    conn.execute("select mq.resume_queue('q')")
    assert take(conn, 5) + take(conn, 5) == [2, 3, "more"]


def test_a_consumer_that_waits_goes_on_after_resume(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    put(conn, "a")
    conn.execute("select mq.pause_queue('q')")
    consumer = session(autocommit=True)
    waiting = background(take, consumer, wait="8 s")
    wait.until_event(conn, wait.backend_pid(consumer), "PgSleep")
    conn.execute("select mq.resume_queue('q')")
    assert waiting.result(30) == ["a"]


CALLS_ON_A_QUEUE = [
    "select * from mq.dequeue('q')",
    "select * from mq.dequeue('q', 5)",
    "select mq.enqueue('q', '1')",
    "select * from mq.enqueue_batch('q', array['1']::jsonb[])",
    "select mq.enqueue('q', '1', delay => '1 s')",
    "select mq.ack('q', %(receipt)s)",
    "select mq.nack('q', %(receipt)s)",
    "select mq.extend('q', %(receipt)s)",
    "insert into mq.inbox (queue, payload) values ('q', '1')",
    "select * from mq.peek('q')",
    "select * from mq.queue_stats('q')",
    "select mq.purge_queue('q')",
    "select mq.pause_queue('q')",
    "select mq.alter_queue('q', max_attempts => 3)",
    "select mq.sweep_stale('q')",
    "select mq.next_due('q')",
    "select mq.message_status('q', 1)",
    "select mq.rotate_segment('q')",
    "select mq.redrive('q')",
    "select mq.drop_queue('q')",
]


@pytest.mark.parametrize("call", CALLS_ON_A_QUEUE)
def test_a_queue_dropped_while_it_is_used_is_a_clear_error(
    conn: psycopg.Connection, session: Connect, background: Background, call: str
) -> None:
    fill(conn, 3)
    receipt = lease(conn)
    user, dropping = session(), session()
    user.execute("select * from mq.dequeue('q')")  # plans and caches are there
    user.commit()
    dropping.execute("select mq.drop_queue('q')")
    used = background(user.execute, call, {"receipt": receipt})
    wait.until_blocked(conn, wait.backend_pid(user), by=wait.backend_pid(dropping))
    dropping.commit()
    error = used.exception(30)
    assert isinstance(error, psycopg.DatabaseError)
    assert error.sqlstate == "MQ001", error
    user.rollback()
    with pytest.raises(psycopg.DatabaseError) as after:
        user.execute(call, {"receipt": receipt})
    assert after.value.sqlstate == "MQ001"


@pytest.mark.parametrize("call", ["select mq.enqueue('q', '1')", "select mq.ack('q', %(receipt)s)"])
def test_a_snapshot_older_than_the_drop_does_not_see_the_queue_either(
    conn: psycopg.Connection, session: Connect, call: str
) -> None:
    fill(conn, 1)
    receipt = lease(conn)
    user = session()
    user.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    user.execute("select 1")
    conn.execute("select mq.drop_queue('q')")
    with pytest.raises(psycopg.DatabaseError) as error:
        user.execute(call, {"receipt": receipt})
    assert error.value.sqlstate == "MQ001"


def test_a_queue_in_use_is_not_dropped_at_once(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    fill(conn, 3)
    user, dropping = session(), session()
    assert take(user) == [1]
    dropped = background(dropping.execute, "select mq.drop_queue('q')")
    wait.until_blocked(conn, wait.backend_pid(dropping), by=wait.backend_pid(user))
    user.commit()
    dropped.result(30)
    dropping.rollback()
    assert take(conn) == [2]
