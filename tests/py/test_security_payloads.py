"""Payloads and headers are for consumers: not in errors, notices, notifications or the server's log."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from support import attack, race
from support.race import Connect, value
from support.server import Server
from support.server import database as temporary_database

SECRET = "s3cr3t"
PAYLOAD = f'{{"{SECRET} key": ["{SECRET} element", "line\\n{SECRET}"]}}'
HEADERS = f'{{"{SECRET}": "{SECRET} header"}}'
VALUES = {
    "p": PAYLOAD,
    "h": HEADERS,
    "two": attack.array([PAYLOAD] * 2),
    "one": attack.array([HEADERS]),
}

# Calls that must fail, whoever is to blame. The parameters are bound, as they are by every client that cares: what is
# written into the text of a statement, PostgreSQL itself logs with it.
REFUSED = (
    "mq.enqueue('none', %(p)s, %(h)s)",
    "mq.enqueue(null, %(p)s, %(h)s)",
    "mq.enqueue('q', null, %(h)s)",
    "mq.enqueue('q', %(p)s, %(h)s, delay => '-1 second')",
    "mq.enqueue('q', %(p)s, %(h)s, delay => '1000 years')",
    "mq.enqueue('q', %(p)s, %(h)s, delay => '1 second', deliver_at => '2030-01-01')",
    "mq.enqueue('q', %(p)s, %(h)s, deliver_at => 'infinity')",
    "mq.enqueue('q', %(p)s, %(h)s, priority => 10)",
    "mq.enqueue('q', %(p)s, %(h)s, ordering_key => '')",
    "mq.enqueue('q', %(p)s, %(h)s, dedup_key => '')",
    "mq.enqueue('q', %(p)s, dedup_key => 'k') as a, mq.enqueue('q', %(p)s, dedup_key => 'k', on_duplicate => 'reject')",
    "mq.enqueue('q', %(p)s, %(h)s, ttl => '0')",
    "mq.enqueue_batch('none', %(two)s, %(two)s)",
    "mq.enqueue_batch('q', %(two)s, %(one)s)",
    "mq.enqueue_batch('q', array[%(p)s, null, %(p)s]::jsonb[])",
    "mq.enqueue_batch('q', array[array[%(p)s], array[null]]::jsonb[])",
    "mq.enqueue_batch('q', %(two)s, deliver_at => '-infinity')",
    "mq.enqueue_batch('q', %(two)s, ttl => '1 minute', delay => '1 hour')",
    "mq.ack('q', 'none', result => %(p)s)",
    "mq.report('q', 'none', 1, %(p)s)",
    "mq.schedule('s', 'never', 'q', %(p)s, headers => %(h)s)",
    "mq.ack('q', (select receipt from mq.dequeue('q')), array[99], strict => true)",
    "mq.nack('q', 'none', reason => 'x')",
    "mq.nack('q', (select receipt from mq.dequeue('q')), delay => '-1 day')",
    "mq.dequeue('q', 100, ack => 'none')",
    "mq.redrive('q', to_queue => 'none')",
    "mq.redrive('q', max_messages => -1)",
    "mq.dead_letters('q', -1)",
    "mq.peek('q', -1)",
    "mq.cancel('q', null)",
)

NO_PRIVILEGE = ("mq.log_{id}_1", "mq.dead_letter", "mq.inbox", "mq.survivor", "mq._messages(null)")


@pytest.fixture(scope="module")
def database(server: Server, mq_template: str) -> Iterator[str]:
    with temporary_database(server, "security_payloads", mq_template) as dsn:
        with psycopg.connect(dsn, autocommit=True) as owner:
            attack.make_users(owner)
        yield dsn


@pytest.fixture
def log(server: Server) -> Callable[[], str]:
    """What the server has logged since the test began."""
    mark = server.log.stat().st_size
    return lambda: server.log_tail(100_000, since=mark)


@pytest.fixture
def filled(conn: psycopg.Connection, log: object) -> int:
    """A queue with secrets in every state; its id."""
    race.fresh(conn.info.dsn, "q")
    for _ in range(5):
        conn.execute("select mq.enqueue('q', %s, %s)", (PAYLOAD, HEADERS))
    conn.execute("select mq.enqueue('q', %s, %s, delay => '1 hour')", (PAYLOAD, HEADERS))
    conn.execute("select mq.nack('q', (select receipt from mq.dequeue('q')), dead => true)")
    conn.execute("select mq.dequeue('q')")
    return int(value(conn, "select queue_id from mq.queue"))


def refused(conn: psycopg.Connection, statement: str) -> str:
    """What the server says about a statement that it must refuse."""
    with attack.notices(conn) as said, pytest.raises(psycopg.Error) as raised:
        conn.execute(statement.encode(), VALUES if "%(" in statement else None)
    # Not the call itself: then nobody has looked at what is in it.
    assert raised.value.sqlstate not in ("42601", "42883", "42P01", "42703"), raised.value
    return "\n".join((attack.diagnosis(raised.value), *said))


def test_a_whole_life_tells_nothing(
    connect: Connect, conn: psycopg.Connection, log: Callable[[], str]
) -> None:
    race.fresh(conn.info.dsn)
    listener = connect()
    listener.execute("listen mq_life")
    session = connect(user="sec_admin")
    with attack.notices(session) as said:
        attack.live(session, "life", payload=PAYLOAD, headers=HEADERS, owner=conn)
    listener.execute("select 1")  # before it answers, the server tells what there is to tell
    heard = [*listener.notifies(timeout=0)]
    assert heard
    assert [notification.payload for notification in heard if notification.payload] == []
    assert said == []
    assert SECRET not in log()


def test_every_function_that_is_given_json_is_refused_some(conn: psycopg.Connection) -> None:
    with_secrets = {call[3 : call.index("(")] for call in REFUSED if "%(" in call}
    takes_json = {
        function.name
        for function in attack.functions(conn)
        if any("json" in argument.type for argument in function.arguments)
    }
    assert with_secrets == takes_json


@pytest.mark.parametrize("call", REFUSED)
def test_errors_tell_nothing(
    connect: Connect, filled: int, log: Callable[[], str], call: str
) -> None:
    assert SECRET not in refused(connect(user="sec_admin"), f"select * from {call}")
    assert "ERROR" in log()
    assert SECRET not in log()


def test_transactions_that_cannot_tell_nothing(
    connect: Connect, filled: int, log: Callable[[], str]
) -> None:
    session = connect(user="sec_admin")
    for begin in ("begin read only", "begin isolation level repeatable read"):
        for call in (
            "mq.enqueue('q', %(p)s, %(h)s)",
            "mq.enqueue_batch('q', %(two)s)",
            "mq.dequeue('q', 10)",
            "mq.maintain()",
        ):
            session.execute(begin.encode())
            parameters = VALUES if "%(" in call else None
            got = attack.outcome(session, f"select * from {call}", parameters)
            assert not isinstance(got, psycopg.Error) or SECRET not in attack.diagnosis(got)
            session.execute("rollback")
    for user in attack.USERS:
        for relation in NO_PRIVILEGE:
            assert SECRET not in refused(
                connect(user=user), f"select from {relation.format(id=filled)}"
            )
    assert SECRET not in log()


def test_what_is_interrupted_tells_nothing(
    connect: Connect, conn: psycopg.Connection, filled: int, log: Callable[[], str]
) -> None:
    """Wherever a message may be on its way: into the open log, past a fence, out of the inbox, to the dead letters."""
    race.rotate(conn)
    for _ in range(2):
        race.maintain(conn)
    conn.execute("select mq._fence(%s)", (f"log_{filled}_1",))
    conn.execute("select mq._fence(%s)", (f"deferred_{filled}_1",))
    late = (  # it is led to where messages go now
        f"mq._append_batch_{filled}_1(array[%(p)s::jsonb], array[%(h)s::jsonb])"
    )
    conn.execute(f"select {late}".encode(), VALUES)
    with conn.transaction():
        for table in (f"log_{filled}_2", f"deferred_{filled}_0", "dead_letter", "survivor"):
            conn.execute(f"lock table mq.{table} in access exclusive mode".encode())
        owner = connect(options="-c lock_timeout=5ms -c statement_timeout=15s")
        said = [
            refused(owner, f"select * from {call}")
            for call in (
                late,
                "mq.enqueue('q', %(p)s, %(h)s)",
                "mq.enqueue('q', %(p)s, %(h)s, delay => '1 hour')",
                "mq.enqueue_batch('q', %(two)s, %(two)s)",
                "mq.enqueue_batch('q', %(two)s, %(two)s, delay => '1 hour')",
                "mq.redrive('q')",
                "mq.dead_letters('q')",
                "mq.peek('q')",
            )
        ]
        said.append(
            refused(
                owner,
                f"insert into mq.deferred_{filled}_1 (msg_id, due_at, payload) values (1, now(), %(p)s)",
            )
        )
        said.append(
            refused(
                owner, "insert into mq.inbox (queue, payload, headers) values ('q', %(p)s, %(h)s)"
            )
        )
        said.append(copied(owner, ("q", PAYLOAD, HEADERS)))
    assert any("_redirect_message" in text for text in said)
    assert any("_redirect_deferred" in text for text in said)
    assert [text for text in said if SECRET in text] == []
    assert SECRET not in log()


def copied(conn: psycopg.Connection, row: tuple[str | None, ...]) -> str:
    """What the server says about a row that COPY must refuse."""
    columns = ("queue", "payload", "headers", "deliver_at")[: len(row)]
    query = f"copy mq.inbox ({', '.join(columns)}) from stdin".encode()
    with (
        pytest.raises(psycopg.Error) as raised,
        conn.cursor() as cursor,
        cursor.copy(query) as copy,
    ):
        copy.write_row(row)
    return attack.diagnosis(raised.value)


def test_a_refused_copy_tells_nothing(
    connect: Connect, filled: int, log: Callable[[], str]
) -> None:
    session = connect(user="sec_producer")
    assert 'queue "none" does not exist' in copied(session, ("none", PAYLOAD, HEADERS))
    assert "deliver_at" in copied(session, ("q", PAYLOAD, HEADERS, "infinity"))
    assert "deliver_at" in copied(session, ("q", PAYLOAD, HEADERS, "soon"))
    for row in (
        ("none", PAYLOAD),
        ("q", PAYLOAD, HEADERS, "-infinity"),
        ("q", PAYLOAD, HEADERS, "tomorrow-ish"),
    ):
        assert SECRET not in copied(session, row)
    assert SECRET not in log()


@pytest.mark.parametrize(
    "row", [(None, PAYLOAD, HEADERS), ("q", None, HEADERS)], ids=["no queue", "no payload"]
)
@pytest.mark.parametrize("how", ["insert", "copy"])
def test_a_null_in_the_inbox_tells_nothing(
    connect: Connect, filled: int, row: tuple[str | None, ...], how: str
) -> None:
    session = connect(user="sec_producer")
    if how == "copy":
        said = copied(session, row)
    else:
        with pytest.raises(psycopg.Error) as raised:
            session.execute(
                "insert into mq.inbox (queue, payload, headers) values (%s, %s, %s)", row
            )
        said = attack.diagnosis(raised.value)
    assert SECRET not in said


def test_statistics_tell_nothing(connect: Connect, conn: psycopg.Connection, filled: int) -> None:
    """ANALYZE keeps samples of every column, payloads too."""
    conn.execute("analyze")
    assert value(
        conn, "select count(*) from pg_stats where schemaname = 'mq' and attname = 'payload'"
    )
    for user in attack.USERS:
        session = connect(user=user)
        assert value(session, "select count(*) from pg_stats where schemaname = 'mq'") == 0
        assert (
            value(session, "select count(last_value) from pg_sequences where schemaname = 'mq'")
            == 0
        )


@pytest.mark.slow
def test_what_is_too_long_tells_nothing(
    connect: Connect, filled: int, log: Callable[[], str]
) -> None:
    session = connect(user="sec_admin")
    long = f"repeat('{SECRET[:3]}' || '{SECRET[3:]}', 50000000)"
    for call in (
        f"mq.enqueue('q', to_jsonb({long}))",
        f"mq.enqueue('q', jsonb_build_object('x', {long}))",
        f"mq.nack('q', (select receipt from mq.dequeue('q')), reason => {long})",
    ):
        said = refused(session, f"select * from {call}")
        assert "string too long to represent as jsonb string" in said
        assert SECRET not in said
    assert SECRET not in log()
