"""`mq.consume` and `mq.consume_async`: what both promise, shown of each."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

import mq
from support import wait
from support.server import Server
from support.server import database as temporary_database
from support.worker import NEVER, SOON, Gate, Handler, Start, Worker, terminate, until_seen

pytestmark = pytest.mark.matrix

NUMBERS = itertools.count(1)

SHORT = timedelta(milliseconds=600)  # a visibility_timeout that runs out, or is extended, in a test
AT_ONCE = timedelta(0)


@pytest.fixture(scope="module")
def database(server: Server, mq_template: str) -> Iterator[str]:
    """One for all tests here: each has a queue of its own."""
    with temporary_database(server, "consume", mq_template) as dsn:
        yield dsn


@pytest.fixture
def conn(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as conn:
        yield conn


@pytest.fixture
def queue(client: mq.Client) -> str:
    name = f"q{next(NUMBERS)}"
    client.create_queue(name, retry_backoff=SOON)
    return name


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(kind: str, database: str, queue: str) -> Iterator[Start]:
    workers: list[Worker] = []

    def start_(handler: Handler = lambda unit: None, **options: Any) -> Worker:
        options = {"maintain_every": None, "poll_max": NEVER, **options}
        workers.append(Worker(kind, database, queue, handler, **options))
        return workers[-1]

    yield start_
    for worker in workers:
        worker.consumer.stop()
        worker.join()


@pytest.fixture
def client(conn: psycopg.Connection[Any]) -> mq.Client:
    return mq.Client(conn)


def backends(conn: psycopg.Connection[Any], where: str = "true") -> list[int]:
    """Process ids of the consumer's connections."""
    rows = conn.execute(
        "select pid from pg_stat_activity where application_name like 'mq %'"
        f" and datname = current_database() and {where}"
    ).fetchall()
    return [pid for (pid,) in rows]


def until_asleep(conn: psycopg.Connection[Any]) -> int:
    """Until the consumer has nothing more to look for and waits; its process id."""

    def look() -> list[int]:
        return backends(conn, "state = 'idle' and query like '%next_due%'")

    while True:
        wait.until(look, "the consumer to sleep")
        if pids := look():
            return pids[0]


def until_fast_asleep(conn: psycopg.Connection[Any]) -> None:
    """The same, past the short looks for those who did not see it register."""

    def look() -> list[int]:
        return backends(
            conn,
            "state = 'idle' and query like '%next_due%'"
            " and state_change < clock_timestamp() - interval '0.2 s'",
        )

    wait.until(look, "the consumer to sleep soundly")


def state(client: mq.Client, queue: str, msg_id: int) -> str | None:
    status = client.message_status(queue, msg_id)
    return status.state if status else None


def finish(worker: Worker, client: mq.Client, queue: str, ids: list[int], handed_out: int) -> None:
    """Stop the worker once it was given so many messages; all of `ids` must be completed then."""
    wait.until(lambda: len(worker.seen) >= handed_out or worker.error, f"{handed_out} messages")
    worker.stop()
    assert [state(client, queue, i) for i in ids] == ["completed"] * len(ids)
    assert len(worker.seen) == handed_out


@pytest.fixture
def effects(conn: psycopg.Connection[Any]) -> Callable[[], list[Any]]:
    conn.execute("drop table if exists effect; create table effect (payload int)")
    return lambda: [p for (p,) in conn.execute("select payload from effect order by 1").fetchall()]


def fail_first(unit: Any) -> None:
    if unit.deliveries[0].attempt == 1:
        raise ValueError("not yet")


# What becomes of messages


@pytest.mark.parametrize("options", [{}, {"plain": True}, {"n": 3}, {"n": 3, "plain": True}])
def test_messages_come_in_order_and_are_acked(
    start: Start, client: mq.Client, queue: str, options: dict[str, Any]
) -> None:
    ids = client.enqueue_batch(queue, list(range(7)))
    worker = start(**options)
    finish(worker, client, queue, ids, 7)
    assert worker.seen == list(range(7))
    assert client.sweep_stale(queue) == 0


def test_batches_are_leases(start: Start, client: mq.Client, queue: str) -> None:
    ids = client.enqueue_batch(queue, list(range(5)))
    sizes: list[int] = []
    worker = start(lambda batch: sizes.append(len(batch)), batches=True, n=5)
    finish(worker, client, queue, ids, 5)
    assert worker.seen == list(range(5))
    assert max(sizes) > 1


def test_an_exception_is_the_reason_of_a_nack(
    start: Start, client: mq.Client, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.alter_queue(queue, max_attempts=2)

    def fail(job: Any) -> None:
        raise ValueError("broken\0 on purpose")

    msg_id = client.enqueue(queue, 1)
    worker = start(fail)
    wait.until(lambda: client.dead_letters(queue), "it to be given up")
    worker.stop()
    (dead,) = client.dead_letters(queue)
    assert (dead.msg_id, dead.attempts) == (msg_id, 2)
    assert worker.attempts == [1, 2]
    assert dead.reason is not None
    assert "ValueError: broken  on purpose" in dead.reason
    assert "failed" in caplog.text


def test_a_snooze_uses_up_no_attempt(start: Start, client: mq.Client, queue: str) -> None:
    client.alter_queue(queue, max_attempts=1)

    def snooze_first(job: Any) -> None:
        if len(worker.attempts) < 4:
            job.snooze(SOON)

    msg_id = client.enqueue(queue, 1)
    worker = start(snooze_first)
    finish(worker, client, queue, [msg_id], 4)
    assert worker.attempts == [1, 1, 1, 1]
    assert client.dead_letters(queue) == []


def test_a_job_leaves_a_result(start: Start, client: mq.Client, queue: str) -> None:
    def add_one(job: Any) -> None:
        job.ack(result=job.payload + 1)

    ids = client.enqueue_batch(queue, [1, 2])
    worker = start(add_one, n=2)
    assert [client.wait_for(queue, i) for i in ids] == [mq.Result(2), mq.Result(3)]
    finish(worker, client, queue, ids, 2)


def test_what_a_handler_returns_is_no_result(start: Start, client: mq.Client, queue: str) -> None:
    msg_id = client.enqueue(queue, 1)
    worker = start(lambda job: "returned")
    assert client.wait_for(queue, msg_id) == mq.Result(None)
    finish(worker, client, queue, [msg_id], 1)


def test_a_result_commits_with_the_effect(
    start: Start, client: mq.Client, queue: str, effects: Callable[[], list[Any]]
) -> None:
    msg_id = client.enqueue(queue, 1)
    worker = start(lambda job: job.ack(result="done"), transactional=True)
    assert client.wait_for(queue, msg_id) == mq.Result("done")
    assert effects() == [1]
    finish(worker, client, queue, [msg_id], 1)


@pytest.mark.parametrize("bad", [object(), float("nan"), "\ud800", {"a": ["\\\0"]}])
def test_a_result_that_cannot_be_stored_fails_its_job_alone(
    start: Start, client: mq.Client, queue: str, bad: object
) -> None:
    def fail_first(job: Any) -> None:
        job.ack(result=bad if job.attempt == 1 else "\\u0000 is text")

    msg_id = client.enqueue(queue, 1)
    worker = start(fail_first)
    assert client.wait_for(queue, msg_id) == mq.Result("\\u0000 is text")
    finish(worker, client, queue, [msg_id], 2)


@pytest.mark.parametrize("batches", [False, True])
def test_a_job_reports(
    kind: str, database: str, client: mq.Client, queue: str, batches: bool
) -> None:
    msg_id = client.enqueue(queue, 1)
    said = []

    def note(answer: bool) -> None:
        status = client.message_status(queue, msg_id)
        said.append((answer, status and status.progress))

    async def asynchronous() -> None:
        async with mq.consume_async(database, queue, stop_when_empty=True) as jobs:
            if batches:
                async for batch in jobs.batches():
                    note(await batch.report(msg_id, {"percent": 50}))
            else:
                async for job in jobs:
                    note(await job.report({"percent": 50}))

    if kind == "async":
        asyncio.run(asynchronous())
    else:
        with mq.consume(database, queue, stop_when_empty=True) as jobs:
            if batches:
                for batch in jobs.batches():
                    note(batch.report(msg_id, {"percent": 50}))
            else:
                for job in jobs:
                    note(job.report({"percent": 50}))
    assert said == [(True, {"percent": 50})]
    assert state(client, queue, msg_id) == "completed"


def test_one_failure_of_a_lease_fails_alone(start: Start, client: mq.Client, queue: str) -> None:
    def fail_two(job: Any) -> None:
        if job.payload == 2 and job.attempt == 1:
            raise ValueError

    ids = client.enqueue_batch(queue, [1, 2, 3])
    worker = start(fail_two, n=3)
    finish(worker, client, queue, ids, 4)
    assert sorted(zip(worker.seen, worker.attempts, strict=True)) == [
        (1, 1),
        (2, 1),
        (2, 2),
        (3, 1),
    ]


def test_a_handler_may_decide_itself(start: Start, client: mq.Client, queue: str) -> None:
    def decide(job: Any) -> None:
        if job.payload == "reject":
            job.nack(dead=True, reason="never")
        elif job.payload == "later":
            job.nack(delay=NEVER)
        else:
            job.ack()

    rejected, later, fine = client.enqueue_batch(queue, ["reject", "later", "fine"])
    worker = start(decide)
    finish(worker, client, queue, [fine], 3)
    assert state(client, queue, rejected) == "dead"
    assert state(client, queue, later) == "deferred"
    assert [dead.attempts for dead in client.dead_letters(queue)] == [1]


def test_an_exception_that_leaves_the_loop_gives_back(
    start: Start, client: mq.Client, queue: str
) -> None:
    client.alter_queue(queue, max_attempts=1)

    def fail(job: Any) -> None:
        raise ZeroDivisionError("out")

    ids = client.enqueue_batch(queue, [1, 2])
    worker = start(fail, plain=True)
    worker.join()
    assert isinstance(worker.error, ZeroDivisionError)
    (dead,) = client.dead_letters(queue)
    assert dead.msg_id == ids[0]
    assert "ZeroDivisionError: out" in (dead.reason or "")
    assert state(client, queue, ids[1]) == "ready"


def test_stop_finishes_one_and_returns_the_others(
    start: Start, client: mq.Client, queue: str
) -> None:
    gate = Gate()
    ids = client.enqueue_batch(queue, [1, 2, 3])
    worker = start(gate, n=3)
    gate.until_reached()
    worker.consumer.stop()
    gate.open()
    worker.stop()
    assert worker.seen == [1]
    assert state(client, queue, ids[0]) == "completed"
    assert [state(client, queue, i) == "leased" for i in ids[1:]] == [False, False]
    assert sorted(d.payload for d in client.dequeue(queue, 5)) == [2, 3]


def test_stop_does_not_waste_a_last_attempt(start: Start, client: mq.Client, queue: str) -> None:
    client.alter_queue(queue, max_attempts=1)
    gate = Gate()
    ids = client.enqueue_batch(queue, [1, 2, 3])
    worker = start(gate, n=3)
    gate.until_reached()
    worker.consumer.stop()
    gate.open()
    finish(worker, client, queue, ids, 3)
    assert client.dead_letters(queue) == []


def test_stop_when_empty(start: Start, client: mq.Client, queue: str) -> None:
    ids = client.enqueue_batch(queue, [1, 2, 3])
    worker = start(stop_when_empty=True, n=2)
    worker.join()
    finish(worker, client, queue, ids, 3)


def test_run_with_a_handler(kind: str, database: str, client: mq.Client, queue: str) -> None:
    client.enqueue_batch(queue, [1, 2])
    seen: list[Any] = []
    if kind == "sync":
        mq.consume(database, queue, stop_when_empty=True).run(lambda job: seen.append(job.payload))
    else:

        async def handle(job: mq.AsyncJob) -> None:
            seen.append(job.payload)

        asyncio.run(mq.consume_async(database, queue, stop_when_empty=True).run(handle))
    assert seen == [1, 2]
    assert client.sweep_stale(queue) == 0
    assert client.dequeue(queue) == []


# Transactions


def test_effects_and_ack_are_one_transaction(
    start: Start, client: mq.Client, queue: str, effects: Callable[[], list[Any]]
) -> None:
    ids = client.enqueue_batch(queue, [1, 2, 3])
    worker = start(fail_first, transactional=True, n=2)
    finish(worker, client, queue, ids, 6)
    assert sorted(worker.attempts) == [1, 1, 1, 2, 2, 2]
    assert effects() == [1, 2, 3]


def test_a_whole_batch_in_one_transaction(
    start: Start, client: mq.Client, queue: str, effects: Callable[[], list[Any]]
) -> None:
    ids = client.enqueue_batch(queue, [1, 2, 3])
    worker = start(fail_first, transactional=True, batches=True, n=3)
    wait.until(lambda: effects() == [1, 2, 3], "the effects")
    worker.stop()
    assert [state(client, queue, i) for i in ids] == ["completed"] * 3
    assert effects() == [1, 2, 3]


def test_a_lost_lease_rolls_effects_back(
    start: Start, client: mq.Client, queue: str, effects: Callable[[], list[Any]]
) -> None:
    def lose_first(job: Any) -> None:
        if job.attempt == 1:
            wait.until(lambda: client.sweep_stale(queue), "the lease to run out")

    msg_id = client.enqueue(queue, 1)
    worker = start(
        lose_first, transactional=True, visibility_timeout=SHORT / 3, extend_limit=AT_ONCE
    )
    finish(worker, client, queue, [msg_id], 2)
    assert worker.attempts == [1, 2]
    assert effects() == [1]


def test_a_nack_commits_with_the_effects(
    start: Start, client: mq.Client, queue: str, effects: Callable[[], list[Any]]
) -> None:
    client.enqueue(queue, 1)
    worker = start(lambda job: job.nack(dead=True, reason="seen"), transactional=True)
    wait.until(lambda: client.dead_letters(queue), "it to be given up")
    worker.stop()
    assert effects() == [1]


def test_a_rollback_gives_back(
    start: Start, client: mq.Client, queue: str, effects: Callable[[], list[Any]]
) -> None:
    def roll_back_first(job: Any) -> None:
        if job.attempt == 1:
            raise psycopg.Rollback

    msg_id = client.enqueue(queue, 1)
    worker = start(roll_back_first, transactional=True)
    finish(worker, client, queue, [msg_id], 2)
    assert worker.attempts == [1, 2]
    assert effects() == [1]


# Leases


@pytest.mark.parametrize("transactional", [False, True])
def test_the_lease_of_a_slow_handler_is_extended(
    start: Start,
    client: mq.Client,
    queue: str,
    effects: Callable[[], list[Any]],
    transactional: bool,
) -> None:
    def leased_until() -> Any:
        status = client.message_status(queue, msg_id)
        return status and status.leased_until

    def dawdle(job: Any) -> None:
        first = job.deliveries[0].leased_until
        wait.until(lambda: leased_until() > first + SHORT, "two extensions")
        assert client.sweep_stale(queue) == 0
        assert not job.lost

    msg_id = client.enqueue(queue, 1)
    worker = start(dawdle, visibility_timeout=SHORT, transactional=transactional)
    finish(worker, client, queue, [msg_id], 1)
    assert worker.attempts == [1]


def test_what_ran_out_unhandled_is_not_handed_out(
    start: Start, client: mq.Client, queue: str
) -> None:
    def lose_first(job: Any) -> None:
        if job.attempt == 1:
            wait.until(lambda: client.sweep_stale(queue), "the lease to run out")

    ids = client.enqueue_batch(queue, [1, 2, 3])
    worker = start(lose_first, n=3, visibility_timeout=SHORT / 3, extend_limit=AT_ONCE)
    finish(worker, client, queue, ids, 4)
    assert sorted(zip(worker.seen, worker.attempts, strict=True)) == [
        (1, 1),
        (1, 2),
        (2, 2),
        (3, 2),
    ]


def test_a_job_knows_that_its_lease_was_lost(start: Start, client: mq.Client, queue: str) -> None:
    noticed = threading.Event()

    def settle_behind_its_back(job: Any) -> None:
        client.ack(queue, job.receipt)
        wait.until(lambda: job.lost, "the loss to be noticed")
        noticed.set()

    client.enqueue(queue, 1)
    worker = start(settle_behind_its_back, visibility_timeout=SHORT)
    assert noticed.wait(wait.SECONDS)
    worker.stop()


# Waiting


def test_a_notification_wakes(
    start: Start, conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    worker = start(poll_min=NEVER)
    for seen in ([1, 2], [1, 2, 3, 4]):
        until_fast_asleep(conn)
        client.alter_queue(queue, notify="never")
        client.enqueue(queue, seen[-2])
        time.sleep(0.2)
        assert (
            worker.seen == seen[:-2]
        )  # it would have looked by now, were it not for want of a call
        client.alter_queue(queue, notify="auto")
        client.enqueue(queue, seen[-1])
        until_seen(worker, seen)


def test_nobody_is_missed_who_did_not_see_us_register(
    start: Start, database: str, client: mq.Client, conn: psycopg.Connection[Any], queue: str
) -> None:
    with psycopg.connect(database) as early:
        # Nobody waits yet, so it does not notify. ('auto' may, for the sake of a plain LISTEN.)
        client.alter_queue(queue, notify="never")
        mq.Client(early).enqueue(queue, 1)
        client.alter_queue(queue, notify="auto")
        worker = start(poll_min=NEVER)
        until_asleep(conn)
        early.commit()
    until_seen(worker, [1])


def test_wakes_for_what_is_due(
    start: Start, conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    client.enqueue(queue, 1, delay=SHORT)
    worker = start(poll_min=NEVER)
    until_seen(worker, [1])
    client.enqueue(queue, 2, delay=SHORT)
    until_seen(worker, [1, 2])


def test_wakes_when_there_is_room(
    start: Start, conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    client.alter_queue(queue, max_in_flight=1)
    client.enqueue_batch(queue, [1, 2])
    (first,) = client.dequeue(queue)
    worker = start(poll_min=NEVER)
    until_fast_asleep(conn)
    assert worker.seen == []
    client.ack(queue, first.receipt)
    until_seen(worker, [2])


def test_wakes_when_the_rate_lets_it_through(start: Start, client: mq.Client, queue: str) -> None:
    client.alter_queue(queue, rate_limit=1, rate_period=SHORT)
    client.enqueue_batch(queue, [1, 2, 3])
    worker = start(poll_min=NEVER)
    until_seen(worker, [1, 2, 3])


def test_polls_where_nothing_notifies(start: Start, client: mq.Client, queue: str) -> None:
    client.alter_queue(queue, notify="never")
    worker = start(poll_min=SOON, poll_max=SOON)
    for payload in (1, 2):
        client.enqueue(queue, payload)
        until_seen(worker, list(range(1, payload + 1)))


def test_without_listen_it_only_polls(
    start: Start, conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    worker = start(listen=False, poll_min=SOON, poll_max=SOON)
    pid = until_asleep(conn)
    assert advisory_locks(conn, pid) == 0
    client.enqueue(queue, 1)
    until_seen(worker, [1])
    assert advisory_locks(conn, pid) == 0


def advisory_locks(conn: psycopg.Connection[Any], pid: int) -> int:
    row = conn.execute(
        "select count(*) from pg_locks where locktype = 'advisory' and pid = %s", (pid,)
    ).fetchone()
    assert row
    return int(row[0])


def test_registered_only_while_idle(
    start: Start, conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    gate = Gate()
    start(gate, poll_min=NEVER)
    pid = until_asleep(conn)
    assert advisory_locks(conn, pid) == 1
    client.enqueue(queue, 1)
    gate.until_reached()
    assert advisory_locks(conn, pid) == 0
    gate.open()
    wait.until(lambda: advisory_locks(conn, pid) == 1, "it to register again")


def test_no_transaction_is_open_while_it_waits_or_works(
    start: Start, conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    gate = Gate()
    start(gate)
    until_fast_asleep(conn)
    idle = "state = 'idle' and xact_start is null and backend_xmin is null and backend_xid is null"
    assert backends(conn) == backends(conn, idle)
    client.enqueue(queue, 1)
    gate.until_reached()
    assert backends(conn) == backends(conn, idle)
    gate.open()


def test_upkeep_is_done_now_and_then(
    start: Start, caplog: pytest.LogCaptureFixture, queue: str
) -> None:
    caplog.set_level(logging.DEBUG, "mq")
    start(maintain_every=SOON)
    wait.until(lambda: caplog.text.count("upkeep: ") >= 2, "upkeep")


# Lost connections


def test_drains_after_a_reconnect(
    start: Start, conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    worker = start(poll_min=NEVER)
    pid = until_asleep(conn)
    client.alter_queue(queue, notify="never")
    client.enqueue(queue, 1)
    terminate(conn, pid)
    until_seen(worker, [1])
    assert until_asleep(conn) != pid
    worker.stop()


def test_a_connection_lost_under_a_handler(
    start: Start, conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    gate = Gate()
    ids = client.enqueue_batch(queue, [1, 2, 3])
    worker = start(gate, n=3)
    gate.until_reached()
    for pid in backends(conn):
        terminate(conn, pid)
    gate.open()
    finish(worker, client, queue, ids, 3)
    assert worker.seen == [1, 2, 3]


def test_a_connection_lost_in_a_transaction(
    start: Start,
    conn: psycopg.Connection[Any],
    client: mq.Client,
    queue: str,
    effects: Callable[[], list[Any]],
) -> None:
    def lose_first(job: Any) -> None:
        if job.attempt == 1:
            for pid in backends(conn):
                terminate(conn, pid)

    ids = client.enqueue_batch(queue, [1, 2])
    worker = start(lose_first, transactional=True, n=2)
    finish(worker, client, queue, ids, 4)
    assert effects() == [1, 2]


def test_a_connection_lost_before_a_transaction(
    start: Start,
    conn: psycopg.Connection[Any],
    client: mq.Client,
    queue: str,
    effects: Callable[[], list[Any]],
    kind: str,
) -> None:
    def handle(job: Any) -> None:
        for pid in backends(conn):
            terminate(conn, pid)

    client.enqueue_batch(queue, [1, 2])
    # The first ends its transaction with a dead connection; the second begins one on it.
    worker = start(lambda job: handle(job) if job.payload == 1 else None, transactional=True, n=2)
    wait.until(lambda: 2 in effects(), "the effect of the second")
    worker.stop()


def test_an_extension_survives_a_lost_connection(
    start: Start, conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    def leased_until() -> Any:
        status = client.message_status(queue, msg_id)
        return status and status.leased_until

    def dawdle(job: Any) -> None:
        wait.until(lambda: leased_until() > job.delivery.leased_until, "an extension")
        for pid in backends(conn):
            terminate(conn, pid)
        seen = leased_until()
        wait.until(lambda: leased_until() > seen, "another extension")

    msg_id = client.enqueue(queue, 1)
    worker = start(dawdle, visibility_timeout=2 * SHORT)
    finish(worker, client, queue, [msg_id], 1)
    assert worker.attempts == [1]


# What is refused


def test_an_unknown_queue_is_an_error(kind: str, database: str) -> None:
    worker = Worker(kind, database, "nowhere", lambda unit: None)
    worker.join()
    assert isinstance(worker.error, mq.QueueNotFound)


def test_a_queue_dropped_under_a_consumer_is_an_error(
    start: Start, conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    worker = start(poll_min=SOON, poll_max=SOON)
    until_asleep(conn)
    client.drop_queue(queue)
    worker.join()
    assert isinstance(worker.error, mq.QueueNotFound)


def test_a_first_connection_that_fails_is_an_error(kind: str, database: str) -> None:
    worker = Worker(kind, f"{database} dbname=nowhere", "q", lambda unit: None)
    worker.join()
    assert isinstance(worker.error, mq.ConnectionLost)


def test_a_consumer_is_iterated_once(kind: str, database: str, queue: str) -> None:
    worker = Worker(kind, database, queue, lambda unit: None, stop_when_empty=True)
    worker.join()
    again = iter if kind == "sync" else lambda consumer: consumer.__aiter__()
    with pytest.raises(RuntimeError):
        again(worker.consumer)


def test_no_connection_is_left(
    start: Start, conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    worker = start()
    until_asleep(conn)
    worker.stop()
    wait.until(lambda: not backends(conn), "the connections to end")
