"""A server that dies under load, and comes back: kill -9 of the postmaster, and an immediate shutdown."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from support import conserve, template
from support.load import Load
from support.server import Server

pytestmark = pytest.mark.faults


@pytest.fixture
def own_server(server: Server) -> Iterator[Server]:
    """A server that may crash; its pages are whole after that."""
    with Server(server.name, settings={"full_page_writes": "on"}) as own:
        own.create_database("crash", template.make(own))
        yield own


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_a_postmaster_killed_under_load_loses_nothing(own_server: Server, times: int) -> None:
    dsn = own_server.dsn("crash")
    conserve.prepare(dsn, "a", "b")
    with Load(dsn, "a", "b") as load:
        for _ in range(times):
            load.goes_on(random.randint(5, 100))
            own_server.kill9()
            own_server.start()
        load.goes_on()
    conserve.check(dsn, known=load.committed)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_an_immediate_shutdown_under_load_loses_nothing(own_server: Server, times: int) -> None:
    dsn = own_server.dsn("crash")
    conserve.prepare(dsn, "a", "b")
    with Load(dsn, "a", "b") as load:
        for _ in range(times):
            load.goes_on(random.randint(5, 100))
            own_server.restart("immediate")
        load.goes_on()
    conserve.check(dsn, known=load.committed)
