"""Whether a soak stayed flat: its last third beside its first, in medians over all windows, and what the books say."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench import tables

Window = dict[str, Any]
TITLES = ("metric", "first third", "last third", "ratio", "bound", "ok")
ROLES = ("producer", "consumer", "upkeep")
# Figures of windows: how much more the last third may have, and which figure of the control excuses more of it.
BOUNDS: dict[str, tuple[float | None, str]] = {
    "enqueue_p50_ms": (1.25, "control_p50_ms"),
    "enqueue_p99_ms": (1.5, "control_p99_ms"),
    "dequeue_p50_ms": (1.25, "control_p50_ms"),
    "dequeue_p99_ms": (1.5, "control_p99_ms"),
    "age_p50_ms": (None, ""),
    "age_p99_ms": (None, ""),
    "control_p50_ms": (None, ""),
    "control_p99_ms": (None, ""),
    # A single session grows in steps, as it meets what is rare.
    **{f"{role}_kb_max": (1.1, "") for role in ROLES},
    **{f"{role}_kb_mean": (1.05, "") for role in ROLES},
    "database_mb": (None, ""),  # a saw: it grows with the open segment
    "wal_mb": (None, ""),
    "dead_rows": (None, ""),
    "segments": (None, ""),
    "slots": (None, ""),
    "messages_s": (None, ""),
    "load": (None, ""),
}
# What must be so when all is over, at most.
FACTS = {
    "unaccounted": "committed minus settled, messages",
    "twice": "settled twice",
    "phantoms": "rolled back, and settled",
    "torn": "leases acknowledged in part",
    "left": "left in the queue",
    "lost_clients": "clients that gave up",
    "errors": "errors that nobody provoked",
}
MOST_MB = 24  # of a drained queue above a new one: catalogue, deferred messages, what vacuum has not seen yet


MOST_DISK = 1.1  # times, of what stays when all is dropped that can be
MOST_SHORT = 5  # percent


@dataclass(frozen=True, slots=True)
class Judgement:
    """A figure of both thirds and how their ratio is bounded; or, where there is no first, how the figure itself is."""

    metric: str
    first: float | None
    last: float | None
    bound: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.last / self.first if self.first and self.last is not None else None

    @property
    def ok(self) -> bool:
        """What was not measured is not good."""
        if self.bound is None:
            return True
        found = self.last if self.first is None else self.ratio
        return found is not None and found <= self.bound

    def row(self) -> list[str]:
        """As TITLES says."""
        figures = [_shown(x) for x in (self.first, self.last)]
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        bound = "" if self.bound is None else f"<= {self.bound:.4g}"
        return [
            self.metric,
            *figures,
            ratio,
            bound,
            "" if not bound else "yes" if self.ok else "NO",
        ]


def verdict(windows: Sequence[Window], end: Window) -> list[Judgement]:
    """All of them; windows are those after the warm-up."""
    third = max(1, len(windows) // 3)
    thirds = windows[:third], windows[-third:]

    def over(
        key: str, how: Callable[[list[float]], float] = statistics.median
    ) -> tuple[float | None, float | None]:
        first, last = ([w[key] for w in some if w.get(key) is not None] for some in thirds)
        return how(first) if first else None, how(last) if last else None

    judged = []
    for key, (bound, control) in BOUNDS.items():
        noise = Judgement(control, *over(control)).ratio if control else None
        # The machine's own change is not mq's; a quieter machine is no reason to be stricter.
        allowed = bound * max(1.0, noise or 1.0) if bound else None
        judged.append(Judgement(_title(key), *over(key), allowed))
        if key == "database_mb":
            judged.append(Judgement("database MB, least", *over(key, min), MOST_DISK))
    # Else the rate was not what mq, or this machine meanwhile, can do: pgbench falls behind, or messages wait.
    done = statistics.fmean([w["messages_s"] for w in windows] or [0])
    short = Judgement(
        "messages/s below the rate, %", None, 100 * (1 - done / end["rate"]), MOST_SHORT
    )
    judged.append(short)
    judged.append(Judgement("ready", None, over("ready")[1], end["rate"]))
    judged += [Judgement(what, None, end[key], 0) for key, what in FACTS.items()]
    judged.append(Judgement("segments at the end", None, end["segments"], 1))
    size = Judgement("database MB at the end", None, end["database_mb"], end["empty_mb"] + MOST_MB)
    return [*judged, size]


def table(judged: Sequence[Judgement]) -> Table:
    """For a terminal."""
    view = Table(title="soak")
    for i, title in enumerate(TITLES):
        view.add_column(title, justify="left" if i == 0 else "right", overflow="fold")
    for one in judged:
        style = None if one.bound is None else "green" if one.ok else "red"
        view.add_row(*one.row(), style=style)
    return view


def markdown(judged: Sequence[Judgement], title: str) -> str:
    """For docs."""
    return tables.text(title, TITLES, [one.row() for one in judged])


def _title(key: str) -> str:
    if key == "messages_s":
        return "messages/s"
    return key.replace("_kb_", " kB, ").replace("_mb", " MB").replace("_", " ")


def _shown(figure: float | None) -> str:
    if figure is None:
        return ""
    return f"{figure:,.0f}" if abs(figure) >= 100 or figure == int(figure) else f"{figure:,.2f}"
