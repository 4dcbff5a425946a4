"""procrastinate (PyPI): its own SQL functions, as its worker calls them, and its worker."""

from __future__ import annotations

import asyncio
import importlib.metadata

import psycopg

from bench.peers.base import Absent, Load, Peer
from bench.peers.captured import inlined
from bench.tally import Tally
from support.server import Server

JOB = "('b', 'bench', 0, null, null, {payload}, null)::procrastinate_job_to_defer_v1"
STAMP = "jsonb_build_object('t', extract(epoch from clock_timestamp()), 'p', repeat('x', 160))"


class Procrastinate(Peer):
    """Fetches one job at a time; finished jobs are deleted (delete_jobs="always")."""

    name = "procrastinate"
    batches = False

    def version(self, server: Server) -> str:
        try:
            return importlib.metadata.version("procrastinate")
        except importlib.metadata.PackageNotFoundError:
            raise Absent("pip install 'mqctl[bench]' (PyPI: procrastinate)") from None

    def install(self, server: Server, dbname: str, variant: str) -> None:
        from procrastinate.schema import SchemaManager

        with server.connect(dbname) as conn:
            conn.execute(SchemaManager.get_schema())
            conn.execute("insert into procrastinate_workers default values")

    def fill(self, conn: psycopg.Connection, load: Load, count: int) -> None:
        conn.execute("set synchronous_commit = off")
        for _ in range(0, count, 1000):
            conn.execute(self._defer(load.json(), min(1000, count)).encode())
        conn.execute("vacuum analyze procrastinate_jobs")

    def script(self, load: Load, variant: str) -> str:
        if load.work == "enqueue":
            return f"{self._defer(load.json(), load.n)};\n"
        if load.n > 1:
            raise Absent("procrastinate fetches one job at a time")
        fetch = _query("fetch_job", queues="array['b']", worker_id="1")
        finish = _query("finish_job", job_id=":id", status="'succeeded'", delete_job="true")
        cycle = f"select coalesce(max(id), 0) as id from ({fetch}) as f \\gset\n\\if :id > 0\n{finish};\n\\endif\n"
        return (f"{self._defer(load.json(), 1)};\n" if load.work == "steady" else "") + cycle

    def _defer(self, payload: str, n: int) -> str:
        job = JOB.format(payload=payload)
        return _query("defer_jobs", jobs=f"array_fill({job}, array[{n}])")

    def left(self, conn: psycopg.Connection) -> int:
        row = conn.execute(
            "select count(*) from procrastinate_jobs where status = 'todo'"
        ).fetchone()
        return int(row[0]) if row else 0

    def stamped(self, variant: str) -> str:
        return f"{self._defer(STAMP, 1)};\n"

    def consume(self, dsn: str, variant: str, concurrency: int, n: int, tally: Tally) -> None:
        import procrastinate

        app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(
                conninfo=dsn, min_size=2, max_size=concurrency + 4
            )
        )

        async def bench(**payload: object) -> None:
            tally.add(payload)

        app.task(name="bench", queue="b")(bench)

        async def work() -> None:
            async with app.open_async():
                await app.run_worker_async(
                    queues=["b"],
                    concurrency=concurrency,
                    delete_jobs="always",
                    shutdown_graceful_timeout=1,
                )

        asyncio.run(work())


def _query(name: str, **values: str) -> str:
    """One of its queries, with SQL for its arguments."""
    from procrastinate.sql import queries

    text = str(queries[name])
    for key, value in values.items():
        text = text.replace(f"%({key})s", value)
    return inlined(text, [])
