"""What the security tests share: users of each role, the public functions as data, and a life in which all are called."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from support import race
from support.race import value

# Who may call what: the contract, word by word. An administrator may do all of it.
PRODUCER = (
    "enqueue enqueue_batch cancel queues queue_stats message_status wait_for cron_next schedules"
    " version"
)
CONSUMER = (
    "dequeue ack nack extend report sweep_stale maintain next_due listen unlisten dead_letters peek"
    " history queues queue_stats message_status wait_for cron_next schedules version"
)
ADMIN = (
    "create_queue alter_queue drop_queue purge_queue pause_queue resume_queue rotate_segment"
    " redrive rewind purge_dead_letters schedule unschedule run_schedule"
)
MAY_CALL: dict[str, frozenset[str]] = {
    "mq_producer": frozenset(PRODUCER.split()),
    "mq_consumer": frozenset(CONSUMER.split()),
    "mq_admin": frozenset(f"{PRODUCER} {CONSUMER} {ADMIN}".split()),
}

# Login roles, one a role of mq, and one that has nothing but the right to connect.
USERS: dict[str, str | None] = {
    "sec_producer": "mq_producer",
    "sec_consumer": "mq_consumer",
    "sec_admin": "mq_admin",
    "sec_stranger": None,
}
MALLORY = "sec_admin"
"""May call everything, has a schema of his own, and means harm."""


def make_users(owner: psycopg.Connection) -> None:
    """The login roles, once a server."""
    for user, role in USERS.items():
        if owner.execute("select from pg_roles where rolname = %s", (user,)).rowcount == 0:
            owner.execute(sql.SQL("create role {} login").format(sql.Identifier(user)))
        if role is not None:
            owner.execute(sql.SQL("grant {} to {}").format(*map(sql.Identifier, (role, user))))


# -- the public functions as data -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Argument:
    name: str
    type: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Function:
    """A public function; `raises` are the SQLSTATEs that its comment names."""

    name: str
    arguments: tuple[Argument, ...]
    raises: frozenset[str]

    def call(self, given: Sequence[str]) -> str:
        """A query with a text parameter, cast, for each of the given arguments."""
        types = {argument.name: argument.type for argument in self.arguments}
        named = ", ".join(f"{name} => %({name})s::text::{types[name]}" for name in given)
        return f"select * from mq.{self.name}({named})"


def functions(conn: psycopg.Connection) -> list[Function]:
    """All public functions, by name."""
    rows = conn.execute(
        """
        select p.proname, p.proargnames, p.pronargs, p.pronargdefaults,
               array(select format_type(t, null) from unnest(p.proargtypes) with ordinality as u (t, no) order by no),
               coalesce(obj_description(p.oid, 'pg_proc'), '')
        from pg_proc as p where p.pronamespace = 'mq'::regnamespace and p.proname !~ '^_' order by p.proname
        """
    ).fetchall()
    return [
        Function(
            name,
            tuple(
                Argument(argument, type_, no >= count - defaults)
                for no, (argument, type_) in enumerate(
                    zip((names or [])[:count], types, strict=True)
                )
            ),
            documented(comment),
        )
        for name, names, count, defaults, types, comment in rows
    ]


def documented(comment: str) -> frozenset[str]:
    """The SQLSTATEs in the line "Raises:" of a comment."""
    line = re.search(r"^Raises:.*", comment, re.MULTILINE)
    return frozenset(re.findall(r"\b(?=[A-Z]*\d)[0-9A-Z]{5}\b", line.group() if line else ""))


# -- what the server says ---------------------------------------------------------------------------


def diagnosis(error: psycopg.Error) -> str:
    """All that the server says about an error."""
    d = error.diag
    fields = (
        *(d.message_primary, d.message_detail, d.message_hint, d.context, d.internal_query),
        *(d.schema_name, d.table_name, d.column_name, d.datatype_name, d.constraint_name),
    )
    return "\n".join(filter(None, fields))


def outcome(
    conn: psycopg.Connection, query: str, parameters: Any = None
) -> list[tuple[Any, ...]] | psycopg.Error:
    """The rows of a query, or its error; in a transaction the error undoes only the query."""
    try:
        with conn.transaction():
            return conn.execute(query.encode(), parameters).fetchall()
    except psycopg.Error as error:
        return error


@contextlib.contextmanager
def notices(conn: psycopg.Connection) -> Iterator[list[str]]:
    """What the server tells a connection besides results, as it comes in."""
    said: list[str] = []

    def hear(diag: psycopg.errors.Diagnostic) -> None:
        said.append("\n".join(filter(None, (diag.message_primary, diag.message_detail))))

    conn.add_notice_handler(hear)
    try:
        yield said
    finally:
        conn.remove_notice_handler(hear)


def array(elements: Sequence[str]) -> str:
    """An array literal, of type unknown."""
    return f"{{{','.join(map(json.dumps, elements))}}}"


# -- a life of a queue ------------------------------------------------------------------------------

Look = Callable[[str], Any]


def live(
    conn: psycopg.Connection,
    queue: str,
    *,
    payload: str = '"secret"',
    headers: str = "{}",
    owner: psycopg.Connection,
    after: Look = lambda _: None,
) -> None:
    """Calls every public function with valid arguments, through every state that a message can be in.

    `owner` makes leases run out; `after` is told each function's name once it was called. The queries name nothing but
    mq's functions, since the caller's search_path may be anything.
    """

    def call(function: str, arguments: str = "", *parameters: Any) -> list[Any]:
        rows = conn.execute(
            f"select * from mq.{function}({arguments})".encode(), parameters
        ).fetchall()
        after(function)
        return rows

    def enqueue(**more: str) -> int:
        named = "".join(f", {name} => '{given}'" for name, given in more.items())
        got = call("enqueue", f"%s, %s, %s{named}", queue, payload, headers)
        return int(got[0][0])

    def dequeue(n: int = 1, more: str = "", *parameters: Any) -> list[Any]:
        rows = call("dequeue", f"%s, %s{more}", queue, n, *parameters)
        assert len(rows) == n, f"{len(rows)} of {n} messages"
        return rows

    call("version")
    call("create_queue", "%s, max_attempts => 2, retry_backoff => '0'", queue)
    call("create_queue", "%s, if_not_exists => true", queue)
    call("alter_queue", "%s, notify => 'always'", queue)
    call("listen", "%s", queue)
    for mode in ("never", "auto", "always"):
        call("alter_queue", "%s, notify => %s", queue, mode)
        enqueue()
    ids = call("enqueue_batch", "%s, %s, %s", queue, array([payload] * 7), array([headers] * 7))
    assert [row[0] for row in ids] == [*range(4, 11)]
    late = enqueue(delay="1 hour")
    enqueue(deliver_at="2100-01-01 00:00:00+00")
    call("unlisten", "%s", queue)
    assert call("next_due", "%s", queue)[0][0] is not None
    assert len(call("peek", "%s, 3", queue)) == 3

    rows = dequeue(2)
    assert call("ack", "%s, %s, %s", queue, rows[0][1], [rows[0][0]])[0][0] == 1
    assert call("ack", "%s, %s, strict => true", queue, rows[0][1])[0][0] == 1
    rows = dequeue(1)
    rows = dequeue(1, ", ack => %s", rows[0][1])
    assert call("nack", "%s, %s, reason => 'again'", queue, rows[0][1])[0][0] == 1
    rows = dequeue(2)
    assert call("extend", "%s, %s, '2 minutes'", queue, rows[0][1])[0][0] is not None
    assert call("nack", "%s, %s, dead => true", queue, rows[0][1])[0][0] == 2
    assert len(call("dead_letters", "%s", queue)) == 2
    dead = call("dead_letters", "%s, 1", queue)[0][0]
    assert call("message_status", "%s, %s", queue, dead)[0][0] == "dead"
    assert call("message_status", "%s, %s", queue, late)[0][0] == "deferred"
    assert call("redrive", "%s, %s", queue, [dead])[0][0] == 1
    assert call("purge_dead_letters", "%s", queue)[0][0] == 1

    # What runs out is swept, by sweep_stale and by dequeue; the second time it dies.
    dequeue(1)
    race.expire(owner, queue)
    assert call("sweep_stale", "%s", queue)[0][0] == 1
    held = dequeue(2)
    for _ in range(2):
        call("rotate_segment", "%s", queue)
        for _ in range(3):
            call("maintain")
        enqueue()
    assert call("ack", "%s, %s", queue, held[0][1])[0][0] == 2
    call("pause_queue", "%s", queue)
    assert call("dequeue", "%s", queue) == []
    call("resume_queue", "%s", queue)
    assert call("dequeue", "%s, 10, wait => '1 millisecond', subscription => 'default'", queue)
    for _ in range(3):
        call("maintain", "%s", queue)
    race.expire(owner, queue)
    for _ in range(3):
        call("dequeue", "%s, 100, '1 minute'", queue)
        race.expire(owner, queue)
    call("sweep_stale")
    assert call("dead_letters", "%s", queue)
    with (
        conn.cursor() as cursor,
        cursor.copy("copy mq.inbox (queue, payload, headers) from stdin") as copy,
    ):
        for _ in range(3):
            copy.write_row((queue, payload, headers))
    after("inbox")
    conn.execute(
        "insert into mq.inbox (queue, payload, deliver_at) values (%s, %s, '2100-01-01 00:00:00+00')",
        (queue, payload),
    )
    assert [row[0] for row in call("queue_stats", "%s", queue)] == [queue]
    assert queue in [row[0] for row in call("queues")]
    call("alter_queue", "%s, retention => '1 hour'", queue)
    asked = enqueue(priority="9", ttl="1 hour", dedup_key="k")
    (row,) = dequeue(1)
    assert row[0] == asked
    assert call("report", "%s, %s, %s, '{}'", queue, row[1], asked)[0][0]
    assert call("ack", "%s, %s, result => %s", queue, row[1], payload)[0][0] == 1
    call("wait_for", "%s, %s, '0'", queue, asked)
    assert asked in [row[0] for row in call("history", "%s", queue)]
    assert call("rewind", "%s, to_msg_id => %s", queue, asked)[0][0] == 1
    assert call("cancel", "%s, %s", queue, asked)[0][0]
    assert call("cron_next", "'@daily', '2026-01-01 00:00+00'")[0][0] is not None
    call("schedule", "%s, '@yearly', %s, %s", queue, queue, payload)
    assert queue in [row[0] for row in call("schedules")]
    call("run_schedule", "%s", queue)
    assert call("unschedule", "%s", queue)[0][0]
    call("purge_queue", "%s", queue)
    assert call("peek", "%s", queue) == []
    call("drop_queue", "%s", queue)


def upgrade(owner: psycopg.Connection) -> None:
    """Applies everything again, as an upgrade does."""
    from mqctl import migrate

    owner.execute("delete from mq.installed_object where kind = 'source'")
    assert migrate.install(owner).changed


def session_locks(conn: psycopg.Connection) -> int:
    """Advisory locks that an idle session has."""
    return int(
        value(
            conn,
            "select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'",
        )
    )
