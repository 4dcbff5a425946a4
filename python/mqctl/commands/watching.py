"""stats, status, maintain."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

import click
import psycopg
from rich.console import Group as Lines
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mqctl.base import Group, call, explain, json_option, note, pass_session, value
from mqctl.check import check as find_drift
from mqctl.errors import ConnectError, MqctlError
from mqctl.output import Row, cell, console, duration, plural, print_json, show, size, table
from mqctl.params import SECONDS
from mqctl.session import Connection, Session

_FIGURES = (
    "queue",
    "ready",
    "deferred",
    "leased",
    "dead",
    "oldest_ready_age",
    "enqueued_total",
    "delivered_total",
    "settled_total",
    "segments",
    "bytes",
    "paused",
    "maintenance_overdue",
)
_LESS = (
    "delivered_total",
    "segments",
    "enqueued_total",
    "bytes",
    "settled_total",
    "maintenance_overdue",
    "paused",
)
_LONGEST_PAUSE = 30.0


_SESSION_SECONDS = 3600.0  # a session that has seen many queues holds much; see docs/operations.md


def per_queue(conn: Connection, function: str, queue: str | None) -> list[Row]:
    """Rows of a function for QUEUE, or for each queue in a transaction of its own: no lock table holds hundreds."""
    if queue is not None:
        return list(call(conn, function, queue=queue))
    rows: list[Row] = []
    for name in [row["name"] for row in call(conn, "queues")]:
        try:
            rows += call(conn, function, queue=name)
        except psycopg.Error as error:
            if error.sqlstate != _NO_QUEUE:  # dropped meanwhile
                raise
    return rows


_NO_QUEUE = "MQ001"


def register(root: Group) -> None:
    """Adds the commands of this module."""
    for command in (stats, status, maintain):
        root.add_command(command)


@contextlib.contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that work under way ends properly."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command(cls=Group.command_class)
@click.argument("queue", required=False)
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--every", type=SECONDS, default="2s", show_default=True, help="With --watch: how often."
)
@json_option
@pass_session
def stats(session: Session, queue: str | None, watch: bool, every: float, as_json: bool) -> None:
    """Print figures of all queues, or of QUEUE.

    With --watch and --json, one JSON document a line.

    \b
    Examples:
      mqctl stats
      mqctl stats mail --json
      mqctl stats --watch --every 1s
    """

    def print_(rows: list[Row]) -> None:
        show(
            rows,
            as_json=as_json,
            empty="There are no queues.",
            columns=_FIGURES,
            optional=_LESS,
        )

    with session.connect() as conn:
        if not watch:
            print_(per_queue(conn, "queue_stats", queue))
            return
        out = console()
        live = (
            Live(console=out, auto_refresh=False, screen=False)
            if out.is_terminal and not as_json
            else None
        )
        with _until_stopped() as stopped, live or contextlib.nullcontext():
            while not stopped.is_set():
                rows = per_queue(conn, "queue_stats", queue)
                if live is not None:
                    live.update(
                        table(rows, _FIGURES, optional=_LESS, width=out.width), refresh=True
                    )
                else:
                    print_(rows)
                stopped.wait(every)


@click.command(cls=Group.command_class)
@json_option
@pass_session
def status(session: Session, as_json: bool) -> None:
    """The whole installation on one screen: server, version, drift, roles, queues.

    \b
    Examples:
      mqctl status
      mqctl status --json
    """
    with session.connect() as conn:
        queues = per_queue(conn, "queue_stats", None)
        facts = _facts(conn, queues)
    if as_json:
        print_json({**facts, "queues": queues})
        return
    top = Table.grid(padding=(0, 2))
    top.add_column(style="bold")
    top.add_column()
    for name, fact in facts.items():
        top.add_row(name.replace("_", " "), cell(fact, name))
    out = console()
    below = table(queues, _FIGURES, optional=_LESS, width=out.width)
    none = Text("There are no queues. Make one: mqctl queue create NAME")
    out.print(Lines(top, Text(), below if queues else none))


def _facts(conn: Connection, queues: Sequence[Row]) -> dict[str, object]:
    """What there is to say about the installation as a whole."""
    facts: dict[str, object] = {}
    row = conn.execute(
        """select current_setting('server_version') as server, current_database() as database, current_user as user,
                  (select string_agg(r.rolname::text, ', ' order by r.rolname) from pg_catalog.pg_roles as r
                   where r.rolname in ('mq_producer', 'mq_consumer', 'mq_admin')
                     and pg_catalog.pg_has_role(r.oid, 'member')) as roles,
                  (select max(clock_timestamp() - a.xact_start) from pg_catalog.pg_stat_activity as a
                   where a.backend_xmin is not null and a.pid <> pg_catalog.pg_backend_pid()) as oldest"""
    ).fetchone()
    assert row is not None
    facts["server"] = f"PostgreSQL {row['server']}"
    facts["database"] = row["database"]
    facts["user"] = f"{row['user']} ({row['roles'] or 'no role of mq'})"
    facts["mq"] = value(conn, "version")
    facts["schema"] = _drift(conn)
    facts["oldest_snapshot"] = row["oldest"]
    facts["total"] = _total(queues)
    overdue = [str(queue["queue"]) for queue in queues if queue["maintenance_overdue"]]
    facts["maintenance"] = (
        f"overdue: {', '.join(overdue)} (mqctl maintain)" if overdue else "in time"
    )
    return facts


def _drift(conn: Connection) -> str:
    try:
        report = find_drift(conn)
    except MqctlError as error:
        return f"not checked: {error.message}"
    if not report.findings:
        return f"as shipped, fingerprint {report.fingerprint[:12]}"
    return f"{plural(len(report.findings), 'difference')} from mq {report.shipped} (mqctl check)"


def _total(queues: Sequence[Row]) -> str:
    count = {
        name: sum(queue[name] or 0 for queue in queues)
        for name in ("ready", "deferred", "leased", "dead", "bytes")
    }
    ages = [queue["oldest_ready_age"] for queue in queues if queue["oldest_ready_age"] is not None]
    oldest = f", oldest ready {duration(max(ages))}" if ages else ""
    states = ", ".join(
        f"{count[state]:,} {state}" for state in ("ready", "deferred", "leased", "dead")
    )
    return f"{plural(len(queues), 'queue')}, {states}, {size(count['bytes'])}{oldest}"


@click.command(cls=Group.command_class)
@click.argument("queue", required=False)
@click.option(
    "--loop",
    is_flag=True,
    help="Again and again, until Ctrl-C or SIGTERM; reconnects when it must.",
)
@click.option(
    "--every", type=SECONDS, default="5s", show_default=True, help="With --loop: how often."
)
@json_option
@pass_session
def maintain(session: Session, queue: str | None, loop: bool, every: float, as_json: bool) -> None:
    """Do the upkeep of all queues, or of QUEUE: expire leases, rotate, seal and drop segments.

    Consumers of the Python client do it as well; where there are none, run this, or call mq.maintain() from a scheduler.
    With --json and --loop, one JSON document a line.

    \b
    Examples:
      mqctl maintain
      mqctl maintain --loop --every 1s
    """
    if not loop:
        with session.connect() as conn:
            show(per_queue(conn, "maintain", queue), as_json=as_json, empty="Nothing was due.")
        return
    session.resolve()  # an embedded server runs as long as the loop
    with _until_stopped() as stopped:
        _maintain_until(session, queue, every, stopped, as_json)


def _maintain_until(
    session: Session, queue: str | None, every: float, stopped: threading.Event, as_json: bool
) -> None:
    """Upkeep now and then, on a connection that is made anew after errors, and after an hour."""
    pause = min(every, _LONGEST_PAUSE)
    while not stopped.is_set():
        try:
            with session.connect() as conn:
                until = time.monotonic() + _SESSION_SECONDS
                while not stopped.is_set() and time.monotonic() < until:
                    rows = per_queue(conn, "maintain", queue)
                    pause = min(every, _LONGEST_PAUSE)
                    if rows:
                        show(rows, as_json=as_json, empty="")
                    stopped.wait(every)
        except (psycopg.OperationalError, ConnectError) as error:
            message, detail, _ = explain(error)
            note(f"{message} {detail}".strip() + f"; next try in {pause:.3g} s")
            stopped.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
