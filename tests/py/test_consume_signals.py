"""Consumers that are told to stop from outside: signals to a process, cancellation of a task."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import mq
from support import wait

SYNC = """
    with mq.consume(dsn, queue, n=3, maintain_every=None) as jobs:
        for job in jobs:
            with job:
                handle(job)
    print("ended", flush=True)
"""
ASYNC = """
    async def main():
        async with mq.consume_async(dsn, queue, n=3, maintain_every=None) as jobs:
            async for job in jobs:
                with job:
                    await asyncio.to_thread(handle, job)

    asyncio.run(main())
    print("ended", flush=True)
"""
HANDLE = """
    import asyncio, sys, psycopg, mq
    dsn, queue = sys.argv[1:]

    def handle(job):
        print(job.payload, flush=True)
        with psycopg.connect(dsn) as conn:  # until the test lets go
            conn.execute("select pg_advisory_xact_lock_shared(1)")
"""
PYTHON = str(Path(mq.__file__).parents[1])


class Process:
    """A worker process whose handlers wait for advisory lock 1; tells what it handled."""

    def __init__(self, source: str, dsn: str, queue: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HANDLE) + textwrap.dedent(source), dsn, queue],
            env={**os.environ, "PYTHONPATH": PYTHON},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.popen.stdout
        return self.popen.stdout.readline().strip()

    def end(self) -> tuple[int, str, str]:
        out, err = self.popen.communicate(timeout=wait.SECONDS)
        return self.popen.returncode, out.strip(), err


@pytest.fixture
def client(conn: psycopg.Connection[Any]) -> mq.Client:
    return mq.Client(conn)


@pytest.fixture
def process(database: str, queue: str) -> Iterator[Callable[[str], Process]]:
    started: list[Process] = []

    def process_(source: str) -> Process:
        started.append(Process(source, database, queue))
        return started[-1]

    yield process_
    for one in started:
        one.popen.kill()
        one.popen.communicate()


@pytest.mark.parametrize("source", [SYNC, ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_handler_finish(
    process: Callable[[str], Process],
    conn: psycopg.Connection[Any],
    client: mq.Client,
    queue: str,
    source: str,
    number: signal.Signals,
) -> None:
    ids = client.enqueue_batch(queue, [1, 2, 3])
    conn.execute("select pg_advisory_lock(1)")
    worker = process(source)
    assert worker.line() == "1"
    worker.popen.send_signal(number)
    conn.execute("select pg_advisory_unlock(1)")
    assert worker.end() == (0, "ended", "")
    assert [client.message_status(queue, i).state for i in ids[:1]] == ["completed"]  # type: ignore[union-attr]
    assert [d.payload for d in client.dequeue(queue, 5)] == [2, 3]


@pytest.mark.parametrize("source", [SYNC, ASYNC], ids=["sync", "async"])
def test_a_signal_ends_the_wait(
    process: Callable[[str], Process], conn: psycopg.Connection[Any], queue: str, source: str
) -> None:
    worker = process(source)
    wait.until(
        lambda: (
            conn.execute(
                "select from pg_stat_activity where query like '%next_due%' and state = 'idle'"
                " and application_name like 'mq %' and datname = current_database()"
            ).rowcount
        ),
        "the worker to sleep",
    )
    worker.popen.terminate()
    assert worker.end() == (0, "ended", "")


def test_a_second_signal_acts_as_ever(
    process: Callable[[str], Process], conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    client.enqueue(queue, 1)
    conn.execute("select pg_advisory_lock(1)")
    worker = process(SYNC)
    assert worker.line() == "1"
    worker.popen.terminate()

    def again() -> bool:  # two in a row may be seen as one
        worker.popen.terminate()
        return worker.popen.poll() is not None

    wait.until(again, "its end")
    status, _, _ = worker.end()
    assert status == -signal.SIGTERM


def test_handlers_of_the_program_are_put_back(database: str, queue: str) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    consumer = mq.consume(database, queue, stop_when_empty=True)
    assert list(consumer) == []
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_cancelled_task_gives_back(database: str, client: mq.Client, queue: str) -> None:
    client.enqueue_batch(queue, [1, 2])

    async def main() -> None:
        reached = asyncio.Event()

        async def work() -> None:
            async with mq.consume_async(database, queue, n=2, maintain_every=None) as jobs:
                async for job in jobs:
                    with job:
                        reached.set()
                        await asyncio.sleep(wait.SECONDS)

        task = asyncio.create_task(work())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert sorted(d.payload for d in client.dequeue(queue, 5)) == [1, 2]


def test_a_cancelled_wait_leaves_nothing(
    database: str, conn: psycopg.Connection[Any], queue: str
) -> None:
    def waits() -> int:
        return conn.execute(
            "select from pg_stat_activity where application_name like 'mq %'"
            " and datname = current_database()"
        ).rowcount

    async def main() -> None:
        async def work() -> None:
            async with mq.consume_async(database, queue, maintain_every=None) as jobs:
                async for _ in jobs:
                    pass

        task = asyncio.create_task(work())
        while not await asyncio.to_thread(waits):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    wait.until(lambda: not waits(), "the connection to end")


def test_breaking_out_gives_back(database: str, client: mq.Client, queue: str) -> None:
    client.enqueue_batch(queue, [1, 2, 3])
    with mq.consume(database, queue, n=3, maintain_every=None) as jobs:
        for job in jobs:
            if job.payload == 2:
                break
    assert sorted(d.payload for d in client.dequeue(queue, 5)) == [2, 3]


def test_without_a_with_statement_too(database: str, client: mq.Client, queue: str) -> None:
    client.enqueue(queue, 1)
    for _job in mq.consume(database, queue, maintain_every=None):
        break
    assert [d.payload for d in client.dequeue(queue)] == [1]
