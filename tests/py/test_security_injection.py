"""Text arguments that try to be SQL, formats, patterns, placeholders: each is a value, or refused with a clear error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import psycopg
import pytest

from support import attack, race
from support.attack import MALLORY, Function
from support.race import value
from support.server import Server
from support.server import database as temporary_database

Connect = Callable[..., psycopg.Connection]

# Without NUL, which no text has.
NASTY = (
    *("", " ", "q ", " q", "q\n", "\tq", "q --", "q /*"),
    *r"""' " \ \' '' "" ` ; -- /* */ ( ) {} [] null NULL default q' q" q\ q; Q q\x00 q\u0000 q\000""".split(),  # noqa: SIM905
    "q'; drop table mq.queue; --",
    'q"; drop schema mq cascade; --',
    "q') or true --",
    "'||(select current_user)||'",
    "$$ $x$ $y$ $f$ $body$",
    "$1 $2 $3",
    "%s %I %L %% %1$s %n %",
    "{t} {q} {k} {d} {seed} {class} {branches}",
    ":name :'name' ${name} #{name} {{name}}",
    "^.*$",
    "(?i)Q",
    "***=q",
    "%",
    "mq.queue",
    "pg_catalog.pg_class",
    "public",
    "lease'",
    "auto'",
    "default'",
    "0",
    "-1",
    "1e9",
    "NaN",
    "infinity",
    "\u00e9 \u0301 \u202e \u200b \ufeff \U0001f980 \u0130\u0131 \ud7ff\uffff",
    "\uff51",
    "\u0661.\u0661",
    "\r\n\b\x01\x1b[31m\x7f\u0085\u2028",
    "x" * 49,
    "x" * 10_000,
)

LIVE = "(select receipt from security.lease)"
"""Stands for the receipt of a lease that holds."""

XID = 7
"""Which part of a receipt is a transaction id."""

# Arguments with which each function gets as far as it can, so that a nasty one is looked at and not the others.
VALID: dict[str, dict[str, str]] = {
    "ack": {"receipt": LIVE, "msg_ids": "{1}"},
    "alter_queue": {"mode": "lease", "notify": "auto", "retry_policy": "fixed"},
    "cancel": {"msg_id": "1"},
    "create_queue": {
        "mode": "lease",
        "notify": "auto",
        "queue": "new",
        "retry_policy": "fixed",
        "overflow": "reject",
    },
    "cron_next": {"expression": "@daily", "after": "2026-01-01", "timezone": "UTC"},
    "dequeue": {"n": "2", "ack": LIVE, "subscription": "default"},
    "enqueue": {"payload": "{}", "headers": "{}", "dedup_key": "k", "on_duplicate": "keep"},
    "enqueue_batch": {
        "payloads": "{1,2}",
        "headers": "{1,2}",
        "dedup_keys": "{k,l}",
        "on_duplicate": "keep",
    },
    "extend": {"receipt": LIVE},
    "message_status": {"msg_id": "1"},
    "nack": {"receipt": LIVE, "reason": "because", "dead": "true"},
    "redrive": {"to_queue": "q.2"},
    "report": {"receipt": LIVE, "msg_id": "2", "progress": "{}"},
    "rewind": {"to_msg_id": "1"},
    "run_schedule": {"name": "s"},
    "schedule": {
        "name": "s",
        "cron": "@yearly",
        "payload": "{}",
        "timezone": "UTC",
        "catch_up": "one",
    },
    "unschedule": {"name": "s"},
    "wait_for": {"msg_id": "4", "timeout": "0"},
}

# Undone or out of reach where somebody's text became part of a statement.
SHAPE = """
    select (select count(*) from pg_class), (select count(*) from pg_proc), (select count(*) from pg_roles),
           (select array_agg(q.name order by q.name) from mq.queue as q), (select count(*) from mq.dead_letter)
"""


@pytest.fixture(scope="module")
def database(server: Server, mq_template: str) -> Iterator[str]:
    with temporary_database(server, "security_injection", mq_template) as dsn:
        with psycopg.connect(dsn, autocommit=True) as owner:
            attack.make_users(owner)
            for queue in ("q", "q.2"):
                owner.execute("select mq.create_queue(%s, retention => '1 hour')", (queue,))
            race.fill(owner, 6)
            owner.execute(
                "select mq.nack('q', (select receipt from mq.dequeue('q')), dead => true)"
            )
            owner.execute("select mq.schedule('s', '@yearly', 'q', '{}')")
            owner.execute("create schema security")
            owner.execute(
                "create table security.lease as select receipt from mq.dequeue('q', 2) limit 1"
            )
            owner.execute(f"grant usage on schema security to {MALLORY}")
            owner.execute(f"grant select on security.lease to {MALLORY}")
        yield dsn


@pytest.fixture
def mallory(connect: Connect) -> psycopg.Connection:
    return connect(user=MALLORY, options="-c statement_timeout=10s")


WRONG_NUMBERS = ("", "-1", "+1", " 1", "1\n", "0x1", "1e1", "\u0661", "a", "'", "%s")


def receipts(live: str) -> Iterator[str]:
    """A receipt with each of its parts replaced."""
    parts = live.split(".")
    for no, part in enumerate(parts):
        changed = (part.upper(), part + "0", "0" + part, part[:-1])
        big = ("9" * length for length in (9, 18, 19, 400))
        for other in (*WRONG_NUMBERS, *changed, *big):
            if not (no == XID and other == "0" + part):
                yield ".".join((*parts[:no], other, *parts[no + 1 :]))
    yield from (
        live + ".",
        "." + live,
        live + "\n",
        live * 2,
        live.replace(".", "-"),
        live.replace("-", "."),
    )


def attempt(
    conn: psycopg.Connection,
    function: Function,
    given: Mapping[str, str | None],
    collation: str = "",
) -> psycopg.Error | None:
    """Calls it and undoes that; the error, if there was one."""
    query = function.call([*given])
    for name, text in given.items():
        if text == LIVE:
            query = query.replace(f"%({name})s", LIVE)
    if collation:
        query = re.sub(r"::text::text(?!\[)", f"::text collate {collation}", query)
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(query.encode(), given)
    except psycopg.Error as error:
        return error
    return None


def arguments(function: Function) -> dict[str, str]:
    valid = {"queue": "q"} | VALID.get(function.name, {})
    return {a.name: valid[a.name] for a in function.arguments if a.name in valid}


def texts(conn: psycopg.Connection) -> Iterator[tuple[Function, str]]:
    """Every text argument of every function."""
    for function in attack.functions(conn):
        for argument in function.arguments:
            if argument.type == "text":
                yield function, argument.name


def test_what_is_valid_works(mallory: psycopg.Connection) -> None:
    """Or what follows would be about other arguments than it seems."""
    for function in attack.functions(mallory):
        error = attempt(mallory, function, arguments(function))
        assert error is None or error.sqlstate == "0A000", function.name


def test_no_text_becomes_sql(mallory: psycopg.Connection, conn: psycopg.Connection) -> None:
    live = value(mallory, LIVE[1:-1])
    before = conn.execute(SHAPE).fetchone()
    surprises = []
    for function, name in texts(mallory):
        for text in (*NASTY, *(receipts(live) if name in ("receipt", "ack") else ())):
            error = attempt(mallory, function, arguments(function) | {name: text})
            if error is not None and error.sqlstate not in function.raises:
                surprises.append(
                    f"{function.name}({name} => {text[:60]!r}): {error.sqlstate} {error}"
                )
    assert surprises == []
    assert conn.execute(SHAPE).fetchone() == before


def test_rows_of_the_inbox_are_values(mallory: psycopg.Connection) -> None:
    insert = "insert into mq.inbox (queue, payload) values (%s, to_jsonb(%s::text))"
    for text in NASTY:
        with mallory.transaction(force_rollback=True):
            with pytest.raises(psycopg.Error) as raised, mallory.transaction():
                mallory.execute(insert, (text, text))
            assert raised.value.sqlstate == "MQ001"
            mallory.execute(insert, ("q.2", text))
            last = "select payload #>> '{}' from mq.peek('q.2') order by msg_id desc limit 1"
            assert value(mallory, last) == text


def test_what_is_refused_is_quoted_as_it_came(mallory: psycopg.Connection) -> None:
    for text in NASTY[:-1]:
        with pytest.raises(psycopg.Error) as raised:
            mallory.execute("select mq.enqueue(%s, '1')", (text,))
        assert raised.value.diag.message_primary == f'queue "{text}" does not exist'


def test_texts_come_back_as_they_were(mallory: psycopg.Connection) -> None:
    for text in NASTY:
        with mallory.transaction(force_rollback=True):
            mallory.execute(
                f"select mq.nack('q', {LIVE}, array[2], reason => %s, dead => true)".encode(),
                (text,),
            )
            reason = "select reason, history -> -1 ->> 'reason' from mq.dead_letters('q') where msg_id = 2"
            assert mallory.execute(reason).fetchone() == (text, text)


@pytest.mark.parametrize("name", ["--", "..", "0", "mq.queue", "Q-" + "x" * 46])
def test_every_name_that_is_allowed_works(
    mallory: psycopg.Connection, conn: psycopg.Connection, connect: Connect, name: str
) -> None:
    listener = connect()
    listener.execute(f'listen "mq_{name}"'.encode())
    attack.live(mallory, name, owner=conn)
    listener.execute("select 1")  # before it answers, the server tells what there is to tell
    heard = {(n.channel, n.payload) for n in listener.notifies(timeout=0)}
    assert heard == {(f"mq_{name}", "")}


def test_what_is_too_long_is_cut_in_messages(mallory: psycopg.Connection) -> None:
    long = []
    for function, name in texts(mallory):
        error = attempt(mallory, function, arguments(function) | {name: "x" * 100_000})
        if error is not None and len(attack.diagnosis(error)) > 3000:
            long.append(f"{function.name}, {name}: {error.sqlstate}")
    assert long == []


@pytest.mark.parametrize(
    "collation",
    [
        '"C"',
        pytest.param(
            "security.case_insensitive",
            marks=pytest.mark.xfail(
                reason="names, modes and receipts are compared in the collation of the argument",
                strict=True,
            ),
        ),
    ],
)
def test_a_collation_that_comes_with_an_argument_changes_nothing(
    mallory: psycopg.Connection, conn: psycopg.Connection, collation: str
) -> None:
    if "." in collation:
        try:
            conn.execute(
                f"create collation {collation} (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("a server without ICU")
    upper = {"queue": "Q", "mode": "LEASE", "notify": "AUTO", "subscription": "DEFAULT"}
    changed = []
    for function, name in texts(mallory):
        for text in (arguments(function).get(name), upper.get(name)):
            if text is not None and text != LIVE:
                given = arguments(function) | {name: text}
                plain, other = (attempt(mallory, function, given, c) for c in ("", collation))
                states = [error and error.sqlstate for error in (plain, other)]
                if states[0] != states[1]:
                    changed.append(f"{function.name}, {name} => {text!r}: {states}")
    assert changed == []


def test_a_receipt_with_a_zero_before_the_xid_is_malformed(mallory: psycopg.Connection) -> None:
    parts = value(mallory, LIVE[1:-1]).split(".")
    parts[XID] = "08"
    with pytest.raises(psycopg.Error) as raised:
        mallory.execute("select mq.ack('q', %s)", (".".join(parts),))
    assert raised.value.sqlstate == "MQ004"


def test_what_a_null_raises_is_in_the_comment(mallory: psycopg.Connection) -> None:
    missing = []
    for function in attack.functions(mallory):
        for argument in function.arguments:
            given: dict[str, str | None] = {**arguments(function), argument.name: None}
            error = attempt(mallory, function, given)
            if error is not None and error.sqlstate not in function.raises:
                missing.append(f"{function.name}, {argument.name}: {error.sqlstate}")
    assert missing == []


def test_an_array_of_arrays_is_a_bad_argument_or_a_list(mallory: psycopg.Connection) -> None:
    """0A000 is documented for options of a later version, and a program may take it for that."""
    for function in attack.functions(mallory):
        for argument in function.arguments:
            if argument.type.endswith("[]"):
                error = attempt(
                    mallory, function, arguments(function) | {argument.name: "{{1,2},{3,4}}"}
                )
                assert error is None or error.sqlstate == "22023", f"{function.name}: {error}"
