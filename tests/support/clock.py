"""Times of calls, for tests marked perf: the wall, and the processor that a backend used."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg


@dataclass(frozen=True, slots=True)
class Times:
    """Microseconds of each call: processor time where the system tells, and the wall."""

    cpu: tuple[float, ...]
    wall: tuple[float, ...]

    def ratios(self, of: Times) -> dict[str, float]:
        """These times by others: middle, tail and mean."""
        found = {}
        for name, mine, theirs in (("cpu", self.cpu, of.cpu), ("wall", self.wall, of.wall)):
            found[f"{name} p50"] = statistics.median(mine) / statistics.median(theirs)
            found[f"{name} p99"] = percentile(mine, 0.99) / percentile(theirs, 0.99)
            found[f"{name} mean"] = statistics.fmean(mine) / statistics.fmean(theirs)
        return found

    def __add__(self, other: Times) -> Times:
        return Times(self.cpu + other.cpu, self.wall + other.wall)


def percentile(values: tuple[float, ...], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Meter:
    """Times what a connection's backend does. The server must be on this machine."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._file = Path(f"/proc/{conn.info.backend_pid}/schedstat")
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def time(self, call: Callable[[], Any]) -> Any:
        cpu, wall = self._cpu(), time.perf_counter()
        result = call()
        self.wall.append((time.perf_counter() - wall) * 1e6)
        self.cpu.append(self._cpu() - cpu)
        return result

    def take(self) -> Times:
        """What was timed since the last time."""
        times = Times(tuple(self.cpu), tuple(self.wall))
        self.cpu, self.wall = [], []
        return times

    def _cpu(self) -> float:
        return int(self._file.read_text().split()[0]) / 1000


class Consumer:
    """A session that dequeues, and acknowledges with each call what the one before got."""

    def __init__(self, conn: psycopg.Connection[Any], queue: str, n: int = 1) -> None:
        self.queue = queue
        self.meter = Meter(conn)
        self._conn = conn
        self._n = n
        self._receipt: str | None = None

    def step(self) -> None:
        self._receipt = self.meter.time(self._dequeue)
        assert self._receipt is not None, f'queue "{self.queue}" ran out of messages'

    def _dequeue(self) -> str | None:
        row = self._conn.execute(
            "select max(receipt) from mq.dequeue(%s, %s, ack => %s)",
            (self.queue, self._n, self._receipt),
            prepare=True,
        ).fetchone()
        return str(row[0]) if row and row[0] else None
