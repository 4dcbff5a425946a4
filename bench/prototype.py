"""mq against the prototype it grew from: the same server, the same minute, in pairs.

    python bench/prototype.py                           all of it, about twenty minutes
    python bench/prototype.py --workload dequeue-10 --clients 4,16 --pairs 3
    python bench/prototype.py --out results.jsonl       goes on where that file ends

A cell is a workload with a number of clients. It is run pair by pair, the two engines in turn, each
in a fresh copy of a database that was filled once; what counts is the median of the pairs' ratios.
Every run is one line of JSON in the file, so that an interrupted series can go on.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / "python"), str(REPO / "tests")]

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from support.server import Server  # noqa: E402

ENGINES = ("prototype", "mq")
SIZES = (1, 10, 100, 500)
WORKLOADS = ("enqueue", *(f"dequeue-{n}" for n in SIZES))
CLIENTS = (1, 4, 16, 64)
# Messages that wait for the consumers, for each second: more than the fastest cell consumes.
BACKLOG = {1: 25_000, 10: 110_000, 100: 330_000, 500: 600_000}
# A session's first calls compile its functions and fill its caches, on two cores for all of them.
WARM_SECONDS = {1: 1, 4: 1, 16: 2, 64: 3}
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


def revision() -> str:
    """The commit that is measured, with + behind it if the SQL was edited since."""

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(REPO), *args], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "-s", "--", "sql") else "")


class Bench:
    """A server with a filled database for each engine and size, and pgbench."""

    def __init__(self, server: Server, seconds: int) -> None:
        self.server = server
        self.seconds = seconds
        self.pgbench = server.installation.bin / "pgbench"
        if not self.pgbench.exists():
            raise Missing(f"this server has no pgbench ({self.pgbench})")
        self.scripts = Path(tempfile.mkdtemp(prefix="mq-bench-"))
        self._databases: set[str] = set()

    def run(self, engine: str, workload: str, clients: int) -> dict[str, Any]:
        """One run in a fresh database: calls per second after the warm-up, and with it."""
        n = _size(workload)
        source = self._filled(engine, n)
        warm = WARM_SECONDS.get(clients, 3)
        with self.server.connect() as conn:
            conn.execute("drop database if exists run with (force)")
            conn.execute(f"create database run template {source} {self._copy()}")
            conn.execute("checkpoint")
        script = self.scripts / f"{workload}.sql"
        script.write_text(DEQUEUE % n if n else ENQUEUE)
        cpu = self._cpu()
        done = subprocess.run(
            [
                *(self.pgbench, "--no-vacuum", "--protocol", "prepared", "--define", "r=0"),
                *("--client", str(clients), "--jobs", str(min(2, clients))),
                *("--time", str(warm + self.seconds), "--progress", "1"),
                *("--file", script, "run"),
            ],
            env=self.server.env("run"),
            capture_output=True,
            text=True,
            check=False,
        )
        with self.server.connect() as conn:
            while conn.execute("select from pg_stat_activity where datname = 'run'").rowcount:
                time.sleep(0.01)
        cpu = self._cpu() - cpu
        calls = re.search(
            r"^number of transactions actually processed: ([0-9]+)", done.stdout, re.M
        )
        whole = re.search(r"^tps = ([0-9.]+)", done.stdout, re.M)
        parts = re.findall(r"^progress: ([0-9.]+) s, ([0-9.]+) tps", done.stderr, re.M)
        if done.returncode != 0 or whole is None or calls is None:
            raise RuntimeError(f"{engine} {workload}: pgbench\n{done.stdout}\n{done.stderr}")
        steady = [float(tps) for at, tps in parts if float(at) > warm + 0.5]
        return {
            "tps": round(statistics.fmean(steady or [float(whole[1])]), 1),
            "tps_with_warm_up": round(float(whole[1]), 1),
            "cpu_us": round(cpu * 1e6 / max(1, int(calls[1])), 1),
            "ran_dry": n > 0 and self._is_dry(),
        }

    def _cpu(self) -> float:
        """Seconds of processor that the server's sessions used, of those that ended."""
        if self.server.pid is None or not Path("/proc").exists():
            return 0.0
        fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def _is_dry(self) -> bool:
        with self.server.connect("run") as conn:
            return conn.execute("select from mq.dequeue('b', 1)").rowcount == 0

    def _copy(self) -> str:
        return "strategy file_copy" if self.server.major >= 15 else ""

    def _filled(self, engine: str, n: int) -> str:
        """A database with that engine and the messages for dequeues of n, made once."""
        name = f"{engine}_{n}"
        if name not in self._databases:
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
            self._databases.add(name)
        return name


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
    parser.add_argument("--seconds", type=int, default=3, help="of each run, after its warm-up")
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
                done = cell.setdefault(pair, {})
                for engine in ENGINES if pair % 2 == 0 else ENGINES[::-1]:
                    if engine in done:
                        continue
                    done[engine] = {
                        "workload": workload,
                        "clients": clients,
                        "pair": pair,
                        "engine": engine,
                        "revision": revision(),
                        "load": round(os.getloadavg()[0], 1),
                        **bencher.run(engine, workload, clients),
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
