"""queue create, alter, list, show, drop, purge, pause, resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mqctl.base import Group, call, json_option, pass_session, refuse, value, yes_option
from mqctl.output import RawJson, Row, cell, console, plural, print_json, show, table
from mqctl.params import DURATION
from mqctl.session import Connection, Session

F = TypeVar("F", bound=Callable[..., Any])


def register(root: Group) -> None:
    """Adds the commands of this module."""
    root.add_command(queue)


@click.group(cls=Group)
def queue() -> None:
    """Make, change, look at and remove queues.

    \b
    Examples:
      mqctl queue create mail --max-attempts 3
      mqctl queue list
    """


def _some(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> list[str] | None:
    return list(given) or None


def _settings(function: F) -> F:
    """The options that create and alter share; the server has the defaults."""
    options = (
        click.option(
            "--mode", type=click.Choice(["lease", "transaction"]), help="How consumers work."
        ),
        click.option("--visibility-timeout", type=DURATION, help="How long a lease lasts."),
        click.option(
            "--max-attempts", type=int, help="Deliveries before a message is dead-lettered."
        ),
        click.option(
            "--retry-backoff",
            type=DURATION,
            help="Delay before the first retry.",
        ),
        click.option("--retry-backoff-max", type=DURATION, help="Longest delay before a retry."),
        click.option(
            "--retry-policy",
            type=click.Choice(["fixed", "linear", "exponential", "list"]),
            help="How that delay grows.",
        ),
        click.option(
            "--retry-delay",
            "retry_delays",
            type=DURATION,
            multiple=True,
            callback=_some,
            help="With the policy list: one for each attempt, in order.",
        ),
        click.option(
            "--retry-jitter",
            type=click.FloatRange(0, 1),
            help="Share of a delay that chance may take off.",
        ),
        click.option(
            "--priority-ageing",
            type=DURATION,
            help="A priority counts as one more after each such time; 0: never.",
        ),
        click.option(
            "--max-depth",
            type=click.IntRange(0),
            help="How many messages may wait; 0 for any number.",
        ),
        click.option(
            "--overflow",
            type=click.Choice(["reject", "drop_oldest", "dead_letter"]),
            help="What becomes of more: they are refused, or the oldest make room.",
        ),
        click.option(
            "--dedup-window",
            type=DURATION,
            help="How long a dedup key is taken; 0: until its message is settled.",
        ),
        click.option(
            "--max-in-flight-per-key",
            type=click.IntRange(0),
            help="How many messages of an ordering key may be leased; 0 for any number.",
        ),
        click.option(
            "--fair/--oldest-first",
            default=None,
            help="Which ordering key is served next.",
        ),
        click.option(
            "--max-in-flight",
            type=click.IntRange(0),
            help="How many messages may be leased at a time; 0 for any number.",
        ),
        click.option(
            "--rate-limit",
            type=click.IntRange(0),
            help="How many are delivered in a time of --rate-period, at most; 0 for any number.",
        ),
        click.option("--rate-period", type=DURATION, help="What --rate-limit is for."),
        click.option("--retention", type=DURATION, help="How long settled messages are kept."),
        click.option("--result-retention", type=DURATION, help="How long results are kept."),
        click.option(
            "--notify", type=click.Choice(["auto", "always", "never"]), help="When to NOTIFY."
        ),
        click.option("--segment-age", type=DURATION, help="Rotate a segment at this age."),
        click.option("--segment-bytes", type=int, help="Rotate a segment at this size."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@queue.command()
@click.argument("name")
@_settings
@click.option("--if-not-exists", is_flag=True, help="Leave a queue of that name as it is.")
@pass_session
def create(session: Session, /, name: str, if_not_exists: bool, **settings: object) -> None:
    """Create the queue NAME: 1 to 48 of the characters A-Z a-z 0-9 _ . -

    \b
    Examples:
      mqctl queue create mail
      mqctl queue create reports --visibility-timeout 10m --max-attempts 3 --retry-backoff 30s
      mqctl queue create hooks --retry-policy list --retry-delay 10s --retry-delay 5m --retry-delay 1h
    """
    with session.connect() as conn:
        call(conn, "create_queue", queue=name, if_not_exists=if_not_exists or None, **settings)
    click.echo(f'queue "{name}" created' if not if_not_exists else f'queue "{name}" is there')


@queue.command()
@click.argument("name")
@_settings
@pass_session
def alter(session: Session, /, name: str, **settings: object) -> None:
    """Change settings of the queue NAME; those not given stay as they are.

    \b
    Examples:
      mqctl queue alter mail --max-attempts 10
      mqctl queue alter mail --visibility-timeout 2m --notify always
    """
    if all(setting is None for setting in settings.values()):
        raise click.UsageError("Nothing to change: give at least one setting.")
    with session.connect() as conn:
        call(conn, "alter_queue", queue=name, **settings)
    click.echo(f'queue "{name}" altered')


@queue.command("list")
@json_option
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """List the queues with their settings.

    \b
    Examples:
      mqctl queue list
      mqctl queue list --json
    """
    with session.connect() as conn:
        rows = call(conn, "queues")
    if not as_json:
        rows = [{**_flat(row), "created_at": row["created_at"]} for row in rows]
    show(
        rows,
        as_json=as_json,
        empty="There are no queues. Make one: mqctl queue create NAME",
        columns=_LISTED,
        optional=("created_at", "retention", "mode", "notify"),
    )


_LISTED = (
    "name",
    "mode",
    "visibility_timeout",
    "max_attempts",
    "retry_backoff",
    "max_depth",
    "retention",
    "notify",
    "paused",
    "created_at",
)


def _flat(row: Row) -> dict[str, Any]:
    """A queue with its settings as columns of their own; those that this mqctl expects are always there."""
    settings = row["settings"]
    unpacked = json.loads(settings) if isinstance(settings, RawJson) else dict(settings or {})
    rest = {key: item for key, item in row.items() if key != "settings"}
    return {**dict.fromkeys(_LISTED), **unpacked, **rest}


def _find(conn: Connection, name: str) -> Row:
    for row in call(conn, "queues"):
        if row["name"] == name:
            return row
    raise refuse(f'There is no queue "{name}". Which there are: mqctl queue list')


@queue.command("show")
@click.argument("name")
@json_option
@pass_session
def show_(session: Session, name: str, as_json: bool) -> None:
    """Show the settings and figures of the queue NAME.

    \b
    Examples:
      mqctl queue show mail
      mqctl queue show mail --json
    """
    with session.connect() as conn:
        found = _find(conn, name)
        figures = call(conn, "queue_stats", queue=name)[0]
    if as_json:
        print_json({**found, "stats": figures})
        return
    both = {**_flat(found), **{key: item for key, item in figures.items() if key != "queue"}}
    made = table([], ())
    made.show_header = False
    made.add_column(style="bold")
    made.add_column()
    for key, item in both.items():
        made.add_row(key.replace("_", " "), cell(item, key))
    console().print(made)


@queue.command()
@click.argument("name")
@yes_option
@pass_session
def drop(session: Session, name: str, yes: bool) -> None:
    """Drop the queue NAME with all its messages.

    \b
    Examples:
      mqctl queue drop mail
      mqctl queue drop mail --yes
    """
    with session.connect() as conn:
        if not yes:
            click.confirm(f'Drop queue "{name}" with all its messages?', abort=True, err=True)
        call(conn, "drop_queue", queue=name)
    click.echo(f'queue "{name}" dropped')


@queue.command()
@click.argument("name")
@yes_option
@pass_session
def purge(session: Session, name: str, yes: bool) -> None:
    """Remove the messages of the queue NAME, and keep the queue.

    \b
    Examples:
      mqctl queue purge mail
      mqctl queue purge mail --yes
    """
    with session.connect() as conn:
        if not yes:
            click.confirm(f'Remove all messages of queue "{name}"?', abort=True, err=True)
        count = value(conn, "purge_queue", queue=name)
    click.echo(f'{plural(count, "message")} removed from queue "{name}"')


@queue.command()
@click.argument("name")
@pass_session
def pause(session: Session, name: str) -> None:
    """Deliver nothing from the queue NAME until it is resumed; messages may still be enqueued.

    \b
    Examples:
      mqctl queue pause mail
    """
    with session.connect() as conn:
        call(conn, "pause_queue", queue=name)
    click.echo(f'queue "{name}" paused')


@queue.command()
@click.argument("name")
@pass_session
def resume(session: Session, name: str) -> None:
    """Deliver from the paused queue NAME again.

    \b
    Examples:
      mqctl queue resume mail
    """
    with session.connect() as conn:
        call(conn, "resume_queue", queue=name)
    click.echo(f'queue "{name}" resumed')
