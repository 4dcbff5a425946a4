"""A hostile user's functions, operators, types, relations and settings: nothing of it runs as the owner of mq."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.types.string import TextLoader

from support import attack, race
from support.attack import MALLORY
from support.race import value
from support.server import Server
from support.server import database as temporary_database

Connect = Callable[..., psycopg.Connection]

TRAPS = (Path(attack.__file__).parent / "traps.sql").read_text()

PATHS = (
    "evil, pg_temp, pg_catalog",
    "pg_temp, evil, pg_catalog, mq",
    "mq, evil, pg_temp",
)

# Settings that a caller may change and that change what SQL means, how it is planned or what values look like.
HOSTILE_SETTINGS = {
    "strings": "standard_conforming_strings=off backslash_quote=on escape_string_warning=off array_nulls=off"
    " quote_all_identifiers=on transform_null_equals=on",
    "values": "datestyle=SQL,DMY intervalstyle=sql_standard timezone=Pacific/Apia extra_float_digits=-15",
    "plpgsql": "plpgsql.extra_errors=all plpgsql.extra_warnings=all check_function_bodies=off row_security=off",
    "plans": "plan_cache_mode=force_custom_plan constraint_exclusion=on enable_sort=off enable_hashjoin=off"
    " enable_indexscan=off enable_indexonlyscan=off enable_nestloop=off enable_material=off",
    "transactions": "default_transaction_isolation=read\\ uncommitted lock_timeout=1min statement_timeout=1min",
}


@pytest.fixture(scope="module")
def database(server: Server, mq_template: str) -> Iterator[str]:
    with temporary_database(server, "security_search_path", mq_template) as dsn:
        with psycopg.connect(dsn, autocommit=True) as owner:
            attack.make_users(owner)
            owner.execute(f"grant create on database security_search_path to {MALLORY}")
            owner.execute("select mq.create_queue('there')")
        yield dsn


@pytest.fixture
def mallory(connect: Connect, conn: psycopg.Connection) -> psycopg.Connection:
    """His session, with the traps set."""
    race.fresh(conn.info.dsn)
    conn.execute("drop schema if exists evil cascade")
    session = connect(user=MALLORY)
    session.execute(TRAPS.encode())
    return session


def sprung(said: list[str]) -> dict[str, set[str]]:
    """User to the traps that ran as that user."""
    found: dict[str, set[str]] = {}
    for user, what in re.findall(r"^sprung by (\w+): (.*)$", "\n".join(said), re.MULTILINE):
        found.setdefault(user, set()).add(what)
    return found


def definers(owner: psycopg.Connection) -> dict[str, str]:
    """Name to signature of every function that runs as its owner, but for triggers of what only he can write to."""
    return dict(
        owner.execute(
            "select proname, oid::regprocedure::text from pg_proc"
            " where pronamespace = 'mq'::regnamespace and prosecdef and not exists"
            " (select from pg_trigger where tgfoid = pg_proc.oid and tgrelid = 'mq.queue'::regclass)"
        ).fetchall()
    )


INBOX = "_deliver_inbox"
"""What runs as the owner when a row goes into the inbox."""


def set_path(conn: psycopg.Connection, path: str) -> None:
    conn.execute("select pg_catalog.set_config('search_path', %s, false)", (path,))


@pytest.mark.parametrize("path", PATHS)
def test_nothing_of_a_hostile_search_path_runs(
    mallory: psycopg.Connection, conn: psycopg.Connection, path: str
) -> None:
    called: set[str] = set()
    with attack.notices(mallory) as said:
        set_path(mallory, path)
        attack.live(mallory, "q", owner=conn, after=called.add)
    assert sprung(said) == {}
    assert {INBOX if name == "inbox" else name for name in called} == definers(conn).keys()


@pytest.mark.parametrize("path", PATHS)
def test_nothing_of_it_runs_as_the_owner_where_a_call_is_refused(
    mallory: psycopg.Connection, conn: psycopg.Connection, path: str
) -> None:
    conn.execute("select mq.create_queue('q')")
    with attack.notices(mallory) as said:
        set_path(mallory, path)
        for function in attack.functions(conn):
            for queue in ("q", "none", "", None):
                for other in ("x", "-1", "{}", None):
                    # Unknown literals, so that it is mq that looks at them; some are refused before.
                    given = [
                        f"{argument.name} => {literal(queue if argument.name == 'queue' else other)}"
                        for argument in function.arguments
                    ]
                    attack.outcome(mallory, f"select * from mq.{function.name}({', '.join(given)})")
        for row in ("null, '1'", "'none', '1'", "'q', null"):
            attack.outcome(
                mallory, f"insert into mq.inbox (queue, payload) values ({row}) returning 1"
            )
    assert sprung(said).keys() <= {MALLORY}


def literal(text: str | None) -> str:
    return "null" if text is None else f"'{text}'"


def test_what_was_made_under_attack_is_as_it_should_be(
    mallory: psycopg.Connection, conn: psycopg.Connection, connect: Connect
) -> None:
    set_path(mallory, PATHS[0])
    mallory.execute("select mq.create_queue('q')")
    for _ in range(2):
        race.rotate(mallory)
        race.maintain(mallory)
    bodies = "select p.proname, p.prosrc, p.proconfig from pg_proc as p where p.pronamespace = 'mq'::regnamespace order by 1"
    before = conn.execute(bodies).fetchall()
    conn.execute("select mq._regenerate()")
    assert conn.execute(bodies).fetchall() == before
    elsewhere = conn.execute(
        """
        select n.nspname, c.relname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
        where n.nspname ~ '^(evil|public|pg_temp|pg_toast_temp)' and c.relowner = current_user::regrole
        """
    ).fetchall()
    assert elsewhere == []
    # An unsuspecting user of the same queue, whose search_path has the schema in it.
    victim = connect(options="-c search_path=public,pg_catalog,evil")
    with attack.notices(victim) as said:
        for queue in ("q", "other"):
            victim.execute("select mq.drop_queue(name) from mq.queues() where name = %s", (queue,))
            attack.live(victim, queue, owner=conn)
    assert sprung(said) == {}


# Whose own lines use nothing but what is named with its schema.
OUT_OF_REACH = {
    *("cancel", "message_status", "report"),
    *("run_schedule", "schedules", "unschedule", "version"),
}
GIVEN = {
    "queue": "'t'",
    "payload": "'1'",
    "payloads": "'{1}'",
    "msg_id": "1",
    "receipt": "'x'",
    "progress": "'1'",
    "name": "'t'",
    "cron": "'@daily'",
    "expression": "'@daily'",
    "after": "'2026-01-01'",
    "timeout": "'0'",
}


def test_the_traps_work(
    mallory: psycopg.Connection, conn: psycopg.Connection, server: Server
) -> None:
    """With the pins taken out, the same calls do run hostile code as the owner: so the tests above can fail."""
    conn.execute("select mq.create_queue('t')")
    race.fill(conn, 3, "t")
    conn.execute("select mq.nack('t', (select receipt from mq.dequeue('t')), dead => true)")
    calls = {
        function.name: f"select * from mq.{function.name}("
        + ", ".join(
            f"{argument.name} => {GIVEN[argument.name]}"
            for argument in function.arguments
            if argument.name in GIVEN
            and (argument.name in ("queue", "timeout") or not argument.optional)
        )
        + ")"
        for function in attack.functions(conn)
    }
    calls[INBOX] = "insert into mq.inbox (queue, payload) values ('t', '1') returning 1"
    pinned = definers(conn)
    assert calls.keys() == pinned.keys()
    set_path(mallory, PATHS[0])
    owner = value(conn, "select current_user::text")
    out_of_reach = set()
    mallory.execute("set statement_timeout = '2s'")  # nor need they come to an end
    try:
        for name, call in calls.items():
            conn.execute(f"alter function {pinned[name]} reset search_path".encode())
            with attack.notices(mallory) as said, mallory.transaction(force_rollback=True):
                attack.outcome(mallory, call)
            if owner not in sprung(said):
                out_of_reach.add(name)
            conn.execute(pin(pinned[name]))
    finally:
        for signature in pinned.values():
            conn.execute(pin(signature))
        conn.execute("select mq.drop_queue('t')")
    assert out_of_reach == OUT_OF_REACH


def pin(signature: str) -> bytes:
    return f"alter function {signature} set search_path = pg_catalog, pg_temp".encode()


def test_code_that_comes_with_arguments_runs_as_the_caller(
    mallory: psycopg.Connection, conn: psycopg.Connection
) -> None:
    conn.execute("select mq.create_queue('q')")
    race.fill(conn, 3)
    for statement in (
        "select mq.enqueue(row('q')::evil.sly, to_jsonb(evil.sprung('argument') is null))",
        "select mq.enqueue('q'::evil.text, '1'::evil.jsonb)",
        "select mq.enqueue_batch('q', array['1', '2']::evil.jsonb[]::jsonb[])",
        "insert into evil.mine (id) select msg_id from mq.dequeue('q')",
        "insert into evil.mine (id, note) select msg_id, receipt from mq.dequeue('q'::evil.text, 2)",
        "insert into evil.mine (id) select mq.ack('q', row(note)::evil.sly) from evil.mine where note is not null",
        "insert into mq.inbox (queue, payload) select 'q'::evil.text, to_jsonb(evil.sprung('query') is null)",
    ):
        with attack.notices(mallory) as said:
            mallory.execute(statement.encode())
        assert sprung(said).keys() == {MALLORY}, statement
    with attack.notices(mallory) as said:
        with (
            mallory.cursor() as cursor,
            cursor.copy(
                "copy mq.inbox (queue, payload) from stdin where evil.sprung('condition') is null"
            ) as copy,
        ):
            copy.write_row(("q", "1"))
        mallory.execute("select mq.maintain()")
    assert sprung(said) == {MALLORY: {"condition"}}


@pytest.mark.parametrize("kind", HOSTILE_SETTINGS)
def test_settings_of_the_caller_change_nothing(
    connect: Connect, conn: psycopg.Connection, kind: str
) -> None:
    race.fresh(conn.info.dsn)
    options = re.sub("(^| )(?=[a-z_.]+=)", r"\1-c ", HOSTILE_SETTINGS[kind])
    session = connect(user=MALLORY, options=options)
    changed = "select count(*) from pg_settings where source = 'client' and lower(name) = any (string_to_array(%s, '='))"
    assert value(session, changed, re.sub("[ =]+", "=", HOSTILE_SETTINGS[kind].lower())) > 1
    for name in ("interval", "timestamptz"):
        session.adapters.register_loader(name, TextLoader)
    with attack.notices(session) as said:
        attack.live(session, "set", owner=conn)
    assert said == []


def test_a_malformed_receipt_is_that_with_any_strings(
    connect: Connect, conn: psycopg.Connection
) -> None:
    race.fresh(conn.info.dsn, "q")
    session = connect(
        user=MALLORY, options="-c standard_conforming_strings=off -c escape_string_warning=off"
    )
    with pytest.raises(psycopg.Error) as raised:
        session.execute("select mq.ack('q', '1x1x1x0x1x0x0x1x1000000000000000000')")
    assert raised.value.sqlstate == "MQ004"


def test_what_a_caller_puts_into_the_claim_counter_is_ignored(
    connect: Connect, conn: psycopg.Connection
) -> None:
    race.fresh(conn.info.dsn, "q")
    race.fill(conn, 3)
    other = connect(user=MALLORY)
    assert race.take(other) == [1]
    session = connect(user=MALLORY, autocommit=False)
    session.execute("set mq.claims = 'many'")
    session.execute("select pg_current_xact_id()")
    assert race.take(session) == [2]


def test_a_wait_ends_after_20_seconds_in_any_calendar(
    connect: Connect, conn: psycopg.Connection
) -> None:
    """'12 months -360 days' is 0 when compared, and 5 days when added to a time."""
    race.fresh(conn.info.dsn, "q")
    session = connect(user=MALLORY, options="-c statement_timeout=15s")
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        session.execute("select mq.dequeue('q', wait => '12 months -360 days')")


def maintenance(owner: psycopg.Connection) -> Iterator[tuple[str, Callable[[], object]]]:
    """What mqctl does in a database, as its owner."""
    from mqctl import check, migrate

    yield "install", lambda: migrate.install(owner)
    yield "upgrade", lambda: attack.upgrade(owner)
    yield "check", lambda: check.check(owner)
    yield "messages_left", lambda: migrate.messages_left(owner)
    yield "uninstall", lambda: migrate.uninstall(owner, force=True)


@pytest.mark.parametrize(
    "name",
    [
        "install",
        "upgrade",
        "check",
        "messages_left",
        "uninstall",
    ],
)
def test_mqctl_steps_on_nothing_in_the_owners_search_path(
    server: Server, mq_template: str, connect: Connect, name: str
) -> None:
    """Where everybody may create objects in "public", as up to PostgreSQL 14, and the owner of mq has it in his path."""
    with (
        temporary_database(server, "security_mqctl", mq_template) as dsn,
        psycopg.connect(dsn, autocommit=True) as owner,
    ):
        owner.execute(f"grant create on database security_mqctl to {MALLORY}")
        owner.execute("select mq.create_queue('q')")
        with psycopg.connect(dsn, user=MALLORY, autocommit=True) as mallory:
            mallory.execute(TRAPS.encode())
        owner.execute("set search_path = public, evil")
        with attack.notices(owner) as said:
            dict(maintenance(owner))[name]()
        assert sprung(said) == {}
