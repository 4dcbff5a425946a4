"""Installing, checking and removing what this version ships."""

from __future__ import annotations

import itertools
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from mqctl import catalogue, migrate, source, steps
from mqctl.check import check
from mqctl.errors import MqctlError
from support import binaries
from support.server import Server
from support.server import database as temporary_database

pytestmark = pytest.mark.matrix

_numbers = itertools.count(1)
Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


@pytest.fixture
def empty(server: Server) -> Iterator[str]:
    """A database without mq."""
    with temporary_database(server, f"empty{next(_numbers)}") as dsn:
        yield dsn


@pytest.fixture
def bare(empty: str) -> Iterator[Connection]:
    """An autocommit connection to a database without mq."""
    with psycopg.connect(empty, autocommit=True) as conn:
        yield conn


@pytest.fixture
def plain_role(server: Server, empty: str) -> Iterator[str]:
    """A role that may do nothing but own the database `empty`."""
    role = f"plain{next(_numbers)}"
    with psycopg.connect(empty, autocommit=True) as conn:
        database = sql.Identifier(conn.info.dbname)
        conn.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
        conn.execute(
            sql.SQL("alter database {} owner to {}").format(database, sql.Identifier(role))
        )
        yield role
        conn.execute(sql.SQL("alter database {} owner to current_user").format(database))
        conn.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(role)))
        conn.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def catalogue_rows(conn: Connection) -> set[tuple[object, ...]]:
    """Every catalogue row of schema mq with the transaction that wrote it: any change shows."""
    return set(
        conn.execute(
            """select 'class', c.oid, c.xmin::text from pg_class c where c.relnamespace = to_regnamespace('mq')
               union all
               select 'proc', p.oid, p.xmin::text from pg_proc p where p.pronamespace = to_regnamespace('mq')
               union all
               select 'type', t.oid, t.xmin::text from pg_type t where t.typnamespace = to_regnamespace('mq')
               union all
               select 'schema', n.oid, n.xmin::text from pg_namespace n where n.nspname = 'mq'
               union all
               select 'installed', 0, o.xmin::text || o.kind || o.name from mq.installed_object o"""
        ).fetchall()
    )


def fingerprint(conn: Connection) -> str:
    return check(conn).fingerprint


def test_every_function_file_is_in_the_manifest() -> None:
    assert source.load().unlisted() == []


def test_install_reports_a_fresh_installation_with_its_migrations(bare: Connection) -> None:
    outcome = migrate.install(bare)
    assert (outcome.changed, outcome.fresh) == (True, True)
    assert outcome.migrations == tuple(m.name for m in source.load().migrations)
    assert check(bare).findings == ()


def test_a_second_install_changes_no_row_of_the_catalogue(bare: Connection) -> None:
    migrate.install(bare)
    before = catalogue_rows(bare)
    outcome = migrate.install(bare)
    assert (outcome.changed, outcome.fresh, outcome.migrations) == (False, False, ())
    assert catalogue_rows(bare) == before


def test_queues_do_not_make_a_second_install_do_anything(bare: Connection) -> None:
    migrate.install(bare)
    bare.execute("select mq.create_queue('a')")
    assert not migrate.install(bare).changed
    assert check(bare).findings == ()


def test_two_installs_at_once_both_succeed_and_one_of_them_installs(empty: str) -> None:
    outcomes: list[migrate.Outcome | BaseException] = []
    together = threading.Barrier(2)

    def run() -> None:
        try:
            with psycopg.connect(empty, autocommit=True) as conn:
                together.wait()
                outcomes.append(migrate.install(conn))
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(outcome, migrate.Outcome) for outcome in outcomes), outcomes
    assert sorted(o.changed for o in outcomes if isinstance(o, migrate.Outcome)) == [False, True]


def _labels() -> list[str]:
    return [step.label for step in steps.steps(source.load())]


@pytest.mark.parametrize("at", ["migration", "function", "last"])
def test_an_install_that_is_interrupted_leaves_nothing(bare: Connection, at: str) -> None:
    labels = _labels()
    stop = {
        "migration": next(i for i, label in enumerate(labels) if label.startswith("migrations/")),
        "function": next(i for i, label in enumerate(labels) if label.startswith("functions/")),
        "last": len(labels) - 1,
    }[at]

    class Interrupted(Exception):
        pass

    def interrupt(label: str, number: int, total: int) -> None:
        if number == stop + 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        migrate.install(bare, progress=interrupt)
    assert not migrate.is_installed(bare)
    assert bare.execute("select to_regnamespace('mq')").fetchone() == (None,)
    assert migrate.install(bare).fresh


def test_an_install_whose_backend_is_killed_leaves_nothing(bare: Connection, empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as victim:

        def kill(label: str, number: int, total: int) -> None:
            if label == "record":
                bare.execute("select pg_terminate_backend(%s, 10000)", [victim.info.backend_pid])

        with pytest.raises(psycopg.OperationalError):
            migrate.install(victim, progress=kill)
    assert bare.execute("select to_regnamespace('mq')").fetchone() == (None,)


def test_a_schema_mq_of_somebody_else_is_not_touched(bare: Connection) -> None:
    bare.execute("create schema mq")
    bare.execute("create table mq.mine (x int)")
    with pytest.raises(psycopg.Error) as refused:
        migrate.install(bare)
    assert refused.value.sqlstate == "42P06"
    assert refused.value.diag.message_hint
    with pytest.raises(MqctlError):
        migrate.uninstall(bare, force=True)
    found = bare.execute("select relname from pg_class where relnamespace = 'mq'::regnamespace")
    assert found.fetchall() == [("mine",)]


def test_a_ledger_without_the_comment_on_the_schema_is_not_ours(bare: Connection) -> None:
    bare.execute("create schema mq")
    bare.execute(
        "create table mq.migration (version int, slug text, sha256 text, mq_version text, applied_at timestamptz)"
    )
    with pytest.raises(psycopg.Error) as refused:
        migrate.install(bare)
    assert refused.value.sqlstate == "42P06"


def test_a_role_that_owns_the_database_installs_uses_checks_and_removes(
    empty: str, plain_role: str, server: Server
) -> None:
    with psycopg.connect(make_conninfo(empty, user=plain_role), autocommit=True) as conn:
        assert migrate.install(conn).fresh
        conn.execute("select mq.create_queue('a')")
        conn.execute("select mq.enqueue('a', '1')")
        assert check(conn).findings == ()
        assert not migrate.install(conn).changed
        with pytest.raises(MqctlError, match="messages left"):
            migrate.uninstall(conn)
        migrate.uninstall(conn, force=True)
        assert not migrate.is_installed(conn)


def test_a_role_that_may_not_create_a_schema_is_told_so(empty: str, bare: Connection) -> None:
    role = f"stranger{next(_numbers)}"
    bare.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
    try:
        with (
            psycopg.connect(make_conninfo(empty, user=role), autocommit=True) as conn,
            pytest.raises(psycopg.errors.InsufficientPrivilege) as refused,
        ):
            migrate.install(conn)
        assert "grant create on database" in (refused.value.diag.message_hint or "")
    finally:
        bare.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def test_without_createrole_it_installs_and_says_which_roles_it_skipped(
    server: Server, empty: str, plain_role: str
) -> None:
    warnings: list[str] = []

    def listen(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(diagnostic.message_hint or "")

    with server.connect() as admin:
        renamed = [
            role
            for role in catalogue.ROLES
            if admin.execute("select from pg_roles where rolname = %s", [role]).fetchone()
            is not None
        ]
        for role in renamed:
            admin.execute(f"alter role {role} rename to {role}_away")
        try:
            with psycopg.connect(make_conninfo(empty, user=plain_role), autocommit=True) as conn:
                conn.add_notice_handler(listen)
                assert migrate.install(conn).fresh
                assert check(conn).findings == ()
                assert len(warnings) == 3
                assert all("create role" in hint for hint in warnings)
                conn.execute("select mq.create_queue('a')")
                # By hand, as the hint says; then the grants are wanting, and install gives them.
                for role in catalogue.ROLES:
                    admin.execute(f"create role {role} nologin")
                try:
                    assert {f.kind for f in check(conn).findings} >= {"role"}
                    assert migrate.install(conn).changed
                    assert check(conn).findings == ()
                    granted = conn.execute(
                        "select has_function_privilege('mq_producer', p.oid, 'execute') from pg_proc p"
                        " where p.pronamespace = 'mq'::regnamespace and p.proname = 'enqueue'"
                    )
                    assert granted.fetchone() == (True,)
                    migrate.uninstall(conn, force=True)
                finally:
                    for role in catalogue.ROLES:
                        admin.execute(f"drop role {role}")
        finally:
            for role in renamed:
                admin.execute(f"alter role {role}_away rename to {role}")


def test_psql_gets_the_same_installation_from_the_script(
    server: Server, empty: str, database: str, tmp_path: Path
) -> None:
    script = tmp_path / "mq.sql"
    script.write_text(source.load().script(), encoding="utf-8")
    command = [
        str(binaries.psql()),
        "-X",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        empty,
        "-f",
        str(script),
    ]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "nothing changed" in done.stderr
    with (
        psycopg.connect(empty, autocommit=True) as scripted,
        psycopg.connect(database) as installed,
    ):
        assert check(scripted).findings == ()
        assert fingerprint(scripted) == fingerprint(installed)
        assert not migrate.install(scripted).changed


def test_the_script_from_this_version_refuses_a_database_without_mq(
    empty: str, bare: Connection
) -> None:
    script = source.load().script(source.load().version)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        bare.execute(script)
    bare.execute("rollback")
    migrate.install(bare)
    bare.execute(script)


def test_uninstall_refuses_while_something_outside_depends_on_it(bare: Connection) -> None:
    migrate.install(bare)
    bare.execute("create view public.ops as select * from mq.queue_stats()")
    with pytest.raises(MqctlError) as refused:
        migrate.uninstall(bare, force=True)
    assert "ops" in refused.value.detail
    assert check(bare).findings == ()
    bare.execute("drop view public.ops")
    migrate.uninstall(bare)
    assert not migrate.is_installed(bare)


def test_uninstall_never_needs_more_locks_than_the_server_has() -> None:
    # Few locks and many segments: the same in small as a production server with thousands of segments.
    settings = {
        "max_locks_per_transaction": "10",
        "max_connections": "10",
        "max_prepared_transactions": "0",
    }
    with Server(settings=settings) as small, small.connect() as conn:
        migrate.install(conn)
        for number in range(40):
            conn.execute("select mq.create_queue(%s)", [f"q{number}"])
        with pytest.raises(psycopg.errors.OutOfMemory):
            conn.execute("drop schema mq cascade")
        migrate.uninstall(conn)
        assert conn.execute("select to_regnamespace('mq')").fetchone() == (None,)


def test_an_uninstall_that_was_interrupted_is_finished_by_the_next(bare: Connection) -> None:
    migrate.install(bare)
    bare.execute("select mq.create_queue('a')")
    bare.execute("drop table mq.log_1_1 cascade")
    with pytest.raises(MqctlError) as refused:
        migrate.uninstall(bare)
    assert "--force" in refused.value.hint
    migrate.uninstall(bare, force=True)
    assert bare.execute("select to_regnamespace('mq')").fetchone() == (None,)


def test_only_the_owner_checks_and_removes_it(database: str, connect: Connect) -> None:
    admin = connect()
    role = f"stranger{next(_numbers)}"
    admin.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
    admin.execute(sql.SQL("grant mq_admin to {}").format(sql.Identifier(role)))
    try:
        conn = connect(user=role)
        for refuse in (check, migrate.uninstall):
            with pytest.raises(MqctlError, match="owne") as refused:
                refuse(conn)
            assert refused.value.hint
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="owned by"):
            migrate.install(conn)
    finally:
        admin.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def test_a_dump_that_was_restored_elsewhere_checks_clean(
    server: Server, conn: Connection, empty: str
) -> None:
    if not (server.installation.bin / "pg_dump").exists():
        pytest.skip("this server has no pg_dump")
    conn.execute("select mq.create_queue('a')")
    dumped = server.run("pg_dump", "--dbname", conn.info.dbname).stdout
    done = subprocess.run(
        [str(binaries.psql()), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", empty],
        input=dumped,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with psycopg.connect(empty, autocommit=True) as restored:
        assert check(restored).findings == ()
        assert fingerprint(restored) == fingerprint(conn)
        assert not migrate.install(restored).changed


@pytest.mark.parametrize(
    ("change", "kind", "problem"),
    [
        (
            "create or replace function mq.version() returns text language sql as $$ select 'x' $$",
            "function",
            "changed",
        ),
        ("alter function mq.version() security invoker", "function", "changed"),
        ("alter function mq.version() reset search_path", "function", "changed"),
        ("comment on function mq.version() is 'edited'", "function", "changed"),
        ("drop function mq.version()", "function", "missing"),
        (
            "create function mq.mine() returns int language sql as $$ select 1 $$",
            "function",
            "extra",
        ),
        (
            "create function mq.version(x int) returns int language sql as $$ select 1 $$",
            "function",
            "extra",
        ),
        ("grant execute on function mq.version() to public", "grant", "changed"),
        ("revoke usage on schema mq from mq_producer", "grant", "changed"),
        ("grant select on mq.queue to mq_producer", "grant", "extra"),
        ("grant select on mq.queue to pg_monitor", catalogue.STRANGER, "extra"),
        ("alter table mq.queue add column mine int", "column", "extra"),
        ("alter table mq.queue alter column name drop not null", "column", "changed"),
        ("alter table mq.queue drop constraint queue_name_key", "constraint", "missing"),
        ("create index mine on mq.queue (name)", "index", "extra"),
        ("create table mq.mine (x int primary key)", "relation", "extra"),
        ("alter type mq.delivery add attribute mine int", "column", "extra"),
        ("update mq.migration set sha256 = 'edited'", "migration", "changed"),
        ("delete from mq.migration", "migration", "missing"),
        ("comment on schema mq is 'mq: edited'", "schema", "changed"),
    ],
)
def test_check_finds_what_was_changed_by_hand(
    conn: Connection, change: str, kind: str, problem: str
) -> None:
    assert check(conn).findings == ()
    before = fingerprint(conn)
    conn.execute(change)
    assert (kind, problem) in {(f.kind, f.problem) for f in check(conn).findings}
    if kind not in ("migration", catalogue.STRANGER):
        assert fingerprint(conn) != before


def test_check_finds_an_edited_function_although_the_record_was_edited_too(
    conn: Connection,
) -> None:
    conn.execute(
        "create or replace function mq.version() returns text language sql as $$ select 'x' $$"
    )
    conn.execute("delete from mq.installed_object where kind <> 'source'")
    conn.execute("set search_path = pg_catalog, pg_temp")
    conn.execute(f"insert into mq.installed_object {catalogue.QUERY}")
    assert {(f.kind, f.name, f.problem) for f in check(conn).findings} == {
        ("function", "version", "changed")
    }


def test_check_writes_nothing(conn: Connection) -> None:
    before = catalogue_rows(conn)
    conn.execute("set default_transaction_read_only = on")
    check(conn)
    assert catalogue_rows(conn) == before


def test_install_puts_edited_functions_and_grants_right(conn: Connection) -> None:
    conn.execute(
        "create or replace function mq.version() returns text language sql as $$ select 'x' $$"
    )
    conn.execute("drop function mq.peek")
    conn.execute("grant execute on function mq.version() to public")
    outcome = migrate.install(conn)
    assert outcome.changed
    assert outcome.migrations == ()
    assert check(conn).findings == ()


def test_install_does_not_pass_over_tables_that_were_edited(conn: Connection) -> None:
    conn.execute("alter table mq.queue add column mine int")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as refused:
        migrate.install(conn)
    assert "queue.mine" in (refused.value.diag.message_detail or "")
    assert migrate.install(conn, accept_drift=True).changed
    assert check(conn).findings == ()


def test_a_function_of_somebody_else_in_the_schema_stops_it_and_survives(conn: Connection) -> None:
    conn.execute("create function mq.mine() returns int language sql as $$ select 1 $$")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as refused:
        migrate.install(conn)
    assert "mine" in (refused.value.diag.message_detail or "")
    assert conn.execute("select mq.mine()").fetchone() == (1,)


def test_check_and_upgrade_say_so_where_mq_is_missing(bare: Connection) -> None:
    for refuse in (check, migrate.upgrade, migrate.uninstall):
        with pytest.raises(MqctlError, match="not installed"):
            refuse(bare)


def test_install_refuses_a_connection_inside_a_transaction(empty: str) -> None:
    with psycopg.connect(empty) as conn:
        conn.execute("select 1")
        with pytest.raises(MqctlError, match="inside a transaction"):
            migrate.install(conn)
