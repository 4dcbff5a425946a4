"""graphile-worker (npm): the statements that its worker sends, and its worker."""

from __future__ import annotations

import psycopg

from bench.peers.base import Absent, Load
from bench.peers.captured import ids_of, inlined
from bench.peers.node import NodePeer

MOST = 100
STAMP = "json_build_object('t', extract(epoch from clock_timestamp()), 'p', repeat('x', 160))"


class GraphileWorker(NodePeer):
    """get_job and complete_job, as its worker sends them; n > 1 is its local queue, which fetches n ahead, with
    completions in batches."""

    name = "graphile-worker"

    def watched(self, load: Load) -> set[int]:
        return {load.n} if load.n <= MOST else set()

    def fill(self, conn: psycopg.Connection, load: Load, count: int) -> None:
        conn.execute("set synchronous_commit = off")
        for _ in range(0, count, 1000):
            conn.execute(f"select count(*) from {add_jobs(load, min(1000, count))}".encode())
        conn.execute("vacuum analyze graphile_worker._private_jobs")

    def script(self, load: Load, variant: str) -> str:
        if load.n == 1:
            put = f"select id from graphile_worker.add_job('bench', '{load.text()}'::json);\n"
        else:
            put = f"select count(*) from {add_jobs(load, load.n)};\n"
        if load.work == "enqueue":
            return put
        if load.n > MOST:
            raise Absent(f"more than {MOST} jobs at a time are not watched")
        said = self._said[load.n]
        if not said.get("claim") or not said.get("complete"):
            raise Absent(f"it was not seen to claim and complete {load.n} jobs")
        claim = inlined(str(said["claim"]["text"]), ["'bench'", "array[1]"])
        if load.n == 1:
            # Columns of its one row become variables; no row leaves them as they are.
            done = inlined(str(said["complete"]["text"]), [":id"])
            cycle = f"\\set id 0\n{claim} \\aset\n\\if :id > 0\n{done};\n\\endif\n"
        else:
            # pgbench wants one row, so its last UPDATE becomes one more CTE.
            head, _, update = claim.rpartition(")\n  update ")
            if not head:
                raise Absent(
                    "this release's get_job is not as bench/peers/graphile_worker.py knows it"
                )
            update = update.replace("returning *", "returning jobs.id, jobs.payload")
            whole = ids_of(f"update {update}").replace("with taken", "), taken", 1)
            done = inlined(str(said["complete"]["text"]), [":ids"])
            cycle = f"{head}{whole}\\if :got > 0\n{done};\n\\endif\n"
        return put + cycle if load.work == "steady" else cycle

    def define(self) -> dict[str, str]:
        return {"id": "0"}

    def left(self, conn: psycopg.Connection) -> int:
        row = conn.execute(
            "select count(*) from graphile_worker._private_jobs where locked_at is null"
        ).fetchone()
        return int(row[0]) if row else 0

    def stamped(self, variant: str) -> str:
        return f"select id from graphile_worker.add_job('bench', {STAMP});\n"


def add_jobs(load: Load, n: int) -> str:
    """A call of its SQL function for many jobs."""
    spec = f"row('bench', '{load.text()}'::json, null, null, null, null, null, null)::graphile_worker.job_spec"
    return f"graphile_worker.add_jobs(array_fill({spec}, array[{n}]))"
