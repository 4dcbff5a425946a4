"""A disk that fills up, with tables or with WAL: PostgreSQL's own error, nothing half done, nothing lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from support import conserve, template, wait
from support.load import PASSING, Load
from support.server import Server

pytestmark = pytest.mark.faults


@pytest.fixture
def small_disk(server: Server) -> Iterator[Path]:
    """A file system of 64 MB that the server may write to."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = Path(tempfile.mkdtemp(prefix="mq-disk-"))
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=False
        )
        if done.returncode != 0:
            pytest.skip("cannot mount a tmpfs here")
        try:
            space = folder / "space"
            space.mkdir()
            owner = server.folder.stat()
            os.chown(space, owner.st_uid, owner.st_gid)
            folder.chmod(0o755)
            (folder / "ballast").write_bytes(b"x" * (16 << 20))
            yield space
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    finally:
        shutil.rmtree(folder)


def make_room(small_disk: Path) -> None:
    """What an administrator does."""
    for name in ("ballast", "filler"):
        (small_disk.parent / name).unlink(missing_ok=True)


@pytest.fixture
def on_small_disk(server: Server, small_disk: Path) -> Iterator[psycopg.Connection]:
    """A database with mq whose tables, but not its WAL, are on the small disk; 16 MB of the disk are ballast."""
    with server.connect("postgres", autocommit=True) as admin:
        admin.execute(f"create tablespace small location '{small_disk}'")
        admin.execute(f"create database small template {template.make(server)} tablespace small")
        try:
            with server.connect("small", autocommit=True) as conn:
                conserve.prepare(conn.info.dsn, "q")
                yield conn
        finally:
            make_room(small_disk)
            admin.execute("drop database small with (force)")
            admin.execute("drop tablespace small")


NOISE = "to_jsonb((select string_agg(md5(i || ' ' || j), '') from generate_series(1, 100) as j))"


def fill(conn: psycopg.Connection, count: int, sent: set[int]) -> None:
    """So many messages a transaction until the disk is full; what was refused is not in `sent`."""
    for first in range(len(sent) + 1, 1_000_000, count):
        tags = range(first, first + count)
        with conn.transaction():
            conn.execute(
                f"select mq.enqueue('q', jsonb_build_object('tag', i, 'noise', {NOISE}))"
                f" from generate_series({first}, {first + count - 1}) as i"
            )
            conn.execute("insert into sent select unnest(%s::bigint[]), 'q'", ([*tags],))
        sent.update(tags)


def leave(folder: Path, size: int) -> None:
    """Others fill the disk but for so many bytes."""
    free = os.statvfs(folder)
    with contextlib.suppress(OSError):  # the load was faster
        (folder / "filler").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - size)))


def test_a_full_disk_refuses_and_loses_nothing(
    on_small_disk: psycopg.Connection, small_disk: Path
) -> None:
    conn = on_small_disk
    sent: set[int] = set()
    for count in (500, 1):  # one at a time goes on to the last page
        with pytest.raises(psycopg.errors.DiskFull):
            fill(conn, count, sent)
        assert sent
    refused = 0
    while True:
        try:
            if not conserve.settle(conn, conserve.receive(conn, 50, timeout="1 hour")):
                break
        except psycopg.errors.DiskFull:
            refused += 1
            make_room(small_disk)
    assert refused
    conserve.check(conn.info.dsn, known=sent)


def test_a_disk_that_fills_up_under_load_loses_nothing(
    server: Server, on_small_disk: psycopg.Connection, small_disk: Path
) -> None:
    dsn = on_small_disk.info.dsn
    with Load(dsn, "q", passing=(*PASSING, psycopg.errors.DiskFull)) as load:
        load.goes_on(30)
        mark = server.log.stat().st_size
        leave(small_disk.parent, 256 << 10)
        for _ in range(2):  # again, once there was room
            until_said(server, mark, "No space left on device", times=20)
            mark = server.log.stat().st_size
            make_room(small_disk)
            load.goes_on(100)
            leave(small_disk.parent, 0)
        make_room(small_disk)
        load.goes_on(100)
    conserve.check(dsn, known=load.committed)


def until_said(server: Server, mark: int, what: str, times: int = 1) -> None:
    wait.until(lambda: server.log_tail(100_000, since=mark).count(what) >= times, what)


def test_a_server_that_cannot_write_its_log_ahead_loses_nothing(
    server: Server, small_disk: Path
) -> None:
    """Then PostgreSQL panics, and recovers once somebody made room."""
    with Server(
        server.name,
        settings={"full_page_writes": "on"},
        initdb=("--waldir", str(small_disk), "--wal-segsize", "1"),
    ) as own:
        own.create_database("small", template.make(own))
        dsn = own.dsn("small")
        conserve.prepare(dsn, "a", "b")
        with Load(dsn, "a", "b", passing=(*PASSING, psycopg.errors.DiskFull)) as load:
            load.goes_on(30)
            leave(small_disk.parent, 2 << 20)
            until_said(own, 0, "PANIC")
            make_room(small_disk)
            wait.until(lambda: own.start().pid is not None and answers(dsn), "the server")
            load.goes_on(100)
        conserve.check(dsn, known=load.committed)


def answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True
