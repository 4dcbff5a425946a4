"""Which server mqctl talks to, and the connection to it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import set_json_loads

from mqctl import embedded
from mqctl.errors import ConnectError
from mqctl.output import RawJson

Connection = psycopg.Connection[DictRow]

_HINTS = (
    ("password authentication failed", "Check the password: PGPASSWORD, ~/.pgpass, or in --dsn."),
    ("no password supplied", "Give a password: PGPASSWORD, ~/.pgpass, or in --dsn."),
    ("pg_hba.conf", "The server's pg_hba.conf does not let this user in from here."),
    (
        "does not exist",
        "Create it (createuser, createdb), or name another: --dsn, PGUSER, PGDATABASE.",
    ),
    (
        "invalid connection option",
        "A connection string looks like: host=... dbname=..., or postgresql://...",
    ),
    ("connect_timeout", "Check PGCONNECT_TIMEOUT, and --dsn: a number of seconds."),
    (
        "for connection option",
        "Check the PG variables (PGPORT, PGCONNECT_TIMEOUT, ...) and --dsn: it should be a number.",
    ),
    ("invalid port number", "Check PGPORT, and the port in --dsn: a number from 1 to 65535."),
    ("invalid ", "Check the PG variables (PGSSLMODE, ...) and --dsn."),
    ("definition of service", "Check PGSERVICE, PGSERVICEFILE and ~/.pg_service.conf."),
    ("resolve host", "Check the spelling of the host: PGHOST, or in --dsn."),
    ("could not translate host name", "Check the spelling of the host: PGHOST, or in --dsn."),
    ('missing "="', "A connection string looks like: host=... dbname=..., or postgresql://..."),
)
# What mq needs, where a role or a database defaults to another.
_READ_COMMITTED = "set session characteristics as transaction isolation level read committed"
_UNREACHABLE = (
    "Is the server running, and are host and port right? Say where it is with --dsn or PGHOST, PGPORT, PGUSER and "
    "PGDATABASE, or try mq without a server: mqctl --embedded ..."
)


@dataclass(slots=True)
class Session:
    """The options that say where the server is. ``folder`` is None for the default one."""

    dsn: str | None = None
    use_embedded: bool = False
    folder: Path | None = None
    _resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _embedded_dsn: str | None = None

    def resolve(self) -> str:
        """The connection string; starts the embedded server where that was asked for. Raises ConnectError."""
        if not self.use_embedded:
            return self.dsn or ""
        if self._embedded_dsn is None:
            ends = self._resources.enter_context(_unwound_by_signals())
            self._embedded_dsn = self._resources.enter_context(embedded.server(self.folder))
            ends.let_go()
        return self._embedded_dsn

    def close(self) -> None:
        self._resources.close()

    def spelled(self) -> str:
        """The options as they were given, for a command to be typed; no password."""
        if self.use_embedded:
            return f"--embedded={shlex.quote(str(self.folder))}" if self.folder else "--embedded"
        if self.dsn is None:
            return ""
        try:
            secret = "password" in conninfo_to_dict(self.dsn)
        except psycopg.Error:
            secret = True
        return "--dsn ..." if secret else f"--dsn {shlex.quote(self.dsn)}"

    @contextlib.contextmanager
    def connect(self) -> Iterator[Connection]:
        """An autocommit connection. Raises ConnectError."""
        with connect(self.resolve()) as conn:
            yield conn


def connect(dsn: str) -> Connection:
    """An autocommit connection to ``dsn`` ("": the usual PG variables). Raises ConnectError."""
    try:
        options: dict[str, Any] = {"application_name": "mqctl", **conninfo_to_dict(dsn)}
        if "connect_timeout" not in options and "PGCONNECT_TIMEOUT" not in os.environ:
            options["connect_timeout"] = 10
        conn = psycopg.connect(
            make_conninfo("", **options),
            autocommit=True,
            row_factory=dict_row,
            client_encoding="utf8",
        )
        conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        conn.execute(_READ_COMMITTED)
    except psycopg.Error as error:
        raise _refused(error) from None
    set_json_loads(RawJson.load, conn)
    return conn


def _refused(error: psycopg.Error) -> ConnectError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:1]) or type(error).__name__
    # libpq gives no SQLSTATE here; the text only chooses which advice to show.
    hint = next((hint for word, hint in _HINTS if word in str(error)), _UNREACHABLE)
    return ConnectError("cannot connect to PostgreSQL", detail=text, hint=hint)


_ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Ends:
    """What the signals do that end mqctl: it is unwound, but not before it is let go."""

    def __init__(self) -> None:
        self._held = True
        self._came: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._came = number
        if not self._held:
            self._leave(number)

    def let_go(self) -> None:
        self._held = False
        if self._came is not None:
            self._leave(self._came)

    def _leave(self, number: int) -> None:
        self._held = True  # a second must not keep us from what is left to do
        raise SystemExit(128 + number)


@contextlib.contextmanager
def _unwound_by_signals() -> Iterator[_Ends]:
    """SIGTERM and SIGHUP end mqctl by way of what it must still do: stop the server that it started."""
    ends = _Ends()
    if threading.current_thread() is not threading.main_thread():
        yield ends
        return
    before = {number: signal.signal(number, ends) for number in _ENDS}
    try:
        yield ends
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
