"""Ordering keys under chaos: never two leases of a key, never out of order, none forgotten."""

from __future__ import annotations

import random

import psycopg
import pytest

from support import race
from support.keyed import Chaos

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
    chaos = run(database, 100_000, 150_000, 64, trouble=0.1)
    assert len(chaos.order.put) > 50_000
