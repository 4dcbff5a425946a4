"""A durable server, and contestants that take turns on it.

A contestant is a peer, a variant of its cycle and a scenario, written `mq`, `plain:next` or `mq:next@snapshot`, or
`mq:next/64` for another number of consumers than the cell's. Each gets a fresh database and a pgbench of its own. All but
one are stopped (SIGSTOP) all the time, the turn passes on four times a second, so what else the machine and its disk do
falls on all alike. What counts is what ended in a contestant's own turns after the warm-up.
"""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import peers, scenarios
from bench.peers import Absent, Failed, Load, Peer
from bench.pgbench import Done, Turn, arguments, count
from support.server import Server

REPO = Path(__file__).resolve().parents[1]
TURN = 0.25
# Durable, with enough memory, and without the noise of a checkpoint in the middle of a short run.
SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "wal_level": "replica",
    "max_connections": "1400",
    "max_locks_per_transaction": "128",
    "autovacuum_naptime": "10s",
    "log_lock_waits": "off",
    "track_wal_io_timing": "off",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "commit_siblings": "0",
}
# A session's first calls compile its functions and fill its caches, on two cores for all of them.
WARM_SECONDS = {1: 1.0, 4: 1.0, 16: 2.0, 64: 3.0, 256: 8.0}

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A peer in one of its variants, perhaps with something held in its database."""

    peer: Peer
    variant: str
    scenario: str = "clean"
    consumers: int | None = None  # None: as many as the cell says

    @classmethod
    def parse(cls, text: str) -> Contestant:
        """`peer`, `peer:variant`, either with `@scenario`, all with `/consumers`. Raises: ValueError."""
        rest, _, consumers = text.partition("/")
        rest, _, scenario = rest.partition("@")
        name, _, variant = rest.partition(":")
        if name not in peers.ALL:
            raise ValueError(f"no peer is called {name} ({', '.join(peers.ALL)})")
        if (scenario or "clean") not in scenarios.ALL:
            raise ValueError(f"no scenario is called {scenario} ({', '.join(scenarios.ALL)})")
        peer = peers.ALL[name]
        if variant and variant not in peer.variants:
            raise ValueError(f"{name} has no variant {variant} ({', '.join(peer.variants)})")
        number = int(consumers) if consumers else None
        return cls(peer, variant or peer.variants[0], scenario or "clean", number)

    def __str__(self) -> str:
        scenario = "" if self.scenario == "clean" else f"@{self.scenario}"
        consumers = "" if self.consumers is None else f"/{self.consumers}"
        return f"{self.peer.name}{':' if self.variant else ''}{self.variant}{scenario}{consumers}"

    def clients(self, load: Load, wanted: int) -> int:
        """How many it has where the cell wants so many."""
        return self.peer.clients(load, self.consumers or wanted)


class Arena:
    """A running server with filled databases to copy."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server = server
        self.seconds = seconds
        self.pgbench = server.installation.bin / "pgbench"
        if not self.pgbench.exists():
            raise Absent(f"this server has no pgbench ({self.pgbench})")
        self._templates: dict[tuple[str, str, Load, int], str] = {}

    def close(self) -> None:
        """Drops the filled databases, where the server lives on."""
        for name in self._templates.values():
            self.server.drop_database(name)
        self._templates.clear()

    def race(
        self,
        contestants: Sequence[Contestant],
        load: Load,
        clients: int,
        backlog: int,
        *,
        seconds: float | None = None,
        series: bool = False,
        aging: float = 0,
        aging_rate: int = 2000,
        in_place: bool = False,
    ) -> dict[str, Figures]:
        """Everybody in turns.

        backlog: messages that wait for each; seconds: of each, after its warm-up; series: also calls by second of
        one's own; aging: so many seconds before, with the scenario already on, aging_rate messages a second go through;
        in_place: no copies of filled databases, for what is too big to be copied.
        """
        seconds = seconds or self.seconds
        names = {c: f"run_{i}" for i, c in enumerate(contestants)}
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mq-bench-")))
            with self.server.connect() as conn:
                conn.execute("checkpoint")
            for contestant, name in names.items():
                stack.callback(self.server.drop_database, name)
                waiting = scenarios.BACKLOGS.get(contestant.scenario, 0 if aging else backlog)
                self._prepare(contestant, load, waiting, name, in_place)
                stack.enter_context(scenarios.ALL[contestant.scenario](self.server, name))
                stack.enter_context(contestant.peer.attended(self.server, name, load))
            if aging:
                self._age(names, load, aging, aging_rate, folder)
                for contestant, name in names.items():
                    with self.server.connect(name) as conn:
                        contestant.peer.fill(conn, load, backlog)
            return self._turns(names, load, clients, seconds, folder, series)

    def _turns(
        self,
        names: Mapping[Contestant, str],
        load: Load,
        clients: int,
        seconds: float,
        folder: Path,
        series: bool,
    ) -> dict[str, Figures]:
        before = {c: self._left(c, name) for c, name in names.items()}
        each = warm_up(clients) + seconds
        total = each * len(names)
        # A little more: what comes after the end is not counted.
        running = {
            c: self._start(c, name, load, clients, math.ceil(total + 0.2), folder)
            for c, name in names.items()
        }
        turns: dict[Contestant, list[Turn]] = {c: [] for c in names}
        samples: dict[Contestant, list[tuple[float, int]]] = {c: [] for c in names}
        order = list(names)
        begin = time.time()
        with contextlib.ExitStack() as stack:
            for program in running.values():
                stack.callback(_end, program)
            for other in order[1:]:
                running[other].send_signal(signal.SIGSTOP)
            number = 0
            while time.time() < begin + total:
                mine = order[number % len(order)]
                running[mine].send_signal(signal.SIGCONT)
                started = time.time()
                time.sleep(TURN)
                if len(order) > 1:
                    running[mine].send_signal(signal.SIGSTOP)
                turns[mine].append(Turn(started, time.time()))
                number += 1
                if series and number % (8 * len(order)) == 0:
                    for c, name in names.items():
                        own = (time.time() - begin) / len(order) - warm_up(clients)
                        samples[c].append((round(own, 1), self._dead(name)))
            cpu = {c: self.cpu(name, "pgbench") for c, name in names.items()}
            found = {}
            for program in running.values():
                program.send_signal(signal.SIGCONT)
            for c, program in running.items():
                _, stderr = program.communicate(timeout=120)
                if program.returncode != 0:
                    raise Failed(str(c), stderr)
                done = count(folder, names[c], turns[c], warm_up(clients))
                found[str(c)] = self._figures(
                    c, names[c], load, clients, done, cpu[c], before[c], series
                )
                if series:
                    found[str(c)]["dead_series"] = samples[c]
        return found

    def _figures(
        self,
        contestant: Contestant,
        name: str,
        load: Load,
        clients: int,
        done: Done,
        cpu: float,
        before: int,
        series: bool,
    ) -> Figures:
        left = self._left(contestant, name)
        # How full the calls were: some may have come back with fewer than n messages, or none.
        full = 1.0
        if load.work != "enqueue":
            put = load.n * done.all_calls if load.work == "steady" else 0
            full = min(1.0, (before + put - left) / max(1, load.n * done.all_calls))
        calls_s = full * done.calls / (done.seconds or 1)
        figures: Figures = {
            "calls_s": round(calls_s, 1),
            "messages_s": round(load.n * calls_s),
            "calls": done.calls,
            "all_calls": done.all_calls,
            "failed": done.failed,
            "clients": contestant.clients(load, clients),
            "p50_ms": done.percentile(50),
            "p95_ms": done.percentile(95),
            "p99_ms": done.percentile(99),
            "cpu_us": round(cpu * 1e6 / max(1, done.calls_until_end), 1),
            "dead_tuples": self._dead(name),
        }
        if load.work != "enqueue":
            figures["full"] = round(full, 3)
        if load.work == "drain":
            figures["ran_dry"] = left == 0
        if series:
            figures["series"] = done.series
        return figures

    def _prepare(
        self, contestant: Contestant, load: Load, backlog: int, name: str, in_place: bool
    ) -> None:
        self.server.drop_database(name)
        if in_place:
            self._make(contestant, load, backlog, name)
        else:
            source = self._filled(contestant, load, backlog)
            # Through WAL: the copy's pages are then younger than the last checkpoint, so that nobody's
            # figures depend on which pages are written for the first time since.
            how = "strategy wal_log" if self.server.major >= 15 else ""
            with self.server.connect() as conn:
                conn.execute(f"create database {name} template {source} {how}".encode())

    def _filled(self, contestant: Contestant, load: Load, backlog: int) -> str:
        """A database with that many messages, made once."""
        shape = Load("enqueue", load.n, load.payload) if backlog else Load("enqueue")
        peer = contestant.peer
        key = (peer.name, peer.template(contestant.variant), shape, backlog)
        if key not in self._templates:
            name = f"template_{len(self._templates)}"
            self._make(contestant, shape, backlog, name)
            self._templates[key] = name
        return self._templates[key]

    def _make(self, contestant: Contestant, load: Load, backlog: int, name: str) -> None:
        self.server.create_database(name)
        contestant.peer.install(self.server, name, contestant.variant)
        if backlog:
            with self.server.connect(name) as conn:
                contestant.peer.fill(conn, load, backlog)

    def _age(
        self,
        names: Mapping[Contestant, str],
        load: Load,
        seconds: float,
        rate: int,
        folder: Path,
    ) -> None:
        """So many messages a second go through everybody's queue, all at the same time; what is late is left out."""
        running = []
        for c, name in names.items():
            batch = replace(load, work="steady", n=10)
            try:
                c.peer.prepare(self.server, batch)
                c.peer.script(batch, c.variant)
            except Absent:
                batch = replace(batch, n=1)
                c.peer.prepare(self.server, batch)
            script = self.script(c, batch, folder / f"{name}-aging.sql")
            more = ["--time", str(round(seconds)), "--latency-limit", "100"]
            more += ["--rate", str(rate / batch.n)]
            running.append(self.run_pgbench(c, name, script, c.peer.clients(batch, 4), more))
        for c, program in zip(names, running, strict=True):
            _, stderr = program.communicate(timeout=seconds + 120)
            if program.returncode != 0:
                raise Failed(str(c), stderr)

    def _start(
        self,
        contestant: Contestant,
        name: str,
        load: Load,
        clients: int,
        seconds: int,
        folder: Path,
    ) -> subprocess.Popen[str]:
        script = self.script(contestant, load, folder / f"{name}.sql")
        clients = contestant.clients(load, clients)
        more = ["--time", str(seconds), "--log", "--log-prefix", str(folder / name)]
        return self.run_pgbench(contestant, name, script, clients, more)

    def script(self, contestant: Contestant, load: Load, path: Path) -> Path:
        for name, content in contestant.peer.files(load, contestant.variant).items():
            (self.server.folder / name).write_text(content)
        script = contestant.peer.script(load, contestant.variant)
        path.write_text(script.replace("@folder@", str(self.server.folder)))
        return path

    def run_pgbench(
        self, contestant: Contestant, name: str, script: Path, clients: int, more: list[str]
    ) -> subprocess.Popen[str]:
        """pgbench as everybody gets it, with more arguments."""
        return subprocess.Popen(
            [
                str(self.pgbench),
                *arguments(script, clients, contestant.peer.define()),
                *more,
                name,
            ],
            env=self.server.env(name) | contestant.peer.environment(contestant.variant),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _left(self, contestant: Contestant, name: str) -> int:
        with self.server.connect(name) as conn:
            return contestant.peer.left(conn)

    def _dead(self, name: str) -> int:
        """Dead rows of all tables there, as the statistics say."""
        with self.server.connect(name) as conn:
            row = conn.execute(
                "select coalesce(sum(n_dead_tup), 0) from pg_stat_all_tables"
                " where schemaname not in ('pg_catalog', 'information_schema')"
            )
            found = row.fetchone()
            return int(found[0]) if found else 0

    def cpu(self, name: str, application: str) -> float:
        """Seconds of processor that sessions of a database have used so far."""
        total = 0.0
        for pid in self._sessions(name, application):
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
        return total

    def memory(self, name: str, application: str) -> int:
        """Kilobytes of private memory of sessions of a database."""
        total = 0
        for pid in self._sessions(name, application):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Private_"):
                        total += int(line.split()[1])
        return total

    def _sessions(self, name: str, application: str) -> list[int]:
        with self.server.connect() as conn:
            found = conn.execute(
                "select pid from pg_stat_activity where datname = %s and application_name = %s",
                (name, application),
            )
            return [row[0] for row in found.fetchall()]

    @contextlib.contextmanager
    def database(self, contestant: Contestant, load: Load) -> Iterator[str]:
        """An empty queue of its own, with whatever attends to it, for the length of a `with`."""
        name = "run_solo"
        with self.server.connect() as conn:
            conn.execute("checkpoint")
        self._prepare(contestant, load, 0, name, in_place=True)
        with contextlib.ExitStack() as stack:
            stack.callback(self.server.drop_database, name)
            stack.enter_context(scenarios.ALL[contestant.scenario](self.server, name))
            stack.enter_context(contestant.peer.attended(self.server, name, load))
            yield name

    @contextlib.contextmanager
    def set(self, settings: Mapping[str, str]) -> Iterator[None]:
        """Server settings for the length of a `with`."""
        if not settings:
            yield
            return
        with self.server.connect() as conn:
            for name, value in settings.items():
                conn.execute(f"alter system set {name} = '{value}'".encode())
            conn.execute("select pg_reload_conf()")
        try:
            yield
        finally:
            with self.server.connect() as conn:
                conn.execute("alter system reset all")
                conn.execute("select pg_reload_conf()")

    @contextlib.contextmanager
    def replica(self) -> Iterator[None]:
        """A synchronous replica on this machine for the length of a `with`."""
        from support.standby import Standby

        with Standby(self.server, "bench"), self.set({"synchronous_standby_names": "bench"}):
            yield


def warm_up(clients: int) -> float:
    """Seconds."""
    return WARM_SECONDS.get(clients, max(1.0, clients / 32))


def _end(program: subprocess.Popen[str]) -> None:
    if program.poll() is None:
        program.kill()
        program.wait()


@contextlib.contextmanager
def arena(name: str, seconds: float, settings: Mapping[str, str] | None = None) -> Iterator[Arena]:
    """A server called `name` (support.binaries), started and stopped here."""
    with Server(name, durable=True, settings=SETTINGS | dict(settings or {})) as server:
        yield Arena(server, seconds)
