"""What dequeue reads does not depend on how many ordering keys there are, nor on what holds them up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

from support import holders, measure
from support.measure import Cost
from support.server import Server

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

FACTOR = 1.5


def large(usual: int, full: int) -> pytest.MarkDecorator:
    """The number of keys of `make test`, and the one of the requirement, which is slow."""
    return pytest.mark.parametrize("keys", [usual, pytest.param(full, marks=[pytest.mark.slow])])


def create(conn: Connection, queue: str) -> None:
    conn.execute(
        "select mq.create_queue(%s, max_attempts => 30000, retry_backoff => '0',"
        " max_in_flight_per_key => 1, visibility_timeout => '1 hour')",
        (queue,),
    )


def fill(conn: Connection, queue: str, keys: int, each: int, key: str = "key ") -> None:
    """So many messages of each key, in turn."""
    conn.execute(
        "select mq.enqueue_batch(%s, array_agg(to_jsonb(i)), ordering_keys => array_agg(%s || i %% %s))"
        " from (select generate_series(1, %s) as i) as x",
        (queue, key, keys, keys * each),
    )


def consume(conn: Connection, queue: str, calls: int = 400) -> Cost:
    """Calls that acknowledge what they got before, one message each."""
    conn.execute("select set_config('cost.receipt', '', false)")
    statement = measure.CONSUME.format(queue=queue, n=1)
    return measure.cost([measure.call(conn, statement) for _ in range(calls)])


def hold_up(conn: Connection, queue: str, delay: str | None) -> None:
    """Every key has its first message under lease, or to be tried again later."""
    while row := conn.execute(
        "select max(receipt) from mq.dequeue(%s, 64) having count(*) > 0", (queue,)
    ).fetchone():
        if delay:
            conn.execute("select mq.nack(%s, %s, delay => %s)", (queue, row[0], delay))


@pytest.fixture
def few(connect: Connect, database: str) -> Cost:
    conn = connect()
    create(conn, "few")
    fill(conn, "few", 100, 100)
    return consume(connect(), "few")


def check(cost: Cost, of: Cost, keys: int = 0) -> None:
    """An index of a thousand times as many is a level deeper, or two: that is all."""
    print(f"{cost}; to compare: {of}")
    assert cost.within(FACTOR if keys < 50_000 else 2, of), f"{cost}; to compare: {of}"


@large(10_000, 100_000)
def test_many_keys(keys: int, connect: Connect, few: Cost) -> None:
    create(connect(), "q")
    fill(connect(), "q", keys, 1)
    check(consume(connect(), "q"), few, keys)


@large(5_000, 50_000)
def test_a_hot_key_with_half_of_the_backlog(keys: int, connect: Connect, few: Cost) -> None:
    conn = connect()
    create(conn, "q")
    fill(conn, "q", 1, keys, "hot ")
    fill(conn, "q", keys, 1)
    consumer = connect()
    consume(
        consumer, "q", keys // 8
    )  # a bulk is read once, some thousand messages each time that a block is opened
    check(consume(consumer, "q"), few, keys)


@large(2_000, 100_000)
@pytest.mark.parametrize("delay", [None, "1 hour"])
def test_every_key_is_held_up(delay: str | None, keys: int, connect: Connect) -> None:
    """An empty poll writes nothing once what happened is read (some thousand messages a poll), and costs the same; of
    leases, what keys add to the cost of those."""
    conn = connect()
    polls: dict[str, Cost] = {}
    for queue, count in (("few", 100), ("q", keys)):
        create(conn, queue)
        fill(conn, queue, count, 2)
        hold_up(conn, queue, delay)
        other = connect()
        statement = measure.LEASE.format(queue=queue, n=1)
        calls = [measure.call(other, statement) for _ in range(21 + count // 2000)]
        assert not any(call.rows for call in calls)
        calls = calls[-20:]
        assert not any(call.wal_records for call in calls)
        if delay is None:
            (queue_id,) = conn.execute(
                "select queue_id from mq.queue where name = %s", (queue,)
            ).fetchone() or (0,)
            ready = f"select mq._is_key_ready_{queue_id}(14::smallint)"
            calls = [measure.call(other, ready) for _ in range(20)]
        polls[queue] = measure.cost(calls[2:])
    check(polls["q"], polls["few"], keys)


def test_retries_of_a_hot_key_under_a_held_snapshot(
    server: Server, database: str, connect: Connect
) -> None:
    """Each message fails once: what they leave behind is in nobody's way, though it cannot be removed."""
    conn = connect()
    create(conn, "q")
    fill(conn, "q", 1, 400, "hot ")
    dbname = str(conninfo.conninfo_to_dict(database)["dbname"])
    other = connect()
    calls = []
    with holders.snapshot(server, dbname):
        for i in range(500):
            calls.append(measure.call(other, measure.CONSUME.format(queue="q", n=1)))
            assert calls[-1].rows == 1
            if i % 2 == 0:
                other.execute("select mq.nack('q', current_setting('cost.receipt'))")
                other.execute("select set_config('cost.receipt', '', false)")
    check(measure.cost(calls[400:]), measure.cost(calls[:100]))
