"""Failing handlers, leases that run out, connections that die: every effect exactly once."""

from __future__ import annotations

import asyncio
import random
import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest

import mq
from support import wait

MESSAGES = 1500
KILLS = 40
OPTIONS: dict[str, Any] = {
    "maintain_every": timedelta(milliseconds=500),
    "poll_max": timedelta(milliseconds=500),
}


class Trouble(Exception):
    pass


@pytest.mark.faults
def test_effects_are_exactly_once(database: str, conn: psycopg.Connection[Any]) -> None:
    client = mq.Client(conn)
    client.create_queue(
        "q",
        visibility_timeout=timedelta(milliseconds=500),
        max_attempts=1000,
        retry_backoff=timedelta(milliseconds=5),
        retry_backoff_max=timedelta(milliseconds=50),
    )
    conn.execute("create table effect (n int)")
    client.copy_in("q", range(MESSAGES))
    consumers: list[mq.Consumer | mq.AsyncConsumer] = []
    errors: list[BaseException] = []

    def sync(n: int) -> None:
        with mq.consume(database, "q", n=n, **OPTIONS) as jobs:
            consumers.append(jobs)
            for job in jobs:
                with job.transaction() as mine:
                    mine.execute("insert into effect values (%s)", (job.payload,))
                    if random.random() < 0.05:
                        raise Trouble

    async def asynchronous(n: int) -> None:
        async with mq.consume_async(database, "q", n=n, **OPTIONS) as jobs:
            consumers.append(jobs)
            async for job in jobs:
                async with job.transaction() as mine:
                    await mine.execute("insert into effect values (%s)", (job.payload,))
                    if random.random() < 0.01:
                        await asyncio.sleep(0.7)  # longer than the lease: it is extended
                    if random.random() < 0.05:
                        raise Trouble

    def guard(run: Any, n: int) -> None:
        try:
            run(n)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=guard, args=(run, n))
        for run in (sync, lambda n: asyncio.run(asynchronous(n)))
        for n in (1, 7)
    ]
    for thread in threads:
        thread.start()
    kills = 0

    def all_done() -> bool:
        nonlocal kills
        if kills < KILLS:
            kills += conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'mq %' and datname = current_database()"
                " order by random() limit 1"
            ).rowcount
        row = conn.execute("select count(distinct n) from effect").fetchone()
        return bool(errors) or row == (MESSAGES,)

    wait.until(all_done, "every effect")
    for consumer in consumers:
        consumer.stop()
    for thread in threads:
        thread.join(wait.SECONDS)
        assert not thread.is_alive()
    assert errors == []
    assert conn.execute("select count(*) from effect").fetchone() == (MESSAGES,)
    (stats,) = client.queue_stats("q")
    assert (stats.ready, stats.deferred, stats.leased, stats.dead) == (0, 0, 0, 0)
