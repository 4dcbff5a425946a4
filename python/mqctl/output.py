"""What mqctl prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]

_PIPE_WIDTH = 100_000
_SHORTEST = 16
_LONG = frozenset({"payload", "headers", "history", "reason", "detail"})
_HEADINGS = {
    "oldest_ready_age": "oldest",
    "enqueued_total": "enqueued",
    "delivered_total": "delivered",
    "settled_total": "settled",
    "bytes": "size",
    "maintenance_overdue": "overdue",
    "visibility_timeout": "visibility",
    "max_attempts": "attempts",
    "retry_backoff": "backoff",
    "created_at": "created",
    "enqueued_at": "enqueued",
    "leased_until": "leased until",
    "due_at": "due",
    "next_at": "next",
    "catch_up": "catch up",
    "died_at": "died",
    "msg_id": "id",
}


class RawJson(str):
    """JSON as the server sent it: numbers keep all their digits."""

    __slots__ = ()

    @classmethod
    def load(cls, data: str | bytes) -> RawJson:
        return cls(data.decode() if isinstance(data, bytes) else data)


def console(*, stderr: bool = False) -> Console:
    """A console of now: made anew each time, since tests and pipes swap the streams."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _PIPE_WIDTH  # nothing is cut off for a program that reads it
    return made


def to_json(value: object) -> str:
    """``value`` as JSON: times in ISO 8601, intervals in seconds, JSON from the server unchanged."""
    if isinstance(value, RawJson):
        return str(value)
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{json.dumps(str(k))}: {to_json(v)}" for k, v in value.items()) + "}"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(to_json, value)) + "]"
    if isinstance(value, datetime):
        return json.dumps(value.isoformat())
    if isinstance(value, timedelta):
        return json.dumps(value.total_seconds())
    if isinstance(value, Decimal):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(to_json(value))


def duration(value: timedelta) -> str:
    """``1d 2h``, ``3m 4s``, ``5.2s``: the two largest units."""
    seconds = value.total_seconds()
    if abs(seconds) < 60:
        return f"{seconds:.3g}s"
    rest, parts = int(abs(seconds)), []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return ("-" if seconds < 0 else "") + " ".join(parts[:2])


def plural(count: int, noun: str) -> str:
    """``1 message``, ``2,000 messages``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def size(count: float) -> str:
    """``8 kB``, ``1.2 MB``: bytes in units of 1,024."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def cell(value: object, column: str = "") -> Text:
    """How one value looks in a table."""
    if value is None:
        return Text("–", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no", style="" if value else "dim")
    if isinstance(value, int):
        return Text(size(value) if column == "bytes" else f"{value:,}")
    if isinstance(value, datetime):
        return Text(value.astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    if isinstance(value, timedelta):
        return Text(duration(value))
    return Text(str(value))


def table(
    rows: Iterable[Row],
    columns: Sequence[str] | None = None,
    *,
    optional: Sequence[str] = (),
    width: int = _PIPE_WIDTH,
) -> Table:
    """A table of ``rows``; ``columns`` chooses and orders (default: those of the first row).

    Where it would be wider than ``width``, the ``optional`` columns are left out, the first of them first, and then
    long texts are cut.
    """
    rows = list(rows)
    chosen = list(columns) if columns is not None else list(rows[0]) if rows else []
    widest = {name: _width(rows, name) for name in chosen}
    for name in optional:
        if _total(widest) > width:
            widest.pop(name, None)
    for name in sorted(_LONG & widest.keys(), key=lambda name: -widest[name]):
        excess = _total(widest) - width
        if excess > 0:
            widest[name] = max(_SHORTEST, widest[name] - excess)
    made = Table(box=SIMPLE_HEAD, show_edge=False)
    for name in widest:
        numeric = any(isinstance(row[name], (int, timedelta)) for row in rows) and not any(
            isinstance(row[name], bool) for row in rows
        )
        made.add_column(
            _heading(name),
            justify="right" if numeric else "left",
            overflow="ellipsis" if name in _LONG else "fold",
            no_wrap=name in _LONG or numeric,
            max_width=widest[name],
            header_style="bold",
        )
    for row in rows:
        made.add_row(*(cell(row[name], name) for name in widest))
    return made


def _heading(column: str) -> str:
    return _HEADINGS.get(column, column.replace("_", " "))


def _width(rows: Sequence[Row], column: str) -> int:
    lines = [line for row in rows for line in cell(row[column], column).plain.splitlines()]
    return max(map(cell_len, [_heading(column), *lines]))


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + 3 * len(widths)


def show(
    rows: Sequence[Row],
    *,
    as_json: bool,
    empty: str,
    columns: Sequence[str] | None = None,
    optional: Sequence[str] = (),
) -> None:
    """Rows as a table or as a JSON array; ``empty`` is said instead of an empty table."""
    if as_json:
        print_json(list(rows))
    elif rows:
        out = console()
        out.print(table(rows, columns, optional=optional, width=out.width))
    else:
        click.echo(empty)
