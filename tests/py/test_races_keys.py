"""Ordering keys between two sessions: whatever commits late, is undone or dies, no key has two leases, none is forgotten."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from support import race, wait
from support.race import (
    Background,
    Connect,
    ack,
    expire,
    from_elsewhere,
    in_another_cluster,
    number,
    outlive,
    rotate,
    take,
    take_rows,
    unsettled,
    value,
)

database, queue, session = race.database, race.queue, race.session

UNDO: list[str] = ["rollback", "death"]


def put(conn: psycopg.Connection, key: str, *whats: str, **more: Any) -> None:
    named = "".join(f", {name} => %({name})s" for name in more)
    for what in whats:
        conn.execute(
            f"select mq.enqueue('q', to_jsonb(%(what)s::text), ordering_key => %(key)s{named})",
            {"what": what, "key": key, **more},
        )


def nack(
    conn: psycopg.Connection, receipt: str, ids: list[int] | None = None, delay: str = "0"
) -> int:
    return int(value(conn, "select mq.nack('q', %s, %s, delay => %s)", receipt, ids, delay))


def undo(conn: psycopg.Connection, how: str, observer: psycopg.Connection) -> None:
    """The end of a transaction that did not commit."""
    if how == "rollback":
        conn.rollback()
    else:
        pid = wait.backend_pid(conn)
        observer.execute("select pg_terminate_backend(%s)", (pid,))
        wait.until(
            lambda: (
                not observer.execute("select from pg_stat_activity where pid = %s", (pid,)).rowcount
            )
        )


def polls(conn: psycopg.Connection, n: int = 10) -> list[Any]:
    """What there is, and what a first poll brings back to its key; nothing is acknowledged."""
    return take(conn, n) + take(conn, n) + take(conn, n)


def make_due(conn: psycopg.Connection) -> None:
    queue_id = number(conn)
    for g in (0, 1):
        conn.execute(f"update mq.timer_{queue_id}_{g} set due_at = due_at - interval '1 day'")
        conn.execute(f"update mq.deferred_{queue_id}_{g} set due_at = due_at - interval '1 day'")


def test_an_ack_counts_when_it_commits(session: Connect) -> None:
    consumer, other = session(), session(autocommit=True)
    put(other, "a", "a1", "a2")
    receipt = take_rows(other)[0][1]
    assert ack(consumer, receipt) == 1
    assert take(other) == []
    consumer.commit()
    assert take(other) == ["a2"]


@pytest.mark.parametrize("how", UNDO)
def test_an_ack_that_is_undone(session: Connect, how: str) -> None:
    consumer, other = session(), session(autocommit=True)
    put(other, "a", "a1", "a2")
    receipt = take_rows(other)[0][1]
    assert ack(consumer, receipt) == 1
    undo(consumer, how, other)
    assert take(other) == []
    assert ack(other, receipt) == 1
    assert take(other) == ["a2"]


@pytest.mark.parametrize("how", UNDO)
def test_an_opener_that_is_undone(session: Connect, how: str) -> None:
    """With the block goes what was admitted to it: the keys are ready as before."""
    opener, other = session(), session(autocommit=True)
    put(other, "a", "a1", "a2")
    put(other, "b", "b1")
    assert take(opener, 10) == ["a1", "a2", "b1"]
    assert take(other, 10) == []
    undo(opener, how, other)
    assert take(other, 10) == ["a1", "a2", "b1"]
    assert polls(other) == []


@pytest.mark.parametrize("how", UNDO)
def test_a_claim_that_is_undone(session: Connect, how: str) -> None:
    """A run that is in a block stays there, and is leased again as it is."""
    claimer, other = session(), session(autocommit=True)
    put(other, "a", "a1")
    put(other, "b", "b1", "b2")
    assert take(other) == ["a1"]
    assert take(claimer) == ["b1"]
    assert take(other) == []
    undo(claimer, how, other)
    receipt = take_rows(other)[0][1]
    assert ack(other, receipt) == 1
    assert take(other) == ["b2"]


def test_a_hole_in_a_sealed_segment_comes_back_in_order(session: Connect) -> None:
    """A run that was leased and rolled back while its segment was sealed is not behind what came later."""
    claimer, other = session(), session(autocommit=True)
    put(other, "a", "a1", "a2", "a3")
    put(other, "b", "b1", "b2", "b3")
    assert take(other, 3) == ["a1", "a2", "a3"]
    assert take(claimer, 3) == ["b1", "b2", "b3"]
    rotate(other)
    claimer.rollback()
    put(other, "b", "b4")
    put(other, "c", "c1")
    got = []
    while rows := take_rows(other, 10) or take_rows(other, 10):
        got += [row[5] for row in rows]
        assert ack(other, rows[0][1]) == len(rows)
    assert [what for what in got if what[0] == "b"] == ["b1", "b2", "b3", "b4"]
    assert "c1" in got


def test_what_commits_late_comes_behind(session: Connect) -> None:
    """Nothing is forgotten that commits behind the window."""
    producer, other = session(), session(autocommit=True)
    put(producer, "a", "late 1", "late 2")
    put(other, "a", "a1", "a2")
    assert take(other) == ["a1"]
    producer.commit()
    put(other, "a", "a3")
    expire(other)
    got = []
    while rows := take_rows(other, 2) or take_rows(other, 2):
        got += [row[5] for row in rows]
        assert ack(other, rows[0][1]) == len(rows)
    # Its msg_ids are lower, but it was not there when the others came; a3 came with it, in one window, by transaction.
    assert got == ["a1", "a2", "late 1", "late 2", "a3"]


def test_nack_and_ack_at_once(session: Connect, background: Background) -> None:
    """One of them has it all: the ack comes too late, and nothing of the lease is lost or done twice."""
    first, second, other = session(), session(autocommit=True), session(autocommit=True)
    put(other, "a", "a1", "a2", "a3")
    rows = take_rows(other, 2)
    receipt = rows[0][1]
    assert nack(first, receipt, [rows[0][0]]) == 1
    pid = wait.backend_pid(second)
    acked = background(ack, second, receipt)
    wait.until_blocked_or_done(other, pid, acked.done)
    first.commit()
    assert acked.result(15) == 0
    assert polls(other) == ["a1", "a2", "a3"]


def test_part_of_a_lease_fails_while_the_rest_is_acknowledged(
    session: Connect, background: Background
) -> None:
    first, second, other = session(), session(autocommit=True), session(autocommit=True)
    put(other, "a", "a1", "a2", "a3", "a4")
    rows = take_rows(other, 3)
    receipt = rows[0][1]
    assert nack(first, receipt, [rows[1][0]]) == 1
    pid = wait.backend_pid(second)
    acked = background(ack, second, receipt, [rows[0][0]])
    wait.until_blocked_or_done(other, pid, acked.done)
    first.commit()
    assert acked.result(15) == 1
    assert polls(other) == ["a2", "a3", "a4"]


def test_repeatable_read(session: Connect) -> None:
    """An ack and a nack with an old snapshot release as any other."""
    old, other = session(), session(autocommit=True)
    old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    put(other, "a", "a1", "a2", "a3")
    rows = take_rows(other, 2)
    old.execute("select from mq.queue")
    put(other, "a", "a4")
    assert nack(old, rows[0][1], [rows[1][0]]) == 1
    assert ack(old, rows[0][1]) == 1
    old.commit()
    assert polls(other) == ["a2", "a3", "a4"]


def test_a_savepoint_takes_back_what_was_admitted(session: Connect) -> None:
    consumer, other = session(), session(autocommit=True)
    put(other, "a", "a1", "a2")
    put(other, "b", "b1")
    consumer.execute("savepoint one")
    assert take(consumer) == ["a1"]
    consumer.execute("rollback to one")
    rows = take_rows(consumer)
    assert rows[0][5] == "a1"
    consumer.execute("savepoint two")
    assert ack(consumer, rows[0][1]) == 1
    assert set(take(consumer, 10) + take(consumer, 10)) == {"a2", "b1"}
    consumer.execute("rollback to two")
    consumer.commit()
    assert polls(other) == ["b1"]
    assert ack(other, rows[0][1]) == 1
    assert polls(other) == ["a2"]


def test_one_transaction_may_release_and_go_on(session: Connect) -> None:
    """What it releases it may have itself: it commits with what it is given instead, or not at all."""
    consumer, other = session(), session(autocommit=True)
    put(other, "a", *(f"a{i}" for i in range(1, 7)))
    rows = take_rows(consumer, 3)
    assert ack(consumer, rows[0][1], [rows[0][0]]) == 1
    assert ack(consumer, rows[0][1], [rows[1][0]]) == 1
    assert take(other, 10) == []
    assert ack(consumer, rows[0][1]) == 1
    assert take(consumer, 2) == ["a4", "a5"]
    assert take(other, 10) == []
    consumer.rollback()
    assert take(other, 10) == ["a1", "a2", "a3", "a4", "a5", "a6"]


def test_who_waits_is_not_kept_by_what_he_brought_back(
    session: Connect, background: Background
) -> None:
    """dequeue(wait): what was due when it looked is back at its key once it commits; so it ends, and others can have it."""
    waiting, other = session(autocommit=True), session(autocommit=True)
    put(other, "a", "a1", "a2")
    assert nack(other, take_rows(other)[0][1], delay="1 hour") == 1
    make_due(other)
    # Long before its time is up.
    assert background(take, waiting, wait="14 s").result(10) == []
    assert take(other, 10) == ["a1", "a2"]


def test_who_listens_is_woken_by_the_ack_of_the_one_before(session: Connect) -> None:
    consumer, listener = session(autocommit=True), session(autocommit=True)
    put(consumer, "a", "a1", "a2")
    receipt = take_rows(consumer)[0][1]
    listener.execute("select mq.listen('q')")
    assert take(listener) == []
    list(listener.notifies(timeout=0))
    assert ack(consumer, receipt) == 1
    assert len(list(listener.notifies(timeout=10, stop_after=1))) == 1
    assert take(listener) == ["a2"]


def test_rotation_while_keys_wait(session: Connect) -> None:
    """What waits for its key is in no segment, and keeps none."""
    other = session(autocommit=True)
    put(other, "a", "a1", "a2")
    receipt = take_rows(other)[0][1]
    rotate(other)
    put(other, "a", "a3")
    assert take(other) == []
    assert ack(other, receipt) == 1
    rotate(other)
    assert take(other, 10) == ["a2", "a3"]


def test_leases_that_outlive_their_segment(session: Connect) -> None:
    other = session(autocommit=True)
    put(other, "a", "a1", "a2", "a3", "a4")
    put(other, "b", "b1", "b2")
    put(other, "c", "c1")
    rows = take_rows(other, 3)
    b = take_rows(other, 2)
    c = take_rows(other, 1)
    assert [row[5] for row in rows + b + c] == ["a1", "a2", "a3", "b1", "b2", "c1"]
    outlive(other)
    put(other, "c", "c2")
    assert take(other, 10) == []
    assert nack(other, rows[0][1], [rows[1][0]]) == 1
    assert ack(other, rows[0][1]) == 1
    assert polls(other) == ["a2", "a3", "a4"]
    assert ack(other, b[0][1]) == 2
    put(other, "b", "b3")
    assert take(other, 10) == ["b3"]
    expire(other)
    assert sorted(polls(other)) == ["a2", "a3", "a4", "b3", "c1", "c2"]


@pytest.mark.parametrize("elsewhere", [from_elsewhere, in_another_cluster])
def test_a_copy(session: Connect, elsewhere: Any) -> None:
    """Leases are void, so their keys go on; what is to be tried again holds up its key as before."""
    other = session(autocommit=True)
    put(other, "a", "a1", "a2")
    put(other, "b", "b1", "b2")
    put(other, "c", "c1", delay="1 hour")
    put(other, "c", "c2")
    a = take_rows(other)[0]
    b = take_rows(other)[0]
    assert (a[5], b[5]) == ("a1", "b1")
    assert nack(other, b[1], delay="1 hour") == 1
    elsewhere(other)
    assert polls(other) == ["a1", "a2", "c2"]
    assert ack(other, a[1]) == 0
    elsewhere(other)
    make_due(other)
    got = polls(other)
    assert [what for what in got if what[0] == "b"] == ["b1", "b2"]
    assert [what for what in got if what[0] == "a"] == ["a1", "a2"]
    assert [what for what in got if what[0] == "c"] == ["c2"]  # c1 comes behind it


@pytest.mark.parametrize("elsewhere", [from_elsewhere, in_another_cluster])
def test_a_copy_keeps_the_order_of_what_had_a_place(session: Connect, elsewhere: Any) -> None:
    """The second of a lease waits to be tried again; the first, under lease, stood before it, the third came back behind it."""
    other = session(autocommit=True)
    put(other, "a", "a1", "a2", "a3", "a4")
    rows = take_rows(other, 3)
    assert nack(other, rows[0][1], [rows[1][0]], delay="1 hour") == 1
    elsewhere(other)
    assert polls(other) == []  # a2 holds up its key
    make_due(other)
    assert polls(other) == ["a1", "a2", "a3", "a4"]


def test_a_long_transaction_keeps_nothing_for_what_it_only_read(session: Connect) -> None:
    """Many events, and nothing to deliver: others may open blocks while it goes on."""
    other, long = session(autocommit=True), session()
    put(other, "a", *(f"a{number}" for number in range(100)))
    receipt = take_rows(other)[0][1]
    long.execute("select pg_current_xact_id()")
    assert take(long) == []
    put(other, "b", "b1")
    assert polls(other) == ["b1"]
    long.rollback()
    assert ack(other, receipt) == 1


def test_many_events_are_read_in_parts(session: Connect) -> None:
    """So that who may not take long gets on, too: each call keeps what it read."""
    other = session(autocommit=True)
    put(other, "a", "a1")
    take_rows(other)
    other.execute(
        "select count(*) from (select mq.enqueue_batch('q', array_fill(to_jsonb('more'::text), array[10000]),"
        " ordering_key => 'a') from generate_series(1, 10)) as x"
    )
    put(other, "b", "b1")
    before = -1
    for _ in range(200):
        if take(other) == ["b1"]:
            break
        read = int(value(other, f"select count(*) from mq.line_{number(other)}"))
        assert read > before
        before = read
    else:
        raise AssertionError("it is never read to its end")
    assert before > 0


def test_cancelling_a_retry_sets_its_key_free(session: Connect) -> None:
    """Once, whatever becomes of it when it is due."""
    other = session(autocommit=True)
    put(other, "a", "a1", "a2", "a3")
    rows = take_rows(other, 2)
    assert nack(other, rows[0][1], delay="1 hour") == 2
    assert take(other) == []
    assert value(other, "select mq.cancel('q', %s)", rows[0][0])
    assert take(other) == []
    with other.transaction():
        assert value(other, "select mq.cancel('q', %s)", rows[1][0])
    a3 = take_rows(other)
    assert [row[5] for row in a3] == ["a3"]
    make_due(other)
    other.execute("update mq.cancelled set due_at = now()")
    assert polls(other) == []
    put(other, "a", "a4")
    assert polls(other) == []  # a3 is under lease
    assert ack(other, a3[0][1]) == 1
    a4 = take_rows(other)
    assert [row[5] for row in a4] == ["a4"]
    assert ack(other, a4[0][1]) == 1
    put(other, "a", "a5")
    assert polls(other) == ["a5"]  # nothing is left of those that were dropped
    assert unsettled(other) == (0, 0, 1)


def test_given_back_and_cancelled_in_one_transaction(session: Connect) -> None:
    consumer, other = session(), session(autocommit=True)
    put(other, "a", "a1", "a2")
    row = take_rows(other)[0]
    assert nack(consumer, row[1], delay="1 hour") == 1
    assert value(consumer, "select mq.cancel('q', %s)", row[0])
    consumer.commit()
    assert polls(other) == ["a2"]


@pytest.mark.parametrize("what", ["drop_queue", "purge_queue"])
def test_gone_while_somebody_settles(session: Connect, background: Background, what: str) -> None:
    consumer, admin, other = session(), session(autocommit=True), session(autocommit=True)
    put(other, "a", "a1", "a2")
    receipt = take_rows(other)[0][1]
    assert ack(consumer, receipt) == 1
    pid = wait.backend_pid(admin)
    gone = background(admin.execute, f"select mq.{what}('q')")
    wait.until_blocked(other, pid)
    consumer.commit()
    gone.result(15)
    if what == "drop_queue":
        other.execute("select mq.create_queue('q', visibility_timeout => '1 hour')")
    put(other, "a", "a3")
    assert polls(other) == ["a3"]


def test_other_lanes_go_on_while_a_key_has_its_turn(session: Connect) -> None:
    """Messages of a key in two priorities: each in its turn, whoever opens which lane."""
    low, high, other = session(autocommit=True), session(autocommit=True), session(autocommit=True)
    for i in range(1, 5):
        put(other, "a", f"a{i}", priority=9 if i % 2 else 2)
    put(other, "b", "b1", priority=2)
    assert take(high, 10) == ["a1"]
    assert take(low, 10) == ["b1"]
    assert take(low, 10) == []
    expire(other)
    got = []
    while rows := take_rows(other, 10) or take_rows(other, 10):
        got += [row[5] for row in rows]
        assert ack(other, rows[0][1]) == len(rows)
    assert [what for what in got if what[0] == "a"] == ["a1", "a2", "a3", "a4"]
    assert "b1" in got


# -- from a review ----------------------------------------------------------------------------------


def test_who_writes_before_he_dequeues_gets_retries(
    session: Connect,
) -> None:
    """Such a consumer keeps nothing of what he only read and promoted: upkeep does so for him."""
    conn, writer = session(autocommit=True), session()
    conn.execute("create table written (i int)")

    def poll() -> list[Any]:
        writer.execute("insert into written values (1)")
        got = take(writer, 10)
        writer.commit()
        return got

    put(conn, "a", "a1", "a2")
    (row,) = take_rows(conn)
    nack(conn, row[1])
    assert poll() == ["a1", "a2"]  # due at once: it came back to its key itself
    expire(conn)
    assert take(conn, 10) == []
    nack(conn, take_rows(conn, 10)[0][1], delay="1 ms")
    for _ in range(100):  # it is due in an instant
        if got := poll():
            break
        conn.execute("select mq.maintain('q')")
    assert got == ["a1", "a2"]


def blocks(conn: psycopg.Connection) -> int:
    return int(value(conn, f"select count(*) from mq.block_{number(conn)}_1 where lane = 14"))


def test_upkeep_lays_out_keys_only_where_nothing_can_be_had(session: Connect) -> None:
    conn, holder, listener = session(autocommit=True), session(), session(autocommit=True)
    for key in "abc":
        put(conn, key, f"{key}1")
    assert take(conn) == ["a1"]
    put(conn, "d", "d1")
    before = blocks(conn)
    conn.execute("select mq.maintain('q')")
    assert blocks(conn) == before  # two of three are free
    assert take(conn) == ["b1"]
    assert take(holder) == ["c1"]  # nobody else can have it, though that is not committed
    listener.execute("select mq.listen('q')")
    list(listener.notifies(timeout=0))
    conn.execute("select mq.maintain('q')")
    assert blocks(conn) == before + 1
    assert list(listener.notifies(timeout=5, stop_after=1))
    assert take(listener) == ["d1"]
    holder.rollback()
    assert take(conn) == ["c1"]


def test_what_others_left_of_a_slice_is_not_behind_newer_keys(session: Connect) -> None:
    """Nobody has it, in a block that is not the newest: whoever is about to open another one looks there first."""
    conn, other = session(autocommit=True), session()
    for i in range(1, 21):
        put(conn, f"k{i}", f"k{i}")
    assert len(take(conn, 10)) == 10
    assert take(other) == ["k11"]
    put(conn, "new 0", "new 0")
    assert take(conn) == ["new 0"]  # the rest of that slice is locked
    other.commit()
    got = []
    for i in range(1, 12):
        put(conn, f"new {i}", f"new {i}")
        got += take(conn)
    assert got[:9] == [f"k{i}" for i in range(12, 21)]


def test_what_is_left_of_a_slice_is_as_old_as_it_is(session: Connect) -> None:
    """Lanes of one priority take turns by that."""
    conn = session(autocommit=True)
    for i in range(1, 21):
        put(conn, f"k{i}", f"k{i}")
    assert len(take(conn, 10)) == 10
    assert take(conn) == ["k11"]
    conn.execute("""select mq.enqueue('q', '"plain"')""")
    assert value(
        conn, "select oldest_ready_age > '0' from mq.queue_stats('q')"
    )  # that of a plain one is newer
    assert [take(conn)[0] for _ in range(10)] == [*(f"k{i}" for i in range(12, 21)), "plain"]


def test_what_is_left_of_a_slice_expires_in_one_go(session: Connect) -> None:
    conn = session(autocommit=True)
    for i in range(400):
        put(conn, f"k{i}", f"k{i}", ttl="1 hour")
    assert len(take(conn, 200)) == 200
    assert len(take(conn)) == 1
    conn.execute("set max_stack_depth = '200kB'")
    for table in ("log_%s_1", "parked_%s"):
        conn.execute(
            "update mq.{} set extra = extra || '{{\"e\": 1}}' where extra ? 'e'".format(  # noqa: UP032
                table % number(conn)
            )
        )
    assert take(conn) == []
    assert value(conn, "select dead from mq.queue_stats('q')") == 199
    assert int(value(conn, f"select count(*) from mq.lease_{number(conn)}_1")) <= 5


def test_a_dequeue_does_not_wait_for_upkeep_that_forgets_its_key(session: Connect) -> None:
    conn, upkeep = session(autocommit=True), session()
    put(conn, "a", "a1")
    (row,) = take_rows(conn)
    ack(conn, row[1])
    put(conn, "b", "b1")
    assert take(conn) == ["b1"]  # what is read on the way is kept
    key = f"mq.key_{number(conn)}"
    rows_of_a = f"select count(*) from {key} where ordering_key = 'a'"
    conn.execute(f"update {key} set since = since - interval '11 minutes'")
    upkeep.execute(f"select mq._forget_idle_keys({number(conn)})")
    put(conn, "a", "a2")
    conn.execute("set lock_timeout = '10ms'")
    assert take(conn) == ["a2"]
    upkeep.rollback()
    assert value(conn, rows_of_a) == 2
    put(conn, "a", "a3")
    assert take(conn) == []  # it is the newer row that counts
    upkeep.execute(f"select mq._forget_idle_keys({number(conn)})")
    upkeep.commit()
    assert value(conn, rows_of_a) == 1


def test_who_left_a_rest_goes_on_there(session: Connect) -> None:
    """Though he had another slice besides."""
    conn = session(autocommit=True)
    put(conn, "z", "z1", "z2", "z3", "z4")
    put(conn, "a", "a1", "a2")
    put(conn, "b", "b1", "b2")
    put(conn, "c", "c1")
    put(conn, "d", "d1", "d2", "d3", "d4")
    assert take(conn, 4) == ["z1", "z2", "z3", "z4"]
    assert take(conn, 3) == ["a1", "a2", "c1"]
    assert take(conn, 2) == ["b1", "b2"]
