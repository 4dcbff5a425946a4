"""The embedded server that mqctl brings along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mqctl import embedded, source
from mqctl.errors import ConnectError

pytest.importorskip("psutil")


def mqctl(folder: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "mqctl", "--embedded", str(folder), *words],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(source.__file__).parents[1])},
        timeout=120,
        check=False,
    )


def test_its_data_is_kept_between_runs_and_nothing_keeps_running(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "down" / "pg"
    assert mqctl(folder, "install").returncode == 0
    assert mqctl(folder, "queue", "create", "q").returncode == 0
    assert mqctl(folder, "enqueue", "q", stdin="1\n2\n3\n").returncode == 0
    seen = mqctl(folder, "stats", "--json")
    assert seen.returncode == 0, seen.stderr
    assert json.loads(seen.stdout)[0]["ready"] == 3
    assert not (folder / "postmaster.pid").exists()


def test_a_killed_mqctl_leaves_a_server_that_the_next_one_uses_and_stops(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    assert mqctl(folder, "install").returncode == 0
    with subprocess.Popen(
        [sys.executable, "-m", "mqctl", "--embedded", str(folder), "stats", "--watch", "--json"],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(source.__file__).parents[1]),
            "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.kill()
    assert (folder / "postmaster.pid").exists()
    assert mqctl(folder, "stats").returncode == 0
    assert not (folder / "postmaster.pid").exists()


def test_a_folder_with_other_things_in_it_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    before = tmp_path.stat()
    with pytest.raises(ConnectError, match="neither empty"), embedded.server(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert tmp_path.stat().st_mode == before.st_mode
    done = mqctl(Path(f"{tmp_path}/"), "stats")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's folders are opened for another user")
def test_folders_above_it_become_passable_but_not_readable(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    assert mqctl(private / "pg", "install").returncode == 0
    assert private.stat().st_mode & 0o777 == 0o711


def test_the_default_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert embedded.default_folder() == tmp_path / "mqctl" / "postgres"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert embedded.default_folder() == tmp_path / ".local" / "share" / "mqctl" / "postgres"
