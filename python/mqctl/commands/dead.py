"""dead list, redrive, purge."""

from __future__ import annotations

import click

from mqctl.base import Group, call, json_option, pass_session, value, yes_option
from mqctl.output import plural, print_json, show
from mqctl.params import DURATION
from mqctl.session import Session


def register(root: Group) -> None:
    """Adds the commands of this module."""
    root.add_command(dead)


@click.group(cls=Group)
def dead() -> None:
    """Look at dead letters, send them again, remove them.

    \b
    Examples:
      mqctl dead list mail
      mqctl dead redrive mail
    """


@dead.command("list")
@click.argument("queue")
@click.option("-n", "count", type=int, default=100, show_default=True, help="Dead letters at most.")
@json_option
@pass_session
def list_(session: Session, queue: str, count: int, as_json: bool) -> None:
    """List the dead letters of QUEUE with reason and history.

    \b
    Examples:
      mqctl dead list mail
      mqctl dead list mail -n 1000 --json
    """
    with session.connect() as conn:
        rows = call(conn, "dead_letters", queue=queue, n=count)
    columns = ("msg_id", "died_at", "attempts", "reason", "payload")
    show(rows, as_json=as_json, empty=f'"{queue}" has no dead letters.', columns=columns)


@dead.command()
@click.argument("queue")
@click.argument("msg_ids", type=int, nargs=-1)
@click.option("--to", "to_queue", metavar="QUEUE", help="Send them to another queue.")
@click.option("--max", "max_messages", type=int, help="At most so many.")
@json_option
@pass_session
def redrive(
    session: Session,
    queue: str,
    msg_ids: tuple[int, ...],
    to_queue: str | None,
    max_messages: int | None,
    as_json: bool,
) -> None:
    """Send dead letters of QUEUE again: all of them, or only MSG_IDS.

    \b
    Examples:
      mqctl dead redrive mail
      mqctl dead redrive mail 17 18
      mqctl dead redrive mail --to mail-slow --max 100
    """
    with session.connect() as conn:
        count = value(
            conn,
            "redrive",
            queue=queue,
            msg_ids=list(msg_ids) or None,
            to_queue=to_queue,
            max_messages=max_messages,
        )
    if as_json:
        print_json({"redriven": count})
    else:
        click.echo(f"{plural(count, 'dead letter')} redriven")


@dead.command()
@click.argument("queue")
@click.option("--older-than", type=DURATION, help="Only those that died before this long ago.")
@yes_option
@json_option
@pass_session
def purge(session: Session, queue: str, older_than: str | None, yes: bool, as_json: bool) -> None:
    """Remove dead letters of QUEUE for good.

    \b
    Examples:
      mqctl dead purge mail --older-than 30d
      mqctl dead purge mail --yes
    """
    with session.connect() as conn:
        if not yes:
            click.confirm(f'Remove dead letters of queue "{queue}"?', abort=True, err=True)
        count = value(conn, "purge_dead_letters", queue=queue, older_than=older_than)
    if as_json:
        print_json({"purged": count})
    else:
        click.echo(f"{plural(count, 'dead letter')} removed")
