"""rewind, history."""

from __future__ import annotations

import click

from mqctl.base import Group, call, json_option, pass_session, value
from mqctl.output import plural, print_json, show
from mqctl.session import Session


def register(root: Group) -> None:
    """Adds the commands of this module."""
    for command in (rewind, history):
        root.add_command(command)


@click.command(cls=Group.command_class)
@click.argument("queue")
@click.option("--to", "to_time", metavar="TIMESTAMP", help="What was enqueued then or later.")
@click.option("--msg-id", "to_msg_id", type=int, help="This message and later ones.")
@json_option
@pass_session
def rewind(
    session: Session, queue: str, to_time: str | None, to_msg_id: int | None, as_json: bool
) -> None:
    """Deliver again what was acknowledged in QUEUE and is kept: see --retention of mqctl queue.

    \b
    Examples:
      mqctl rewind mail --to '2030-01-31 08:00+01'
      mqctl rewind mail --msg-id 1700
    """
    if (to_time is None) == (to_msg_id is None):
        raise click.UsageError("Give --to or --msg-id.")
    with session.connect() as conn:
        count = value(conn, "rewind", queue=queue, to_time=to_time, to_msg_id=to_msg_id)
    if as_json:
        print_json({"rewound": count})
    else:
        click.echo(f"{plural(count, 'message')} rewound")


@click.command(cls=Group.command_class)
@click.argument("queue")
@click.option("--from", "from_time", metavar="TIMESTAMP", help="Enqueued then or later.")
@click.option("--to", "to_time", metavar="TIMESTAMP", help="Enqueued before that.")
@click.option("-n", "count", type=int, default=100, show_default=True, help="Messages at most.")
@json_option
@pass_session
def history(
    session: Session,
    queue: str,
    from_time: str | None,
    to_time: str | None,
    count: int,
    as_json: bool,
) -> None:
    """List messages of QUEUE that are done and still kept, the oldest first.

    \b
    Examples:
      mqctl history mail
      mqctl history mail --from '2030-01-31 08:00+01' -n 1000 --json
    """
    with session.connect() as conn:
        rows = call(conn, "history", queue=queue, from_time=from_time, to_time=to_time, n=count)
    columns = ("msg_id", "enqueued_at", "settled_at", "attempts", "outcome", "payload")
    show(rows, as_json=as_json, empty=f'Of "{queue}" nothing is kept.', columns=columns)
