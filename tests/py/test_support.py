"""The servers of the tests themselves: what they promise when things end badly."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from support import binaries, wait
from support.server import Server

TESTS = Path(binaries.__file__).parents[1]

CHILD = """
import sys, time
from support.server import Server
server = Server().start()
print(server.folder, server.pid, flush=True)
time.sleep(600)
"""


def runs(pid: str) -> bool:
    """Whether it is there and no zombie."""
    said = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True)
    return said.stdout.strip()[:1] not in ("", "Z")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_server_ends_with_its_process(number: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env={"PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    with child, child.stdout:
        folder, pid = child.stdout.readline().split()
        assert Path(folder).exists()
        child.send_signal(number)
    wait.until(lambda: not Path(folder).exists(), "the folder to go")
    wait.until(lambda: not runs(pid), "the server to end")


def test_a_killed_server_comes_back() -> None:
    with Server() as server:
        with server.connect() as conn:
            conn.execute("create table t as select 1 as a")
        server.kill9()
        with pytest.raises(psycopg.OperationalError):
            server.connect()
        server.start()
        with server.connect() as conn:
            assert conn.execute("select a from t").fetchone() == (1,)
        server.restart("immediate", {"max_connections": "17"})
        with server.connect() as conn:
            assert conn.execute("show max_connections").fetchone() == ("17",)
    assert not server.folder.exists()


def test_a_server_can_listen_on_tcp() -> None:
    with Server(tcp=True) as server, server.connect() as conn:
        assert conn.info.host == "127.0.0.1"


def test_a_server_that_cannot_start_says_why() -> None:
    server = Server(settings={"max_connections": "none"})
    with pytest.raises(Exception, match="max_connections"):
        server.start()
    server.close()
    assert not server.folder.exists()
