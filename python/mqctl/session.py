"""Which server mqctl talks to, and the connection to it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
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
    ('missing "="', "A connection string looks like: host=... dbname=..., or postgresql://..."),
)
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
            self._embedded_dsn = self._resources.enter_context(embedded.server(self.folder))
        return self._embedded_dsn

    def close(self) -> None:
        self._resources.close()

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
