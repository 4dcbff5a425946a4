"""pgbench's arguments and its logs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

JOBS = 2


@dataclass(frozen=True, slots=True)
class Turn:
    """From when to when a contestant was the one that ran; seconds of the epoch."""

    begin: float
    end: float


@dataclass(slots=True)
class Done:
    """What came of a contestant."""

    calls: int = 0  # ended in its turns after the warm-up
    seconds: float = 0.0  # of these turns
    all_calls: int = 0
    failed: int = 0  # deadlocks and serialization failures, which pgbench does not try again
    calls_until_end: int = 0  # until its last turn ended
    latencies: list[int] = field(default_factory=list)  # us, of calls that no pause interrupted
    series: list[int] = field(default_factory=list)  # calls by second of its own time

    def percentile(self, percent: float) -> float | None:
        """Milliseconds; None where no call fits into a turn."""
        if not self.latencies:
            return None
        self.latencies.sort()
        at = min(len(self.latencies) - 1, round(len(self.latencies) * percent / 100))
        return round(self.latencies[at] / 1000, 3)


def arguments(script: Path, clients: int, variables: dict[str, str]) -> list[str]:
    """For everybody: prepared statements, no vacuum, two threads."""
    return [
        *("--no-vacuum", "--protocol", "prepared", "--file", str(script)),
        *("--client", str(clients), "--jobs", str(min(JOBS, clients))),
        *(word for name, value in variables.items() for word in ("--define", f"{name}={value}")),
    ]


def count(folder: Path, prefix: str, turns: list[Turn], warm: float) -> Done:
    """Reads the logs of one pgbench. Lines: client, number, us it took, script, second, us of its end."""
    done = Done()
    counted: list[tuple[Turn, float]] = []  # and when, in time of its own, a turn began
    own = 0.0
    for turn in turns:
        if own >= warm:
            counted.append((turn, own - warm))
            done.seconds += turn.end - turn.begin
        own += turn.end - turn.begin
    ends: list[tuple[float, int]] = []
    for log in folder.glob(f"{prefix}.[0-9]*"):
        with log.open() as lines:
            for line in lines:
                fields = line.split()
                if not fields[2].isdigit():
                    done.failed += 1
                    continue
                ends.append((int(fields[4]) + int(fields[5]) / 1e6, int(fields[2])))
    ends.sort()
    done.all_calls = len(ends)
    done.series = [0] * int(done.seconds + 1)
    last = turns[-1].end if turns else 0.0
    at = 0
    for end, took in ends:
        done.calls_until_end += end <= last
        while at < len(counted) and counted[at][0].end < end:
            at += 1
        if at == len(counted):
            continue
        turn, own = counted[at]
        if end < turn.begin:
            continue
        done.calls += 1
        done.series[min(len(done.series) - 1, int(own + end - turn.begin))] += 1
        if end - took / 1e6 >= turn.begin:
            done.latencies.append(took)
    return done
