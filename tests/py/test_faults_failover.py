"""A primary that dies under load, and its replica that takes over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import conserve, template, wait
from support.load import Load
from support.race import value
from support.server import Server
from support.standby import Standby

pytestmark = pytest.mark.faults

DATABASE = "failover"


@pytest.fixture
def primary(server: Server) -> Iterator[Server]:
    if not (server.installation.bin / "pg_basebackup").exists():
        pytest.skip(f"{server.name} comes without pg_basebackup")
    with Server(server.name, settings={"full_page_writes": "on"}) as own:
        own.create_database(DATABASE, template.make(own))
        conserve.prepare(own.dsn(DATABASE), "a", "b")
        yield own


def failover(primary: Server, *, synchronous: bool) -> None:
    """Load, the end of the primary in the middle of it, and the standby that goes on with it."""
    with Standby(primary) as standby:
        if synchronous:
            configure(primary, "synchronous_standby_names", "standby")
            with primary.connect() as conn:
                wait.until(
                    lambda: value(conn, "select sync_state from pg_stat_replication") == "sync",
                    "the standby to be synchronous",
                )
        serving = primary
        with Load(lambda: serving.dsn(DATABASE), "a", "b") as load:
            load.goes_on(150)
            if not synchronous:  # what is committed from now on never arrives
                configure(standby, "primary_conninfo", "")
                with standby.connect() as conn:
                    wait.until(
                        lambda: value(conn, "select count(*) = 0 from pg_stat_wal_receiver"),
                        "the end of replication",
                    )
                load.goes_on(50)
            primary.kill9()
            standby.promote()
            before = set(load.committed)
            serving = standby
            load.goes_on(150)
        configure(standby, "synchronous_standby_names", "")
        dsn = standby.dsn(DATABASE)
        if synchronous:
            conserve.check(dsn, known=load.committed)
        else:
            with standby.connect(DATABASE) as conn:
                assert conserve.ledger(conn, before)["committed and lost"]
            conserve.check(dsn, known=load.committed - before)


def configure(server: Server, setting: str, to: str) -> None:
    with server.connect() as conn:
        conn.execute(f"alter system set {setting} = '{to}'")
        conn.execute("select pg_reload_conf()")


@pytest.mark.slow
@pytest.mark.parametrize("round", range(5))
@pytest.mark.timeout(300)
def test_a_synchronous_replica_has_everything_that_was_committed(
    primary: Server, round: int
) -> None:
    failover(primary, synchronous=True)


@pytest.mark.parametrize(
    "round", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 5))]
)
@pytest.mark.timeout(300)
def test_what_an_asynchronous_replica_has_is_delivered_once(primary: Server, round: int) -> None:
    failover(primary, synchronous=False)
