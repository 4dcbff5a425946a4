"""Retention, rewind and history: what is acknowledged comes back once for each rewind, whatever goes on meanwhile."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
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
    from_elsewhere,
    lease,
    maintain,
    number,
    outlive,
    put,
    rotate,
    segments,
    sweep,
    take,
    unsettled,
    value,
)

database, session = race.database, race.session


@pytest.fixture(autouse=True)
def queue(database: str) -> str:
    race.fresh(database, "q")
    with psycopg.connect(database) as conn:
        conn.execute("select mq.alter_queue('q', retention => '1 day')")
    return "q"


def rewind(conn: psycopg.Connection[Any], msg_id: int = 1) -> int:
    return int(value(conn, "select mq.rewind('q', to_msg_id => %s)", msg_id))


def state(conn: psycopg.Connection[Any], msg_id: int) -> str | None:
    return value(conn, "select (mq.message_status('q', %s)).state", msg_id)  # type: ignore[no-any-return]


def keep(conn: psycopg.Connection[Any]) -> None:
    """All that is settled is in segments that are only kept."""
    rotate(conn)
    wait.until(lambda: "drained" in maintain(conn))


def end_retention(conn: psycopg.Connection[Any]) -> None:
    conn.execute("update mq.segment set drained_at = drained_at - interval '1 day'")
    conn.execute("update mq.kept set settled_at = settled_at - interval '1 day'")


# Two at a time


def test_of_two_who_rewind_the_second_finds_what_the_first_put_back(
    conn: psycopg.Connection[Any], session: Connect, background: Background
) -> None:
    fill(conn, 5)
    drain(conn)
    first, second = session(), session(autocommit=True)
    assert rewind(first) == 5
    waiting = background(rewind, second)
    wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
    first.commit()
    assert waiting.result(wait.SECONDS) == 0
    assert drain(conn) == [1, 2, 3, 4, 5]


def test_of_two_who_rewind_the_second_does_it_where_the_first_is_undone_or_dies(
    conn: psycopg.Connection[Any], session: Connect, background: Background
) -> None:
    fill(conn, 5)
    drain(conn)
    for end in ("rollback", "die"):
        first, second = session(), session()
        assert rewind(first) == 5
        waiting = background(rewind, second)
        wait.until_blocked(conn, wait.backend_pid(second), by=wait.backend_pid(first))
        if end == "rollback":
            first.rollback()
        else:
            conn.execute("select pg_terminate_backend(%s)", (wait.backend_pid(first),))
        assert waiting.result(wait.SECONDS) == 5
        second.rollback()
    assert unsettled(conn) == (0, 0, 0)


def test_a_savepoint_takes_a_rewind_back(conn: psycopg.Connection[Any], session: Connect) -> None:
    fill(conn, 3)
    drain(conn)
    rewinding = session()
    with rewinding.transaction(force_rollback=True):
        assert rewind(rewinding) == 3
    assert rewind(rewinding, 2) == 2
    rewinding.commit()
    assert drain(conn) == [2, 3]


def test_what_is_being_acknowledged_is_not_acknowledged_yet(
    conn: psycopg.Connection[Any], session: Connect
) -> None:
    """Its lease may still be lost, and then it would be there twice."""
    fill(conn, 2)
    acking = session()
    receipt = lease(conn, 2)
    assert ack(acking, receipt, [1]) == 1
    assert rewind(conn) == 0
    acking.commit()
    assert rewind(conn) == 1
    assert take(conn, 10) == [1]
    assert ack(conn, receipt) == 1


def test_who_acknowledges_and_rewinds_in_one_transaction_gets_it_back(
    conn: psycopg.Connection[Any], session: Connect
) -> None:
    fill(conn, 1)
    working = session()
    receipt = lease(working, 1)
    working.commit()
    assert ack(working, receipt) == 1
    assert rewind(working) == 1
    assert take(working) == []
    working.commit()
    assert take(conn) == [1]


def test_nothing_is_rotated_purged_or_dropped_beneath_a_rewind(
    conn: psycopg.Connection[Any], session: Connect, background: Background
) -> None:
    for i, (query, left) in enumerate(
        [
            ("select mq.rotate_segment('q')", ["x"]),
            ("select mq.purge_queue('q')", []),
            ("select mq.drop_queue('q')", None),
        ],
        start=1,
    ):
        assert put(conn, "x") == i
        drain(conn)
        rewinding, other = session(), session(autocommit=True)
        assert rewind(rewinding, i) == 1
        assert maintain(conn) == ["busy"]
        waiting = background(other.execute, query)
        wait.until_blocked(conn, wait.backend_pid(other), by=wait.backend_pid(rewinding))
        rewinding.commit()
        waiting.result(wait.SECONDS)
        if left is not None:
            assert drain(conn) == left


@pytest.mark.parametrize("again", [False, True])
def test_a_queue_that_was_dropped_meanwhile_is_not_there(
    conn: psycopg.Connection[Any], session: Connect, background: Background, again: bool
) -> None:
    """Nor is it the one that has its name by then."""
    dropping, rewinding = session(), session(autocommit=True)
    dropping.execute("select mq.drop_queue('q')")
    waiting = background(rewind, rewinding)
    wait.until_blocked(conn, wait.backend_pid(rewinding), by=wait.backend_pid(dropping))
    if again:
        dropping.execute("select mq.create_queue('q', retention => '1 day')")
    dropping.commit()
    with pytest.raises(psycopg.Error) as error:
        waiting.result(wait.SECONDS)
    assert error.value.sqlstate == "MQ001"


def test_rewind_waits_for_upkeep_and_then_finds_what_that_has_dropped(
    conn: psycopg.Connection[Any], session: Connect, background: Background
) -> None:
    fill(conn, 3)
    drain(conn)
    keep(conn)
    end_retention(conn)
    keeping, rewinding = session(), session(autocommit=True)
    assert maintain(keeping) == ["dropped"]
    waiting = background(rewind, rewinding)
    wait.until_blocked(conn, wait.backend_pid(rewinding), by=wait.backend_pid(keeping))
    keeping.commit()
    with pytest.raises(psycopg.Error) as error:
        waiting.result(wait.SECONDS)
    assert error.value.sqlstate == "22023"
    assert error.value.diag.message_detail == "Only messages from 4 on are still kept."


def test_a_drop_that_is_undone_forgets_nothing(
    conn: psycopg.Connection[Any], session: Connect
) -> None:
    fill(conn, 3)
    drain(conn)
    keep(conn)
    end_retention(conn)
    keeping = session()
    assert maintain(keeping) == ["dropped"]
    keeping.rollback()
    assert rewind(conn) == 3


def test_a_rotation_that_was_undone_does_not_hide_what_comes_back(
    conn: psycopg.Connection[Any], session: Connect
) -> None:
    """The register names the new segment, and the catalogue does not, until somebody mends it."""
    fill(conn, 3)
    drain(conn)
    rotating = session()
    rotate(rotating)
    rotating.rollback()
    assert rewind(conn) == 3
    assert segments(conn) == 2
    assert drain(conn) == [1, 2, 3]


# What is kept


def test_kept_segments_are_in_nobodys_way(conn: psycopg.Connection[Any]) -> None:
    def cost(query: str) -> int:
        conn.execute(query)  # plans
        plan = value(
            conn, f"explain (analyze, buffers, timing off, summary off, format json) {query}"
        )[0]["Plan"]
        return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

    def costs() -> list[int]:
        fill(conn, 64)
        drain(conn)
        fill(conn, 64)
        found = [
            cost(f"select * from {call}")
            for call in (
                "mq.enqueue('q', '1')",
                "mq.dequeue('q')",
                "mq.dequeue('q', 10)",
                "mq.peek('q')",
            )
        ]
        drain(conn)
        found.append(cost("select * from mq.dequeue('q')"))
        expire(conn)
        sweep(conn)
        drain(conn)
        keep(conn)
        return found

    all_costs = [costs() for _ in range(9)]
    assert segments(conn) == 10
    assert max(all_costs[-1][i] - all_costs[1][i] for i in range(5)) <= 3, all_costs


def test_kept_slots_leave_the_dispatchers_to_those_in_use_and_come_back_to_them(
    conn: psycopg.Connection[Any],
) -> None:
    """They know 64. A queue that keeps many segments uses one slot after the other, and makes none any more."""

    def short_way() -> bool:
        conn.execute("select set_config('mq.system', split_part(mq._home(), '.', 2), false)")
        return value(conn, "select mq._append_0('q', '1', null)") is not None

    # Slots that are only kept, more than there is room for: rows will do, for nobody reads them.
    queue_id = number(conn)
    while (count := int(value(conn, "select count(*) from mq.slot"))) < 66:
        value(conn, "select mq._make_slot(%s)", queue_id)
    conn.execute(
        "insert into mq.segment (queue_id, segment, slot, closed_at, sealed_at, exhausted_at, drained_at)"
        " select queue_id, slot - 1000, slot, now(), now(), now(), now() from mq.slot where slot between 2 and %s",
        (count - 2,),
    )
    for slot in range(2, count + 1):  # past the fence; what is empty is not kept
        conn.execute(
            f"insert into mq.log_{queue_id}_{slot} (msg_id, lane, payload) values (0, -1, '0')"
        )
    conn.execute("select mq._lock_generated('test'), mq._create_dispatchers()")
    known = {row[0] for row in conn.execute("select slot from mq._dispatched()")}
    assert known >= {1, count - 1, count}  # the open one and spares
    left_out = min(set(range(2, count)) - known)

    # One of those that had no place is emptied, and becomes the next one to be used: rows again.
    conn.execute(f"truncate mq.log_{queue_id}_{left_out}")
    conn.execute("update mq.segment set slot = %s, segment = -1 where slot = %s", (count, left_out))
    conn.execute(
        "insert into mq.segment (queue_id, segment, slot, closed_at, sealed_at, exhausted_at, drained_at)"
        " values (%s, -2, %s, now(), now(), now(), now())",
        (queue_id, count - 1),
    )
    assert "prepared" in maintain(conn)
    assert "prepared" not in maintain(conn)
    rotate(conn)
    assert race.slot(conn, "open") == left_out
    assert short_way()


def test_a_copy_of_a_database_keeps_what_was_kept(conn: psycopg.Connection[Any]) -> None:
    """It stays settled, and comes back when it is rewound, whether its segment was drained or not."""
    fill(conn, 3)
    drain(conn)
    keep(conn)
    for i in range(4, 8):
        put(conn, str(i))
    receipt = lease(conn, 2)
    assert ack(conn, receipt, [4]) == 1
    totals = (
        "select (enqueued_total, delivered_total, settled_total)::text from mq.queue_stats('q')"
    )
    before = value(conn, totals)
    from_elsewhere(conn)
    assert rewind(conn, 100) == 0  # repairs
    assert value(conn, totals) == before
    assert unsettled(conn) == (3, 0, 0)
    assert [state(conn, i) for i in range(1, 6)] == ["completed"] * 4 + ["ready"]
    assert sorted(drain(conn)) == ["5", "6", "7"]
    assert rewind(conn) == 7
    assert drain(conn) == [1, 2, 3, "4", "5", "6", "7"]
    assert value(conn, "select count(*) from mq.history('q')") == 14
    keep(conn)
    end_retention(conn)
    wait.until(lambda: maintain(conn).count("dropped") == 0)
    assert segments(conn) == 1
    assert value(conn, "select count(*) from mq.history('q')") == 0


def test_numbers_go_on_behind_what_is_kept_where_sequences_were_not_copied(
    conn: psycopg.Connection[Any],
) -> None:
    fill(conn, 3)
    drain(conn)
    keep(conn)
    conn.execute("select setval(msg_ids, 1) from mq.queue where name = 'q'")
    from_elsewhere(conn)
    assert put(conn, "x") == 4


def test_a_copy_that_lost_its_sequences_finds_what_it_rewinds(
    conn: psycopg.Connection[Any],
) -> None:
    """Which lanes are in use is in one: who rewinds to a lane says so, as who enqueues does."""
    conn.execute("select mq.enqueue('q', '1', priority => 7)")
    drain(conn)
    conn.execute("select setval(lanes, 1, false) from mq.queue where name = 'q'")
    conn.execute(
        "select setval(register, pg_sequence_last_value(register) & ~(1::bigint << 31)) from mq.queue where name = 'q'"
    )
    assert rewind(conn) == 1
    assert drain(conn) == [1]


def test_a_copy_of_a_queue_that_keeps_nothing_says_so_later(conn: psycopg.Connection[Any]) -> None:
    fill(conn, 3)
    drain(conn)
    conn.execute("select mq.alter_queue('q', retention => '0')")
    from_elsewhere(conn)
    put(conn, "repairs")
    conn.execute("select mq.alter_queue('q', retention => '1 day')")
    with pytest.raises(psycopg.Error, match="to_msg_id"):
        rewind(conn, 3)
    drain(conn)
    assert rewind(conn, 4) == 1


def test_half_of_a_survivor(conn: psycopg.Connection[Any]) -> None:
    """What is acknowledged of a lease that outlived its segment is kept, and only that."""
    fill(conn, 3)
    receipt = lease(conn, 3)
    outlive(conn)
    assert ack(conn, receipt, [2]) == 1
    assert rewind(conn) == 1
    assert take(conn, 10) == [2]
    assert ack(conn, receipt) == 2
    assert sorted(state(conn, i) or "" for i in (1, 2, 3)) == ["completed", "completed", "leased"]


# All together


def test_each_message_is_acknowledged_once_for_each_rewind(
    conn: psycopg.Connection[Any], session: Connect, background: Background
) -> None:
    """Consumers that fail and lose leases, rotations, upkeep and rewinds at once; what rewind says it did is done."""
    count, rounds = 300, 6
    seen: Counter[int] = Counter()
    lock = threading.Lock()
    done = threading.Event()
    conn.execute("select mq.alter_queue('q', max_attempts => 1000, retry_backoff => '0')")

    def consume(seed: int) -> None:
        rng = random.Random(seed)
        own = session(autocommit=True)
        while not done.is_set():
            rows = race.take_rows(own, rng.choice((1, 7, 20)))
            if not rows:
                continue
            what = rng.random()
            if what < 0.6:
                with own.transaction():
                    settled = ack(own, rows[0][1])
                with lock:
                    seen.update(row[0] for row in rows if settled)
            elif what < 0.8:
                half = [row[0] for row in rows[: len(rows) // 2 + 1]]
                if ack(own, rows[0][1], half):
                    with lock:
                        seen.update(half)
                own.execute("select mq.nack('q', %s, delay => '0')", (rows[0][1],))
            else:
                own.execute("select mq.nack('q', %s, delay => '0')", (rows[0][1],))

    def upkeep() -> None:
        own = session(autocommit=True)
        while not done.is_set():
            maintain(own)

    fill(conn, count)
    running = [background(consume, seed) for seed in range(3)] + [background(upkeep)]
    put_back = 0
    try:
        for _ in range(rounds):
            enough = min(sum(seen.values()) + 50, count + put_back)
            wait.until(lambda n=enough: sum(seen.values()) >= n)  # type: ignore[misc]
            put_back += rewind(conn, random.randint(1, count))
            with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState):
                rotate(conn)  # else no slot is ready
        wait.until(
            lambda: sum(seen.values()) == count + put_back,
            f"{sum(seen.values())} of {count + put_back}",
        )
    finally:
        done.set()
        for future in running:
            future.result(wait.SECONDS)
    assert unsettled(conn) == (0, 0, 0)
    assert sum(seen.values()) == count + put_back
    assert set(seen) == set(range(1, count + 1))
    kept = conn.execute(
        "select msg_id, count(*) from mq.history('q', n => 1000000) group by msg_id"
    )
    assert dict(kept.fetchall()) == dict(seen)
    assert value(conn, "select settled_total from mq.queue_stats('q')") == count + put_back
