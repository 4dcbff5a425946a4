"""A block opened while the one before it still has tickets: nobody waits for it, and nothing is skipped."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from support import race
from support.race import Connect, deferred, fill, number, sweep, take, take_rows

database, queue, session = race.database, race.queue, race.session

BLOCK = 256  # slices of a block for n = 1
EARLY = BLOCK // 8  # whoever draws this ticket opens the next block
SIZES = [(1, BLOCK), (10, 128)]  # n, slices of a block


def blocks(conn: psycopg.Connection) -> list[tuple[int, int, int]]:
    """block_no, first_ticket, slices."""
    queue_id = number(conn)
    return conn.execute(
        f"select block_no, first_ticket, cardinality(counts) from mq.block_{queue_id}_1 order by 1"
    ).fetchall()


def begin_block(conn: psycopg.Connection, n: int = 1) -> list[Any]:
    """Takes as much as it takes for the next block to be there while this one has tickets."""
    got = []
    while len(blocks(conn)) < 2:
        got += take(conn, n)
    first, second = blocks(conn)
    assert second[1] == first[1] + first[2], "the next block's tickets follow"
    return got


def take_times(conn: psycopg.Connection, times: int, n: int) -> list[Any]:
    return [payload for _ in range(times) for payload in take(conn, n)]


def drain(conn: psycopg.Connection, n: int) -> list[Any]:
    got = []
    while rows := take_rows(conn, n):
        assert all(row[2] == 1 for row in rows), "a first attempt"
        got += [row[5] for row in rows]
    return got


@pytest.mark.parametrize(("n", "slices"), SIZES)
def test_the_next_block_is_opened_early_and_all_comes_in_order(
    conn: psycopg.Connection, n: int, slices: int
) -> None:
    fill(conn, 3 * n * slices)
    got = begin_block(conn, n)
    assert len(got) == n * (slices // 8 + 1)
    assert got + drain(conn, n) == list(range(1, 3 * n * slices + 1))
    assert deferred(conn) == 0


@pytest.mark.parametrize(("n", "slices"), SIZES)
def test_nobody_waits_for_who_opens_early(
    conn: psycopg.Connection, session: Connect, n: int, slices: int
) -> None:
    early = slices // 8
    fill(conn, 3 * n * slices)
    got = take_times(conn, early, n)
    opener = session()
    got += take(opener, n)  # opens the next block, and does not commit
    assert len(blocks(conn)) == 1
    others = session(autocommit=True)
    got += take_times(others, slices - early - 1, n)
    assert got == list(range(1, n * slices + 1))
    opener.commit()
    assert drain(others, n) == list(range(n * slices + 1, 3 * n * slices + 1))


@pytest.mark.parametrize(("n", "slices"), SIZES)
def test_who_opened_early_rolls_back(
    conn: psycopg.Connection, session: Connect, n: int, slices: int
) -> None:
    early = slices // 8
    fill(conn, 3 * n * slices)
    got = take_times(conn, early, n)
    opener = session()
    assert take(opener, n)[0] == n * early + 1
    got += take_times(conn, 10, n)
    opener.rollback()
    got += drain(conn, n)  # an empty poll finds what was rolled back
    assert sorted(got) == list(range(1, 3 * n * slices + 1))


def test_a_long_transaction_opens_nothing_early(conn: psycopg.Connection, session: Connect) -> None:
    fill(conn, 3 * BLOCK)
    take(conn)
    long = session()
    long.execute("select mq.enqueue('q', '0')")  # it writes before
    for _ in range(EARLY + 10):
        assert take(long)
    long.commit()
    assert len(blocks(conn)) == 1


def test_upkeep_takes_nothing_that_was_only_not_reached_yet(conn: psycopg.Connection) -> None:
    fill(conn, 3 * BLOCK)
    got = begin_block(conn)
    assert sweep(conn) == 0
    conn.execute("select mq.maintain('q')")
    assert deferred(conn) == 0
    assert got + drain(conn, 1) == list(range(1, 3 * BLOCK + 1))


@pytest.mark.parametrize(("opened_with", "n"), [(1, 10), (1, 500), (10, 1), (10, 7), (10, 500)])
def test_consumers_of_other_sizes_find_both_blocks(
    conn: psycopg.Connection, opened_with: int, n: int
) -> None:
    count = 300 * opened_with
    fill(conn, count)
    got = begin_block(conn, opened_with)
    got += take(conn, n) + take(conn, opened_with) + take(conn, n)
    for _ in range(20):
        got += take(conn, opened_with)
    got += drain(conn, n)
    assert sorted(got) == list(range(1, count + 1))
    assert deferred(conn) == 0


def test_a_segment_is_not_done_before_both_blocks_are(conn: psycopg.Connection) -> None:
    fill(conn, 2 * BLOCK)
    got = begin_block(conn)
    # As if a consumer of another size had emptied the block behind: all of it leased, while this one has tickets.
    queue_id = number(conn)
    behind = conn.execute(
        f"select d.payload from mq._gather_{queue_id}_1(1::smallint, 0::smallint, 2, null, false, {BLOCK}, '1 h') as d"
    ).fetchall()
    got += [row[0] for row in behind]
    conn.execute("select mq.rotate_segment('q')")
    for _ in range(3):
        conn.execute("select mq.maintain('q')")
    got += drain(conn, 1)
    assert sorted(got) == list(range(1, 2 * BLOCK + 1))
    assert deferred(conn) == 0


def test_a_redelivery_does_not_pass_over_what_has_tickets(conn: psycopg.Connection) -> None:
    fill(conn, 2 * BLOCK)
    conn.execute("select mq.alter_queue('q', max_attempts => 5)")
    got = begin_block(conn)
    race.expire(conn)
    assert sweep(conn) == len(got)
    seen = []
    while rows := take_rows(conn, 3):
        seen += [row[5] for row in rows]
    assert sorted(seen) == list(range(1, 2 * BLOCK + 1))
