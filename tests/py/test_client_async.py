"""`mq.AsyncClient` does what `mq.Client` does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

import mq


def names(kind: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(kind, inspect.isfunction) if name[0] != "_"]


def run(dsn: str, test: Callable[[mq.AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await test(mq.AsyncClient(conn))

    asyncio.run(main())


def test_the_methods_are_the_same() -> None:
    assert names(mq.AsyncClient) == names(mq.Client)
    for name in names(mq.Client):
        one, other = getattr(mq.Client, name), getattr(mq.AsyncClient, name)
        assert inspect.iscoroutinefunction(other), name
        assert other.__doc__, name
        if name != "copy_in":
            assert inspect.signature(one) == inspect.signature(other), name


def test_a_full_queue(database: str) -> None:
    async def test(client: mq.AsyncClient) -> None:
        await client.create_queue("short", max_depth=1)
        await client.enqueue("short", 1)
        with pytest.raises(mq.QueueFull):
            await client.enqueue("short", 2)
        await client.alter_queue("short", overflow="drop_oldest")
        await client.enqueue("short", 2)
        assert [one.payload for one in await client.dequeue("short", 9)] == [2]

    run(database, test)


def test_limits(database: str) -> None:
    async def test(client: mq.AsyncClient) -> None:
        minute = timedelta(minutes=1)
        await client.create_queue("few", max_in_flight=1)
        await client.enqueue_batch("few", [1, 2, 3])
        assert [one.payload for one in await client.dequeue("few", 9)] == [1]
        await client.alter_queue("few", max_in_flight=0, rate_limit=1, rate_period=minute)
        assert [one.payload for one in await client.dequeue("few", 9)] == [2]
        assert await client.dequeue("few", 9) == []

    run(database, test)


def test_a_round_through_all_methods(database: str) -> None:
    async def test(client: mq.AsyncClient) -> None:
        hour = timedelta(hours=1)
        await client.create_queue("q", max_attempts=2)
        await client.alter_queue("q", max_attempts=3)
        assert [info.settings["max_attempts"] for info in await client.queues()] == [3]
        first = await client.enqueue("q", {"n": 1}, {"h": 1})
        ids = await client.enqueue_batch("q", [2, 3, 4])
        assert sorted([first, *ids]) == [first, *ids]
        await client.enqueue("q", "later", delay=hour)
        assert await client.next_due("q") is not None
        one, two, three = await client.dequeue("q", 3)
        assert (one.payload, one.headers) == ({"n": 1}, {"h": 1})
        assert await client.extend("q", one.receipt, hour) is not None
        assert await client.report("q", one.receipt, one.msg_id, {"percent": 50})
        assert await client.wait_for("q", one.msg_id, timedelta(0)) is None
        done = await client.ack("q", one.receipt, [one.msg_id], strict=True, result=[1])
        assert done == 1
        assert await client.wait_for("q", one.msg_id) == mq.Result([1])
        assert await client.nack("q", one.receipt, [two.msg_id], dead=True, reason="bad") == 1
        assert await client.nack("q", one.receipt, delay=hour) == 1
        status = await client.message_status("q", three.msg_id)
        assert status is not None
        assert status.state == "deferred"
        assert [dead.reason for dead in await client.dead_letters("q")] == ["bad"]
        assert await client.redrive("q") == 1
        assert await client.purge_dead_letters("q") == 0
        await client.alter_queue("q", retention=hour)
        assert [m.msg_id for m in await client.history("q")] == [one.msg_id]
        assert await client.rewind("q", to_msg_id=1) == 1
        assert len(await client.peek("q")) >= 2
        (stats,) = await client.queue_stats("q")
        assert stats.deferred == 2
        assert await client.sweep_stale("q") == 0
        due = await client.schedule("s", "every day", "q", 1, catch_up="none")
        assert due == await client.cron_next("every day")
        assert [(s.name, s.next_at) for s in await client.schedules()] == [("s", due)]
        assert await client.run_schedule("s") > first
        assert await client.unschedule("s")
        await client.rotate_segment("q")
        await client.maintain("q")
        await client.listen("q")
        await client.unlisten("q")
        await client.pause_queue("q")
        await client.resume_queue("q")
        assert await client.cancel("q", first)  # which was rewound
        assert not await client.cancel("q", first)
        assert (await client.version()).startswith("0.1")
        assert await client.purge_queue("q") >= 2
        await client.drop_queue("q")
        with pytest.raises(mq.QueueNotFound):
            await client.enqueue("q", 1)

    run(database, test)


def test_priorities(database: str, queue: str) -> None:
    async def test(client: mq.AsyncClient) -> None:
        await client.alter_queue(queue, priority_ageing=timedelta(hours=1))
        (found,) = [one for one in await client.queues() if one.name == queue]
        assert found.settings["priority_ageing"] == "01:00:00"
        low = await client.enqueue(queue, "low", priority=1)
        await client.copy_in(queue, [mq.Message("high", priority=9)])
        assert [m.priority for m in await client.peek(queue)] == [1, 9]
        status = await client.message_status(queue, low)
        assert status is not None
        assert status.priority == 1
        assert [d.payload for d in await client.dequeue(queue, 2)] == ["high"]
        assert [d.payload for d in await client.dequeue(queue, 2)] == ["low"]

    run(database, test)


def test_copy_in(database: str, queue: str) -> None:
    async def more() -> AsyncIterator[Any]:
        yield "c"
        yield mq.Message("d", {"h": 1})

    async def test(client: mq.AsyncClient) -> None:
        assert await client.copy_in(queue, ["a", "b"]) == 2
        assert await client.copy_in(queue, more()) == 2
        assert [d.payload for d in await client.dequeue(queue, 9)] == ["a", "b", "c", "d"]
        with pytest.raises(mq.QueueNotFound):
            await client.copy_in("nowhere", ["a"])

    run(database, test)
