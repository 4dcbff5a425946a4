"""PgQueuer (PyPI): the statements of its `Queries`, and its worker."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import signal
import uuid
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import psycopg

from bench.peers.base import Absent, Load, Peer
from bench.peers.captured import inlined, literal
from bench.tally import Tally
from support.server import Server

LAST = "SELECT * FROM claimed"
TAKEN = "SELECT coalesce(array_agg(id), '{}')::text AS ids, count(*) AS got FROM claimed"
STAMP = "convert_to(jsonb_build_object('t', extract(epoch from clock_timestamp()), 'p', repeat('x', 160))::text, 'UTF8')"


class PgQueuer(Peer):
    """One statement claims up to n jobs, one logs and deletes them."""

    name = "pgqueuer"

    def version(self, server: Server) -> str:
        try:
            return importlib.metadata.version("pgqueuer")
        except importlib.metadata.PackageNotFoundError:
            raise Absent("pip install 'mqctl[bench]' (PyPI: pgqueuer)") from None

    def install(self, server: Server, dbname: str, variant: str) -> None:
        from pgqueuer.queries import Queries

        async def install() -> None:
            async with await psycopg.AsyncConnection.connect(
                server.dsn(dbname), autocommit=True
            ) as conn:
                queries = Queries.from_psycopg_connection(conn)
                await queries.install()
                await queries.optimize_autovacuum()

        asyncio.run(install())

    def fill(self, conn: psycopg.Connection, load: Load, count: int) -> None:
        conn.execute("set synchronous_commit = off")
        for _ in range(0, count, 1000):
            conn.execute(enqueue(data(load), min(1000, count)).encode())
        conn.execute("vacuum analyze pgqueuer")

    def script(self, load: Load, variant: str) -> str:
        put = f"{enqueue(data(load), load.n)};\n"
        if load.work == "enqueue":
            return put
        cycle = f"{claim(load.n)} \\gset\n\\if :got > 0\n{complete(load.n)};\n\\endif\n"
        return put + cycle if load.work == "steady" else cycle

    def left(self, conn: psycopg.Connection) -> int:
        row = conn.execute("select count(*) from pgqueuer where status = 'queued'").fetchone()
        return int(row[0]) if row else 0

    def stamped(self, variant: str) -> str:
        return f"{enqueue(STAMP, 1)};\n"

    def consume(self, dsn: str, variant: str, concurrency: int, n: int, tally: Tally) -> None:
        from pgqueuer import PgQueuer as Worker
        from pgqueuer.db import PsycopgDriver
        from pgqueuer.models import Job

        async def work() -> None:
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
                worker = Worker(PsycopgDriver(conn))

                async def bench(job: Job) -> None:
                    tally.add(json.loads(job.payload or b"{}"))

                worker.entrypoint("b")(bench)
                loop = asyncio.get_running_loop()
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, worker.shutdown.set)
                await worker.run(batch_size=n, max_concurrent_tasks=max(2 * n, concurrency))

        asyncio.run(work())


class Recorder:
    """A driver that keeps what it is told to do."""

    def __init__(self) -> None:
        self.said: tuple[str, tuple[Any, ...]] = ("", ())

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        self.said = (query, args)
        return []

    async def execute(self, query: str, *args: object) -> str:
        self.said = (query, args)
        return ""


def data(load: Load) -> str:
    """The payload, which is bytes here."""
    return f"convert_to('{load.text()}', 'UTF8')"


def enqueue(payload: str, n: int) -> str:
    text, args = _record("enqueue", ["b"] * n, [b""] * n, [0] * n)
    values = [literal(value) for value in args]
    values[2] = f"array_fill({payload}, array[{n}])"
    return inlined(text, values)


def claim(n: int) -> str:
    from pgqueuer.queries import EntrypointExecutionParameter

    text, args = _record(
        "dequeue",
        n,
        {"b": EntrypointExecutionParameter(concurrency_limit=0)},
        uuid.UUID(int=1),
        None,
        timedelta(seconds=30),
    )
    head, _, tail = inlined(text, [literal(value) for value in args]).rpartition(LAST)
    if not head or "ORDER BY" not in tail:
        raise Absent("this release's dequeue is not as bench/peers/pgqueuer.py knows it")
    return head + TAKEN


def complete(n: int) -> str:
    jobs = [(SimpleNamespace(id=0), "successful", None)] * n
    text, args = _record("log_jobs", jobs)
    return inlined(text, [":ids", literal(args[1]), literal(args[2])])


def _record(method: str, *args: object) -> tuple[str, tuple[Any, ...]]:
    """What a method of its Queries would send."""
    from pgqueuer.queries import Queries

    recorder = Recorder()
    driver: Any = recorder
    asyncio.run(getattr(Queries(driver), method)(*args))
    return recorder.said
