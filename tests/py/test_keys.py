"""Ordering keys under chaos: never two leases of a key, never out of order, none forgotten."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from support import race
from support.keyed import Chaos, Order

database, queue, session = race.database, race.queue, race.session


def run(dsn: str, keys: int, messages: int, consumers: int, **more: float) -> Chaos:
    seed = random.randrange(10**6)
    chaos = Chaos(dsn, keys, messages, consumers, seed, **more)  # type: ignore[arg-type]
    chaos.run()
    assert not chaos.errors, (seed, chaos.errors)
    with psycopg.connect(dsn, autocommit=True) as conn:
        for (payload,) in conn.execute(
            "select payload from mq.dead_letters('q', 100000)"
        ).fetchall():
            chaos.order.dropped(payload["k"], payload["s"])
        assert not chaos.order.wrong, (seed, chaos.order.wrong[:5])
        assert not chaos.order.missing(), (seed, list(chaos.order.missing().items())[:5])
        assert race.unsettled(conn) == (0, 0, 0)
    return chaos


@pytest.mark.parametrize("settings", ["", "fair => true", "max_in_flight_per_key => 2"])
def test_chaos(database: str, settings: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("select mq.drop_queue('q')")
        conn.execute(
            "select mq.create_queue('q', max_attempts => 32000, retry_backoff => '0'"
            + (f", {settings})" if settings else ")")
        )
    run(database, 12, 300, 6)


@pytest.mark.slow
def test_many_keys_and_consumers(database: str) -> None:
    """As the requirement says: 64 consumers, 100,000 keys."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("select mq.alter_queue('q', max_attempts => 32000, retry_backoff => '0')")
    chaos = run(database, 100_000, 50_000, 64, trouble=0.1, hot=0.02)
    assert len(chaos.order.put) > 30_000


@pytest.mark.slow
def test_each_of_many_keys(database: str) -> None:
    """A backlog of 140,000 messages of 100,000 keys, without any trouble: 64 consumers of 30 messages at a time."""
    keys, messages = 100_000, 140_000
    order = Order()
    with psycopg.connect(database, autocommit=True) as conn:
        for first in range(0, messages, 1000):
            conn.execute(
                "select count(*) from (select mq.enqueue_batch('q',"
                " array_agg(jsonb_build_object('k', j %% %(keys)s, 's', j / %(keys)s) order by j),"
                " ordering_keys => array_agg('key ' || j %% %(keys)s order by j))"
                " from generate_series(%(first)s, %(first)s + 999) as j) as x",
                {"keys": keys, "first": first},
            )
    for i in range(messages):
        order.put[i % keys] += 1
    left = [messages]

    def consume(who: int) -> None:
        held: dict[int, list[tuple[int, int]]] = {}
        receipt = None
        with psycopg.connect(database, autocommit=True) as conn:
            while left[0] > 0 and not order.wrong:
                # Said before the call that acknowledges, and frees the keys.
                for key, got in held.items():
                    for number, _ in got:
                        order.settled(key, number)
                with order.lock:
                    left[0] -= sum(map(len, held.values()))
                order.free(*held)
                rows = conn.execute(
                    "select * from mq.dequeue('q', 30, ack => %s)", (receipt,)
                ).fetchall()
                held = order.received(who, rows, 30, set(), [])
                receipt = rows[0][1] if rows else None

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(consume, range(64)))
    assert not order.wrong, order.wrong[:5]
    assert not order.missing()
    with psycopg.connect(database, autocommit=True) as conn:
        assert race.unsettled(conn) == (0, 0, 0)
