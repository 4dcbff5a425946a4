"""Throw-away PostgreSQL servers in folders of their own.

A server is a child of this process and listens on a socket in its folder. A watchdog, a shell that
waits on a pipe, stops it and removes the folder when this process ends in whatever way, kill -9
included. As root the server runs as an unprivileged user.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
from psycopg import conninfo, sql

from support import binaries

# Small and quick. Durability comes with durable=True: not for figures without it.
SETTINGS = {
    "shared_buffers": "64MB",
    "max_connections": "150",
    "max_prepared_transactions": "10",
    "wal_level": "logical",
    "max_wal_size": "1GB",
    "dynamic_shared_memory_type": "mmap",  # nothing in /dev/shm that a kill -9 would leave there
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_lock_waits": "on",
    "log_checkpoints": "off",
    "timezone": "UTC",
}
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}

START_SECONDS = 60.0
STOP_SECONDS = 60.0

STOP_SIGNALS = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
    "kill": signal.SIGKILL,
}

WATCHDOG = """
trap '' INT TERM HUP
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && kill -QUIT "$pid" 2>/dev/null; then
    n=0
    while [ -e "$1/data/postmaster.pid" ] && kill -0 "$pid" 2>/dev/null && [ $n -lt 200 ]; do
        sleep 0.05; n=$((n + 1))
    done
fi
rm -rf "$1" 2>/dev/null || { sleep 1; rm -rf "$1"; }
"""


class ServerError(Exception):
    """A server did not start or stop; the end of its log is in the message."""


class Server:
    """One cluster: made with initdb at once, started by start(), gone after close()."""

    def __init__(
        self,
        name: str = "embedded",
        *,
        settings: Mapping[str, str] | None = None,
        durable: bool = False,
        tcp: bool = False,
        initdb: tuple[str, ...] = (),
    ) -> None:
        self.installation = binaries.find(name)
        self.name = name
        self.major = self.installation.major
        self.settings = SETTINGS | ({} if durable else NOT_DURABLE) | dict(settings or {})
        self.user = "postgres"
        self.port = _free_port() if tcp else 5432
        self._tcp = tcp
        self._made_by = os.getpid()
        self._owner = _server_user()
        #: What the server is started with: a command that runs the one behind it, as valgrind does.
        self.runner: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="mq-", dir=_temp_dir(self._owner)))
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "sh", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        atexit.register(self.close)
        try:
            self._make(initdb)
        except BaseException:
            self.close()
            raise

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, None while it is stopped."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def start(self, settings: Mapping[str, str] | None = None) -> Server:
        """Starts it, with these settings on top of the ones it has; does nothing if it runs."""
        if self.pid is not None:
            return self
        self.settings |= dict(settings or {})
        deadline = time.monotonic() + START_SECONDS
        while not self._launch(deadline):
            # After a kill -9 the old backends may still be on their way out.
            if time.monotonic() > deadline or not self._orphans_in_the_way():
                raise ServerError(f"{self.name} did not start\n{self.log_tail()}")
            time.sleep(0.1)
        return self

    def stop(self, mode: str = "fast") -> None:
        """Stops it: smart, fast, immediate (no checkpoint, recovery at the next start) or kill."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(STOP_SIGNALS[mode])
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(STOP_SECONDS)
            raise ServerError(f"{self.name} did not stop ({mode})\n{self.log_tail()}") from None
        self._process = None

    def restart(self, mode: str = "fast", settings: Mapping[str, str] | None = None) -> None:
        self.stop(mode)
        self.start(settings)

    def kill9(self) -> None:
        """SIGKILL for the postmaster. start() brings it back, through recovery."""
        self.stop("kill")

    def close(self) -> None:
        """Stops it, removes the folder. Never raises, may be called twice."""
        atexit.unregister(self.close)
        if self._made_by != os.getpid():  # a fork of us
            return
        if self._watchdog.stdin is None or self._watchdog.stdin.closed:
            return
        shared_memory = self._shared_memory_id()
        with contextlib.suppress(ServerError):
            self.stop("immediate")
        with contextlib.suppress(OSError):
            self._watchdog.stdin.write(b"\n")
            self._watchdog.stdin.flush()
        with contextlib.suppress(OSError):
            self._watchdog.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._watchdog.wait(30)
        if shared_memory is not None and shutil.which("ipcrm"):
            # Left only by a postmaster that was killed and not started again.
            subprocess.run(["ipcrm", "-m", shared_memory], capture_output=True, check=False)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def dsn(self, dbname: str = "postgres", **params: Any) -> str:
        """A libpq connection string; `params` as libpq names them (user, options, ...)."""
        return conninfo.make_conninfo("", **{**self._params(dbname), **params})

    def env(self, dbname: str = "postgres") -> dict[str, str]:
        """The environment for a program that uses libpq: this one's, and where the server is."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
        return mine | {names[key]: str(value) for key, value in self._params(dbname).items()}

    def connect(
        self, dbname: str = "postgres", *, autocommit: bool = True, **params: Any
    ) -> psycopg.Connection:
        return psycopg.connect(self.dsn(dbname, **params), autocommit=autocommit)

    def create_database(self, dbname: str, template: str = "template1") -> None:
        with self.connect() as conn:
            conn.execute(
                sql.SQL("create database {} template {}").format(
                    sql.Identifier(dbname), sql.Identifier(template)
                )
            )

    def drop_database(self, dbname: str) -> None:
        """Drops it, whoever is connected, if it is there."""
        with self.connect() as conn:
            conn.execute(
                sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(dbname))
            )

    def log_tail(self, lines: int = 40, *, since: int = 0) -> str:
        """The last lines that the server logged, from byte `since` of its log on."""
        try:
            with self.log.open("rb") as file:
                file.seek(since)
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def run(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Runs one of the server's own programs (pg_dump, pg_basebackup, ...) as this user."""
        return subprocess.run(
            [self._bin / program, *args],
            env=self.env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )

    def _params(self, dbname: str) -> dict[str, Any]:
        host = "127.0.0.1" if self._tcp else str(self.folder / "s")
        return {"host": host, "port": self.port, "user": self.user, "dbname": dbname}

    def _make(self, initdb: tuple[str, ...]) -> None:
        self._bin = self._reachable_bin()
        for path in (self.folder / "s", self.data):
            path.mkdir(mode=0o700)
        self.log.touch()
        if self._owner is not None:
            for path in (self.folder, self.folder / "s", self.data, self.log):
                os.chown(path, self._owner.pw_uid, self._owner.pw_gid)
        done = subprocess.run(
            [
                self._bin / "initdb",
                *("--pgdata", str(self.data)),
                *("--username", self.user),
                *("--auth", "trust"),
                *("--encoding", "UTF8"),
                "--no-locale",
                "--no-sync",
                *initdb,
            ],
            **self._as_owner(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ServerError(f"{self.name}: initdb failed\n{done.stdout}{done.stderr}")

    def _reachable_bin(self) -> Path:
        """The programs' folder, or a copy of it that the server's user can get at."""
        at = self.installation
        if self._owner is None or not at.folders or _everyone_may_enter(at.bin):
            return at.bin
        copy = self.folder / "pg"
        for folder in at.folders:
            shutil.copytree(folder, copy / folder.name, symlinks=True, copy_function=_link_or_copy)
        return copy / at.bin.relative_to(at.folders[0].parent)

    def _as_owner(self) -> dict[str, Any]:
        # Nothing of the caller's PG* variables, locale or open files.
        common: dict[str, Any] = {
            "env": {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            "cwd": "/" if self._owner is None else self.folder,
            "start_new_session": True,  # Ctrl-C is for us, not for it
        }
        if self._owner is not None:
            uid, gid = self._owner.pw_uid, self._owner.pw_gid
            common |= {"user": uid, "group": gid, "extra_groups": [gid]}
        return common

    def _launch(self, deadline: float) -> bool:
        settings = self.settings | {
            "unix_socket_directories": str(self.folder / "s"),
            "listen_addresses": "127.0.0.1" if self._tcp else "",
            "port": str(self.port),
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        self._log_mark = self.log.stat().st_size
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.runner, self._bin / "postgres", "-D", str(self.data), *options],
                **self._as_owner(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        while self._process.poll() is None:
            if self._status() in ("ready", "standby"):
                return True
            if time.monotonic() > deadline:
                self.stop("immediate")
                raise ServerError(f"{self.name} was not ready in time\n{self.log_tail()}")
            time.sleep(0.02)
        self._process = None
        return False

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _status(self) -> str:
        lines = self._pid_file()
        if self._process is None or len(lines) < 8 or lines[0] != str(self._process.pid):
            return ""
        return lines[7].strip()

    def _shared_memory_id(self) -> str | None:
        lines = self._pid_file()
        return lines[6].split()[-1] if len(lines) > 6 and lines[6].strip() else None

    def _orphans_in_the_way(self) -> bool:
        said = self.log_tail(since=self._log_mark)
        return "is still in use" in said or 'lock file "' in said


@contextlib.contextmanager
def database(server: Server, dbname: str, template: str = "template1") -> Iterator[str]:
    """A database for the length of a `with`; gives its connection string."""
    server.create_database(dbname, template)
    try:
        yield server.dsn(dbname)
    finally:
        server.drop_database(dbname)


def _server_user() -> pwd.struct_passwd | None:
    """Whom the server runs as: None for ourselves; PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServerError("as root: there is no user postgres or nobody to run the server as")


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _temp_dir(owner: pwd.struct_passwd | None) -> str:
    """A short path, for sockets have at most 107 bytes, that the server's user can enter."""
    folder = Path(os.environ.get("MQ_TEST_TMP") or tempfile.gettempdir())
    if len(str(folder)) > 60 or (owner is not None and not _everyone_may_enter(folder)):
        folder = Path("/tmp")
    return str(folder)


def _everyone_may_enter(folder: Path) -> bool:
    return all(path.stat().st_mode & 0o001 for path in (folder, *folder.resolve().parents))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
