"""Fixtures: a server a session, a database a test.

server      the session's server; which one, says MQ_TEST_SERVER (embedded, debian, npm:14, ...)
database    connection string of a fresh database with mq installed
conn        an autocommit connection to it, as the owner
connect     makes more of them: connect(), connect(autocommit=False), connect(user="mq_consumer")
queue       name of a queue with default settings in it
background  runs a call in a thread, for what blocks: background(conn.execute, "...") -> Future

own_server    a server of the file's own, which may crash
own_database  like database, on that
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support import template
from support.server import Server
from support.server import database as temporary_database

pytest.register_assert_rewrite("stateful")

Connect = Callable[..., psycopg.Connection]
Background = Callable[..., "Future[Any]"]

_numbers = itertools.count(1)
_servers: list[Server] = []
_log_marks: dict[str, int] = {}


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server(os.environ.get("MQ_TEST_SERVER", "embedded")) as running:
        _servers.append(running)
        yield running
        _servers.remove(running)


@pytest.fixture(scope="session")
def mq_template(server: Server) -> str:
    return template.make(server)


@pytest.fixture
def database(server: Server, mq_template: str) -> Iterator[str]:
    with temporary_database(server, f"t{next(_numbers)}", mq_template) as dsn:
        yield dsn


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    opened: list[psycopg.Connection] = []

    def connect_(*, autocommit: bool = True, **params: Any) -> psycopg.Connection:
        conn = psycopg.connect(database, autocommit=autocommit, **params)
        opened.append(conn)
        return conn

    yield connect_
    for conn in opened:
        conn.close()


@pytest.fixture
def conn(connect: Connect) -> psycopg.Connection:
    return connect()


@pytest.fixture
def background() -> Iterator[Background]:
    with ThreadPoolExecutor(64) as pool:
        yield pool.submit


@pytest.fixture
def queue(conn: psycopg.Connection) -> str:
    conn.execute("select mq.create_queue('q')")
    return "q"


@pytest.fixture(scope="module")
def own_server(server: Server) -> Iterator[Server]:
    settings = {"full_page_writes": "on"}  # what a crash leaves is whole
    with Server(server.name, settings=settings) as own:
        yield own


@pytest.fixture
def own_database(own_server: Server) -> Iterator[str]:
    with temporary_database(own_server, f"t{next(_numbers)}", template.make(own_server)) as dsn:
        yield dsn


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """tmp_path below a folder of this run's own, which goes with it: runs may overlap."""
    if config.option.basetemp is None:
        folder = tempfile.mkdtemp(prefix="mq-pytest-")
        config.option.basetemp = Path(folder) / "t"
        config.add_cleanup(functools.partial(shutil.rmtree, folder, ignore_errors=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the server logged since it began."""
    report = yield
    for running in _servers:
        if call.when == "setup":
            _log_marks[running.name] = running.log.stat().st_size
        if report.failed and (said := running.log_tail(since=_log_marks.get(running.name, 0))):
            report.sections.append((f"log of server {running.name}", said))
    return report
