"""What must hold: ratios of two contestants in one run, and latencies; medians of five rounds."""

from __future__ import annotations

import itertools
import operator
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from bench import matrix, tables
from bench.arena import Contestant
from bench.cells import Cell, race
from bench.peers import Load
from bench.results import CellResults, Results
from bench.solo import Latency

SECONDS = 3.0
HOW: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
}
TITLES = ("target", "of", "wanted", "median", "range", "rounds", "met")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure of a contestant must be, or its ratio to another one's."""

    cell: Cell
    of: str
    by: str | None = None  # None: the figure itself
    what: str
    wanted: str  # '>= 2', or nothing where only the figure is asked for

    def found(self, results: Results) -> list[float]:
        """Its values, round by round."""
        known = results.get(self.cell.name, CellResults())
        of = str(Contestant.parse(self.of))
        if self.by is None:
            return known.figures(of, self.what)
        return known.ratios(str(Contestant.parse(self.by)), self.what, of)

    def met(self, results: Results) -> bool | None:
        """None: nothing is known, or wanted."""
        found = self.found(results)
        if not found or not self.wanted:
            return None
        how, bound = self.wanted.split()
        return HOW[how](statistics.median(found), float(bound))

    def row(self, results: Results) -> list[str]:
        """As TITLES says."""
        found = self.found(results)
        title, form = tables.COLUMNS[self.what]
        said = {True: "yes", False: "NO", None: "" if found else "not measured"}
        form = form if self.by is None else ".2f"
        return [
            self.cell.name,
            f"{self.of}, {title}" if self.by is None else f"{self.of} / {self.by}, {title}",
            self.wanted,
            format(statistics.median(found), form) if found else "",
            f"{min(found):{form}}-{max(found):{form}}" if found else "",
            str(len(found)),
            ", ".join(filter(None, [said[self.met(results)], *self._doubts(results)])),
        ]

    def _doubts(self, results: Results) -> Iterator[str]:
        """Why the figure is not what it seems."""
        known = results.get(self.cell.name, CellResults())
        for name in known.contestants():
            if any(one.get(name, {}).get("ran_dry") for one in known.rounds.values()):
                yield f"{name} ran dry"
        if isinstance(self.cell, Latency):
            rate = known.middle(self.of, "messages_s")
            if rate is not None and rate < 0.95 * self.cell.rate:
                yield f"only {rate:,.0f}/s"


def targets() -> list[Target]:
    """All of them; those of a cell stand together."""
    return [
        *against_plain("plain", "mq:next", "plain:tx"),
        *enqueueing(),
        *against_itself(),
        *wal(),
        *latencies(),
        *against_plain("plain-tx", "mq:tx", "plain:tx"),
        *against_plain("plain-next", "mq:next", "plain:next"),
    ]


def ratio(cell: Cell, wanted: str) -> Target:
    """Of the cell's first contestant to its second."""
    of, by = cell.contestants
    return Target(cell=cell, of=of, by=by, what=cell.key, wanted=wanted)


def against_plain(prefix: str, of: str, by: str) -> Iterator[Target]:
    """Both ack in a claim's transaction, each as it is meant to be used: mq in the next one, the table in its own. Besides,
    both in their own (`plain-tx`), and both in the next (`plain-next`).
    """
    pair = f"{of} {by}"
    held = f"{of}@snapshot {by}@snapshot"
    for (n, wanted), clients in itertools.product(((1, 1), (10, 2), (100, 6)), (4, 16, 64)):
        name = f"{prefix} n={n}"
        yield ratio(race(name, Load("drain", n), clients, pair, seconds=SECONDS), f">= {wanted}")
    for (latency, us), clients in itertools.product(matrix.DELAYS.items(), (4, 16, 64)):
        yield ratio(
            race(
                f"{prefix} n=1 commit={latency}",
                Load("drain", 1),
                clients,
                pair,
                seconds=SECONDS,
                settings={"commit_delay": us},
            ),
            ">= 1",
        )
    for n in (1, 10, 100):
        name = f"{prefix} held n={n}"
        yield ratio(race(name, Load("drain", n), 16, held, seconds=SECONDS, aging=60.0), ">= 10")


def enqueueing() -> Iterator[Target]:
    """Single messages, and batches as VALUES and as an array."""
    for clients in (1, 4, 16, 64):
        load = Load("enqueue", 1)
        yield ratio(race("enqueue n=1", load, clients, "mq:auto bare", seconds=SECONDS), ">= 0.85")
    for bare in ("values", "unnest"):
        pair = f"mq:auto bare:{bare}"
        name = f"enqueue-{bare} n=1000"
        yield ratio(race(name, Load("enqueue", 1000), 4, pair, seconds=SECONDS), ">= 0.8")


def against_itself() -> Iterator[Target]:
    """A held snapshot (ten minutes a round), many consumers, many messages that wait."""
    for n in (1, 10, 100):
        pair = "mq:next/64 mq:next/16"
        yield ratio(race(f"consumers n={n}", Load("drain", n), 64, pair, seconds=SECONDS), ">= 0.9")
    for n in (1, 100):
        pair = "mq:next@deep mq:next"
        yield ratio(
            race(f"deep n={n}", Load("steady", n), 16, pair, seconds=10.0, in_place=True),
            ">= 0.95",
        )
    pair = "mq:next@snapshot mq:next"
    yield ratio(
        race("snapshot n=10", Load("steady", 10), 16, pair, seconds=300.0, series=True), ">= 0.95"
    )


def wal() -> Iterator[Target]:
    """Of enqueue, claim and ack, by that of the bare insert alone."""
    cell = replace(matrix.wal(100, 80_000), contestants=("mq:next", "mq:tx", "bare"), most_pairs=5)
    for of in ("mq:next", "mq:tx"):
        yield Target(cell=cell, of=of, by="bare", what="wal_bytes", wanted="<= 1.5")


def latencies() -> Iterator[Target]:
    """End to end, by notify mode; `never` polls, and is asked for its figure only."""
    cell = replace(matrix.latency(1000), most_pairs=5, seconds=10.0)
    for mode, (what, wanted) in itertools.product(
        cell.contestants, (("p50_ms", "< 2"), ("p99_ms", "< 10"))
    ):
        yield Target(cell=cell, of=mode, what=what, wanted="" if mode == "mq:never" else wanted)


def table(some: Sequence[Target], results: Results) -> Table:
    """For a terminal."""
    view = Table(title="targets")
    for i, title in enumerate(TITLES):
        view.add_column(title, justify="left" if i < 2 else "right", overflow="fold")
    for target in some:
        style = {True: "green", False: "red", None: None}[target.met(results)]
        view.add_row(*target.row(results), style=style)
    return view


def markdown(some: Sequence[Target], results: Results) -> str:
    """For docs."""
    return tables.text("targets", TITLES, [target.row(results) for target in some])
