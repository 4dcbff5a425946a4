"""The upgrade machinery, on two small trees that are frozen: a release and the one after it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mqctl import migrate, source
from mqctl.check import check
from mqctl.errors import SourceError
from support.server import Server
from support.server import database as temporary_database

pytestmark = pytest.mark.matrix

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "upgrade"
FIRST = source.load(FIXTURES / "first", "0.0.1")
SECOND = source.load(FIXTURES / "second", "0.0.2")

_numbers = itertools.count(1)
Connection = psycopg.Connection[Any]


@pytest.fixture
def bare(server: Server) -> Iterator[Connection]:
    """An autocommit connection to a database without mq."""
    with (
        temporary_database(server, f"upgrade{next(_numbers)}") as dsn,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        yield conn


@pytest.fixture
def first(bare: Connection) -> Connection:
    """The same with the first release, a queue, and a message."""
    migrate.install(bare, FIRST)
    bare.execute("select mq.create_queue('a')")
    bare.execute("select mq.enqueue('a', '1')")
    return bare


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the second tree, to be edited."""
    return Path(shutil.copytree(FIXTURES / "second", tmp_path / "sql"))


def scalar(conn: Connection, query: str) -> object:
    row = conn.execute(query).fetchone()
    assert row is not None
    return row[0]


def test_the_fixtures_are_as_they_were_frozen() -> None:
    assert FIRST.unlisted() == SECOND.unlisted() == []
    assert FIRST.fingerprint()[:16] == "5bca5a2e50b678d7"
    assert SECOND.fingerprint()[:16] == "7aa058e4f50aa884"


def test_an_upgrade_applies_what_is_pending_and_keeps_the_messages(first: Connection) -> None:
    outcome = migrate.upgrade(first, SECOND)
    assert outcome.migrations == ("0002_priority",)
    assert (outcome.changed, outcome.fresh) == (True, False)
    assert scalar(first, "select count(*) from mq.log_1_1") == 1
    assert scalar(first, "select priority from mq.queue") == 0
    ledger = first.execute("select version, slug, mq_version from mq.migration order by version")
    assert ledger.fetchall() == [(1, "tables", "0.0.1"), (2, "priority", "0.0.2")]
    assert check(first, SECOND).findings == ()


def test_an_upgraded_database_is_as_a_fresh_one(first: Connection, server: Server) -> None:
    migrate.upgrade(first, SECOND)
    with (
        temporary_database(server, f"fresh{next(_numbers)}") as dsn,
        psycopg.connect(dsn, autocommit=True) as fresh,
    ):
        migrate.install(fresh, SECOND)
        assert check(fresh, SECOND).fingerprint == check(first, SECOND).fingerprint


def test_the_script_upgrades_as_the_program_does(first: Connection, server: Server) -> None:
    first.execute(SECOND.script())
    assert check(first, SECOND).findings == ()
    assert scalar(first, "select mq._take_1_1()") == "second"


def test_functions_follow_their_signatures(first: Connection) -> None:
    migrate.upgrade(first, SECOND)
    assert scalar(first, "select pg_typeof(mq.depth('a'))::text") == "bigint"
    assert scalar(first, "select count(*) from pg_proc where proname = 'enqueue'") == 1
    assert scalar(first, "select mq.enqueue('a', '2', headers => '{}')") == 2
    assert scalar(first, "select to_regprocedure('mq.forgotten()')") is None
    assert scalar(first, "select mq.remembered()") == "new in the second"


def test_the_functions_of_the_queues_are_made_again(first: Connection) -> None:
    assert scalar(first, "select mq._take_1_1()") == "first"
    migrate.upgrade(first, SECOND)
    assert scalar(first, "select mq._take_1_1()") == "second"


def test_views_of_users_on_unchanged_functions_survive(first: Connection) -> None:
    first.execute("create view public.made as select mq.create_queue('b') as id")
    migrate.upgrade(first, SECOND)
    assert scalar(first, "select id from public.made") == 2


def test_a_view_of_users_on_a_changed_function_stops_the_upgrade(first: Connection) -> None:
    first.execute("create view public.deep as select mq.depth('a') as n")
    with pytest.raises(psycopg.errors.DependentObjectsStillExist) as refused:
        migrate.upgrade(first, SECOND)
    assert "deep" in (refused.value.diag.message_detail or "")
    assert check(first, FIRST).findings == ()


def test_an_upgrade_that_fails_half_way_leaves_the_first_release(
    first: Connection, tree: Path
) -> None:
    (tree / "functions" / "remembered.sql").write_text(
        "create or replace function mq.remembered() returns text language sql as $$ select nothing $$;"
    )
    with pytest.raises(psycopg.errors.UndefinedColumn):
        migrate.upgrade(first, source.load(tree, "0.0.2"))
    assert check(first, FIRST).findings == ()


def test_a_newer_database_stops_it(bare: Connection) -> None:
    migrate.install(bare, SECOND)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as refused:
        migrate.install(bare, FIRST)
    assert "newer" in (refused.value.diag.message_primary or "")
    assert "0.0.2" in (refused.value.diag.message_hint or "")
    assert check(bare, SECOND).findings == ()


def test_an_edited_migration_stops_it(first: Connection, tree: Path) -> None:
    with (tree / "migrations" / "0001_tables.sql").open("a") as file:
        file.write("-- edited after the release\n")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as refused:
        migrate.upgrade(first, source.load(tree, "0.0.2"))
    assert "0001_tables" in (refused.value.diag.message_primary or "")
    assert check(first, FIRST).findings == ()


def test_check_against_a_newer_source_says_that_the_database_is_outdated(first: Connection) -> None:
    found = {(f.kind, f.problem) for f in check(first, SECOND).findings}
    assert found == {("version", "outdated"), ("migration", "missing")}


def test_line_ends_and_blanks_at_line_ends_do_not_change_the_fingerprint(tree: Path) -> None:
    for path in tree.rglob("*.sql"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"  \r\n"))
    assert source.load(tree, "0.0.2").fingerprint() == SECOND.fingerprint()


def test_from_a_release_the_script_leaves_out_what_that_release_has(
    first: Connection, tree: Path
) -> None:
    (tree / "released").mkdir()
    (tree / "released" / "mq-0.0.1.sql").write_text(FIRST.script())
    second = source.load(tree, "0.0.2")
    script = second.script("0.0.1")
    assert "create table mq.queue" not in script
    assert "add column priority" in script
    first.execute(script)
    assert check(first, second).findings == ()
    with pytest.raises(SourceError, match="does not know"):
        second.script("9.9.9")


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("functions.sql", "select 1;", "neither a comment"),
        ("functions.sql", "\\ir functions/nowhere.sql", "cannot read"),
        ("functions.sql", "\\ir functions/depth.sql\n\\ir functions/depth.sql", "twice"),
        (
            "functions/depth.sql",
            "create function mq.depth() returns int as $$ $$;",
            "not written as",
        ),
        ("functions/depth.sql", "select $$ never ends", "never ends"),
        ("migrations/0004_gap.sql", "select 1;", "not numbered"),
        ("migrations/four.sql", "select 1;", "not named"),
    ],
)
def test_a_tree_with_a_mistake_in_it_is_refused(
    bare: Connection, tree: Path, file: str, text: str, says: str
) -> None:
    (tree / file).write_text(text)
    with pytest.raises(SourceError, match=says):
        migrate.install(bare, source.load(tree, "0.0.2"))
    assert not migrate.is_installed(bare)
