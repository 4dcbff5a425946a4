"""pg_upgrade, and dump and restore, with messages in every state: nothing lost, nothing doubled."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from support import binaries, conserve, pgserver, points, template
from support.race import value
from support.server import Server
from support.server import database as temporary_database
from support.standby import Standby

pytestmark = pytest.mark.faults


EVERY_STATE = {"ready", "deferred", "leased", "completed", "dead"}


def states(conn: psycopg.Connection) -> dict[int, str]:
    """What mq says of messages 1 to 35."""
    return dict(
        conn.execute(
            "select i, state from generate_series(1, 35) as i, mq.message_status('q', i)"
        ).fetchall()
    )


def either(state: str) -> str:
    """Of what is leased and ready, only that it is there."""
    return "there" if state in ("leased", "ready") else state


def assert_whole(dsn: str, before: dict[int, str], receipt: str, kept: bool) -> None:
    """All is there, in a state that it was in; receipts of before hold or are void."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        if not kept:
            conn.execute("select mq.maintain()")
        after = states(conn)
        assert {i: either(s) for i, s in after.items() if s} == {
            i: either(s) for i, s in before.items() if s and (kept or s != "completed")
        }
        assert value(conn, "select mq.extend('q', %s) is not null", receipt) == kept
        conserve.send(conn, [1001])
        conserve.send(conn, [1002], delay="1 ms")
        with conn.cursor().copy("copy mq.inbox (queue, payload) from stdin") as copy:
            copy.write_row(("q", '{"tag": 1003}'))
        conn.execute("insert into sent values (1003, 'q')")
    conserve.check(dsn, known=[*range(1, 36), 1001, 1002, 1003])


def history(dsn: str) -> tuple[dict[int, str], str]:
    """Fills a database with messages in every state; what they are in, and a receipt."""
    conserve.prepare(dsn, "q")
    with psycopg.connect(dsn, autocommit=True) as conn:
        receipt = points.state(conn)["receipt"]
        assert conserve.settle(conn, conserve.receive(conn, 2))
        before = states(conn)
        assert {*before.values()} == EVERY_STATE
        return before, str(receipt)


# -- pg_upgrade -------------------------------------------------------------------------------------


@pytest.fixture
def installed() -> Iterator[dict[int, Path]]:
    try:
        with pgserver.installations() as found:
            yield found
    except binaries.Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", ["maintain", "enqueue", "dequeue"])
def test_pg_upgrade_keeps_everything(installed: dict[int, Path], first: str) -> None:
    # Checksums, which 18 makes by default and 16 does not, would have to be the same.
    with contextlib.closing(Server(str(installed[18]), initdb=("--no-data-checksums",))) as new:
        with Server(str(installed[16]), settings={"full_page_writes": "on"}) as old:
            old.create_database("upgraded", template.make(old))
            before, receipt = history(old.dsn("upgraded"))
            pgserver.pg_upgrade(old, new)
        new.start()
        dsn = new.dsn("upgraded")
        with psycopg.connect(dsn, autocommit=True) as conn:
            if first == "enqueue":
                conserve.send(conn, [901])
            elif first == "dequeue":  # notices, too, and repairs; the next one finds what there is
                assert conserve.receive(conn, 1) == []
                assert conserve.receive(conn, 1)
                assert value(conn, "select mq.extend('q', %s) is null", receipt)
        assert_whole(dsn, before, receipt, kept=False)


# -- dump and restore -------------------------------------------------------------------------------


def restore(server: Server, source: str, target: str, form: str) -> None:
    if form == "plain":
        dump = server.run("pg_dump", "--dbname", source).stdout
        psql = str(server.installation.bin / "psql")
        options = ("-X", "-q", "-v", "ON_ERROR_STOP=1", target)
        subprocess.run([psql, *options], input=dump, text=True, check=True, capture_output=True)
        return
    folder = server.folder / "dump"
    server.run("pg_dump", "--format", "directory", "--file", str(folder), "--dbname", source)
    server.run("pg_restore", "--exit-on-error", "--jobs", "2", "--dbname", target, str(folder))


@pytest.mark.parametrize("form", ["plain", pytest.param("directory", marks=pytest.mark.slow)])
def test_a_restored_dump_has_everything(server: Server, database: str, form: str) -> None:
    if not (server.installation.bin / "pg_dump").exists():
        pytest.skip(f"{server.name} comes without pg_dump")
    before, receipt = history(database)
    with temporary_database(server, "restored_states") as target:
        restore(server, database, target, form)
        assert_whole(target, before, receipt, kept=False)
    conserve.check(database, known=range(1, 36))  # and the original goes on


@pytest.mark.slow
def test_a_file_copy_of_a_cluster_goes_on_where_it_was(server: Server) -> None:
    """A base backup of a running server: the same identity, so receipts hold."""
    if not (server.installation.bin / "pg_basebackup").exists():
        pytest.skip(f"{server.name} comes without pg_basebackup")
    with Server(server.name, settings={"full_page_writes": "on"}) as own:
        own.create_database("copied", template.make(own))
        before, receipt = history(own.dsn("copied"))
        with Standby(own) as copy:
            own.close()
            copy.promote()
            assert_whole(copy.dsn("copied"), before, receipt, kept=True)
