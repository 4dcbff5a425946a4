"""A disk that fills up: PostgreSQL's own error, nothing half done, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from support import template
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
    (small_disk.parent / "ballast").unlink(missing_ok=True)


@pytest.fixture
def on_small_disk(server: Server, small_disk: Path) -> Iterator[psycopg.Connection]:
    """A database with mq whose tables, but not its WAL, are on the small disk; 16 MB of the disk are ballast."""
    with server.connect("postgres", autocommit=True) as admin:
        admin.execute(f"create tablespace small location '{small_disk}'")
        admin.execute(f"create database small template {template.make(server)} tablespace small")
        try:
            with server.connect("small", autocommit=True) as conn:
                conn.execute("select mq.create_queue('q')")
                yield conn
        finally:
            make_room(small_disk)
            admin.execute("drop database small with (force)")
            admin.execute("drop tablespace small")


NOISE = "to_jsonb((select string_agg(md5(i || ' ' || j), '') from generate_series(1, 100) as j))"


def fill(conn: psycopg.Connection, statement: str, sent: set[int]) -> None:
    """Until the disk is full; what was refused is not in `sent`."""
    for _ in range(100_000):
        sent.update(msg_id for (msg_id,) in conn.execute(statement).fetchall())


def test_a_full_disk_refuses_and_loses_nothing(
    on_small_disk: psycopg.Connection, small_disk: Path
) -> None:
    conn = on_small_disk
    sent: set[int] = set()
    batch = f"select mq.enqueue_batch('q', array(select {NOISE} from generate_series(1, 500) as i))"
    with pytest.raises(psycopg.errors.DiskFull):
        fill(conn, batch, sent)
    assert sent
    with pytest.raises(psycopg.errors.DiskFull):  # one at a time goes on to the last page
        fill(conn, f"select mq.enqueue('q', {NOISE}) from generate_series(1, 1) as i", sent)
    acked: set[int] = set()
    while True:
        try:
            rows = conn.execute("select msg_id, receipt from mq.dequeue('q', 50)").fetchall()
            if not rows:
                break
            row = conn.execute("select mq.ack('q', %s)", (rows[0][1],)).fetchone()
            assert row == (len(rows),)
            acked.update(r[0] for r in rows)
        except psycopg.errors.DiskFull:
            make_room(small_disk)
    for row in conn.execute("select (mq.peek('q', 100000)).msg_id").fetchall():
        assert row[0] in sent - acked  # leased by a call whose ack met the full disk
        acked.add(row[0])
    assert acked == sent
    assert conn.execute("select count(*) from mq.dead_letters('q')").fetchone() == (0,)
