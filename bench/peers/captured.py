"""Statements that a library sends, caught in the act, as text for pgbench."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta

from psycopg import sql


def literal(value: object) -> str:
    """A value as SQL. Without colons, which pgbench takes for its own."""
    if isinstance(value, list):
        # Elements as text: the statement's own cast gives the type.
        return f"array[{', '.join('null' if x is None else _text(x) for x in value)}]"
    if isinstance(value, timedelta):
        return f"{_text(value)}::interval"
    return sql.Literal(value).as_string()


def _text(value: object) -> str:
    if isinstance(value, timedelta):
        return f"'{value.total_seconds()} seconds'"
    return sql.Literal(str(value)).as_string()


def inlined(statement: str, values: Sequence[str]) -> str:
    """The statement with SQL texts in the place of $1, $2 ..., without comments and the last semicolon."""
    text = re.sub(r"--[^\n]*", "", statement).strip().rstrip(";")
    return re.sub(r"\$(\d+)", lambda found: values[int(found[1]) - 1], text)


def ids_of(statement: str) -> str:
    """An UPDATE .. RETURNING with ids, so that pgbench gets them as one array, and their number."""
    return (
        f"with taken as ({statement})"
        " select coalesce(array_agg(id), '{}')::text as ids, count(*) as got from taken \\gset\n"
    )
