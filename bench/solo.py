"""Cells whose contestants do not run in turns: WAL and commits, latency through LISTEN, what idling costs."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from bench.arena import REPO, Arena, Contestant, Figures
from bench.cells import Cell
from bench.peers import Absent, Failed, Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Wal(Cell):
    """WAL and commits per message: so many in, then all of them out; the contestants one after the other."""

    n: int
    messages: int
    clients: int = 4
    payload: int = 200

    @property
    def key(self) -> str:
        return "wal_bytes"

    def check(self, arena: Arena, contestant: Contestant) -> None:
        contestant.peer.version(arena.server)
        for load in (Load("enqueue", self.n), Load("drain", self.n)):
            contestant.peer.prepare(arena.server, load)
        contestant.peer.script(Load("enqueue", self.n), contestant.variant)

    def measure(self, arena: Arena, contestants: list[Contestant]) -> dict[str, Figures]:
        found = {}
        for contestant in contestants:
            with arena.database(contestant, Load("enqueue")) as name:
                enqueue = self._spend(arena, contestant, name, "enqueue")
                try:
                    cycle = self._spend(arena, contestant, name, "drain")
                except Absent:
                    cycle = dict.fromkeys(enqueue, 0.0)
                figures: Figures = {k: round(enqueue[k] + cycle[k], 3) for k in enqueue}
                figures["enqueue_wal_bytes"] = round(enqueue["wal_bytes"], 1)
                figures["cycle_wal_bytes"] = round(cycle["wal_bytes"], 1)
                found[str(contestant)] = figures
        return found

    def _spend(
        self, arena: Arena, contestant: Contestant, name: str, work: str
    ) -> dict[str, float]:
        """Of all messages in, or out, per message."""
        load = Load(work, self.n, self.payload)
        clients = contestant.peer.clients(load, self.clients)
        calls = self.messages // self.n // clients
        with tempfile.TemporaryDirectory(prefix="mq-bench-") as folder:
            script = arena.script(contestant, load, Path(folder) / "script.sql")
            before = _spent(arena, name)
            program = arena.run_pgbench(
                contestant, name, script, clients, ["--transactions", str(calls)]
            )
            _, stderr = program.communicate(timeout=600)
        if program.returncode != 0:
            raise Failed(str(contestant), stderr)
        time.sleep(0.2)
        after = _spent(arena, name)
        return {k: (after[k] - before[k]) / (calls * clients * self.n) for k in after}


def _spent(arena: Arena, name: str) -> dict[str, float]:
    with arena.server.connect(name) as conn:
        row = conn.execute(
            """select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0'), w.wal_records, w.wal_fpi, d.xact_commit
               from pg_stat_wal as w, pg_stat_database as d where d.datname = current_database()"""
        ).fetchone()
    assert row is not None
    return dict(
        zip(("wal_bytes", "wal_records", "wal_fpi", "commits"), map(float, row), strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(Cell):
    """From enqueue to the handler of the peer's own consumer, which waits: messages at a rate, one consumer process."""

    rate: int
    concurrency: int = 1
    n: int = 100

    @property
    def key(self) -> str:
        return "p50_ms"

    def check(self, arena: Arena, contestant: Contestant) -> None:
        contestant.peer.version(arena.server)
        contestant.peer.prepare(arena.server, Load("enqueue"))
        contestant.peer.stamped(contestant.variant)

    def measure(self, arena: Arena, contestants: list[Contestant]) -> dict[str, Figures]:
        found = {}
        for contestant in contestants:
            with arena.database(contestant, Load("steady")) as name:
                found[str(contestant)] = self._one(arena, contestant, name)
        return found

    def _one(self, arena: Arena, contestant: Contestant, name: str) -> Figures:
        with (
            tempfile.TemporaryDirectory(prefix="mq-bench-") as folder,
            consuming(arena, contestant, name, self.concurrency, self.n) as report,
        ):
            script = Path(folder) / "script.sql"
            script.write_text(contestant.peer.stamped(contestant.variant))
            seconds = self.seconds or arena.seconds
            clients = 2 if self.rate <= 100 else 4 if self.rate <= 1000 else 8
            more = ["--time", str(round(seconds + 1)), "--rate", str(self.rate)]
            producer = arena.run_pgbench(contestant, name, script, clients, more)
            _, stderr = producer.communicate(timeout=seconds + 120)
            if producer.returncode != 0:
                raise Failed(str(contestant), stderr)
        return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Own(Cell):
    """Messages a second through the peer's own library: one consumer process works off a backlog."""

    concurrency: int
    n: int
    messages: int = 50_000

    @property
    def key(self) -> str:
        return "messages_s"

    def check(self, arena: Arena, contestant: Contestant) -> None:
        contestant.peer.version(arena.server)
        contestant.peer.prepare(arena.server, Load("enqueue"))
        contestant.peer.stamped(contestant.variant)
        if self.n > 1 and not contestant.peer.batches:
            raise Absent(f"{contestant} claims one message at a time")

    def measure(self, arena: Arena, contestants: list[Contestant]) -> dict[str, Figures]:
        found = {}
        for contestant in contestants:
            with arena.database(contestant, Load("enqueue")) as name:
                with arena.server.connect(name) as conn:
                    contestant.peer.fill(conn, Load("drain", self.n), self.messages)
                with consuming(arena, contestant, name, self.concurrency, self.n) as report:
                    time.sleep(arena.seconds + 1)
                found[str(contestant)] = {
                    k: v for k, v in report.items() if k in ("messages", "messages_s")
                }
        return found


@contextlib.contextmanager
def consuming(
    arena: Arena, contestant: Contestant, name: str, concurrency: int, n: int
) -> Iterator[dict[str, Any]]:
    """A consumer process for the length of a `with`; gives a dictionary that holds its report afterwards."""
    report: dict[str, Any] = {}
    program = subprocess.Popen(
        contestant.peer.consumer(arena.server.dsn(name), contestant.variant, concurrency, n),
        env=arena.server.env(name),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO,
    )
    try:
        time.sleep(1.5)
        yield report
        time.sleep(0.5)
        program.send_signal(signal.SIGTERM)
        stdout, stderr = program.communicate(timeout=60)
        lines = [line for line in stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise Failed(str(contestant), f"its consumer said nothing\n{stdout}{stderr}")
        report.update(json.loads(lines[-1]))
    finally:
        if program.poll() is None:
            program.kill()
            program.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle(Cell):
    """Consumers of mq that sleep (mq.listen): what they cost the server, and what a message costs meanwhile."""

    sleepers: int = 1000
    most_pairs: int = 1

    @property
    def key(self) -> str:
        return "server_cpu_ms_s"

    def measure(self, arena: Arena, contestants: list[Contestant]) -> dict[str, Figures]:
        found = {}
        for contestant in contestants:
            with (
                arena.database(contestant, Load("enqueue")) as name,
                contextlib.ExitStack() as stack,
            ):
                connections: list[psycopg.Connection] = []
                for _ in range(self.sleepers):
                    conn = stack.enter_context(
                        contextlib.closing(arena.server.connect(name, application_name="sleeper"))
                    )
                    conn.execute("select mq.listen('b')")
                    conn.execute("select from mq.dequeue('b', 1)")
                    connections.append(conn)
                before = arena.cpu(name, "sleeper")
                begin = time.monotonic()
                time.sleep(arena.seconds)
                used = arena.cpu(name, "sleeper") - before
                spent = time.monotonic() - begin
                kilobytes = arena.memory(name, "sleeper")
                calls = []
                with arena.server.connect(name) as producer:
                    for _ in range(20):
                        at = time.monotonic()
                        producer.execute("select mq.enqueue('b', '1')")
                        calls.append(time.monotonic() - at)
                        time.sleep(0.05)
                found[str(contestant)] = {
                    "server_cpu_ms_s": round(used * 1000 / spent, 2),
                    "sleepers": len(connections),
                    "private_kb_each": round(kilobytes / max(1, len(connections))),
                    "p50_ms": round(sorted(calls)[len(calls) // 2] * 1000, 3),
                }
        return found
