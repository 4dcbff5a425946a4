"""A PgBouncer in transaction mode in front of a throw-away server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

import psycopg

from support import wait
from support.server import Server

PORT = 6432
SETTINGS = """
[databases]
* = host={socket} port={port} user={user}
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
listen_port = 6432
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 2000
logfile = {folder}/log
ignore_startup_parameters = extra_float_digits
"""


class Pooler:
    """Runs for the length of a `with`. `program` is None where there is no pgbouncer."""

    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")

    def __init__(self, server: Server, *, size: int = 3) -> None:
        assert self.program is not None
        self.folder = Path(tempfile.mkdtemp(prefix="mq-pooler-", dir="/tmp"))
        config = self.folder / "ini"
        config.write_text(
            SETTINGS.format(
                socket=server.folder / "s",
                port=server.port,
                user=server.user,
                folder=self.folder,
                size=size,
            )
        )
        owner = server.data.stat()  # who may enter the folder of the server's socket; never root
        if os.geteuid() != owner.st_uid:
            for path in (self.folder, config):
                os.chown(path, owner.st_uid, owner.st_gid)
        who = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
        self._process = subprocess.Popen(
            [self.program, "-q", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **who,  # type: ignore[call-overload]
        )

    def __enter__(self) -> Pooler:
        wait.until(self._answers, "pgbouncer to answer")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def dsn(self, dbname: str) -> str:
        return f"host={self.folder} port={PORT} user=postgres dbname={dbname}"

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text()
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.dsn("postgres")).close()
            return True
        return False
