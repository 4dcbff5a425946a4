"""Two consumers and more: who gets what, who waits for whom, what a rollback leaves."""

from __future__ import annotations

import random
import re
import threading

import psycopg
import pytest

from support import race, wait
from support.race import (
    Background,
    Connect,
    deferred,
    fill,
    locks,
    number,
    put,
    sweep,
    take,
    take_rows,
    value,
)

pytestmark = pytest.mark.matrix
database, queue, session = race.database, race.queue, race.session


# -- windows between snapshots ----------------------------------------------------------------------


def test_stragglers_are_delivered_after_younger_messages(
    conn: psycopg.Connection, session: Connect
) -> None:
    old = [session() for _ in range(4)]
    for i, straggler in enumerate(old):
        put(straggler, f"old {i}")
        put(conn, f"young {i}")
    assert take(conn, 10) == ["young 0", "young 1", "young 2", "young 3"]
    old[1].commit()
    put(conn, "younger")
    assert take(conn, 10) == ["old 1", "younger"]
    old[3].commit()
    old[0].rollback()
    assert take(conn, 10) == ["old 3"]
    put(old[2], "old 2 again")
    old[2].commit()
    assert take(conn, 10) == ["old 2", "old 2 again"]
    assert take(conn, 10) == []


def test_a_straggler_is_found_after_many_blocks(conn: psycopg.Connection, session: Connect) -> None:
    straggler = session()
    put(straggler, "old")
    fill(conn, 600)
    got = [payload for _ in range(100) for payload in take(conn, 2)]
    straggler.commit()
    fill(conn, 1)
    while more := take(conn, 50):
        got += more
    assert sorted(map(str, got)) == sorted([*map(str, range(1, 601)), "1", "old"])


def test_short_slices_are_given_out_together(conn: psycopg.Connection, session: Connect) -> None:
    for i in range(30):  # each ends a range of the window
        put(session(), "straggler")
        put(conn, str(i))
    for part in range(3):
        assert take(conn, 10) == [str(i) for i in range(10 * part, 10 * part + 10)]


def test_what_a_transaction_enqueues_around_its_dequeue_is_delivered_to_others(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    both = session()
    put(both, "before")
    assert take(both, 10) == ["a"]
    put(both, "after")
    assert take(both, 10) == []
    put(conn, "b")
    assert take(both, 10) == ["b"]
    both.commit()
    assert take(conn, 10) == ["before", "after"]


def test_nobody_receives_what_was_rolled_back(conn: psycopg.Connection, session: Connect) -> None:
    producer = session()
    put(producer, "no")
    assert take(producer) == []
    producer.execute("savepoint s")
    put(producer, "neither")
    producer.execute("rollback to savepoint s")
    put(producer, "nor this")
    producer.rollback()
    assert take(conn, 10) == []
    put(producer, "no")
    producer.execute("savepoint s")
    put(producer, "neither")
    producer.execute("rollback to savepoint s")
    producer.commit()
    assert take(conn, 10) == ["no"]


def test_delayed_messages_are_not_delivered_to_their_own_transaction(
    conn: psycopg.Connection, session: Connect
) -> None:
    producer = session()
    put(producer, "soon", delay="1 microsecond")
    producer.execute("select pg_sleep(0.01)")
    assert take(producer) == []
    producer.commit()
    assert take(conn) == ["soon"]


def test_nothing_is_lost_or_doubled_while_many_commit(
    conn: psycopg.Connection, connect: Connect, background: Background
) -> None:
    producers, each = 6, 250
    over = threading.Event()

    def produce(number: int, producer: psycopg.Connection) -> None:
        for i in range(each):
            put(producer, f"{number}.{i}")

    def consume(n: int, consumer: psycopg.Connection) -> list[str]:
        got: list[str] = []
        while True:
            last = over.is_set()
            rows = take(consumer, n)
            got += rows
            if last and not rows:
                return got

    sending = [background(produce, i, connect()) for i in range(producers)]
    taking = [background(consume, n, connect()) for n in (1, 1, 3, 40)]
    for future in sending:
        future.result(60)
    over.set()
    got = [payload for future in taking for payload in future.result(60)]
    got += take(conn, 1000)
    sweep(conn)
    got += take(conn, 1000)
    assert len(got) == len(set(got))
    assert len(got) == producers * each


# -- isolation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize(
    "call",
    [
        "select * from mq.dequeue('q')",
        "select mq.sweep_stale('q')",
        "select * from mq.maintain('q')",
        "select mq.rotate_segment('q')",
        "select mq.purge_queue('q')",
    ],
)
def test_what_needs_read_committed_refuses_an_older_snapshot(
    session: Connect, level: str, call: str
) -> None:
    old = session()
    old.execute(f"set transaction isolation level {level}")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="READ COMMITTED") as error:
        old.execute(call)
    assert error.value.diag.message_hint


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_enqueue_and_ack_work_in_every_isolation_level(
    conn: psycopg.Connection, session: Connect, level: str
) -> None:
    put(conn, "a")
    receipt = take_rows(conn)[0][1]
    old = session()
    old.execute(f"set transaction isolation level {level}")
    old.execute("select count(*) from mq.queues()")
    conn.execute("select mq.rotate_segment('q')")
    conn.execute("select * from mq.maintain('q')")
    put(old, "b")
    fill(old, 2)
    put(old, "later", delay="1 microsecond")
    assert old.execute("select mq.ack('q', %s, strict => true)", (receipt,)).fetchone() == (1,)
    old.commit()
    got = take(conn, 10) + take(conn, 10)
    assert sorted(map(str, got)) == ["1", "2", "b", "later"]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize(
    "call",
    [
        "select mq.ack('q', %s)",
        "select mq.ack('q', %s, array[1::bigint])",
        "select mq.ack('q', %s, strict => true)",
        "select mq.nack('q', %s)",
        "select mq.extend('q', %s)",
    ],
)
def test_settling_with_a_snapshot_older_than_the_lease_fails_with_40001(
    conn: psycopg.Connection, session: Connect, level: str, call: str
) -> None:
    put(conn, "a")
    old = session()
    old.execute(f"set transaction isolation level {level}")
    old.execute("select count(*) from mq.queues()")
    receipt = take_rows(conn)[0][1]
    with pytest.raises(psycopg.errors.SerializationFailure):
        old.execute(call, (receipt,))
    old.rollback()
    assert conn.execute("select mq.ack('q', %s)", (receipt,)).fetchone() == (1,)


def test_settling_what_was_settled_after_the_snapshot_fails_with_40001(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    receipt = take_rows(conn)[0][1]
    old = session()
    old.execute("set transaction isolation level repeatable read")
    old.execute("select count(*) from mq.queues()")
    assert conn.execute("select mq.ack('q', %s)", (receipt,)).fetchone() == (1,)
    with pytest.raises(psycopg.errors.SerializationFailure):
        old.execute("select mq.ack('q', %s)", (receipt,))


# -- empty polls ------------------------------------------------------------------------------------


def assert_nothing_left(consumer: psycopg.Connection, observer: psycopg.Connection) -> None:
    assert locks(consumer, observer) == []
    assert consumer.execute("select pg_current_xact_id_if_assigned()").fetchone() == (None,)


def test_an_empty_poll_leaves_no_lock_and_takes_no_xid(
    conn: psycopg.Connection, session: Connect
) -> None:
    consumer = session()
    assert take(consumer, 10) == []  # nothing was ever there
    assert_nothing_left(consumer, conn)
    fill(conn, 3)
    put(conn, "later", delay="1 hour")
    take(conn, 2)
    take(conn, 2)
    for n in (1, 2, 500):
        assert take(consumer, n) == []  # all is leased or deferred
        assert_nothing_left(consumer, conn)
    straggler = session()
    put(straggler, "uncommitted")
    assert take(consumer) == []
    assert_nothing_left(consumer, conn)
    conn.execute("select mq.rotate_segment('q')")
    assert take(consumer) == []  # two segments are alive
    assert_nothing_left(consumer, conn)


def test_an_empty_poll_writes_no_wal(conn: psycopg.Connection, session: Connect) -> None:
    fill(conn, 3)
    take(conn, 3)
    consumer = session(autocommit=True)
    take(consumer)

    def written() -> int:
        """By 50 empty polls; other processes of the server may add to it."""
        row = conn.execute("select pg_current_wal_insert_lsn()").fetchone()
        assert row is not None
        for _ in range(50):
            assert take(consumer) == []
        after = conn.execute(
            "select (pg_current_wal_insert_lsn() - %s::pg_lsn)::bigint", (row[0],)
        ).fetchone()
        assert after is not None
        return int(after[0])

    assert min(written() for _ in range(5)) == 0


def test_an_empty_poll_that_waited_for_the_opener_leaves_no_lock(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    opener, consumer = session(), session()
    assert take(opener) == ["a"]
    put(conn, "b")
    assert take(consumer) == []  # the lane is taken: it waited, and gave up
    assert_nothing_left(consumer, conn)
    opener.commit()
    assert take(conn) == ["b"]


def test_an_empty_poll_that_waited_until_the_opener_was_done_leaves_no_lock(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    consumer = session()
    for _ in range(5):
        put(conn, "a")
        opener = session()
        assert take(opener) == ["a"]
        polling = background(take, consumer)
        while not polling.done() and not value(
            conn, "select cardinality(pg_blocking_pids(%s))", wait.backend_pid(consumer)
        ):
            pass  # it waits for 50 ms at a time
        opener.commit()
        assert polling.result(30) == []
        assert_nothing_left(consumer, conn)
        consumer.commit()


def test_whoever_got_nothing_or_opened_nothing_delays_nobody(
    conn: psycopg.Connection, session: Connect
) -> None:
    sitting = session()
    assert take(sitting, 5) == []
    fill(conn, 3)
    assert take(conn) == [1]
    follower = session()
    assert take(follower) == [2]  # of a block that another opened
    put(conn, "new")
    assert take(conn) == [3]
    assert take(conn) == ["new"]


def test_a_hole_taken_from_the_newest_block_keeps_nobody_from_opening_the_next(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2)
    assert take(conn) == [1]
    failing = session()
    assert take(failing) == [2]
    failing.rollback()
    put(conn, "next")
    sitting = session()
    assert take(sitting) == [2]
    assert take(conn) == ["next"]


def test_an_empty_poll_that_set_timers_delays_nobody(
    conn: psycopg.Connection, session: Connect
) -> None:
    conn.execute(
        "select mq.enqueue_batch('q', array_fill('{}'::jsonb, array[1500]), delay => '1 hour')"
    )
    sitting = session()
    assert take(sitting) == []
    put(conn, "fresh")
    assert take(conn) == ["fresh"]
    sitting.commit()
    put(conn, "due", delay="1 microsecond")
    assert value(conn, "select mq.next_due('q') < clock_timestamp()")
    assert wait.until(lambda: take(conn), seconds=20) == ["due"]  # each poll sets some timers


# -- claims -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opened_with", "n"), [(1, 1), (1, 5), (10, 10), (10, 3), (3, 10), (64, 1)]
)
def test_consumers_in_open_transactions_never_meet(
    conn: psycopg.Connection, session: Connect, opened_with: int, n: int
) -> None:
    count = 640
    fill(conn, count)
    got = take(conn, opened_with)
    sitting = [session() for _ in range(6)]
    for consumer in sitting:
        rows = take(consumer, n)
        assert rows, "a slice that is taken must be skipped, not waited for"
        got += rows
    assert len(got) == len(set(got))
    for consumer in sitting[::2]:
        consumer.rollback()
    for consumer in sitting[1::2]:
        consumer.commit()
    while True:
        rows = take(conn, n)
        if not rows and sweep(conn) == 0:
            break
        got += rows
    assert set(got) == set(range(1, count + 1))
    assert len(got) == count + sum(n for _ in sitting[::2])  # what was rolled back came twice


def test_a_slice_that_was_leased_since_it_was_chosen_is_passed_over(
    conn: psycopg.Connection, session: Connect
) -> None:
    # A consumer chooses a slice, by ticket or by a look, and only then locks it. Whoever had the lock before may have
    # committed in between: so it looks again. That moment is too short to meet; so here is the call that it makes.
    fill(conn, 640)
    take(conn)
    rows = take_rows(conn)
    slot, block_no, a_slice = re.match(  # type: ignore[union-attr]
        r"(\d+\.\d+)\.1\.0\.(\d+)\.(\d+)\.", str(rows[0][1])
    ).groups()
    late = session()
    gather = (
        f"select msg_id from mq._gather_{slot.replace('.', '_')}"
        "(1::smallint, 0::smallint, %s, array[%s]::int[], false, 1, '1 min')"
    )
    assert late.execute(gather, (block_no, a_slice)).fetchall() == []
    assert late.execute(gather, (block_no, int(a_slice) + 1)).fetchall() != []


def test_a_claim_of_the_newest_block_that_rolled_back_is_found_by_dequeue(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 4)
    assert take(conn) == [1]
    failing = session()
    assert take(failing) == [2]
    assert take(conn) == [3]
    failing.rollback()
    assert take(conn) == [4]
    rows = take_rows(conn)
    assert [(row[5], row[2]) for row in rows] == [(2, 1)]  # and it was no attempt
    assert take(conn) == []


def claim_of_an_older_block(conn: psycopg.Connection, session: Connect) -> psycopg.Connection:
    """A transaction that claimed message 2; the rest of its block is leased, and so is the block after it."""
    fill(conn, 3)
    assert take(conn) == [1]
    claiming = session()
    assert take(claiming) == [2]
    assert take(conn) == [3]
    put(conn, "next block")
    assert take(conn) == ["next block"]
    return claiming


def test_a_claim_of_an_older_block_that_rolled_back_is_found_by_the_sweep(
    conn: psycopg.Connection, session: Connect
) -> None:
    claim_of_an_older_block(conn, session).rollback()
    assert sweep(conn) == 1
    assert [(row[5], row[2]) for row in take_rows(conn)] == [(2, 1)]
    assert sweep(conn) == 0
    assert take(conn) == []


def test_a_claim_of_an_older_block_that_rolled_back_is_found_by_dequeue_too(
    conn: psycopg.Connection, session: Connect
) -> None:
    claim_of_an_older_block(conn, session).rollback()
    assert [(row[5], row[2]) for row in take_rows(conn)] == [(2, 1)]
    # Delivered where it was: nothing went through deferred, nor was settled.
    assert value(conn, f"select count(*) from mq.settlement_{number(conn)}_1") == 0


# -- consumers of different sizes -------------------------------------------------------------------


@pytest.mark.parametrize("in_a_transaction", [False, True])
def test_who_wants_more_takes_the_rest_of_a_slice_that_another_began(
    conn: psycopg.Connection, connect: Connect, in_a_transaction: bool
) -> None:
    fill(conn, 200)
    assert take(conn, 50) == list(range(1, 51))
    other = connect()
    assert take(other) == [51]
    assert take(other, 2) == [52, 53]
    if in_a_transaction:
        conn.execute("begin")
        conn.execute("select pg_current_xact_id()")
    assert take(conn, 50) == list(range(54, 101))
    assert take(conn, 50) == list(range(101, 151))
    assert take(other) == [151]


def test_a_small_consumer_goes_on_with_the_slice_that_it_began(
    conn: psycopg.Connection, session: Connect
) -> None:
    # In a transaction it would keep the lock of each slice that it begins, and what is left of them from others.
    fill(conn, 4000)
    got = take(conn, 10)
    small = session()
    theirs = []
    for _ in range(9):
        theirs += take(small)
        for _ in range(20):  # by now the others are in the next block
            got += take(conn, 10)
    assert theirs == list(range(11, 20))
    while more := take(conn, 10):
        got += more
    assert sorted(got + theirs) == [i for i in range(1, 4001) if i != 20]
    assert take(small) == [20]
    small.commit()
    assert sweep(conn) == 0
    assert take(small) == take(conn) == []
    assert deferred(conn) == 0


def test_what_a_long_transaction_opened_itself_needs_no_locks(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 4000)
    long = session()
    got = take(long, 20)
    for _ in range(150):
        got += take(long, 1) + take(long, 20)
    assert race.advisory_locks(long, conn) < 20
    got += [i for _ in range(1200) for i in take(long, 20)]
    assert sorted(got) == list(range(1, 4001))


def test_who_begins_slices_of_two_queues_goes_on_in_both(
    conn: psycopg.Connection, session: Connect
) -> None:
    race.fresh(conn.info.dsn, "q", "r")
    for queue in ("q", "r"):
        fill(conn, 200, queue)
        assert take(conn, 10, queue) == list(range(1, 11))
    small = session()
    got = []
    for _ in range(5):
        for queue in ("q", "r"):
            got += take(small, 1, queue)
            take(conn, 10, queue)
    assert got == [i for i in range(11, 16) for _ in ("q", "r")]


def test_the_rest_of_what_another_began_counts_as_a_claim(
    conn: psycopg.Connection, connect: Connect, session: Connect
) -> None:
    fill(conn, 200)
    take(conn, 10)
    assert take(connect()) == [11]
    greedy = session()
    greedy.execute("select pg_current_xact_id()")
    greedy.execute("select set_config('mq.claims', '1000', true)")
    with pytest.raises(psycopg.DatabaseError) as error:
        take(greedy)
    assert error.value.sqlstate == "MQ007"


def test_tickets_of_what_others_took_without_cost_no_locks(
    conn: psycopg.Connection, connect: Connect, session: Connect
) -> None:
    fill(conn, 640)
    take(conn, 10)
    other = connect()
    assert [i for _ in range(630) for i in take(other)] == list(range(11, 641))
    poll, writing = session(), session()
    writing.execute("select pg_current_xact_id()")
    for consumer, most in ((poll, 1), (writing, 0)):
        assert take(consumer, 10) == []
        assert race.advisory_locks(consumer, conn) <= most


def test_what_a_small_consumer_began_and_left_is_found_by_others(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2000)
    got = take(conn, 10)
    small = session()
    got += take(small)
    while more := take(conn, 10):
        got += more
    small.commit()
    assert sorted(got + take(conn, 10)) == list(range(1, 2001))
    assert deferred(conn) == 0


def test_an_opener_that_rolls_back_leaves_everything_as_it_was(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 5)
    put(conn, "due", delay="1 microsecond")
    opener = session()
    first = take(opener, 2)
    opener.rollback()
    opener.execute("savepoint s")
    assert take(opener, 2) == first
    opener.execute("rollback to savepoint s")
    assert take(conn, 2) == first  # while the transaction goes on
    opener.commit()
    assert sorted(map(str, first + take(conn, 10) + take(conn, 10))) == [
        "1",
        "2",
        "3",
        "4",
        "5",
        "due",
    ]


def test_a_claim_rolled_back_to_a_savepoint_can_be_taken_again(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 3)
    consumer = session()
    assert take(consumer) == [1]
    consumer.execute("savepoint s")
    assert take(consumer) == [2]
    consumer.execute("rollback to savepoint s")
    rest = take(consumer) + take(consumer)
    consumer.commit()
    rest += take(conn)
    assert sorted(rest) == [2, 3]


def test_a_position_taken_again_has_another_receipt(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2)
    failing = session()
    old = take_rows(failing, 2)[0][1]
    failing.rollback()
    new = take_rows(conn, 2)[0][1]
    assert old.split(".")[:7] == new.split(".")[:7], "else this test shows nothing"
    for call in (
        "select mq.ack('q', %s)",
        "select mq.ack('q', %s, array[1::bigint])",
        "select mq.nack('q', %s)",
    ):
        assert conn.execute(call, (old,)).fetchone() == (0,)
    assert conn.execute("select mq.extend('q', %s)", (old,)).fetchone() == (None,)
    with pytest.raises(psycopg.DatabaseError) as error:
        conn.execute("select * from mq.dequeue('q', ack => %s)", (old,))
    assert error.value.sqlstate == "MQ003"
    assert conn.execute("select mq.ack('q', %s)", (new,)).fetchone() == (2,)


# -- waiting ----------------------------------------------------------------------------------------


def test_lanes_taken_crosswise_in_two_queues_are_no_deadlock(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    for name in ("a", "b"):
        conn.execute("select mq.create_queue(%s)", (name,))
        put(conn, "one", name)
    first, second = session(), session()
    assert take(first, 1, "a") == ["one"]
    assert take(second, 1, "b") == ["one"]
    for name in ("a", "b"):
        put(conn, "two", name)
    crossing = [background(take, first, 1, "b"), background(take, second, 1, "a")]
    assert [future.result(30) for future in crossing] == [[], []]
    first.commit()
    second.commit()
    assert take(conn, 5, "a") == take(conn, 5, "b") == ["two"]


def test_dequeue_gives_up_soon_when_another_keeps_the_lane(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    opener = session()
    assert take(opener) == ["a"]
    put(conn, "b")
    for segments in range(3):  # one budget a call, not one a segment
        row = conn.execute(
            "select count(*), extract(epoch from clock_timestamp() - statement_timestamp())::float8"
            " from mq.dequeue('q')"
        ).fetchone()
        assert row is not None
        assert row[0] == 0
        assert row[1] < 5, f"with {segments + 1} segments"  # an upper bound: it should be 0.1
        conn.execute("select mq.rotate_segment('q')")
        conn.execute("select * from mq.maintain('q')")


def test_users_own_advisory_locks_are_not_in_the_way(
    conn: psycopg.Connection, session: Connect
) -> None:
    user = session()
    user.execute("select pg_advisory_lock(i) from generate_series(-10, 3000) as i")
    user.execute(
        "select pg_advisory_lock(i, j) from generate_series(0, 8) as i, generate_series(-6, 130) as j"
    )
    fill(conn, 20)
    got = [take(conn)[0] for _ in range(10)]
    rows = take_rows(conn, 10)
    assert got + [row[5] for row in rows] == list(range(1, 21))
    assert conn.execute("select mq.ack('q', %s)", (rows[0][1],)).fetchone() == (10,)
    conn.execute("select mq.rotate_segment('q')")
    assert [row[1] for row in conn.execute("select * from mq.maintain('q')").fetchall()] != []


# -- how big blocks are ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "drawn", "slices"),
    [(16, 31, 64), (16, 32, 128), (16, 64, 128), (300, 32, 109), (2, 64, 256), (1, 255, 256)],
)
def test_blocks_are_as_big_as_many_consumers_need(
    conn: psycopg.Connection, n: int, drawn: int, slices: int
) -> None:
    """Where half of a block is drawn before its successor is begun, all would have to wait for the next one."""
    fill(conn, n * 200 + 500)
    assert len(take(conn, n)) == n
    draw(conn, drawn - 1)  # others
    open_ahead(conn, n)
    assert blocks(conn)[1] == slices
    open_ahead(conn, n)
    assert len(blocks(conn)) == 2  # nobody has drawn from that


def test_blocks_are_smaller_again(conn: psycopg.Connection) -> None:
    """What is due again waits for a whole block."""
    fill(conn, 16 * 1100)
    assert len(take(conn, 16)) == 16
    for drawn in 63, 128, 100, 156 + 63, 193 + 31, 97 + 15:
        draw(conn, drawn)
        open_ahead(conn, 16)
    assert blocks(conn) == [64, 128, 256, 256, 128, 64, 64]


def test_blocks_are_small_where_much_is_due(conn: psycopg.Connection) -> None:
    fill(conn, 16 * 300)
    assert len(take(conn, 16)) == 16
    for _ in range(16):
        put(conn, "due", delay="1 microsecond")
    conn.execute("select mq.maintain('q')")
    draw(conn, 63)
    open_ahead(conn, 16)
    assert blocks(conn) == [64, 128]
    conn.execute(
        "select mq.enqueue_batch('q', array_fill('1'::jsonb, array[600]), delay => '1 microsecond')"
    )
    conn.execute("select mq.maintain('q')")
    draw(conn, 128)
    open_ahead(conn, 16)
    assert blocks(conn) == [64, 128, 64]


def draw(conn: psycopg.Connection, count: int) -> None:
    conn.execute(
        f"select nextval('mq.ticket_{number(conn)}_1') from generate_series(1, %s)", (count,)
    )


def open_ahead(conn: psycopg.Connection, n: int) -> None:
    conn.execute(f"select mq._open_ahead_{number(conn)}_1(1::int2, 0::int2, %s, true, true)", (n,))


def blocks(conn: psycopg.Connection) -> list[int]:
    """How many slices each has."""
    query = (
        f"select array_agg(cardinality(counts) order by block_no) from mq.block_{number(conn)}_1"
    )
    return list(value(conn, query))


# -- many claims in one transaction -----------------------------------------------------------------


def dequeue_all_in_one_transaction(
    conn: psycopg.Connection, session: Connect, connect: Connect, background: Background, count: int
) -> None:
    batch = 20_000
    for _ in range(count // batch):
        fill(conn, batch)
    mine = session()
    mine.execute("set local statement_timeout = 0")
    others_go_on = threading.Event()

    def consume(n: int, consumer: psycopg.Connection) -> list[int]:
        got = []
        while not others_go_on.is_set():
            for row in take_rows(consumer, n):
                got.append(row[0])
        return got

    others = [background(consume, n, connect()) for n in (1, 500)]
    try:
        row = mine.execute(
            "select count(*), count(distinct d.msg_id) from generate_series(1, %s) as i"
            " cross join lateral (select * from mq.dequeue('q', 1 + 0 * i)) as d",
            (count,),
        ).fetchone()
        assert row is not None
        mine.commit()
    finally:
        others_go_on.set()
    got = [msg_id for future in others for msg_id in future.result(60)]
    assert len(got) == len(set(got))
    total = int(row[1]) + len(got)
    assert row[0] == row[1] > 0
    while rows := take_rows(conn, 500):
        total += len(rows)
    assert total == count // batch * batch
    assert sweep(conn) == 0  # no holes
    assert deferred(conn) == 0


@pytest.mark.slow
def test_thousands_of_dequeues_in_one_transaction(
    conn: psycopg.Connection, session: Connect, connect: Connect, background: Background
) -> None:
    dequeue_all_in_one_transaction(conn, session, connect, background, 20_000)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_dequeues_in_one_transaction(
    conn: psycopg.Connection, session: Connect, connect: Connect, background: Background
) -> None:
    dequeue_all_in_one_transaction(conn, session, connect, background, 100_000)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_64_clients_of_long_transactions_leave_locks_for_others(
    conn: psycopg.Connection, connect: Connect, background: Background
) -> None:
    # 100,000 dequeues of one or of 500 messages by 64 clients, each in one transaction.
    count, clients, calls = 1_000_000, 64, 1_600
    for _ in range(count // 20_000):
        fill(conn, 20_000)

    def consume(consumer: psycopg.Connection, seed: int) -> tuple[int, list[int]]:
        chance = random.Random(seed)
        consumer.execute("begin")
        got: list[int] = []
        try:
            for _ in range(calls):
                n = 500 if chance.random() < 0.01 else 1
                rows = consumer.execute("select msg_id from mq.dequeue('q', %s)", (n,))
                got += [row[0] for row in rows]
        except psycopg.DatabaseError as error:
            if error.sqlstate != "MQ007":
                raise
            # What mq says before the lock table is full.
            consumer.execute("rollback")
            return 1, []
        consumer.execute("commit")
        return 0, got

    done = [
        future.result(800)
        for future in [background(consume, connect(), seed) for seed in range(clients)]
    ]
    got = [msg_id for _, msg_ids in done for msg_id in msg_ids]
    assert len(got) == len(set(got)) > 0
    assert sum(refused for refused, _ in done) <= clients // 8
    assert deferred(conn) == 0


def test_too_many_claims_of_others_blocks_are_refused_with_a_hint(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 2000)
    greedy = session()
    got: list[int] = []

    def claim_what_others_opened() -> None:
        for _ in range(20):
            assert take(conn)  # opens a block of slices of one
            for _ in range(127):
                got.extend(take(greedy))

    with pytest.raises(psycopg.DatabaseError, match="too often") as error:
        claim_what_others_opened()
    assert error.value.sqlstate == "MQ007"
    assert error.value.diag.message_hint
    assert 1000 <= len(got) <= 1001
    greedy.rollback()
    # The count ends with the transaction, and nothing is lost.
    assert take(greedy) != []
