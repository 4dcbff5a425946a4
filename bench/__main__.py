"""mq beside its peers, on one durable server, in turns.

python -m bench                       the cells that matter, about ten minutes
python -m bench --full                everything; hours, may be interrupted and goes on
python -m bench --list                names of the cells
python -m bench --cell 'drain n=10*' --pairs 3 --seconds 5
python -m bench --cell 'drain n=1 *' --contestants 'mq:next plain:next'
python -m bench targets               what must hold, target by target, medians of five rounds; hours, goes on
python -m bench targets --only 'plain n=1 *'
python -m bench --tables FILE         tables and plots of what was measured
python -m bench soak                  half an hour at 80 % of the peak, with faults; options of its own
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / "python"), str(REPO / "tests")]

from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402

from bench import matrix, tables, targets  # noqa: E402
from bench.about import header  # noqa: E402
from bench.arena import Arena, Contestant, arena  # noqa: E402
from bench.cells import Cell, Race  # noqa: E402
from bench.peers import Absent, Failed  # noqa: E402
from bench.results import Store  # noqa: E402
from bench.revision import revision  # noqa: E402
from bench.soak import cli as soak  # noqa: E402
from support.binaries import Unavailable  # noqa: E402

SECONDS = 2.0


def run(
    place: Arena, wanted: list[Cell], options: argparse.Namespace, store: Store, console: Console
) -> None:
    """All rounds of all cells that are not in the file yet; round by round, so that an hour's load falls on all alike."""
    for number in range(options.pairs):
        for cell in wanted:
            if number >= cell.most_pairs and options.cell is None:
                continue
            names = options.contestants.split() if options.contestants else cell.contestants
            asked = [Contestant.parse(name) for name in names]
            if store.has(cell.name, number, [str(contestant) for contestant in asked]):
                continue
            contestants = []
            for contestant in asked:
                name = str(contestant)
                known = store.results.get(cell.name)
                if known and name in known.absent:
                    continue
                try:
                    cell.check(place, contestant)
                    contestants.append(contestant)
                except Absent as absent:
                    note_absent(store, cell, name, str(absent))
                    console.print(f"[yellow]{name}: absent: {absent}[/]")
            if contestants:
                one(place, cell, number, contestants, store, console)


def one(
    place: Arena,
    cell: Cell,
    number: int,
    contestants: list[Contestant],
    store: Store,
    console: Console,
) -> None:
    load = round(os.getloadavg()[0], 1)
    found: dict[str, Any] = {}
    while contestants and not found:
        try:
            found = cell.run(place, contestants)
        except Failed as failed:
            note_absent(store, cell, failed.contestant, str(failed))
            console.print(f"[red]{cell.name}: {escape(str(failed))}[/]")
            contestants = [c for c in contestants if str(c) != failed.contestant]
    for name, figures in found.items():
        store.add(
            {
                "cell": cell.name,
                "key": cell.key,
                "round": number,
                "contestant": name,
                "load": load,
                "figures": figures,
            }
        )
    said = ", ".join(f"{name} {figures.get(cell.key, 0):,}" for name, figures in found.items())
    console.print(f"round {number + 1} [bold]{cell.name}[/]: {said}", highlight=False)
    for name, figures in found.items():
        if figures.get("ran_dry"):
            console.print(
                f"[red]{cell.name}: {name} ran dry: not a figure (bench/cells.py: BACKLOG)[/]"
            )


def note_absent(store: Store, cell: Cell, contestant: str, reason: str) -> None:
    store.add({"cell": cell.name, "key": cell.key, "contestant": contestant, "absent": reason})


def arguments() -> argparse.Namespace:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M")
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "mode", nargs="?", choices=("targets",), help="measures and judges what must hold"
    )
    parser.add_argument("--full", action="store_true", help="all cells")
    parser.add_argument(
        "--list", action="store_true", help="names of the cells and their contestants"
    )
    parser.add_argument(
        "--cell",
        "--only",
        help="only cells whose name matches; with * and ?, several with commas between them",
    )
    parser.add_argument(
        "--contestants", help="others than a cell's own: 'mq:next plain:tx@snapshot'"
    )
    parser.add_argument(
        "--pairs", type=int, help="rounds; medians of them count; default 3, of targets 5"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="of each contestant in a round, after its warm-up; default 2, or what the cell says",
    )
    parser.add_argument(
        "--aging", type=float, help="seconds that a scenario is on before it counts; default 60"
    )
    parser.add_argument("--server", default=os.environ.get("MQ_TEST_SERVER", "debian"))
    parser.add_argument(
        "--out",
        type=Path,
        help="goes on where that file ends; default: a new one, of targets that of the commit",
    )
    parser.add_argument(
        "--tables",
        type=Path,
        metavar="FILE",
        help="measures nothing: tables and plots of that file",
    )
    options = parser.parse_args()
    judges = options.mode == "targets"
    options.pairs = options.pairs or (5 if judges else 3)
    name = f"targets-{revision()}" if judges else f"bench-{stamp}"
    options.out = options.out or REPO / f"bench/results/{name}.jsonl"
    return options


def chosen(options: argparse.Namespace) -> list[Cell]:
    """The cells that the options name, with times of one's own."""
    if options.mode == "targets":
        cells = list({target.cell.name: target.cell for target in targets.targets()}.values())
    else:
        cells = matrix.full() if options.full or options.cell or options.list else matrix.quick()
    patterns = options.cell.split(",") if options.cell else ["*"]
    return [
        _changed(cell, options)
        for cell in cells
        if any(fnmatch.fnmatchcase(cell.name, pattern.strip()) for pattern in patterns)
    ]


def _changed(cell: Cell, options: argparse.Namespace) -> Cell:
    cell = replace(cell, seconds=options.seconds or cell.seconds)
    if isinstance(cell, Race) and cell.aging and options.aging is not None:
        return replace(cell, aging=options.aging)
    return cell


def main() -> int:
    if sys.argv[1:2] == ["soak"]:
        return soak.main(sys.argv[2:])
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 200)
    wanted = chosen(options)
    if options.list:
        for cell in wanted:
            console.print(f"{cell.name:40} {' '.join(cell.contestants)}", highlight=False)
        return 0
    store = Store(options.tables or options.out)
    if not options.tables:
        if not wanted:
            console.print("no cell is called that; --list shows them")
            return 2
        try:
            with arena(options.server, options.seconds or SECONDS) as place:
                names = (
                    options.contestants.split()
                    if options.contestants
                    else [n for c in wanted for n in c.contestants]
                )
                about = header(place, names, options.seconds or SECONDS)
                store.add(about)
                for what, value in about.items():
                    console.print(f"{what}: {value}", highlight=False)
                if options.mode == "targets":
                    for cell in wanted:  # one by one: each is finished before the next begins
                        run(place, [cell], options, store, console)
                else:
                    run(place, wanted, options, store, console)
        except (Absent, Unavailable) as reason:
            console.print(f"nothing can be measured here: {reason}")
            return 2
        except KeyboardInterrupt:
            console.print(f"interrupted; --out {store.path} goes on")
    for view in tables.tables(store.results):
        console.print(view)
    said = tables.markdown(store.results)
    names = {cell.name for cell in wanted}
    asked = [t for t in targets.targets() if options.mode == "targets" and t.cell.name in names]
    if asked:
        console.print(targets.table(asked, store.results))
        said = f"{targets.markdown(asked, store.results)}\n{said}"
    store.path.with_suffix(".md").write_text(said)
    try:
        from bench import plots
    except ImportError:
        console.print("no plots: pip install 'mqctl[bench]' (matplotlib)")
        made = []
    else:
        made = plots.draw(store.results, store.path.with_suffix(""))
    console.print(
        f"written: {', '.join(str(p) for p in (store.path, store.path.with_suffix('.md'), *made))}"
    )
    return int(any(t.met(store.results) is False for t in asked))


if __name__ == "__main__":
    sys.exit(main())
