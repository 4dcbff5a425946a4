"""What mqctl prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]


class RawJson(str):
    """JSON as the server sent it: numbers keep all their digits."""

    __slots__ = ()

    @classmethod
    def load(cls, data: str | bytes) -> RawJson:
        return cls(data.decode() if isinstance(data, bytes) else data)


def console(*, stderr: bool = False) -> Console:
    """A console of now: made anew each time, since tests and pipes swap the streams."""
    return Console(stderr=stderr, highlight=False, soft_wrap=False)


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


def table(rows: Iterable[Row], columns: Sequence[str] | None = None, title: str = "") -> Table:
    """A table of ``rows``; ``columns`` chooses and orders (default: those of the first row)."""
    rows = list(rows)
    chosen = list(columns) if columns is not None else list(rows[0]) if rows else []
    made = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold")
    for name in chosen:
        numeric = any(isinstance(row[name], (int, timedelta)) for row in rows) and not any(
            isinstance(row[name], bool) for row in rows
        )
        long = name in ("payload", "headers", "history", "reason", "detail", "expected", "found")
        made.add_column(
            name.replace("_", " "),
            justify="right" if numeric else "left",
            overflow="fold" if not long else "ellipsis",
            no_wrap=long or numeric,
            header_style="bold",
        )
    for row in rows:
        made.add_row(*(cell(row[name], name) for name in chosen))
    return made


def show(
    rows: Sequence[Row],
    *,
    as_json: bool,
    empty: str,
    columns: Sequence[str] | None = None,
) -> None:
    """Rows as a table or as a JSON array; ``empty`` is said instead of an empty table."""
    if as_json:
        print_json(list(rows))
    elif rows:
        console().print(table(rows, columns))
    else:
        click.echo(empty)
