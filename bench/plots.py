"""Results as pictures, PNG files beside the results."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from bench.results import CellResults, Results

matplotlib.use("Agg")
from matplotlib import pyplot

# The same colour for a peer in every picture.
COLORS = {
    "mq": "tab:blue",
    "plain": "tab:orange",
    "bare": "tab:gray",
    "pgq": "tab:green",
    "procrastinate": "tab:red",
    "pgqueuer": "tab:purple",
    "graphile-worker": "tab:brown",
    "pg-boss": "tab:pink",
}
DASHES = ("-", "--", ":", "-.")


def draw(results: Results, stem: Path) -> list[Path]:
    """What can be drawn of these results; the files made."""
    made = []
    for name, picture in PICTURES.items():
        figure = picture(results)
        if figure is not None:
            made.append(_save(figure, stem.with_name(f"{stem.name}-{name}.png")))
    return made


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def consumers(results: Results) -> Any:
    """Calls per second by number of consumers, a panel for each family of cells."""
    families: dict[str, dict[int, CellResults]] = {}
    for name, cell in results.items():
        if (found := re.fullmatch(r"(.+) clients=(\d+)", name)) and cell.rounds:
            families.setdefault(found[1], {})[int(found[2])] = cell
    families = {name: cells for name, cells in families.items() if len(cells) > 1}
    if not families:
        return None
    wide = min(3, len(families))
    tall = -(-len(families) // wide)
    figure, panels = pyplot.subplots(tall, wide, figsize=(5 * wide, 3.6 * tall), squeeze=False)
    for panel, (family, cells) in zip(panels.flat, families.items(), strict=False):
        for contestant in _contestants(cells):
            points = [(n, cell.middle(contestant, cell.key)) for n, cell in sorted(cells.items())]
            shown = [(n, y) for n, y in points if y is not None]
            panel.plot(
                *zip(*shown, strict=True), marker="o", label=contestant, **_style(contestant)
            )
        panel.set_xscale("log", base=4)
        panel.set_xticks(sorted(cells), [str(n) for n in sorted(cells)])
        panel.set(title=family, xlabel="clients", ylabel="calls/s", ylim=(0, None))
        panel.legend(fontsize="small")
    for panel in list(panels.flat)[len(families) :]:
        panel.axis("off")
    return figure


def latency(results: Results) -> Any:
    """p50, p95, p99 from enqueue to the waiting consumer."""
    cells = {name: cell for name, cell in results.items() if "latency" in name and cell.rounds}
    if not cells:
        return None
    figure, panels = pyplot.subplots(1, len(cells), figsize=(5 * len(cells), 3.8), squeeze=False)
    for panel, (name, cell) in zip(panels.flat, cells.items(), strict=True):
        whom = cell.contestants()
        for i, what in enumerate(("p50_ms", "p95_ms", "p99_ms")):
            heights = [cell.middle(contestant, what) or 0 for contestant in whom]
            panel.bar([x + 0.27 * i for x in range(len(whom))], heights, 0.25, label=what[:3])
        panel.set_xticks([x + 0.27 for x in range(len(whom))], whom, rotation=30, ha="right")
        panel.set(title=name, ylabel="ms", yscale="log")
        panel.legend(fontsize="small")
    return figure


def over_time(results: Results) -> Any:
    """Calls in each second of a contestant's own time, and its dead rows."""
    cells = {
        name: cell
        for name, cell in results.items()
        if any("series" in f for found in cell.rounds.values() for f in found.values())
    }
    if not cells:
        return None
    figure, panels = pyplot.subplots(2, len(cells), figsize=(6 * len(cells), 6.5), squeeze=False)
    for i, (name, cell) in enumerate(cells.items()):
        first = min(cell.rounds)
        for contestant, figures in cell.rounds[first].items():
            series = figures["series"][:-1]  # the last second is not a whole one
            panels[0][i].plot(series, label=contestant, **_style(contestant))
            dead = [(at, rows) for at, rows in figures["dead_series"] if at >= 0]
            if dead:
                panels[1][i].plot(*zip(*dead, strict=True), label=contestant, **_style(contestant))
        panels[0][i].set(title=name, xlabel="s", ylabel="calls/s", ylim=(0, None))
        panels[1][i].set(xlabel="s", ylabel="dead rows", ylim=(0, None))
        panels[0][i].legend(fontsize="small")
    return figure


def wal(results: Results) -> Any:
    """WAL bytes and commits per message."""
    cells = {
        name: cell for name, cell in results.items() if cell.key == "wal_bytes" and cell.rounds
    }
    if not cells:
        return None
    figure, panels = pyplot.subplots(2, len(cells), figsize=(4 * len(cells), 6.5), squeeze=False)
    for i, (name, cell) in enumerate(cells.items()):
        whom = cell.contestants()
        enqueue = [cell.middle(c, "enqueue_wal_bytes") or 0 for c in whom]
        cycle = [cell.middle(c, "cycle_wal_bytes") or 0 for c in whom]
        panels[0][i].bar(whom, enqueue, label="enqueue")
        panels[0][i].bar(whom, cycle, bottom=enqueue, label="claim and ack")
        panels[0][i].set(title=name, ylabel="WAL bytes/message")
        panels[0][i].legend(fontsize="small")
        panels[1][i].bar(whom, [cell.middle(c, "commits") or 0 for c in whom])
        panels[1][i].set(ylabel="commits/message")
        for row in panels:
            row[i].tick_params(axis="x", rotation=20)
    return figure


def dead_rows(results: Results) -> Any:
    """Dead rows at the end of the cells with something held."""
    bars = [
        (f"{name}: {contestant}", cell.middle(contestant, "dead_tuples") or 0)
        for name, cell in results.items()
        for contestant in cell.contestants()
        if "@" in contestant and "@deep" not in contestant
    ]
    if not bars:
        return None
    figure, panel = pyplot.subplots(figsize=(8, 0.35 * len(bars) + 1.2))
    labels, values = zip(*reversed(bars), strict=True)
    panel.barh(labels, values)
    panel.set(xlabel="dead rows at the end", xscale="symlog")
    panel.tick_params(axis="y", labelsize="small")
    return figure


def soak(windows: Sequence[dict[str, Any]], path: Path) -> Path:
    """What a soak's windows say, over time; grey while something was held."""
    panels_of = {
        "ms, p50": ["enqueue_p50_ms", "dequeue_p50_ms", "age_p50_ms", "control_p50_ms"],
        "ms, p99": ["enqueue_p99_ms", "dequeue_p99_ms", "age_p99_ms", "control_p99_ms"],
        "kB a session, at most": ["producer_kb_max", "consumer_kb_max", "upkeep_kb_max"],
        "MB": ["database_mb", "wal_mb"],
        "messages": ["ready", "leased", "deferred", "dead"],
        "messages/s": ["messages_s"],
    }
    figure, panels = pyplot.subplots(3, 2, figsize=(12, 10), sharex=True)
    minutes = [window["at"] / 60 for window in windows]
    for panel, (unit, keys) in zip(panels.flat, panels_of.items(), strict=True):
        for key in keys:
            label = key.removesuffix("_ms").removesuffix("_kb_max").removesuffix("_mb")
            panel.plot(minutes, [window.get(key) for window in windows], label=label)
        for begin, window in zip(minutes[:1] + minutes, windows, strict=False):
            if window["held"]:
                panel.axvspan(begin, window["at"] / 60, color="lightgray", alpha=0.5)
        if unit == "ms, p99":
            panel.set(ylabel=unit, yscale="log")
        else:
            panel.set(ylabel=unit, ylim=(0, None))
        panel.legend(fontsize="small")
    for panel in panels[-1]:
        panel.set(xlabel="minutes")
    return _save(figure, path)


PICTURES: dict[str, Callable[[Results], Any]] = {
    "consumers": consumers,
    "latency": latency,
    "over-time": over_time,
    "wal": wal,
    "dead-rows": dead_rows,
}


def _contestants(cells: dict[int, CellResults]) -> list[str]:
    names: dict[str, None] = {}
    for cell in cells.values():
        names |= dict.fromkeys(cell.contestants())
    return list(names)


def _style(contestant: str) -> dict[str, Any]:
    """The peer's colour; dashes by variant and scenario."""
    peer = re.split("[:@]", contestant)[0]
    other = contestant[len(peer) :]
    number = sum(map(ord, other)) if other else 0
    dash = "--" if "@" in other else DASHES[number % len(DASHES)]
    return {"color": COLORS.get(peer, "black"), "linestyle": dash}
