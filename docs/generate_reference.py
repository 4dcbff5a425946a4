"""Writes docs/reference.md from the comments in a database with mq.

    .venv/bin/python docs/generate_reference.py [CONNECTION STRING]

Without a connection string it starts a server of its own, installs mq and stops it again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg

REFERENCE = Path(__file__).parent / "reference.md"

# Headings and what is under them, in the order in which one needs it.
AREAS = {
    "Queues": "create_queue alter_queue drop_queue purge_queue pause_queue resume_queue queues",
    "Producing": "enqueue enqueue_batch cancel wait_for",
    "Consuming": "dequeue ack nack extend report next_due listen unlisten",
    "Schedules": "schedule unschedule schedules run_schedule cron_next",
    "Dead letters": "dead_letters redrive purge_dead_letters",
    "Replay": "rewind history",
    "Looking": "peek message_status queue_stats version",
    "Upkeep": "maintain sweep_stale rotate_segment",
}

INTRODUCTION = """\
# Reference

Every function of mq, as the comments in the database describe it (`\\df+ mq.*` shows the same). This page is
generated: change the comments in `sql/functions/`, then run `.venv/bin/python docs/generate_reference.py`.

Call functions by argument name: `select mq.enqueue(queue => 'mail', payload => '{}')`. Names, argument names and
defaults are the API. What the error codes mean is in [errors.md](errors.md).
"""

FUNCTIONS = """
    select p.oid, p.proname::text,
           pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
           coalesce(obj_description(p.oid, 'pg_proc'), ''),
           (select string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum)
            from pg_type as t join pg_attribute as a on a.attrelid = t.typrelid
            where t.oid = p.prorettype and a.attnum > 0 and not a.attisdropped),
           array(select r.rolname::text
                 from unnest(array['mq_producer', 'mq_consumer', 'mq_admin']) with ordinality as u (name, no)
                 join pg_roles as r on r.rolname = u.name
                 where has_function_privilege(r.oid, p.oid, 'execute') order by u.no)
    from pg_proc as p
    where p.pronamespace = 'mq'::regnamespace and left(p.proname, 1) <> '_'
    order by p.proname
"""

INBOX = """
    select obj_description(c.oid, 'pg_class'),
           (select string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
                              || case when a.attnotnull then ' not null' else '' end, E',\n    ' order by a.attnum)
            from pg_attribute as a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)
    from pg_class as c where c.oid = 'mq.inbox'::regclass
"""


def render(conn: psycopg.Connection) -> str:
    """The page, from what is installed in the database of `conn`."""
    conn.execute("set intervalstyle = 'postgres'")
    found = {row[1]: row for row in conn.execute(FUNCTIONS)}
    areas = {area: names.split() for area, names in AREAS.items()}
    listed = [name for names in areas.values() for name in names]
    areas["More"] = [name for name in found if name not in listed]
    parts = [INTRODUCTION]
    for area, names in areas.items():
        names = [name for name in names if name in found]
        if names:
            parts.append(f"{area}: " + ", ".join(f"[{name}](#mq{name})" for name in names) + ".\n")
    for area, names in areas.items():
        names = [name for name in names if name in found]
        if names:
            parts.append(f"## {area}\n")
            parts.extend(function(*found[name][1:]) for name in names)
        if area == "Producing":
            parts.append(inbox(conn))
    return "\n".join(parts)


def function(
    name: str,
    arguments: str,
    result: str,
    comment: str,
    columns: str | None,
    roles: list[str],
) -> str:
    """The section of one function."""
    arguments = re.sub(r"'(\d\d):(\d\d):(\d\d)'::interval", spoken, arguments)
    arguments = re.sub(r" DEFAULT NULL::[\w ]+", " = null", arguments)
    arguments = re.sub(r" DEFAULT ('[^']*')::\w+", r" = \1", arguments).replace(" DEFAULT ", " = ")
    arguments = arguments.replace("timestamp with time zone", "timestamptz")
    result = result.replace("timestamp with time zone", "timestamptz").replace("SETOF", "setof")
    listed = [argument for argument in arguments.split(", ") if argument]
    one_line = f"mq.{name}({', '.join(listed)}) → {result}"
    if len(one_line) > 100:
        one_line = f"mq.{name}(\n    " + ",\n    ".join(listed) + f"\n) → {result}"
    lines = [f"### mq.{name}", "", "```", one_line, "```", ""]
    summary, *rest = comment.splitlines() or [""]
    lines += [escape(summary), ""]
    plain = [line for line in rest if not re.match(r"(Returns|Raises|Role): ", line)]
    lines += [f"* {argument(line)}" for line in plain]
    if plain:
        lines.append("")
    for line in rest:
        if found := re.match(r"(Returns|Raises): (.*)", line):
            lines += [f"**{found[1]}** {escape(found[2])}", ""]
    if columns:
        columns = columns.replace("timestamp with time zone", "timestamptz")
        lines += [f"**Columns** `{columns}`", ""]
    lines += [f"**Role** {', '.join(f'`{role}`' for role in roles)}", ""]
    return "\n".join(lines)


def inbox(conn: psycopg.Connection) -> str:
    """The section of the COPY target."""
    row = conn.execute(INBOX).fetchone()
    assert row is not None
    columns = row[1].replace("timestamp with time zone", "timestamptz")
    comment = re.sub(r"\s*Role: .*", "", row[0])
    return "\n".join(
        [
            *("### mq.inbox", "", "```", f"mq.inbox (\n    {columns}\n)", "```", ""),
            *(escape(comment), "", "**Role** `mq_producer`, `mq_admin`", ""),
        ]
    )


def spoken(found: re.Match[str]) -> str:
    """An interval of a default, as create_queue's own comment says it."""
    hours, minutes, seconds = (int(part) for part in found.groups())
    for count, unit in ((hours, "hour"), (minutes, "minute"), (seconds, "second")):
        if count and (hours, minutes, seconds).count(0) == 2:
            return f"'{count} {unit}{'s' if count > 1 else ''}'::interval"
    return "'0'::interval" if not hours + minutes + seconds else found[0]


def argument(line: str) -> str:
    """A line about arguments, with the names that it begins with in code."""
    found = re.match(r"([a-z_]+(?:, [a-z_]+)*)(: .*)", line)
    if found is None:
        return escape(line)
    names = ", ".join(f"`{name}`" for name in found[1].split(", "))
    return names + escape(re.sub(r"(?<=[.;] )([a-z_]+)(?=: )", r"`\1`", found[2]))


def escape(text: str) -> str:
    """As Markdown shows it: what is in angle brackets or between asterisks is meant."""
    text = text.replace("<", "\\<").replace("*", "\\*")
    return re.sub(r"(?<![\w`])_(?![\w`])", r"\\_", text)


def servers() -> Iterator[str]:
    """A connection string: the one given, else of a server that lives as long as this runs."""
    if len(sys.argv) > 1:
        yield sys.argv[1]
        return
    sys.path[:0] = [str(REFERENCE.parent.parent / "tests")]
    from support import template
    from support.server import Server

    with Server() as server:
        yield server.dsn(template.make(server))


if __name__ == "__main__":
    for dsn in servers():
        with psycopg.connect(dsn) as connection:
            REFERENCE.write_text(render(connection))
