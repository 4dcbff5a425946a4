"""The wheel holds the same SQL as the checkout, and installs the same thing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mqctl import source
from support.server import Server
from support.server import database as temporary_database

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the wheel, unpacked, far from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "tree"
    # What git has or would add: neither .venv nor caches, and nothing is built inside the checkout.
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPO,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (REPO / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, copy / name)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(folder),
            str(copy),
        ],
        check=True,
    )
    (wheel,) = folder.glob("mqctl-*.whl")
    target = folder / "unpacked"
    zipfile.ZipFile(wheel).extractall(target)
    return target


def mqctl(unpacked: Path, *words: str, check: bool = True) -> str:
    """The output of mqctl from the wheel."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-m", "mqctl", *words],
        cwd=unpacked,  # python -m looks here first
        env=environment,
        capture_output=True,
        text=True,
        check=check,
    )
    return done.stdout


def test_the_wheel_ships_what_the_checkout_has(unpacked: Path) -> None:
    shipped = {
        path.relative_to(unpacked / "mqctl" / "sql").as_posix()
        for path in unpacked.glob("mqctl/sql/**/*.sql")
    }
    assert {file.path for file in source.load().files()} <= shipped
    assert (unpacked / "mq" / "py.typed").exists()
    assert (unpacked / "mqctl" / "py.typed").exists()
    assert not list(unpacked.glob("tests"))
    said = json.loads(mqctl(unpacked, "version", "--json"))
    assert said["source_fingerprint"] == source.load().fingerprint()
    assert mqctl(unpacked, "sql") == source.load().script()


def test_wheel_and_checkout_give_the_same_fingerprint(
    unpacked: Path, server: Server, database: str
) -> None:
    from mqctl.check import check

    with temporary_database(server, "from_wheel") as dsn:
        mqctl(unpacked, "install", "--dsn", dsn)
        said = json.loads(mqctl(unpacked, "check", "--json", "--dsn", dsn))
        assert said["findings"] == []
    with server.connect(database.rpartition("dbname=")[2]) as conn:
        assert check(conn).fingerprint == said["fingerprint"]
