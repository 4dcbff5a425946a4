"""A server whose clock jumps, with libfaketime."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg

from support import wait
from support.race import value
from support.server import Server

LIBRARIES = (
    "/usr/lib/*-linux-gnu*/faketime/libfaketime.so.1",
    "/usr/lib*/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
)


def library() -> Path | None:
    """Debian's or another's libfaketime."""
    for pattern in LIBRARIES:
        for found in sorted(Path("/").glob(pattern.lstrip("/"))):
            return found
    return None


class FakeTimeServer(Server):
    """`jump` moves the clock of all its processes; waiting goes by the real one."""

    def __enter__(self) -> FakeTimeServer:
        self.start()
        return self

    def _as_owner(self) -> dict[str, Any]:
        common = super()._as_owner()
        self._offset = self.folder / "offset"
        if not self._offset.exists():
            self._offset.write_text("+0\n")
            if self._owner is not None:
                os.chown(self._offset, self._owner.pw_uid, self._owner.pw_gid)
        common["env"] |= {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }
        return common

    def jump(self, conn: psycopg.Connection, seconds: int) -> None:
        """Sets the clock to so many seconds before or after the real one."""
        new = self._offset.with_name("new")  # at once: a process that reads half of it ends
        new.write_text(f"{seconds:+d}\n")
        new.chmod(0o644)
        new.rename(self._offset)
        wait.until(
            lambda: (
                abs(value(conn, "select extract(epoch from clock_timestamp() - %s::timestamptz)::float8", now()) - seconds) < 60
            ),
            "the server to have the new time",
        )  # fmt: skip


def now() -> str:
    return datetime.now(timezone.utc).isoformat()
