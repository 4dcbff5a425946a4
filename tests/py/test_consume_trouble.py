"""Consumers in trouble: payloads that nobody can read, servers that say nothing, connections that cannot be had."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import mq
from mq import calls, consumer
from mq.lease import ACK, Lease
from mq.line import with_patience
from support import wait
from support.server import Server
from support.server import database as temporary_database

NUMBERS = itertools.count(1)
SOON = timedelta(milliseconds=20)
MINUTE = timedelta(minutes=1)
SHORT = timedelta(milliseconds=600)
# What PostgreSQL takes and Python's json does not.
UNREADABLE = {
    "digits": "repeat('9', 5000)::jsonb",
    "nested": "(repeat('[', 3000) || repeat(']', 3000))::jsonb",
}


@pytest.fixture(scope="module")
def database(server: Server, mq_template: str) -> Iterator[str]:
    """One for all tests here: each has a queue of its own."""
    with temporary_database(server, "trouble", mq_template) as dsn:
        yield dsn


@pytest.fixture
def queue(client: mq.Client) -> str:
    name = f"q{next(NUMBERS)}"
    client.create_queue(name, retry_backoff=SOON)
    return name


@pytest.fixture
def client(conn: psycopg.Connection[Any]) -> mq.Client:
    return mq.Client(conn)


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(kind: str, connect: Any, queue: str, **options: Any) -> Any:
    options = {"maintain_every": None, "stop_when_empty": True, "signals": False, **options}
    return {"sync": mq.consume, "async": mq.consume_async}[kind](connect, queue, **options)


def consume(made: Any, handler: Callable[[Any], object], *, batches: bool = False) -> None:
    """The loop with `with job:`, whatever kind of consumer it is; what ends it is raised."""
    if isinstance(made, mq.Consumer):
        with made as units:
            for unit in units.batches() if batches else units:
                with unit:
                    handler(unit)
        return

    async def loop() -> None:
        async with made as units:
            async for unit in units.batches() if batches else units:
                with unit:
                    await asyncio.to_thread(handler, unit)

    asyncio.run(loop())


def connecting(kind: str, dsn: str) -> Callable[[], Any]:
    """A function that makes connections, as a program may pass it."""
    if kind == "sync":
        return lambda: psycopg.connect(dsn)
    return lambda: psycopg.AsyncConnection.connect(dsn)


def enqueue_unreadable(conn: psycopg.Connection[Any], queue: str, what: str) -> int:
    row = conn.execute(f"select mq.enqueue(%s, {UNREADABLE[what]})", (queue,)).fetchone()
    assert row
    return int(row[0])


def states(client: mq.Client, queue: str, *ids: int) -> list[str | None]:
    found = [client.message_status(queue, i) for i in ids]
    return [status.state if status else None for status in found]


def backends(conn: psycopg.Connection[Any], queue: str, where: str = "true") -> list[int]:
    rows = conn.execute(
        f"select pid from pg_stat_activity where application_name = 'mq {queue}' and {where}"
    ).fetchall()
    return [pid for (pid,) in rows]


def slow_first(seen: list[Any], seconds: float) -> Callable[[Any], None]:
    """A handler that notes payloads, and takes its time over 1."""

    def handle(job: Any) -> None:
        seen.append(job.payload)
        if job.payload == 1:
            time.sleep(seconds)

    return handle


def until_extended(client: mq.Client, queue: str, job: Any, lasts: timedelta = SHORT) -> None:
    """Until the lease of a job was extended twice at least: it holds beyond what one could give."""
    first = job.delivery.leased_until

    def extended() -> bool:
        status = client.message_status(queue, job.delivery.msg_id)
        return bool(status and status.leased_until and status.leased_until > first + lasts)

    wait.until(extended, "two extensions")


# What Python cannot decode


@pytest.mark.parametrize("what", sorted(UNREADABLE))
@pytest.mark.parametrize("batches", [False, True])
def test_an_undecodable_message_is_buried_alone(
    conn: psycopg.Connection[Any],
    client: mq.Client,
    database: str,
    queue: str,
    kind: str,
    what: str,
    batches: bool,
) -> None:
    bad = enqueue_unreadable(conn, queue, what)
    fine = client.enqueue_batch(queue, ["a", "b"])
    seen: list[Any] = []
    consume(
        make(kind, database, queue, n=10),
        lambda unit: seen.extend(d.payload for d in unit.deliveries),
        batches=batches,
    )
    assert seen == ["a", "b"]
    assert states(client, queue, bad, *fine) == ["dead", "completed", "completed"]
    with pytest.raises(mq.Undecodable) as caught:
        client.dead_letters(queue)
    assert caught.value.rows[0].reason.startswith("cannot be decoded: ")


def test_undecodable_headers_too(
    conn: psycopg.Connection[Any], client: mq.Client, database: str, queue: str
) -> None:
    conn.execute(f"select mq.enqueue(%s, '1', headers => {UNREADABLE['digits']})", (queue,))
    consume(make("sync", database, queue), lambda job: None)
    assert states(client, queue, 1) == ["dead"]


def test_the_client_names_it_and_keeps_the_lease_usable(
    conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    fine = client.enqueue(queue, {"a": 1})
    bad = enqueue_unreadable(conn, queue, "digits")
    with pytest.raises(mq.Undecodable, match=f"message {bad} cannot be decoded: ValueError") as got:
        client.peek(queue)
    assert [row.msg_id for row in got.value.rows] == [fine, bad]
    with pytest.raises(mq.Undecodable) as got:
        client.dequeue(queue, 10)
    good, rest = got.value.rows
    assert (good.payload, rest.payload) == ({"a": 1}, "9" * 5000)
    assert got.value.msg_ids == [bad]
    assert client.nack(queue, rest.receipt, got.value.msg_ids, dead=True) == 1
    assert client.ack(queue, good.receipt) == 1


def test_the_async_client_too(
    conn: psycopg.Connection[Any], database: str, client: mq.Client, queue: str
) -> None:
    bad = enqueue_unreadable(conn, queue, "nested")

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(database) as connection:
            with pytest.raises(mq.Undecodable) as got:
                await mq.AsyncClient(connection).dequeue(queue)
            assert got.value.msg_ids == [bad]

    asyncio.run(main())


def test_the_way_in_which_a_connection_decodes_json_is_kept(
    conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    psycopg.types.json.set_json_loads(lambda data: ("mine", data), conn)
    client.enqueue(queue, 1)
    assert client.dequeue(queue)[0].payload == ("mine", b"1")


# What was not handed out is never buried


def leave(job: Any) -> None:
    raise SystemExit


def test_leaving_the_loop_does_not_bury_what_was_not_handed_out(
    client: mq.Client, database: str, queue: str, kind: str
) -> None:
    client.alter_queue(queue, max_attempts=1)
    ids = client.enqueue_batch(queue, [1, 2, 3])
    with pytest.raises(SystemExit):
        consume(make(kind, database, queue, n=3), leave)
    assert states(client, queue, *ids) == ["dead", "leased", "leased"]


def test_what_may_be_tried_again_is_returned_when_the_loop_is_left(
    client: mq.Client, database: str, queue: str
) -> None:
    ids = client.enqueue_batch(queue, [1, 2])
    with pytest.raises(SystemExit):
        consume(make("sync", database, queue, n=3), leave)
    assert "leased" not in states(client, queue, *ids)


def test_a_lease_that_ran_out_does_not_bury_what_was_not_handed_out(
    client: mq.Client, database: str, queue: str, kind: str
) -> None:
    client.alter_queue(queue, max_attempts=1)
    ids = client.enqueue_batch(queue, [1, 2])
    seen: list[Any] = []
    made = make(kind, database, queue, n=2, visibility_timeout=SHORT / 3, extend_limit=timedelta(0))
    consume(made, slow_first(seen, 0.3))
    assert seen == [1, 2]
    assert states(client, queue, *ids) == ["completed", "completed"]


# Which lease


def test_the_lost_lease_of_another_queue_is_a_failure_like_any_other(
    conn: psycopg.Connection[Any],
    client: mq.Client,
    database: str,
    queue: str,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = f"{queue}.other"
    client.create_queue(other)
    client.enqueue(other, 1)
    receipt = client.dequeue(other)[0].receipt
    client.ack(other, receipt)
    client.alter_queue(queue, max_attempts=1)
    ids = client.enqueue_batch(queue, [1, 2])

    def lose(job: Any) -> None:
        if job.payload == 1:
            client.ack(other, receipt, strict=True)

    consume(make(kind, database, queue, n=2), lose)
    assert states(client, queue, *ids) == ["dead", "completed"]
    assert "LeaseLost" in (client.dead_letters(queue)[0].reason or "")
    assert "lost, rolled back" not in caplog.text


def leased() -> Lease:
    """One message, leased a moment ago."""
    now = datetime.now(timezone.utc)
    return Lease("q", [mq.Delivery(1, "r", 1, now, now, None, None)], time.monotonic(), 30)


def test_a_lease_is_lost_only_when_the_server_says_so_twice(database: str) -> None:
    """It may just have been settled by the main flow, which has not heard the answer."""
    made = mq.consume(database, "q")
    made._lease = lease = leased()
    made._extended(lease, 0, None)
    assert not lease.lost
    assert lease.renew_at < time.monotonic() + 1
    made._extended(lease, 0, None)
    assert lease.lost


def test_what_may_have_been_told_before_is_not_called_lost(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection was lost under a dequeue that settled it by the way."""
    made = mq.consume(database, "q")
    for doubtful, said in ((True, False), (False, True)):
        lease = leased()
        lease.decide([1], ACK)
        flow = made._settle(lease, doubtful=doubtful)
        next(flow)
        with pytest.raises(StopIteration):
            flow.send(0)
        assert ("lost, or settled before" in caplog.text) is said


# Lost connections


def test_what_ends_a_session_is_a_lost_connection(
    client: mq.Client, database: str, queue: str, kind: str
) -> None:
    ids = client.enqueue_batch(queue, [1, 2])
    seen: list[Any] = []
    consume(make(kind, impatient(database), queue), slow_first(seen, 0.4))
    assert seen == [1, 2]
    assert states(client, queue, *ids) == ["completed", "completed"]


def impatient(dsn: str) -> str:
    with psycopg.connect(dsn) as conn:
        if conn.info.server_version < 140000:
            pytest.skip("idle_session_timeout is new in 14")
    return make_conninfo(dsn, options="-c idle_session_timeout=200ms")


def test_what_ends_a_session_is_a_lost_connection_of_the_client(database: str, queue: str) -> None:
    with psycopg.connect(
        make_conninfo(database, options="-c idle_in_transaction_session_timeout=50ms")
    ) as conn:
        client = mq.Client(conn)
        client.next_due(queue)
        wait.until(lambda: _ended(conn), "the server to end it")
        with pytest.raises(mq.ConnectionLost):
            client.next_due(queue)


def _ended(conn: psycopg.Connection[Any]) -> bool:
    import select

    return bool(select.select([conn.fileno()], [], [], 0)[0])


def test_an_extension_is_not_kept_from_by_what_ends_idle_sessions(
    client: mq.Client,
    database: str,
    queue: str,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    msg_id = client.enqueue(queue, 1)
    # The session ends long before the next extension: not at the moment at which that is asked for.
    made = make(kind, impatient(database), queue, visibility_timeout=4 * SHORT)
    consume(made, lambda job: until_extended(client, queue, job, 4 * SHORT))
    assert states(client, queue, msg_id) == ["completed"]
    assert "lease not extended" not in caplog.text


class Flaky:
    """A function that connects, but not the second time."""

    def __init__(self, kind: str, dsn: str) -> None:
        self.calls = 0
        self._connect = connecting(kind, dsn)
        self._kind = kind

    def __call__(self) -> Any:
        self.calls += 1
        if self.calls == 2:
            if self._kind == "async":
                return self._fail()
            raise OSError("no token today")
        return self._connect()

    async def _fail(self) -> Any:
        raise OSError("no token today")


def test_a_connect_function_that_fails_is_asked_again_for_an_extension(
    client: mq.Client, database: str, queue: str, kind: str
) -> None:
    client.enqueue(queue, 1)
    connect = Flaky(kind, database)

    def dawdle(job: Any) -> None:
        wait.until(lambda: connect.calls >= 3, "it to be asked again")

    consume(make(kind, connect, queue, visibility_timeout=SHORT), dawdle)
    assert states(client, queue, 1) == ["completed"]


def test_a_connect_function_that_fails_is_asked_again_for_the_main_connection(
    conn: psycopg.Connection[Any], client: mq.Client, database: str, queue: str, kind: str
) -> None:
    ids = client.enqueue_batch(queue, [1, 2])
    connect = Flaky(kind, make_conninfo(database, application_name=f"mq {queue}"))

    def kill(job: Any) -> None:
        if job.payload == 1:
            for pid in backends(conn, queue):
                conn.execute("select pg_terminate_backend(%s)", (pid,))

    consume(make(kind, connect, queue), kill)
    assert connect.calls == 3
    assert states(client, queue, *ids) == ["completed", "completed"]


def test_a_defect_beside_the_handler_is_logged_and_survived(
    client: mq.Client,
    database: str,
    queue: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(consumer, "RESTART", 0.01)
    made = make(kind, database, queue, visibility_timeout=SHORT)
    extended = made._extended

    def broken(*args: Any) -> None:
        made._extended = extended
        raise ZeroDivisionError

    made._extended = broken
    msg_id = client.enqueue(queue, 1)
    consume(made, lambda job: until_extended(client, queue, job))
    assert "ZeroDivisionError" in caplog.text
    assert states(client, queue, msg_id) == ["completed"]


# What the connections are like


def serializable(dsn: str) -> str:
    return make_conninfo(dsn, options="-c default_transaction_isolation=serializable")


@pytest.mark.parametrize("function", [False, True])
def test_another_default_of_isolation_does_not_matter(
    client: mq.Client, database: str, queue: str, kind: str, function: bool
) -> None:
    msg_id = client.enqueue(queue, 1)
    dsn = serializable(database)
    consume(make(kind, connecting(kind, dsn) if function else dsn, queue), lambda job: None)
    assert states(client, queue, msg_id) == ["completed"]


def test_a_transaction_of_a_job_is_read_committed(
    client: mq.Client, database: str, queue: str
) -> None:
    client.enqueue(queue, 1)
    dsn = serializable(database)
    for job in mq.consume(dsn, queue, stop_when_empty=True, maintain_every=None):
        with job.transaction() as conn:
            row = conn.execute("show transaction_isolation").fetchone()
    assert row == ("read committed",)


def test_without_listen_nothing_is_prepared_with_a_connect_function_either(
    client: mq.Client, database: str, queue: str
) -> None:
    client.enqueue_batch(queue, list(range(12)))
    prepared: list[Any] = []
    connect = connecting("sync", database)
    for job in mq.consume(connect, queue, listen=False, stop_when_empty=True, maintain_every=None):
        with job.transaction() as conn:
            prepared += conn.execute("select statement from pg_prepared_statements").fetchall()
    assert prepared == []


def test_limits_for_a_silent_server_unless_the_caller_sets_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    ours = conninfo_to_dict(with_patience("dbname=app keepalives_idle=7"))
    assert ours["connect_timeout"] == "10"
    assert ours["tcp_user_timeout"] == "30000"
    assert ours["keepalives_idle"] == "7"
    assert with_patience("service=app") == "service=app"
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "33")
    assert "connect_timeout" not in conninfo_to_dict(with_patience("dbname=app"))


# A server that says nothing


class InThread:
    """A consumer in a thread, until it ends."""

    def __init__(self, made: Any, handler: Callable[[Any], object] = lambda job: None) -> None:
        self.made = made
        self.error: BaseException | None = None
        self._handler = handler
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            consume(self.made, self._handler)
        except BaseException as error:
            self.error = error

    def stop(self) -> float:
        """Stop it; how long that took."""
        began = time.monotonic()
        self.made.stop()
        self.thread.join(wait.SECONDS)
        assert not self.thread.is_alive()
        return time.monotonic() - began


@contextlib.contextmanager
def frozen(conn: psycopg.Connection[Any], queue: str) -> Iterator[None]:
    """The backend of a consumer that waits for messages does nothing for the length of a `with`."""
    (pid,) = wait.until(lambda: backends(conn, queue, "query like '%next_due%'"), "it to wait")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "GRACE", 0.2)
    monkeypatch.setattr(consumer, "HANG_UP", 0.1)


@pytest.mark.usefixtures("hasty")
def test_stop_ends_although_the_server_is_frozen(
    conn: psycopg.Connection[Any], database: str, queue: str, kind: str
) -> None:
    worker = InThread(
        make(kind, database, queue, poll_min=SOON, poll_max=SOON, stop_when_empty=False)
    )
    with frozen(conn, queue):
        wait.until(lambda: worker.made._lines[0].busy_since, "it to ask the frozen server")
        time.sleep(0.05)
        assert worker.stop() < 5
        assert worker.error is None


@pytest.mark.usefixtures("hasty")
def test_a_statement_that_is_cancelled_for_a_stop_is_no_error(
    conn: psycopg.Connection[Any], database: str, queue: str, kind: str
) -> None:
    with conn.transaction():
        conn.execute("lock table mq.queue in access exclusive mode")
        worker = InThread(make(kind, database, queue))
        wait.until(
            lambda: conn.execute("select from pg_locks where not granted").rowcount, "it to wait"
        )
        assert worker.stop() < 1.5  # lock_timeout is 2 s
    assert worker.error is None


@pytest.mark.usefixtures("hasty")
def test_what_is_in_hand_is_returned_although_a_backend_is_frozen(
    conn: psycopg.Connection[Any], client: mq.Client, database: str, queue: str, kind: str
) -> None:
    ids = client.enqueue_batch(queue, [1, 2])
    stopped: list[int] = []

    def freeze(job: Any) -> None:
        stopped.extend(backends(conn, queue))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        worker.made.stop()

    worker = InThread(make(kind, database, queue, n=2), freeze)
    try:
        worker.thread.join(wait.SECONDS)
        assert states(client, queue, ids[0]) == ["completed"]
        assert "leased" not in states(client, queue, ids[1])
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def test_stop_ends_although_nobody_answers_while_it_connects(queue: str, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"host=127.0.0.1 port={silent.getsockname()[1]} dbname=x connect_timeout=2"
        worker = InThread(make(kind, dsn, queue))
        with silent.accept()[0]:
            assert worker.stop() < 4
    assert worker.error is None


def test_sigterm_ends_a_process_whose_server_is_silent(
    conn: psycopg.Connection[Any], database: str, queue: str
) -> None:
    import subprocess
    import sys
    from pathlib import Path

    source = (
        "import sys, mq, mq.consumer as c; from datetime import timedelta as t\n"
        "c.GRACE = 0.2; c.HANG_UP = 0.1; s = t(milliseconds=20)\n"
        "for job in mq.consume(sys.argv[1], sys.argv[2], poll_min=s, poll_max=s): pass\n"
        "print('ended')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(mq.__file__).parents[1])}
    with (
        subprocess.Popen(
            [sys.executable, "-c", source, database, queue],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        ) as process,
        frozen(conn, queue),
    ):
        time.sleep(0.1)
        process.terminate()
        assert process.communicate(timeout=10)[0] == "ended\n"
    assert process.returncode == 0


# What is told when


def test_a_slow_handlers_work_is_told_of_before_the_next_begins(
    client: mq.Client, database: str, queue: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "PATIENCE", 0.2)
    ids = client.enqueue_batch(queue, [1, 2])
    found: list[Any] = []

    def handle(job: Any) -> None:
        if job.payload == 1:
            time.sleep(0.25)
        else:
            found.extend(states(client, queue, ids[0]))

    consume(make(kind, database, queue, n=2), handle)
    assert found == ["completed"]


def test_quick_acks_are_told_together(
    client: mq.Client, database: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "PATIENCE", 30)
    told: list[Any] = []
    monkeypatch.setattr(calls, "ack", lambda **given: told.append(given))
    client.enqueue_batch(queue, list(range(20)))
    consume(make("sync", database, queue, n=20), lambda job: None)
    assert told == []  # one round trip: with the dequeue that follows


def test_stop_does_not_begin_upkeep(
    client: mq.Client, database: str, queue: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mq")
    client.enqueue(queue, 1)

    def stop(job: Any) -> None:
        worker.made.stop()
        time.sleep(0.2)

    worker = InThread(make(kind, database, queue, maintain_every=MINUTE), stop)
    worker.thread.join(wait.SECONDS)
    assert "upkeep: " not in caplog.text


@pytest.mark.parametrize("option", ["poll_min", "poll_max"])
@pytest.mark.parametrize("value", [timedelta(0), timedelta(seconds=-1), timedelta(milliseconds=1)])
def test_a_poll_without_a_pause_is_refused(kind: str, option: str, value: timedelta) -> None:
    with pytest.raises(ValueError, match="10 milliseconds"):
        make(kind, "", "q", **{option: value})
