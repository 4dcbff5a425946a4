"""What all commands share: the connection options, how errors are shown, how SQL functions are called."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import psycopg
from psycopg.rows import DictRow
from rich.text import Text

from mq.calls import ARGUMENTS
from mqctl import embedded
from mqctl.errors import MqctlError
from mqctl.output import console
from mqctl.session import Connection, Session

F = TypeVar("F", bound=Callable[..., Any])

_ADVICE = {
    "3F000": "mq is not installed in this database: mqctl install",
    "42883": "mq is missing or older than this mqctl: mqctl install, or mqctl upgrade",
    "42P01": "mq is missing or older than this mqctl: mqctl install, or mqctl upgrade",
    "42501": "Have the owner of mq run: grant mq_producer (or mq_consumer, mq_admin) to you.",
    "55P03": "Somebody else holds a lock on it; nothing was changed. Try again later.",
    "40001": "Nothing is wrong: try again.",
    "40P01": "Nothing is wrong: try again.",
    "53300": "The server has no connection left: close some, or raise max_connections.",
    "25006": "This server is read-only (a standby?): connect to the primary.",
}


def explain(error: BaseException) -> tuple[str, str, str]:
    """Message, detail and hint of an error, for people; "" for what there is not."""
    if isinstance(error, MqctlError):
        return error.message, error.detail, error.hint
    if isinstance(error, psycopg.Error):
        message = error.diag.message_primary or " ".join(str(error).split())
        hint = error.diag.message_hint or _ADVICE.get(error.sqlstate or "", "")
        if error.sqlstate is None and isinstance(error, psycopg.OperationalError):
            hint = "The connection was lost. What was not committed was rolled back; try again."
        return message, error.diag.message_detail or "", hint
    if isinstance(error, OSError):
        return str(error), "", ""
    return (
        f"{type(error).__name__}: {error}",
        "",
        "This is a defect of mqctl. MQCTL_DEBUG=1 shows where.",
    )


def show_error(error: BaseException, given: str = "") -> None:
    """Prints an error to standard error; ``given`` are the connection options, for what its hint says to run."""
    out = console(stderr=True)
    message, detail, hint = explain(error)
    if given:
        hint = re.sub(r"\bmqctl [a-z]+\b", lambda command: f"{command[0]} {given}", hint)
    out.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    for label, text in (("DETAIL", detail), ("HINT", hint)):
        if text:
            out.print(Text.assemble((f"{label}: ", "bold"), text), soft_wrap=True)


def note(text: str) -> None:
    """Something to know, on standard error, so that standard output stays what was asked for."""
    console(stderr=True).print(Text(text), soft_wrap=True)


def refuse(text: str) -> click.exceptions.Exit:
    """Says why nothing was done, and is the exception that ends mqctl with 1."""
    note(text)
    return click.exceptions.Exit(1)


def _set_dsn(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        session = ctx.ensure_object(Session)
        session.dsn = value
        _one_of(session)


def _set_embedded(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        session = ctx.ensure_object(Session)
        session.use_embedded = True
        session.folder = Path(value) if value else None
        _one_of(session)


def _one_of(session: Session) -> None:
    if session.use_embedded and session.dsn is not None:
        raise click.UsageError("Give --dsn or --embedded, not both.")


def _connection_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--dsn"],
            metavar="DSN",
            expose_value=False,
            callback=_set_dsn,
            help="Connection string (host=... dbname=..., or postgresql://...). Default: PGHOST, PGDATABASE, ...",
        ),
        click.Option(
            ["--embedded"],
            metavar="[DIR]",
            expose_value=False,
            callback=_set_embedded,
            help="Use an embedded PostgreSQL 18 whose data is kept in DIR (a path with a slash).",
        ),
    ]


class Command(click.Command):
    """A command that takes the connection options as well, behind its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _connection_options()


class Group(click.Group):
    """A group whose commands are of that kind."""

    command_class = Command
    group_class = type


class Root(Group):
    """The program: shows every error as people can use it, and never a traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _connection_options()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _attach_folder(args))

    def invoke(self, ctx: click.Context) -> Any:
        session = ctx.ensure_object(Session)
        ctx.call_on_close(session.close)
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, KeyboardInterrupt):
            raise
        except BrokenPipeError:
            # Whoever read our output has gone, as `| head` does.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            ctx.exit(1)
        except (UnicodeEncodeError, OverflowError) as error:
            if os.environ.get("MQCTL_DEBUG"):
                raise
            raise click.UsageError(_unusable(error), ctx) from None
        except Exception as error:
            if os.environ.get("MQCTL_DEBUG"):
                raise
            show_error(error, session.spelled())
            ctx.exit(1)


def _unusable(error: UnicodeEncodeError | OverflowError) -> str:
    """What is wrong with an argument that cannot be sent."""
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object!a} is not text in the encoding of this system."
    return f"A number is too large: {error}."


def _attach_folder(args: list[str]) -> list[str]:
    """``--embedded DIR`` and ``--embedded`` as ``--embedded=DIR`` and ``--embedded=``, up to a ``--``."""
    done: list[str] = []
    words = iter(range(len(args)))
    for i in words:
        word = args[i]
        if word == "--":
            return done + args[i:]
        if word == "--embedded":
            following = args[i + 1] if i + 1 < len(args) else ""
            if embedded.looks_like_folder(following):
                word = f"--embedded={following}"
                next(words)
            else:
                word = "--embedded="
        done.append(word)
    return done


pass_session = click.make_pass_decorator(Session, ensure=True)


def json_option(function: F) -> F:
    """``--json``, wherever a table is printed."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(
        function
    )


def yes_option(function: F) -> F:
    """``--yes``, wherever mqctl would ask."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(function)


def call(conn: Connection, function: str, **arguments: object) -> list[DictRow]:
    """Rows of ``mq.<function>``, called by argument names; what is None is left to the default."""
    types = ARGUMENTS[function]
    given = {name: value for name, value in arguments.items() if value is not None}
    listed = ", ".join(f"{name} => %({name})s::{types[name]}" for name in given)
    return conn.execute(f"select * from mq.{function}({listed})", given).fetchall()


def value(conn: Connection, function: str, **arguments: object) -> Any:
    """The one value that ``mq.<function>`` returns."""
    return next(iter(call(conn, function, **arguments)[0].values()))
