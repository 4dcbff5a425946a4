"""A consumer of the Python client in a thread of its own, sync or async, and handlers that wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg

import mq
from support import wait

Handler = Callable[[Any], object]
Start = Callable[..., "Worker"]

NEVER = timedelta(minutes=5)  # longer than any test
SOON = timedelta(milliseconds=20)
INSERT = "insert into effect select unnest(%s::int[])"


class Worker:
    """A consumer in a thread of its own. `seen` are payloads, `attempts` attempts, as handed out."""

    def __init__(self, kind: str, dsn: str, queue: str, handler: Handler, **options: Any) -> None:
        self.seen: list[Any] = []
        self.attempts: list[int] = []
        self.error: BaseException | None = None
        self.handler = handler
        self.plain = options.pop("plain", False)  # without `with job:`
        self.transactional = options.pop("transactional", False)  # with an effect
        self.batches = options.pop("batches", False)
        self.consumer: Any = getattr(mq, {"sync": "consume", "async": "consume_async"}[kind])(
            dsn, queue, **options
        )
        target = self.sync if kind == "sync" else lambda: asyncio.run(self.asynchronous())
        self.thread = threading.Thread(target=self.guard, args=(target,))
        self.thread.start()

    def guard(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            self.error = error

    def sync(self) -> None:
        with self.consumer as units:
            for unit in units.batches() if self.batches else units:
                if self.plain:
                    self.handle(unit)
                elif self.transactional:
                    with unit.transaction() as conn:
                        conn.execute(INSERT, ([d.payload for d in unit.deliveries],))
                        self.handle(unit)
                else:
                    with unit:
                        self.handle(unit)

    async def asynchronous(self) -> None:
        async with self.consumer as units:
            async for unit in units.batches() if self.batches else units:
                if self.plain:
                    await asyncio.to_thread(self.handle, unit)
                elif self.transactional:
                    async with unit.transaction() as conn:
                        await conn.execute(INSERT, ([d.payload for d in unit.deliveries],))
                        await asyncio.to_thread(self.handle, unit)
                else:
                    with unit:
                        await asyncio.to_thread(self.handle, unit)

    def handle(self, unit: Any) -> None:
        self.seen += [delivery.payload for delivery in unit.deliveries]
        self.attempts += [delivery.attempt for delivery in unit.deliveries]
        self.handler(unit)

    def join(self) -> None:
        self.thread.join(wait.SECONDS)
        assert not self.thread.is_alive()

    def stop(self) -> None:
        self.consumer.stop()
        self.join()
        if self.error is not None:
            raise self.error


class Gate:
    """Holds handlers until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, unit: object = None) -> None:
        self.reached.set()
        assert self.opened.wait(wait.SECONDS)

    def until_reached(self) -> None:
        assert self.reached.wait(wait.SECONDS)

    def open(self) -> None:
        self.opened.set()


def until_seen(worker: Worker, payloads: list[Any]) -> None:
    wait.until(lambda: worker.seen == payloads or worker.error, f"{payloads} to be handed out")
    assert worker.seen == payloads


def terminate(conn: psycopg.Connection[Any], pid: int) -> None:
    conn.execute("select pg_terminate_backend(%s)", (pid,))
    wait.until_gone(conn, pid)
