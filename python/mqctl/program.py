"""The commands of mqctl, put together."""

from __future__ import annotations

import click

from mqctl import __version__
from mqctl.base import Root
from mqctl.commands import dead, installation, messages, queues, replay, schedules, watching


@click.group(
    cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="mqctl", message="%(prog)s %(version)s")
def program() -> None:
    """Install, operate and watch mq, a message queue in one PostgreSQL schema.

    The server is the one of --dsn, else of the usual PG variables (PGHOST, PGPORT, PGUSER, PGDATABASE, PGSERVICE),
    else, with --embedded, a PostgreSQL that mqctl brings along. Both options may stand anywhere on the line.

    Durations are written 500ms, 30s, 5m, 2h, 1d, 1w, or as PostgreSQL interval text. Exit status: 0 done,
    1 refused or failed, 2 wrong usage.

    \b
    Examples:
      mqctl --embedded demo
      mqctl install --dsn postgresql://me@localhost/app
      mqctl queue create mail
      mqctl enqueue mail '{"to": "ann@example.org"}'
      mqctl dequeue mail
      mqctl status
    """


for module in (installation, queues, messages, schedules, dead, replay, watching):
    module.register(program)
