"""A server whose clock jumps, with libfaketime."""

from __future__ import annotations

import contextlib
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
    """`jump` moves the clock of all its processes; waiting goes by the real one.

    libfaketime allocates memory in signal handlers, so now and then a backend of a busy server dies of it.
    """

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

    def jump(self, seconds: int) -> None:
        """Sets the clock to so many seconds before or after the real one."""
        new = self._offset.with_name("new")  # at once: a process that reads half of it ends
        new.write_text(f"{seconds:+d}\n")
        new.chmod(0o644)
        new.rename(self._offset)

        def look() -> bool:
            with contextlib.suppress(psycopg.OperationalError), self.connect() as conn:
                ahead = value(
                    conn,
                    "select extract(epoch from clock_timestamp() - %s::timestamptz)::float8",
                    datetime.now(timezone.utc),
                )
                return bool(abs(ahead - seconds) < 60)
            return False

        wait.until(look, "the server to have the new time")
