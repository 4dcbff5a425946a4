"""Leases that outlived their segment: more than an array can hold, and settled by several at once."""

from __future__ import annotations

from collections.abc import Iterator

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
    outlive,
    put,
    sweep,
    take_rows,
    value,
)

pytestmark = pytest.mark.matrix
database, queue, session = race.database, race.queue, race.session

# Of what is taken back, 64 MB are at a time: after the first of these, the others have to wait.
LENGTHS = (68_000_000, 100, 100)
ALL_BIG = [(i, 2, length) for i, length in enumerate(LENGTHS, 1)]


@pytest.fixture(autouse=True)
def as_big_on_disk(database: str, queue: str) -> Iterator[None]:
    """Payloads take their length on disk and in memory, though they are easily compressed."""
    with psycopg.connect(database, autocommit=True) as conn:
        for table in ("survivor", f"log_{number(conn)}_1", f"deferred_{number(conn)}_0"):
            conn.execute(f"alter table mq.{table} alter payload set storage external")
        conn.execute("truncate mq.survivor")
        yield


def move(conn: psycopg.Connection) -> None:
    """Everything that is leased outlives its segment."""
    outlive(conn)
    maintain(conn)
    assert value(conn, "select count(*) from mq.segment where closed_at is not null") == 0


def lease_big(conn: psycopg.Connection, lengths: tuple[int, ...] = LENGTHS) -> str:
    """The receipt of one lease of messages of these lengths."""
    for length in lengths:
        conn.execute("select mq.enqueue('q', to_jsonb(repeat('x', %s)))", (length - 2,))
    row = conn.execute(
        "select count(*), max(receipt) from mq.dequeue('q', %s)", (len(lengths),)
    ).fetchone()
    assert row is not None
    assert row[0] == len(lengths)
    return str(row[1])


def take_big(conn: psycopg.Connection) -> list[tuple[int, int, int]]:
    """msg_id, attempt, length of all that is there; acknowledged."""
    got = []
    while rows := conn.execute(
        "select msg_id, attempt, octet_length(payload::text), receipt from mq.dequeue('q')"
    ).fetchall():
        got += [(row[0], row[1], row[2]) for row in rows]
        assert ack(conn, rows[0][3]) == len(rows)
    return sorted(got)


def settle(conn: psycopg.Connection, receipt: str, outcome: str) -> tuple[int, int]:
    """How many messages one settling takes, and of how many of them it reads the payload."""
    row = conn.execute(
        "select count(*), count(x.payload) from unnest(mq._settle('q', %s, %s, %s, null)) as x",
        (number(conn), receipt, outcome),
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def test_big_survivors_are_given_back_in_parts(conn: psycopg.Connection) -> None:
    receipt = lease_big(conn)
    move(conn)
    with conn.transaction(force_rollback=True):
        assert [settle(conn, receipt, "nacked") for _ in range(3)] == [(1, 1), (2, 2), (0, 0)]
    assert value(conn, "select mq.nack('q', %s, delay => '0')", receipt) == 3
    assert value(conn, "select mq.nack('q', %s)", receipt) == 0
    assert ack(conn, receipt) == 0
    assert take_big(conn) == ALL_BIG


@pytest.mark.slow
def test_big_headers_of_survivors_count_as_payloads_do(conn: psycopg.Connection) -> None:
    conn.execute("alter table mq.survivor alter headers set storage external")
    conn.execute(f"alter table mq.log_{number(conn)}_1 alter headers set storage external")
    for length in LENGTHS:
        conn.execute("select mq.enqueue('q', '1', to_jsonb(repeat('x', %s)))", (length,))
    receipt = str(value(conn, "select max(receipt) from mq.dequeue('q', 3)"))
    move(conn)
    with conn.transaction(force_rollback=True):
        assert [settle(conn, receipt, "nacked")[0] for _ in range(3)] == [1, 2, 0]
    assert value(conn, "select mq.nack('q', %s, delay => '0')", receipt) == 3


def test_an_ack_of_survivors_reads_no_payload(conn: psycopg.Connection) -> None:
    fill(conn, 5)
    receipt = lease(conn, 5)
    move(conn)
    assert ack(conn, receipt, [2, 4]) == 2
    assert settle(conn, receipt, "acked") == (3, 0)
    assert ack(conn, receipt) == 0
    assert value(conn, "select settled_total from mq.queue_stats('q')") == 5


@pytest.mark.slow
def test_big_survivors_are_swept_in_parts(conn: psycopg.Connection) -> None:
    receipt = lease_big(conn)
    move(conn)
    expire(conn)
    swept = []
    while taken := sweep(conn):
        swept.append(taken)
        # Lost as a whole, though a part of it was not taken back yet.
        assert ack(conn, receipt) == 0
        assert value(conn, "select mq.nack('q', %s)", receipt) == 0
        assert value(conn, "select mq.extend('q', %s)", receipt) is None
        with pytest.raises(psycopg.DatabaseError, match="lost"):
            conn.execute("select mq.ack('q', %s, strict => true)", (receipt,))
    assert swept == [1, 2]
    assert take_big(conn) == ALL_BIG


def test_big_survivors_are_delivered_by_dequeue(conn: psycopg.Connection) -> None:
    lease_big(conn)
    move(conn)
    expire(conn)
    assert take_big(conn) == ALL_BIG


@pytest.mark.slow
def test_survivors_wait_for_a_sweep_that_has_room(conn: psycopg.Connection) -> None:
    lease_big(conn)
    move(conn)
    conn.execute(f"alter table mq.log_{number(conn)}_2 alter payload set storage external")
    lease_big(conn)
    expire(conn)
    swept = []
    while taken := sweep(conn):
        swept.append(taken)
    # The first of the segment; its others, and the first survivor; the last two.
    assert swept == [1, 3, 2]
    assert [row[:2] for row in take_big(conn)] == [(i, 2) for i in range(1, 7)]


def test_survivors_of_many_leases_are_swept(conn: psycopg.Connection) -> None:
    fill(conn, 400)
    lease(conn, 300)
    for _ in range(100):
        lease(conn, 1)
    move(conn)
    expire(conn)
    swept = []
    while taken := sweep(conn):
        swept.append(taken)
    assert sum(swept) == 400
    assert len(swept) == 2
    assert sorted(drain(conn)) == list(range(1, 401))


def test_survivors_that_somebody_settles_are_swept_as_a_whole_or_not(
    conn: psycopg.Connection, session: Connect
) -> None:
    fill(conn, 6)
    busy, other = lease(conn, 3), lease(conn, 3)
    move(conn)
    expire(conn)
    settling = session()
    assert ack(settling, busy, [1]) == 1
    # Those of the other lease; of this one nothing is locked, either.
    sweeping = session()
    assert sweep(sweeping) == 3
    assert ack(conn, busy, [2]) == 1
    sweeping.commit()
    assert ack(conn, other) == 0
    settling.rollback()
    assert sweep(conn) == 2
    assert ack(conn, busy) == 0
    assert sorted(drain(conn)) == [1, 3, 4, 5, 6]


def test_a_nack_counts_no_bytes_of_what_another_settles(
    conn: psycopg.Connection, session: Connect, background: Background
) -> None:
    receipt = lease_big(conn)
    move(conn)
    settling, nacking = session(), session(autocommit=True)
    assert ack(settling, receipt, [1]) == 1
    given_back = background(value, nacking, "select mq.nack('q', %s, delay => '0')", receipt)
    wait.until_blocked(conn, wait.backend_pid(nacking), by=wait.backend_pid(settling))
    settling.commit()
    assert given_back.result(30) == 2
    assert take_big(conn) == ALL_BIG[1:]


def test_survivors_that_were_extended_meanwhile_are_kept(
    conn: psycopg.Connection, session: Connect
) -> None:
    put(conn, "a")
    receipt = lease(conn)
    move(conn)
    expire(conn)
    extending = session()
    assert value(extending, "select mq.extend('q', %s)", receipt) is not None
    assert sweep(conn) == 0
    assert take_rows(conn) == []
    extending.commit()
    assert sweep(conn) == 0
    assert ack(conn, receipt) == 1


@pytest.mark.slow
def test_survivors_of_more_than_a_gigabyte_are_settled(
    conn: psycopg.Connection,
) -> None:
    receipt = lease_big(conn, (93_000_000,) * 12)
    move(conn)
    with conn.transaction(force_rollback=True):
        assert ack(conn, receipt) == 12
    with conn.transaction(force_rollback=True):
        assert value(conn, "select mq.nack('q', %s, delay => '0')", receipt) == 12
    with conn.transaction(force_rollback=True):
        expire(conn)
        assert [sweep(conn) for _ in range(13)] == [1] * 12 + [0]
    expire(conn)
    assert "swept" in maintain(conn)
    got = take_big(conn)
    assert got == [(i, 2, 93_000_000) for i in range(1, 13)]
