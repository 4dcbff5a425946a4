"""mq against the prototype it grew from: the same server, the same minute, in pairs.

    python bench/prototype.py                           all of it, about twenty minutes
    python bench/prototype.py --workload dequeue-10 --clients 4,16 --pairs 3
    python bench/prototype.py --out results.jsonl       goes on where that file ends

A cell is a workload with a number of clients. A pair is both engines in fresh copies of databases that
were filled once, in turns of a quarter of a second; what counts is the median of the pairs' ratios.
Every half of a pair is one line of JSON in the file, so that an interrupted series can go on.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "python"), str(REPO / "tests")]

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from bench.revision import revision  # noqa: E402
from support.server import Server  # noqa: E402

ENGINES = ("prototype", "mq")
SIZES = (1, 10, 100, 500)
WORKLOADS = ("enqueue", *(f"dequeue-{n}" for n in SIZES))
CLIENTS = (1, 4, 16, 64)
# Messages that wait for the consumers, for each second: more than the fastest cell consumes.
BACKLOG = {1: 25_000, 10: 110_000, 100: 330_000, 500: 600_000}
# A session's first calls compile its functions and fill its caches, on two cores for all of them.
WARM_SECONDS = {1: 1, 4: 1, 16: 2, 64: 3}
TURN = 0.25
# Durable, as Debian sets it up, but for memory, and for the noise of checkpoints in short runs.
SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "wal_level": "replica",
    "log_lock_waits": "off",
}
FILL = """
select count(*) from (
    select mq.enqueue_batch('b', array_fill(('{"p":"' || repeat('x', 190) || '"}')::jsonb, array[5000]))
    from generate_series(1, %d)) as x
"""
ENQUEUE = """
select mq.enqueue('b', jsonb_build_object('p', repeat('x', 190)));
"""
# The receipt of one call is acknowledged by the next one.
DEQUEUE = """
select coalesce(max(receipt), '0') as r from mq.dequeue('b', %d, ack => nullif(:r::text, '0')) \\gset
"""


class Missing(Exception):
    """Something that the comparison needs is not here."""


def prototype() -> Path:
    """The prototype's script: $MQ_PROTOTYPE, or where it lies beside the checkout."""
    found = Path(os.environ.get("MQ_PROTOTYPE") or REPO.parent / "shared/prototype/engine.sql")
    if not found.exists():
        raise Missing(f"the prototype is not here ({found}); MQ_PROTOTYPE can say where it is")
    return found


class Bench:
    """A server with a filled database for each engine and size, and pgbench."""

    def __init__(self, server: Server, seconds: int) -> None:
        self.server = server
        self.seconds = seconds
        self.pgbench = server.installation.bin / "pgbench"
        if not self.pgbench.exists():
            raise Missing(f"this server has no pgbench ({self.pgbench})")
        self._databases: dict[str, str] = {}  # and the commit that was installed there

    def pair(self, workload: str, clients: int) -> dict[str, dict[str, Any]]:
        """Both engines in fresh databases, in turns of a quarter of a second.

        Each has its pgbench; all the time one of the two is stopped, so that what else the machine
        and its disk do falls on both alike. Counted is what ends in an engine's turns after the warm-up.
        """
        warm = 2 * WARM_SECONDS.get(clients, 3)
        total = warm + 2 * self.seconds
        for engine in ENGINES:
            source = self._filled(engine, _size(workload))
            with self.server.connect() as conn:
                conn.execute(f"drop database if exists run_{engine} with (force)")
                conn.execute(f"create database run_{engine} template {source} {self._copy()}")
        with self.server.connect() as conn:
            conn.execute("checkpoint")
        with tempfile.TemporaryDirectory(prefix="mq-bench-") as name:
            folder = Path(name)
            programs = {
                engine: self._start(engine, workload, clients, total, folder) for engine in ENGINES
            }
            begin = time.time()
            turn = 0
            while time.time() < begin + total - 0.5:
                mine, other = (ENGINES, ENGINES[::-1])[turn % 2]
                programs[other].send_signal(signal.SIGSTOP)
                programs[mine].send_signal(signal.SIGCONT)
                time.sleep(TURN)
                turn += 1
            stop = time.time()
            cpu = {engine: self._cpu(engine) for engine in ENGINES}
            for program in programs.values():
                program.send_signal(signal.SIGCONT)
            found = {}
            for engine, program in programs.items():
                stdout, stderr = program.communicate(timeout=120)
                if program.returncode != 0:
                    raise RuntimeError(f"{engine} {workload}: pgbench\n{stdout}\n{stderr}")
                counted, everything = _count(folder, engine, begin + warm, stop)
                found[engine] = {
                    "revision": self._databases[f"{engine}_{_size(workload)}"],
                    "tps": round(2 * counted / (stop - begin - warm), 1),
                    "calls": counted,
                    "cpu_us": round(cpu[engine] * 1e6 / max(1, everything), 1),
                    "ran_dry": _size(workload) > 0 and self._is_dry(engine),
                }
        return found

    def _start(
        self, engine: str, workload: str, clients: int, seconds: int, folder: Path
    ) -> subprocess.Popen[str]:
        n = _size(workload)
        script = folder / f"{workload}.sql"
        script.write_text(DEQUEUE % n if n else ENQUEUE)
        return subprocess.Popen(
            [
                *(self.pgbench, "--no-vacuum", "--protocol", "prepared", "--define", "r=0"),
                *("--client", str(clients), "--jobs", str(min(2, clients))),
                *("--time", str(seconds), "--log", "--log-prefix", str(folder / engine)),
                *("--file", script, f"run_{engine}"),
            ],
            env=self.server.env(f"run_{engine}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _cpu(self, engine: str) -> float:
        """Seconds of processor that the sessions of a run have used so far."""
        total = 0.0
        with self.server.connect() as conn:
            found = conn.execute(
                "select pid from pg_stat_activity where datname = %s", (f"run_{engine}",)
            ).fetchall()
        for (pid,) in found:
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
        return total

    def _is_dry(self, engine: str) -> bool:
        with self.server.connect(f"run_{engine}") as conn:
            return conn.execute("select from mq.dequeue('b', 1)").rowcount == 0

    def _copy(self) -> str:
        return "strategy file_copy" if self.server.major >= 15 else ""

    def _filled(self, engine: str, n: int) -> str:
        """A database with that engine and the messages for dequeues of n, made once."""
        name = f"{engine}_{n}"
        if name not in self._databases:
            installed = revision()
            self.server.create_database(name)
            with self.server.connect(name) as conn:
                if engine == "mq":
                    from mqctl import migrate

                    migrate.install(conn)
                else:
                    conn.execute(prototype().read_bytes())
                conn.execute("select mq.create_queue('b')")
                if n:
                    conn.execute(
                        (
                            FILL
                            % (BACKLOG[n] * (self.seconds + max(WARM_SECONDS.values())) // 5000)
                        ).encode()
                    )
            self._databases[name] = installed
        return name


def _count(folder: Path, engine: str, since: float, until: float) -> tuple[int, int]:
    """Calls that ended between two times, and all until then, from pgbench's logs."""
    counted = everything = 0
    for log in folder.glob(f"{engine}.*"):
        with log.open() as lines:
            for line in lines:
                fields = line.split()
                at = int(fields[4]) + int(fields[5]) / 1e6
                everything += at < until
                counted += since <= at < until
    return counted, everything


def _size(workload: str) -> int:
    return int(workload.partition("-")[2] or 0)


@contextlib.contextmanager
def bench(server: str, seconds: int) -> Iterator[Bench]:
    with Server(server, durable=True, settings=SETTINGS) as running:
        yield Bench(running, seconds)


Results = dict[tuple[str, int], dict[int, dict[str, dict[str, Any]]]]


def read(path: Path) -> Results:
    """Results by workload and clients, by pair, by engine."""
    results: Results = {}
    if path.exists():
        for line in path.read_text().splitlines():
            one = json.loads(line)
            if "workload" in one:
                pairs = results.setdefault((one["workload"], one["clients"]), {})
                pairs.setdefault(one["pair"], {})[one["engine"]] = one
    return results


def ratio(pairs: dict[int, dict[str, dict[str, Any]]]) -> float | None:
    """The median over the pairs of mq's rate by the prototype's; None before the first pair."""
    found = [
        pair["mq"]["tps"] / pair["prototype"]["tps"] for pair in pairs.values() if len(pair) == 2
    ]
    return statistics.median(found) if found else None


def middle(pairs: dict[int, dict[str, dict[str, Any]]], engine: str, what: str = "tps") -> float:
    """The median of one of an engine's figures."""
    found: list[float] = [pair[engine][what] for pair in pairs.values() if engine in pair]
    return statistics.median(found)


def table(results: Results) -> Table:
    """What a person wants to see: ratio, and calls per second of mq and the prototype."""
    clients = sorted({cell[1] for cell in results})
    titles = (f"{n} client{'s' * (n > 1)}" for n in clients)
    view = Table(
        "workload", *titles, title="mq / prototype: ratio, calls per second, CPU us per call"
    )
    for workload in WORKLOADS:
        row = []
        for n in clients:
            pairs = results.get((workload, n), {})
            value = ratio(pairs)
            if value is None:
                row.append("")
                continue
            color = "green" if value >= 1 else "red"
            row.append(
                f"[{color}]{value:.2f}[/]  {middle(pairs, 'mq'):,.0f} / {middle(pairs, 'prototype'):,.0f}"
                f"\n{middle(pairs, 'mq', 'cpu_us'):,.0f} / {middle(pairs, 'prototype', 'cpu_us'):,.0f} us"
            )
        if any(row):
            view.add_row(workload, *row)
    return view


def _list(text: str) -> list[str]:
    return text.split(",")


def arguments() -> argparse.Namespace:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M")
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="Exit status: 0 all ratios at least 1, 1 one is less, 2 something is missing.",
    )
    parser.add_argument("--server", default=os.environ.get("MQ_TEST_SERVER", "debian"))
    parser.add_argument("--workload", type=_list, default=list(WORKLOADS))
    parser.add_argument("--clients", type=_list, default=[str(n) for n in CLIENTS])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--seconds", type=int, default=3, help="of each engine in a pair, after its warm-up"
    )
    parser.add_argument("--out", type=Path, default=REPO / f"bench/results/prototype-{stamp}.jsonl")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    console = Console()
    results = read(options.out)
    try:
        prototype()
        with bench(options.server, options.seconds) as bencher, options.out.open("a") as out:

            def note(line: dict[str, Any]) -> None:
                out.write(json.dumps(line) + "\n")
                out.flush()

            note(
                {
                    "at": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                    "server": f"{options.server}, PostgreSQL {bencher.server.major}",
                    "settings": bencher.server.settings,
                    "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                    "seconds": options.seconds,
                }
            )
            # Round by round, so that an hour's load falls on all cells alike.
            for pair, workload, clients in itertools.product(
                range(options.pairs), options.workload, [int(n) for n in options.clients]
            ):
                cell = results.setdefault((workload, clients), {})
                if len(cell.get(pair, {})) == len(ENGINES):
                    continue
                load = round(os.getloadavg()[0], 1)
                done = cell[pair] = {}
                for engine, figures in bencher.pair(workload, clients).items():
                    done[engine] = {
                        "workload": workload,
                        "clients": clients,
                        "pair": pair,
                        "engine": engine,
                        "load": load,
                        **figures,
                    }
                    note(done[engine])
                console.print(
                    f"pair {pair + 1}: {workload}, {clients} clients:"
                    f" {done['mq']['tps']:,.0f} / {done['prototype']['tps']:,.0f},"
                    f" CPU {done['mq']['cpu_us']:.0f} / {done['prototype']['cpu_us']:.0f} us"
                )
    except Missing as missing:
        console.print(f"skipped: {missing}")
        return 2
    console.print(table(results))
    if any(run["ran_dry"] for c in results.values() for p in c.values() for run in p.values()):
        console.print("a queue ran dry: BACKLOG is too small for this machine")
    return int(any((ratio(cell) or 0) < 1 for cell in results.values()))


if __name__ == "__main__":
    sys.exit(main())
