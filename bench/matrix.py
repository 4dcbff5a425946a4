"""Which cells there are, and which of them matter."""

from __future__ import annotations

import itertools
from dataclasses import replace

from bench.cells import Cell, Replicated, race
from bench.peers import Load
from bench.peers.mq import FEATURES
from bench.solo import Idle, Latency, Own, Wal

SIZES = (1, 10, 100, 1000)
CLIENTS = (1, 4, 16, 64, 256)
MODES = "mq:auto mq:always mq:never"
VARIANTS = "mq:next mq:tx mq:separate plain:tx plain:next plain:separate"
EVERYBODY = "mq:next plain:tx pgq procrastinate pgqueuer graphile-worker pg-boss"
WITH_ASYNC = "mq:next plain:tx mq:async plain:async"
WORKERS = "mq:auto pgq procrastinate pgqueuer graphile-worker pg-boss"
# commit_delay in microseconds, on top of what the disk needs.
DELAYS = {"1ms": "900", "5ms": "4900"}


def quick() -> list[Cell]:
    """The cells that matter: about ten minutes."""
    pair = "mq:next plain:tx"
    held = "mq:next@snapshot plain:tx@snapshot"
    return [
        race("drain n=1", Load("drain", 1), 4, pair),
        race("drain n=1", Load("drain", 1), 16, f"{pair} plain:next"),
        race("drain n=1", Load("drain", 1), 64, pair),
        race("drain n=10", Load("drain", 10), 16, pair),
        race("drain n=100", Load("drain", 100), 16, pair),
        race("enqueue n=1", Load("enqueue", 1), 16, "mq:auto bare"),
        race("enqueue n=1000", Load("enqueue", 1000), 4, "mq:auto bare:unnest bare:values"),
        wal(1, 8_000),
        wal(100, 80_000),
        latency(1000),
        race("held-snapshot n=1", Load("drain", 1), 16, held, aging=60, most_pairs=1),
        race("held-snapshot n=100", Load("drain", 100), 16, held, aging=60, most_pairs=1),
        race(
            "held-over-time n=10",
            Load("steady", 10),
            16,
            held,
            seconds=20,
            series=True,
            most_pairs=1,
        ),
        race("peers-steady n=1", Load("steady", 1), 16, EVERYBODY, backlog=1000, most_pairs=1),
    ]


def slow_commits() -> list[Cell]:
    """Commits of 1 and 5 ms (commit_delay), and with a synchronous replica."""
    cells: list[Cell] = []
    for n, clients in itertools.product((1, 10, 100), (4, 16, 64)):
        load = Load("drain", n)
        cells += [
            race(f"commit={name} n={n}", load, clients, WITH_ASYNC, settings={"commit_delay": us})
            for name, us in DELAYS.items()
        ]
        cells.append(race(f"replica n={n}", load, clients, WITH_ASYNC, kind=Replicated))
    return cells


def surroundings() -> list[Cell]:
    """What else goes on in the database, what the messages are like, how many wait."""
    cells: list[Cell] = []
    for scenario, n in itertools.product(("analytics", "writer", "dump"), (1, 10, 100)):
        pair = f"mq:next@{scenario} plain:tx@{scenario}"
        cells.append(race(f"{scenario} n={n}", Load("drain", n), 16, pair, aging=60, most_pairs=1))
    for size in (100, 1000, 16_000):
        load = Load("steady", 10, size)
        cells.append(race(f"payload={size} n=10", load, 16, "mq:next plain:tx"))
        cells.append(race(f"payload={size} enqueue", Load("enqueue", 1, size), 16, "mq:auto bare"))
    retries = (
        "mq:separate mq:retry mq:separate@snapshot mq:retry@snapshot plain:separate plain:retry"
    )
    cells.append(race("retries n=1", Load("steady", 1), 16, retries, seconds=20, most_pairs=3))
    deep = "mq:next mq:next@deep plain:tx plain:tx@deep"
    cells += [
        race(
            f"backlog=10M n={n}",
            Load("steady", n),
            16,
            deep,
            seconds=10,
            in_place=True,
            most_pairs=1,
        )
        for n in (1, 100)
    ]
    cells.append(
        race(
            "timeline n=10",
            Load("steady", 10),
            16,
            "mq:next mq:next@snapshot",
            seconds=300,
            series=True,
            most_pairs=1,
        )
    )
    cells.append(
        race(
            "timeline-plain n=10",
            Load("steady", 10),
            16,
            "mq:next@snapshot plain:tx plain:tx@snapshot",
            seconds=60,
            series=True,
            most_pairs=1,
        )
    )
    return cells


def features() -> list[Cell]:
    """What each feature costs: queues that use it beside a plain one."""
    used = "mq:next " + " ".join(f"mq:{name}" for name in FEATURES)
    cells: list[Cell] = [
        race(f"features enqueue n={n}", Load("enqueue", n), 4, used) for n in (1, 100)
    ]
    cells += [
        race(f"features steady n={n}", Load("steady", n), 4, used, backlog=2000) for n in (1, 10)
    ]
    return cells


def peers() -> list[Cell]:
    """Everybody, on the server and through their own consumers."""
    cells: list[Cell] = [
        race(f"peers-steady n={n}", Load("steady", n), clients, EVERYBODY, backlog=1000)
        for n, clients in ((1, 16), (10, 16), (100, 4))
    ]
    cells.append(race("peers-enqueue n=1", Load("enqueue"), 16, EVERYBODY))
    held = " ".join(f"{name}@snapshot" for name in EVERYBODY.split())
    cells.append(
        race(
            "peers-held-snapshot n=1",
            Load("drain", 1),
            16,
            held,
            backlog=20_000,
            aging=60,
            aging_rate=300,
            most_pairs=1,
        )
    )
    cells += [
        Own(
            name=f"peers-own n={n}",
            n=n,
            messages=messages,
            concurrency=16,
            contestants=tuple(WORKERS.split()),
        )
        for n, messages in ((1, 50_000), (100, 200_000))
    ]
    cells.append(
        Latency(name="peers-latency rate=100", rate=100, n=1, contestants=tuple(WORKERS.split()))
    )
    return cells


def wal(n: int, messages: int) -> Wal:
    return Wal(
        name=f"wal n={n}",
        n=n,
        messages=messages,
        contestants=("mq:next", "plain:tx", "bare"),
        most_pairs=1,
    )


def latency(rate: int) -> Latency:
    return Latency(
        name=f"latency rate={rate}", rate=rate, contestants=tuple(MODES.split()), most_pairs=2
    )


def full() -> list[Cell]:
    """Everything, those of quick() first."""
    cells = [replace(cell, most_pairs=5) for cell in quick()]
    held = "mq:next@snapshot plain:tx@snapshot"
    cells.append(race("held-snapshot n=10", Load("drain", 10), 16, held, aging=60))
    for n, clients in itertools.product(SIZES, CLIENTS):
        cells += [
            race(f"drain n={n}", Load("drain", n), clients, "mq:next plain:tx plain:next"),
            race(f"steady n={n}", Load("steady", n), clients, "mq:next plain:tx"),
        ]
    for n, clients in itertools.product(SIZES, CLIENTS):
        enqueue = MODES if n == 1 else f"{MODES} mq:copy"
        yardsticks = "bare" if n == 1 else "bare:unnest bare:values bare:copy"
        cells += [
            race(f"enqueue n={n}", Load("enqueue", n), clients, "mq:auto bare"),
        ]
        if clients < 256:  # times six there would be more connections than the server has
            cells += [
                race(f"drain-variants n={n}", Load("drain", n), clients, VARIANTS),
                race(
                    f"enqueue-variants n={n}",
                    Load("enqueue", n),
                    clients,
                    f"{enqueue} {yardsticks}",
                ),
            ]
    cells += slow_commits()
    cells += peers()
    cells += surroundings()
    cells += features()
    cells += [wal(n, messages) for n, messages in ((10, 20_000), (1000, 200_000))]
    cells += [latency(rate) for rate in (100, 5000)]
    cells.append(Idle(name="idle sleepers=1000", contestants=("mq",)))
    seen: dict[str, Cell] = {}
    for cell in cells:
        seen.setdefault(cell.name, cell)
    return list(seen.values())
