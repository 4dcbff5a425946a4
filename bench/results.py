"""Results: a file with a line of JSON for each measurement, and tables of them."""

from __future__ import annotations

import contextlib
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


@dataclass(slots=True)
class CellResults:
    """What was measured of a cell: figures by round and contestant, and who was absent why."""

    key: str = "calls_s"
    rounds: dict[int, dict[str, Figures]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def contestants(self) -> list[str]:
        names: dict[str, None] = {}
        for figures in self.rounds.values():
            names |= dict.fromkeys(figures)
        return list(names)

    def middle(self, contestant: str, what: str) -> float | None:
        """The median over the rounds of one of a contestant's figures."""
        found = self.figures(contestant, what)
        return statistics.median(found) if found else None

    def figures(self, contestant: str, what: str) -> list[float]:
        """One of a contestant's figures, round by round."""
        return [
            f[contestant][what]
            for f in self.rounds.values()
            if f.get(contestant, {}).get(what) is not None
        ]

    def ratios(
        self, contestant: str, what: str | None = None, first: str | None = None
    ) -> list[float]:
        """The first contestant's figure (or that of `first`) by this one's, round by round."""
        what = what or self.key
        first = first or self.contestants()[0]
        return [
            f[first][what] / f[contestant][what]
            for f in self.rounds.values()
            if f.get(first, {}).get(what) is not None and f.get(contestant, {}).get(what)
        ]

    def ratio(self, contestant: str) -> float | None:
        found = self.ratios(contestant)
        return statistics.median(found) if found else None


Results = dict[str, CellResults]


class Store:
    """A file of results that grows; opened again, it knows what it has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: Results = {}
        self.runs: list[dict[str, Any]] = []
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # cut off by an interruption
                    self._take(json.loads(line))

    def _take(self, line: dict[str, Any]) -> None:
        if "cell" not in line:
            self.runs.append(line)
            return
        cell = self.results.setdefault(line["cell"], CellResults(line["key"]))
        if "absent" in line:
            cell.absent[line["contestant"]] = line["absent"]
        else:
            cell.rounds.setdefault(line["round"], {})[line["contestant"]] = line["figures"]

    def add(self, line: dict[str, Any]) -> None:
        """Appends a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as out:
            out.write(json.dumps(line) + "\n")
        self._take(line)

    def has(self, cell: str, number: int, contestants: list[str]) -> bool:
        """Whether that round of a cell is there, for all of them."""
        known = self.results.get(cell)
        return known is not None and all(
            name in known.rounds.get(number, {}) or name in known.absent for name in contestants
        )
