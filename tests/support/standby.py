"""A streaming replica of a throw-away server, on the same machine."""

from __future__ import annotations

import os
import subprocess

from support import wait
from support.race import value
from support.server import Server, ServerError


class Standby(Server):
    """Made by pg_basebackup of a running server; `promote` makes it a primary."""

    def __init__(self, primary: Server, name: str = "standby") -> None:
        self._primary = primary
        self._standby_name = name
        super().__init__(primary.name, settings={**primary.settings, "hot_standby": "on"})

    def __enter__(self) -> Standby:
        self.start()
        return self

    def _make(self, initdb: tuple[str, ...]) -> None:
        self._bin = self._reachable_bin()
        (self.folder / "s").mkdir(mode=0o700)
        self.log.touch()
        if self._owner is not None:
            for path in (self.folder, self.folder / "s", self.log):
                os.chown(path, self._owner.pw_uid, self._owner.pw_gid)
        source = self._primary.dsn(application_name=self._standby_name)
        done = subprocess.run(
            [
                self._bin / "pg_basebackup",
                *("--dbname", source, "--pgdata", str(self.data)),
                *("--checkpoint", "fast", "--wal-method", "stream", "--no-sync"),
                "--write-recovery-conf",
            ],
            **self._as_owner(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ServerError(f"pg_basebackup failed\n{done.stdout}{done.stderr}")

    def promote(self) -> None:
        """Ends recovery; returns when it can be written to."""
        with self.connect() as conn:
            assert value(conn, "select pg_promote(wait => true, wait_seconds => 30)")
            wait.until(lambda: not value(conn, "select pg_is_in_recovery()"), "the promotion")
