"""What a soak measures with: the control, pgbench's logs, the memory of processes."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bench.arena import Arena
from bench.pgbench import arguments

Figures = dict[str, float]


Self = TypeVar("Self", bound="Thread")


class Thread:
    """Something that goes on in a thread, by `_run`, for the length of a `with`, until it is over."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def __enter__(self: Self) -> Self:
        self._over.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        raise NotImplementedError


class Beat(Thread):
    """The control: a tiny write ten times a second in another database. What slows it down is not mq's doing."""

    def __init__(self, place: Arena) -> None:
        super().__init__()
        self._server = place.server
        self._server.create_database("control")
        self._took: list[float] = []

    def _run(self) -> None:
        with self._server.connect("control") as conn:
            conn.execute("create table beat (at timestamptz)")
            while not self._over.wait(0.1):
                begun = time.perf_counter()
                conn.execute("insert into beat values (clock_timestamp())", prepare=True)
                self._took.append((time.perf_counter() - begun) * 1000)

    def take(self) -> list[float]:
        """Milliseconds of each since the last call."""
        found, self._took = self._took, []
        return found


@dataclass(slots=True)
class Pgbench:
    """A pgbench of the soak, and what it logged since one last looked."""

    process: subprocess.Popen[str]
    logs: Path
    _read: dict[Path, int] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        place: Arena,
        dbname: str,
        folder: Path,
        name: str,
        script: str,
        clients: int,
        *more: str,
    ) -> Pgbench:
        """With `name` as that of its sessions and of its logs."""
        path = folder / f"{name}.sql"
        path.write_text(script)
        process = subprocess.Popen(
            [place.pgbench, *arguments(path, clients, {}), *more, dbname],
            env=place.server.env(dbname) | {"PGAPPNAME": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return cls(process, folder / name)

    def take(self) -> list[float]:
        """Milliseconds of each transaction in the log, without the time that it waited for its turn."""
        found = []
        for path in self.logs.parent.glob(f"{self.logs.name}.[0-9]*"):
            with path.open("rb") as log:
                log.seek(self._read.get(path, 0))
                whole = log.read().rpartition(b"\n")[0]
            self._read[path] = self._read.get(path, 0) + len(whole) + bool(whole)
            for fields in map(bytes.split, whole.splitlines()):
                if fields[2].isdigit():
                    found.append((int(fields[2]) - int(fields[6] if fields[6:] else 0)) / 1000)
        return found

    def end(self) -> tuple[int, int]:
        """Waits for it: transactions that it knows to be committed, and clients that gave up."""
        stdout, stderr = self.process.communicate(timeout=120)
        done = re.search(r"actually processed: (\d+)", stdout)
        return int(done[1]) if done else 0, stderr.count("aborted")

    def kill(self) -> None:
        """Ends it, in the middle of whatever it does."""
        self.process.kill()
        self.process.communicate()


def own_memory(pid: int) -> int | None:
    """Kilobytes that are a process's own. Not smaps_rollup's Private_: that has pages of shared memory, too, while no other
    process has touched them."""
    with contextlib.suppress(OSError):
        if found := re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1])
    return None


def percentiles(name: str, took: Sequence[float]) -> Figures:
    """p50 and p99, of milliseconds, where there are any."""
    ordered = sorted(took)
    return {
        f"{name}_p{percent}_ms": round(ordered[len(ordered) * percent // 100], 3)
        for percent in (50, 99)
        if ordered
    }
