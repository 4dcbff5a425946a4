"""A server that dies under load, and comes back: kill -9 of the postmaster, and an immediate shutdown."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from support import conserve
from support.load import Load
from support.server import Server

pytestmark = pytest.mark.faults


def crash_under_load(dsn: str, times: int, crash: Callable[[], object]) -> None:
    conserve.prepare(dsn, "a", "b")
    with Load(dsn, "a", "b") as load:
        for _ in range(times):
            load.goes_on(random.randint(5, 100))
            crash()
        load.goes_on()
    conserve.check(dsn, known=load.committed)


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_a_postmaster_killed_under_load_loses_nothing(
    own_server: Server, own_database: str, times: int
) -> None:
    def kill() -> None:
        own_server.kill9()
        own_server.start()

    crash_under_load(own_database, times, kill)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_an_immediate_shutdown_under_load_loses_nothing(
    own_server: Server, own_database: str, times: int
) -> None:
    crash_under_load(own_database, times, lambda: own_server.restart("immediate"))
