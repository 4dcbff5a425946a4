"""Results as tables: on the terminal (rich) and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from bench.results import CellResults, Results

COLUMNS = {
    "calls_s": ("calls/s", ",.0f"),
    "messages_s": ("messages/s", ",.0f"),
    "p50_ms": ("p50 ms", ",.2f"),
    "p99_ms": ("p99 ms", ",.2f"),
    "cpu_us": ("CPU us/call", ",.0f"),
    "wal_bytes": ("WAL bytes/message", ",.0f"),
    "enqueue_wal_bytes": ("of enqueue", ",.0f"),
    "cycle_wal_bytes": ("of claim, ack", ",.0f"),
    "wal_records": ("WAL records/message", ",.1f"),
    "commits": ("commits/message", ",.3f"),
    "dead_tuples": ("dead rows", ",.0f"),
    "server_cpu_ms_s": ("CPU ms/s", ",.1f"),
    "private_kb_each": ("private kB/session", ",.0f"),
    "failed": ("deadlocks", ",.0f"),
    "full": ("full", ".2f"),
}
TITLES = ("cell", "contestant", "ratio", "range", *(title for title, _ in COLUMNS.values()))


def rows(results: Results) -> list[list[str]]:
    """A row for each contestant of each cell; the ratio is the first one's figure by this one's."""
    found = []
    for name, cell in results.items():
        for i, contestant in enumerate(cell.contestants()):
            found.append(
                [
                    name if i == 0 else "",
                    contestant,
                    *_ratio(cell, contestant, i == 0),
                    *_figures(cell, contestant),
                ]
            )
        for contestant, reason in cell.absent.items():
            found.append(
                [
                    name if not cell.rounds else "",
                    contestant,
                    "absent",
                    reason.splitlines()[0][:60],
                    *[""] * len(COLUMNS),
                ]
            )
    return found


def _ratio(cell: CellResults, contestant: str, is_first: bool) -> tuple[str, str]:
    ratios = cell.ratios(contestant)
    if is_first or not ratios:
        return "", ""
    middle = cell.ratio(contestant)
    return f"{middle:.2f}", f"{min(ratios):.2f}-{max(ratios):.2f} ({len(ratios)})"


def _figures(cell: CellResults, contestant: str) -> list[str]:
    found = []
    for what, (_, form) in COLUMNS.items():
        value = cell.middle(contestant, what)
        shown = value is not None and (value or what != "failed")
        found.append(format(value, form) if shown else "")
    return found


def tables(results: Results) -> list[Table]:
    """For a terminal, one for each kind of cell."""
    views = []
    for title, body in _kinds(results).items():
        view = Table(title=title)
        used = _used(body)
        for i in used:
            view.add_column(TITLES[i], justify="left" if i < 2 else "right", overflow="fold")
        for row in body:
            if row[0]:
                view.add_section()
            view.add_row(*(row[i] for i in used))
        views.append(view)
    return views


def markdown(results: Results) -> str:
    """For docs."""
    found = []
    for title, body in _kinds(results).items():
        used = _used(body)
        titles = [TITLES[i] for i in used]
        found.append(text(title, titles, [[row[i] for i in used] for row in body]))
    return "\n".join(found)


def text(title: str, titles: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; all but its first two columns are numbers."""
    ruler = ["---" if i < 2 else "--:" for i in range(len(titles))]
    table = "".join(f"| {' | '.join(line)} |\n" for line in (titles, ruler, *body))
    return f"**{title}**\n\n{table}"


def _kinds(results: Results) -> dict[str, list[list[str]]]:
    """Rows of the cells that compare the same figure."""
    kinds: dict[str, Results] = {}
    for name, cell in results.items():
        kinds.setdefault(cell.key, {})[name] = cell
    return {
        f"{COLUMNS.get(key, (key, ''))[0]}, medians; ratio: the first contestant's by this one's": rows(
            some
        )
        for key, some in kinds.items()
    }


def _used(body: list[list[str]]) -> list[int]:
    return [i for i in range(len(TITLES)) if any(row[i] for row in body)]
