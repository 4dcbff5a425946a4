"""schedule set, list, drop, run, next."""

from __future__ import annotations

import click

from mqctl.base import Group, call, json_option, pass_session, value
from mqctl.output import cell, print_json, show
from mqctl.params import JSON
from mqctl.session import Session


def register(root: Group) -> None:
    """Adds the commands of this module."""
    root.add_command(schedule)


@click.group(cls=Group)
def schedule() -> None:
    """Messages that are enqueued again and again, by the clock.

    \b
    Examples:
      mqctl schedule set report '0 9 * * mon-fri' mail '{"report": "daily"}'
      mqctl schedule list
    """


@schedule.command("set")
@click.argument("name")
@click.argument("cron")
@click.argument("queue")
@click.argument("payload", type=JSON)
@click.option("--timezone", help="Whose clocks, as in Europe/Berlin; else UTC.")
@click.option("--headers", type=JSON, help="Headers as JSON, for every message.")
@click.option(
    "--catch-up",
    type=click.Choice(["one", "all", "none"]),
    help="What becomes of times that nobody was there for: one message for all of them, all, none.",
)
@json_option
@pass_session
def set_(session: Session, /, name: str, as_json: bool, **options: object) -> None:
    """Enqueue PAYLOAD (JSON) in QUEUE each time that CRON is due; a schedule of that NAME is replaced.

    CRON is minute, hour, day of month, month, day of week (or, with six fields, seconds before them), @daily and the
    like, or every 90 seconds.

    \b
    Examples:
      mqctl schedule set report '0 9 * * mon-fri' mail '{"report": "daily"}' --timezone Europe/Berlin
      mqctl schedule set ping 'every 90 seconds' probes 1 --catch-up none
    """
    with session.connect() as conn:
        due = value(conn, "schedule", name=name, **options)
    if as_json:
        print_json({"name": name, "next_at": due})
    else:
        click.echo(f'Schedule "{name}" is due next at {cell(due)}.')


@schedule.command("list")
@json_option
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """List the schedules, and when each is due next.

    \b
    Examples:
      mqctl schedule list
      mqctl schedule list --json
    """
    with session.connect() as conn:
        rows = call(conn, "schedules")
    columns = ("name", "cron", "timezone", "queue", "catch_up", "next_at", "payload")
    show(rows, as_json=as_json, empty="There are no schedules.", columns=columns)


@schedule.command()
@click.argument("name")
@json_option
@pass_session
def drop(session: Session, name: str, as_json: bool) -> None:
    """End the schedule NAME. Messages that it has enqueued stay.

    \b
    Examples:
      mqctl schedule drop report
    """
    with session.connect() as conn:
        was_there = value(conn, "unschedule", name=name)
    if as_json:
        print_json({"name": name, "dropped": was_there})
    elif was_there:
        click.echo(f'Schedule "{name}" dropped')
    else:
        click.echo(f'There is no schedule "{name}".')


@schedule.command()
@click.argument("name")
@json_option
@pass_session
def run(session: Session, name: str, as_json: bool) -> None:
    """Enqueue the message of the schedule NAME now, besides those that are due, and print its id.

    \b
    Examples:
      mqctl schedule run report
    """
    with session.connect() as conn:
        msg_id = value(conn, "run_schedule", name=name)
    if as_json:
        print_json({"name": name, "msg_id": msg_id})
    else:
        click.echo(msg_id)


@schedule.command("next")
@click.argument("cron")
@click.option("--timezone", help="Whose clocks, as in Europe/Berlin; else UTC.")
@click.option("--after", metavar="TIMESTAMP", help="After this time; else after now.")
@click.option(
    "-n", "count", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many."
)
@json_option
@pass_session
def next_(
    session: Session,
    cron: str,
    timezone: str | None,
    after: object,
    count: int,
    as_json: bool,
) -> None:
    """Say when CRON is due next: what is made of an expression, before it is scheduled.

    \b
    Examples:
      mqctl schedule next '0 9 * * mon-fri' --timezone Europe/Berlin -n 5
    """
    times: list[object] = []
    with session.connect() as conn:
        for _ in range(count):
            after = value(conn, "cron_next", expression=cron, after=after, timezone=timezone)
            times.append(after)
    if as_json:
        print_json(times)
    else:
        click.echo("\n".join(str(cell(time)) for time in times))
