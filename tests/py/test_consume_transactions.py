"""Consumers of a queue of mode transaction: the handler works in the transaction that dequeued."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

import mq
from support import wait
from support.server import Server
from support.server import database as temporary_database
from support.worker import INSERT, NEVER, SOON, Gate, Handler, Start, Worker, terminate, until_seen

NUMBERS = itertools.count(1)
Effects = Callable[[], list[Any]]


@pytest.fixture(scope="module")
def database(server: Server, mq_template: str) -> Iterator[str]:
    """One for all tests here: each has a queue of its own."""
    with temporary_database(server, "consume_transactions", mq_template) as dsn:
        yield dsn


@pytest.fixture
def client(conn: psycopg.Connection[Any]) -> mq.Client:
    return mq.Client(conn)


@pytest.fixture
def queue(client: mq.Client) -> str:
    name = f"q{next(NUMBERS)}"
    client.create_queue(name, mode="transaction", max_attempts=3, retry_backoff=SOON)
    return name


@pytest.fixture
def effects(conn: psycopg.Connection[Any]) -> Effects:
    conn.execute("drop table if exists effect; create table effect (payload int)")
    return lambda: [p for (p,) in conn.execute("select payload from effect order by 1").fetchall()]


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(kind: str, database: str, queue: str) -> Iterator[Start]:
    workers: list[Worker] = []

    def start_(handler: Handler = lambda unit: None, **options: Any) -> Worker:
        options = {"maintain_every": None, "poll_max": NEVER, "transactional": True, **options}
        workers.append(Worker(kind, database, queue, handler, **options))
        return workers[-1]

    yield start_
    for worker in workers:
        worker.consumer.stop()
        worker.join()


def settled(client: mq.Client, queue: str) -> int:
    (stats,) = client.queue_stats(queue)
    return stats.settled_total


def is_over(client: mq.Client, queue: str) -> bool:
    (stats,) = client.queue_stats(queue)
    return stats.ready == stats.leased == stats.deferred == 0


@pytest.mark.parametrize("options", [{}, {"n": 3}, {"n": 3, "batches": True}])
def test_what_the_handler_wrote_and_the_message_commit_together(
    start: Start, client: mq.Client, queue: str, effects: Effects, options: dict[str, Any]
) -> None:
    gate = Gate()
    client.enqueue_batch(queue, list(range(7)))
    worker = start(gate, **options)
    gate.until_reached()
    assert effects() == []
    (stats,) = client.queue_stats(queue)
    assert stats.leased == options.get("n", 1)
    gate.open()
    wait.until(lambda: is_over(client, queue), "all to be done")
    worker.stop()
    assert worker.seen == effects() == list(range(7))
    assert settled(client, queue) == 7


def test_messages_are_consumed_without_a_use_of_the_connection(
    start: Start, client: mq.Client, queue: str
) -> None:
    client.enqueue_batch(queue, [1, 2, 3])
    worker = start(transactional=False, stop_when_empty=True)
    worker.join()
    assert worker.seen == [1, 2, 3]
    assert is_over(client, queue)


@pytest.mark.parametrize("options", [{}, {"n": 10}])
def test_what_fails_writes_nothing_is_tried_again_and_ends_dead(
    start: Start, client: mq.Client, queue: str, effects: Effects, options: dict[str, Any]
) -> None:
    def fail(job: mq.Job) -> None:
        if job.payload == 2:
            raise ValueError("broken")

    client.enqueue_batch(queue, [1, 2, 3])
    worker = start(fail, **options)
    wait.until(lambda: client.dead_letters(queue), "it to be given up")
    worker.stop()
    (dead,) = client.dead_letters(queue)
    assert (dead.payload, dead.attempts) == (2, 3)
    assert [h["reason"] for h in dead.history] == ["ValueError: broken"] * 3
    assert [a for p, a in zip(worker.seen, worker.attempts, strict=True) if p == 2] == [1, 2, 3]
    assert effects() == [1, 3]
    assert worker.seen.count(1) == worker.seen.count(3) == 1


def test_an_error_of_the_database_in_the_handler_is_a_failure(
    start: Start, client: mq.Client, queue: str, effects: Effects, conn: psycopg.Connection[Any]
) -> None:
    conn.execute("alter table effect add check (payload <> 2)")
    client.enqueue_batch(queue, [1, 2, 3])
    worker = start(n=3)
    wait.until(lambda: client.dead_letters(queue), "it to be given up")
    worker.stop()
    assert effects() == [1, 3]


def test_what_cannot_commit_ends_dead_and_the_consumer_goes_on(
    start: Start, client: mq.Client, queue: str, effects: Effects, conn: psycopg.Connection[Any]
) -> None:
    conn.execute(
        "create table if not exists parent (id int primary key); insert into parent values (1), (3) on conflict do nothing;"
        " alter table effect add foreign key (payload) references parent deferrable initially deferred"
    )
    client.enqueue_batch(queue, [1, 2, 3])
    worker = start(poll_max=timedelta(milliseconds=50))
    wait.until(lambda: client.dead_letters(queue), "it to be given up")
    wait.until(lambda: effects() == [1, 3], "the others to be done")
    worker.stop()
    (dead,) = client.dead_letters(queue)
    assert (dead.payload, dead.attempts, dead.reason) == (2, 3, "rolled back")


def test_nack_snooze_and_results(
    start: Start, client: mq.Client, queue: str, effects: Effects
) -> None:
    def handle(job: mq.Job) -> None:
        times = worker.seen.count(job.payload)
        if job.payload == 1 and times < 5:
            job.snooze(SOON)
        elif job.payload == 2 and times == 1:
            job.nack(delay=SOON, reason="later")
        elif job.payload == 3:
            job.nack(dead=True, reason="never")
        else:
            job.ack(result={"n": job.payload})

    client.alter_queue(queue, result_retention=timedelta(hours=1))
    ids = client.enqueue_batch(queue, [1, 2, 3, 4])
    worker = start(handle, n=4)
    # Not queue_stats: what comes back while that counts may be in none of its figures.
    wait.until(lambda: len(effects()) == 9, "all to be done")
    worker.stop()
    attempts = list(zip(worker.seen, worker.attempts, strict=True))
    assert [a for p, a in attempts if p == 1] == [1] * 5
    assert [a for p, a in attempts if p == 2] == [1, 2]
    (dead,) = client.dead_letters(queue)
    assert (dead.payload, dead.reason) == (3, "never")
    assert effects() == [1, 1, 1, 1, 1, 2, 2, 3, 4]  # what a block wrote commits with its nack
    results = {i: client.wait_for(queue, i, timeout=timedelta(0)) for i in (ids[0], ids[1], ids[3])}
    assert [r.value for r in results.values() if r] == [{"n": 1}, {"n": 2}, {"n": 4}]


@pytest.mark.parametrize("transactional", [True, False])
def test_a_connection_lost_under_the_handler_undoes_all_of_it(
    start: Start,
    client: mq.Client,
    conn: psycopg.Connection[Any],
    queue: str,
    effects: Effects,
    transactional: bool,
) -> None:
    gate = Gate()
    client.enqueue_batch(queue, [1, 2])
    worker = start(gate, n=2, transactional=transactional)
    gate.until_reached()
    ((pid,),) = conn.execute(
        "select pid from pg_stat_activity where application_name like 'mq %' and state = 'idle in transaction'"
        " and datname = current_database()"
    ).fetchall()
    terminate(conn, pid)
    (stats,) = client.queue_stats(queue)
    assert (stats.ready, stats.leased) == (2, 0)  # at once
    gate.open()
    wait.until(lambda: is_over(client, queue), "all to be done")
    worker.stop()
    assert effects() == ([1, 2] if transactional else [])
    attempts = list(zip(worker.seen, worker.attempts, strict=True))
    assert [a for p, a in attempts if p == 1] == [1, 2]
    assert [a for p, a in attempts if p == 2][-1] == 2


def test_stopping_commits_what_is_done_and_returns_the_rest(
    start: Start, client: mq.Client, queue: str, effects: Effects
) -> None:
    gate = Gate()
    client.enqueue_batch(queue, [1, 2, 3])
    worker = start(gate, n=3)
    gate.until_reached()
    worker.consumer.stop()
    gate.open()
    worker.stop()
    assert effects() == [1]
    client.sweep_stale(queue)
    assert [d.payload for d in client.dequeue(queue, n=10)] == [2, 3]


def test_delayed_messages_are_delivered_when_due_also_under_load(
    start: Start, client: mq.Client, queue: str, effects: Effects
) -> None:
    client.enqueue(queue, 0, delay=SOON)
    worker = start()
    until_seen(worker, [0])
    most = 5000

    def feed(unit: Any) -> None:
        if -1 not in worker.seen and len(worker.seen) < most:
            client.enqueue(queue, 1)

    worker.handler = feed
    client.enqueue_batch(queue, [1, 1])
    client.enqueue(queue, -1, delay=SOON)
    wait.until(lambda: -1 in worker.seen or worker.error, "the delayed one")
    assert len(worker.seen) < most
    worker.stop()


def test_leaving_the_loop_gives_back(database: str, client: mq.Client, queue: str) -> None:
    client.enqueue_batch(queue, [1, 2])

    def fail() -> None:
        with mq.consume(database, queue, n=2, maintain_every=None) as jobs:
            for job in jobs:
                with job.transaction() as conn:
                    conn.execute("select 1")
                raise RuntimeError("outside")

    with pytest.raises(RuntimeError, match="outside"):
        fail()
    wait.until(lambda: client.sweep_stale(queue) >= 0 and client.peek(queue), "it to come back")
    assert [d.payload for d in client.dequeue(queue)] == [2]


def test_interrupted_in_the_handler_all_of_it_comes_again(
    database: str, client: mq.Client, queue: str, effects: Effects
) -> None:
    client.enqueue(queue, 1)

    def interrupted() -> None:
        with mq.consume(database, queue, maintain_every=None, signals=False) as jobs:
            for job in jobs:
                with job.transaction() as conn:
                    conn.execute(INSERT, ([job.payload],))
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert effects() == []
    client.sweep_stale(queue)
    assert [(d.payload, d.attempt) for d in client.dequeue(queue)] == [(1, 2)]


def test_a_handler_may_not_end_the_transaction(
    database: str, client: mq.Client, queue: str, effects: Effects
) -> None:
    client.alter_queue(queue, max_attempts=1)
    client.enqueue(queue, 1)
    with mq.consume(database, queue, maintain_every=None, stop_when_empty=True) as jobs:
        for job in jobs:
            with job.transaction() as conn:
                conn.execute(INSERT, ([job.payload],))
                conn.commit()
    assert effects() == []
    (dead,) = client.dead_letters(queue)
    assert dead.reason is not None
    assert "ProgrammingError" in dead.reason


def test_nobody_holds_a_transaction_while_he_waits(
    start: Start, conn: psycopg.Connection[Any], client: mq.Client, queue: str, effects: Effects
) -> None:
    worker = start()

    def is_asleep() -> bool:
        rows = conn.execute(
            "select state from pg_stat_activity where application_name like 'mq %' and datname = current_database()"
            " and query like '%next_due%'"
        ).fetchall()
        return rows == [("idle",)]

    wait.until(is_asleep, "the consumer to sleep")
    client.enqueue(queue, 1)  # which wakes it
    until_seen(worker, [1])


def test_eight_consumers_that_fail_at_random(
    database: str, client: mq.Client, queue: str, effects: Effects, conn: psycopg.Connection[Any]
) -> None:
    client.alter_queue(queue, max_attempts=1000, retry_backoff=timedelta(0))
    client.enqueue_batch(queue, list(range(300)))
    turns = itertools.count()

    def fail_now_and_then(unit: Any) -> None:
        if next(turns) % 7 == 0:
            raise ValueError("now and then")

    workers = [
        Worker(
            ["sync", "async"][i % 2], database, queue, fail_now_and_then,
            n=1 + i, maintain_every=None, transactional=True, poll_max=timedelta(milliseconds=100),
        )
        for i in range(8)
    ]  # fmt: skip
    try:
        wait.until(lambda: len(effects()) >= 300, "all to be done")
    finally:
        for worker in workers:
            worker.consumer.stop()
        for worker in workers:
            worker.stop()
    assert effects() == list(range(300))
    assert is_over(client, queue)


def test_sigterm_finishes_the_job(database: str, client: mq.Client, queue: str) -> None:
    client.enqueue_batch(queue, [1, 2])
    seen = []
    assert threading.current_thread() is threading.main_thread()
    for job in mq.consume(database, queue, maintain_every=None):
        with job:
            seen.append(job.payload)
            os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [1]
    assert [d.payload for d in client.dequeue(queue)] == [2]
