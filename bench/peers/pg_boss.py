"""pg-boss (npm): the statements that fetch() and complete() send, and these methods themselves."""

from __future__ import annotations

import psycopg

from bench.peers.base import Load
from bench.peers.captured import ids_of, inlined, literal
from bench.peers.node import NodePeer

STAMP = "jsonb_build_object('t', extract(epoch from clock_timestamp()), 'p', repeat('x', 160))"


class PgBoss(NodePeer):
    """fetch (batchSize n) and complete, which keeps the jobs until its maintenance archives them."""

    name = "pg-boss"

    def watched(self, load: Load) -> set[int]:
        return {1, load.n}  # single jobs are sent as one is, whatever n

    def fill(self, conn: psycopg.Connection, load: Load, count: int) -> None:
        conn.execute("set synchronous_commit = off")
        for _ in range(0, count, 1000):
            conn.execute(self._insert(load, min(1000, count)).encode())
        conn.execute("vacuum analyze")

    def script(self, load: Load, variant: str) -> str:
        put = f"{self._send(load.json()) if load.n == 1 else self._insert(load, load.n)};\n"
        if load.work == "enqueue":
            return put
        said = self._said[load.n]
        claim = inlined(str(said["claim"]["text"]), ["'b'", str(load.n)])
        done = inlined(str(said["complete"]["text"]), ["'b'", ":ids", "null"])
        cycle = f"{ids_of(claim)}\\if :got > 0\n{done};\n\\endif\n"
        return put + cycle if load.work == "steady" else cycle

    def _send(self, payload: str) -> str:
        return self._put("send", payload)

    def _insert(self, load: Load, n: int) -> str:
        one = f"jsonb_build_object('name', 'b', 'data', {load.json()})"
        return self._put("insert", f"to_json(array_fill({one}, array[{n}]))")

    def _put(self, how: str, data: str) -> str:
        said = self._said[1][how]
        values = said["values"]
        assert isinstance(values, list)
        texts = [data if "mark" in str(value) else literal(value) for value in values]
        return inlined(str(said["text"]), texts)

    def left(self, conn: psycopg.Connection) -> int:
        row = conn.execute(
            "select count(*) from pgboss.job where name = 'b' and state < 'active'"
        ).fetchone()
        return int(row[0]) if row else 0

    def stamped(self, variant: str) -> str:
        return f"{self._send(STAMP)};\n"
