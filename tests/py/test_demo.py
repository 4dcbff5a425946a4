"""The demo, on small folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from mqctl import demo, source
from mqctl.program import program as main

Connection = psycopg.Connection[Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 200 files, some of them in folders of their own and one with an odd name."""
    top = tmp_path / "tree"
    for number in range(198):
        path = top / f"d{number % 7}" / f"file {number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n" * number)
    (top / "ünïcode \\ \" ' % $$.txt").write_bytes(os.urandom(3 << 20))
    (top / "empty").touch()
    (top / "link").symlink_to("empty")
    return top


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers are processes of their own and find mqctl where this one does."""
    monkeypatch.setenv("PYTHONPATH", str(Path(source.__file__).parents[1]))


def leftovers(conn: Connection) -> list[Any]:
    return conn.execute(
        """select nspname::text from pg_namespace where nspname like 'mq\\_demo%'
           union all
           select q.name from mq.queues() as q"""
    ).fetchall()


def run(dsn: str, *words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(
        main, ["demo", "--dsn", dsn, *map(str, words)], env={"COLUMNS": "160"}
    )
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def test_the_demo_hashes_everything_in_spite_of_failures_and_a_kill(
    database: str, conn: Connection, folder: Path
) -> None:
    code, out, err = run(database, folder, "--json")
    assert code == 0, out + err
    result = json.loads(out)
    assert result["good"] is True
    assert result["files"] == 200
    assert result["dead_letters"] == result["redriven"] == 5
    assert result["taken_over"] > 0
    assert result["attempts"] >= 200 + 5 * 2
    assert all(check["good"] for check in result["checks"])
    assert leftovers(conn) == []


def test_the_demo_ends_with_its_tables_and_keeps_what_it_is_told_to(
    database: str, conn: Connection, folder: Path
) -> None:
    code, out, err = run(database, folder, "--keep", "--failing", 1)
    assert code == 0, out + err
    for word in (
        "files",
        "attempts",
        "dead letters",
        "messages/s",
        "SIGKILL",
        "200 of 200",
        "Kept:",
    ):
        assert word in out
    schema, queue = (row[0] for row in leftovers(conn))
    assert conn.execute(f"select count(*) from {schema}.result").fetchone() == (200,)
    assert queue in out


def test_a_folder_with_one_file_will_do(database: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("one")
    code, out, err = run(database, tmp_path, "--workers", 2)
    assert code == 0, out + err


def test_an_empty_folder_is_refused(database: str, conn: Connection, tmp_path: Path) -> None:
    code, _, err = run(database, tmp_path)
    assert code == 1
    assert "no files" in err
    assert leftovers(conn) == []


def test_a_wrong_hash_is_found(
    database: str, conn: Connection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = demo.hash_file

    def wrong(path: Path, *rest: Any) -> tuple[str, int]:
        digest, count = right(path, *rest)
        return (digest[::-1] if path.name == "file 42.txt" else digest), count

    monkeypatch.setattr(demo, "hash_file", wrong)  # in this process; the workers hash as ever
    code, out, _ = run(database, folder)
    assert code == 1
    assert "199 of 200" in out
    assert "✗" in out
    assert leftovers(conn) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_cleans_up(
    database: str, conn: Connection, folder: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "mqctl", "demo", str(folder), "--dsn", database],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            schemas = [name for (name,) in leftovers(conn) if name.startswith("mq_demo")]
            if (
                schemas
                and conn.execute(f"select from {schemas[0]}.result limit 1").fetchone() is not None
            ):
                break
            time.sleep(0.02)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Traceback" not in err, err
    assert leftovers(conn) == []


def test_workers_end_when_the_demo_is_killed(database: str, conn: Connection, folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "mqctl", "demo", str(folder), "--dsn", database],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        query = """select count(*) from pg_stat_activity
                   where application_name = 'mqctl' and datname = current_database()"""

        def connections() -> int:
            row = conn.execute(query).fetchone()
            assert row is not None
            assert time.monotonic() < deadline
            time.sleep(0.02)
            return int(row[0])

        deadline = time.monotonic() + 30
        while connections() < 3:  # it, and two workers
            pass
        process.kill()
        while connections() > 0:
            pass
