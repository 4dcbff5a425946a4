"""Half an hour at 80 % of mq's peak, with rotation, retries and faults: latency, memory and disk must stay flat.

python -m bench soak                  finds the peak, soaks, crashes the server, counts everything, judges
python -m bench soak --minutes 3      the same in small: segments, windows and held snapshots get shorter, too
python -m bench soak --tables FILE    the verdict and the plot again
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.about import header
from bench.arena import REPO, arena
from bench.peers import Absent
from bench.results import Store
from bench.revision import revision
from bench.soak import verdict
from bench.soak.run import CLIENTS, SETTINGS, Plan, soak
from support.binaries import Unavailable


def last_run(path: Path) -> tuple[dict[str, Any], list[verdict.Window], verdict.Window]:
    """What stands in a file after its last header: that, the windows after the warm-up, the end. Raises: ValueError."""
    about: dict[str, Any] = {}
    windows: list[verdict.Window] = []
    end: verdict.Window | None = None
    for line in map(json.loads, path.read_text().splitlines()):
        if "window" in line:
            windows.append(line["window"])
        elif "end" in line:
            end = line["end"]
        elif "peak" in line:
            about |= line
        else:
            about, windows, end = line, [], None
    if end is None:
        raise ValueError(f"{path} does not say how it ended")
    return about, [w for w in windows if w["at"] > about["warm"]], end


def judge(path: Path, console: Console) -> bool:
    """Prints, writes and draws what a file says; whether all is well."""
    about, windows, end = last_run(path)
    judged = verdict.verdict(windows, end)
    console.print(verdict.table(judged))
    for error in end["what_errors"]:
        console.print(error, markup=False)
    title = (
        f"soak of {about['revision']}, {about['seconds'] / 60:g} minutes at {end['rate']:,.0f} messages/s"
        f", {end['committed']:,} messages"
    )
    made = [path, path.with_suffix(".md")]
    made[1].write_text(verdict.markdown(judged, title))
    try:
        from bench import plots
    except ImportError:
        console.print("no plot: pip install 'mqctl[bench]' (matplotlib)")
    else:
        made.append(plots.soak(windows, path.with_suffix(".png")))
    console.print(f"written: {', '.join(map(str, made))}")
    return all(one.ok for one in judged)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30, help="default 30")
    parser.add_argument(
        "--rate", type=float, help="messages a second; default: 80 %% of a peak that it measures"
    )
    parser.add_argument("--server", default=os.environ.get("MQ_TEST_SERVER", "debian"))
    parser.add_argument("--out", type=Path, help="is appended to; default: one of the commit")
    parser.add_argument(
        "--tables", type=Path, metavar="FILE", help="measures nothing: the verdict of that file"
    )
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 200)
    path = options.tables or options.out or REPO / f"bench/results/soak-{revision()}.jsonl"
    if not options.tables:
        plan = Plan(options.minutes * 60)
        try:
            with arena(options.server, 0, SETTINGS) as place:
                store = Store(path)
                store.add(
                    header(place, ["mq"], plan.seconds) | {"warm": plan.warm, "clients": CLIENTS}
                )
                soak(place, plan, options.rate, store, console)
        except (Absent, Unavailable) as reason:
            console.print(f"nothing can be measured here: {reason}")
            return 2
        except KeyboardInterrupt:
            console.print("interrupted")
            return 2
    try:
        return int(not judge(path, console))
    except (OSError, ValueError) as reason:
        console.print(f"no verdict: {reason}")
        return 2
