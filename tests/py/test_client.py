"""Every method of `mq.Client`, on a real server."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

import mq
from mq import calls
from support.server import Server
from support.server import database as temporary_database

Connect = Callable[..., psycopg.Connection[Any]]

MINUTE = timedelta(minutes=1)

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def database(server: Server, mq_template: str) -> Iterator[str]:
    """One for all tests here: each has a queue of its own."""
    with temporary_database(server, "client", mq_template) as dsn:
        yield dsn


@pytest.fixture
def queue(conn: psycopg.Connection[Any]) -> str:
    name = f"q{next(NUMBERS)}"
    mq.Client(conn).create_queue(name)
    return name


@pytest.fixture
def client(conn: psycopg.Connection[Any]) -> mq.Client:
    return mq.Client(conn)


def test_arguments_are_those_of_the_sql_functions(conn: psycopg.Connection[Any]) -> None:
    rows = conn.execute(
        """
        select p.proname, n.name, format_type(t.oid, null)
        from pg_proc p
        left join lateral unnest(p.proargnames[:p.pronargs], p.proargtypes::oid[])
            with ordinality as n (name, type, position) on true
        left join pg_type t on t.oid = n.type
        where p.pronamespace = 'mq'::regnamespace and p.proname !~ '^_' and p.proname <> 'inbox'
        order by p.proname, n.position
        """
    ).fetchall()
    short = {"integer": "int", "timestamp with time zone": "timestamptz"}
    found: dict[str, dict[str, str]] = {}
    for function, argument, kind in rows:
        arguments = found.setdefault(function, {})
        if argument is not None:
            arguments[argument] = short.get(kind, kind)
    ours = {name: dict(arguments) for name, arguments in calls.ARGUMENTS.items()}
    assert {name: found.get(name) for name in ours} == ours
    assert {n: list(found[n]) for n in ours} == {n: list(a) for n, a in ours.items()}  # the order


def test_create_alter_list_drop(client: mq.Client) -> None:
    client.create_queue("jobs", visibility_timeout=MINUTE, max_attempts=3)
    client.create_queue("jobs", if_not_exists=True)
    client.alter_queue("jobs", max_attempts=7)
    info = {info.name: info for info in client.queues()}["jobs"]
    assert not info.paused
    assert info.settings["max_attempts"] == 7
    assert info.created_at.tzinfo is not None
    client.drop_queue("jobs")
    assert "jobs" not in [info.name for info in client.queues()]


def test_pause_resume(client: mq.Client, queue: str) -> None:
    client.enqueue(queue, 1)
    client.pause_queue(queue)
    assert queue in [info.name for info in client.queues() if info.paused]
    client.resume_queue(queue)
    assert [d.payload for d in client.dequeue(queue)] == [1]


def test_purge(client: mq.Client, queue: str) -> None:
    client.enqueue_batch(queue, [1, 2, 3])
    assert client.purge_queue(queue) == 3
    assert client.dequeue(queue) == []


@pytest.mark.parametrize("payload", [{"a": [1, None, "ü"]}, [], "text", 1, 1.5, True, None])
def test_a_payload_comes_back_as_it_was(client: mq.Client, queue: str, payload: object) -> None:
    msg_id = client.enqueue(queue, payload, {"trace": "x"})
    (delivery,) = client.dequeue(queue)
    assert delivery.payload == payload
    assert delivery.headers == {"trace": "x"}
    assert (delivery.msg_id, delivery.attempt) == (msg_id, 1)


def test_a_delivery_is_typed_whatever_the_connection_makes_of_rows(
    database: str, queue: str
) -> None:
    with psycopg.connect(database, autocommit=True, row_factory=dict_row) as conn:
        client = mq.Client(conn)
        client.enqueue(queue, "x")
        (delivery,) = client.dequeue(queue, visibility_timeout=MINUTE)
    assert isinstance(delivery, mq.Delivery)
    assert delivery.enqueued_at.tzinfo is not None
    assert delivery.leased_until > delivery.enqueued_at
    assert isinstance(delivery.receipt, str)


def test_batch_keeps_order_and_headers(client: mq.Client, queue: str) -> None:
    ids = client.enqueue_batch(queue, ["a", "b", None], [{"n": 1}, None, {"n": 3}])
    assert ids == sorted(ids)
    got = client.dequeue(queue, 10)
    assert [(d.msg_id, d.payload, d.headers) for d in got] == list(
        zip(ids, ["a", "b", None], [{"n": 1}, None, {"n": 3}], strict=True)
    )
    assert len({d.receipt for d in got}) == 1


def test_an_empty_batch_sends_nothing(client: mq.Client, queue: str) -> None:
    assert client.enqueue_batch(queue, []) == []


def test_delay_and_deliver_at_defer(client: mq.Client, queue: str) -> None:
    client.enqueue(queue, 1, delay=timedelta(hours=2))
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    msg_id = client.enqueue(queue, 2, deliver_at=due)
    assert client.dequeue(queue, 10) == []
    assert client.next_due(queue) == due
    status = client.message_status(queue, msg_id)
    assert status is not None
    assert (status.state, status.due_at) == ("deferred", due)


def test_nothing_is_due(client: mq.Client, queue: str) -> None:
    assert client.next_due(queue) is None


def test_the_transaction_is_the_callers(
    database: str, conn: psycopg.Connection[Any], queue: str
) -> None:
    with psycopg.connect(database) as mine:
        mq.Client(mine).enqueue(queue, "no")
        mine.rollback()
        mq.Client(mine).enqueue(queue, "yes")
        assert mine.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert mq.Client(conn).dequeue(queue) == []
        mine.commit()
    assert [d.payload for d in mq.Client(conn).dequeue(queue, 10)] == ["yes"]


def test_ack(client: mq.Client, queue: str) -> None:
    client.enqueue_batch(queue, [1, 2, 3])
    got = client.dequeue(queue, 3)
    receipt = got[0].receipt
    assert client.ack(queue, receipt, [got[0].msg_id]) == 1
    assert client.ack(queue, receipt, []) == 0
    assert client.ack(queue, receipt) == 2
    assert client.ack(queue, receipt) == 0
    with pytest.raises(mq.LeaseLost):
        client.ack(queue, receipt, strict=True)


def test_ack_by_the_next_dequeue(client: mq.Client, queue: str) -> None:
    client.enqueue_batch(queue, [1, 2])
    (one,) = client.dequeue(queue)
    (two,) = client.dequeue(queue, ack=one.receipt)
    assert two.payload == 2
    with pytest.raises(mq.LeaseLost):
        client.dequeue(queue, ack=one.receipt)


def test_retry_policies(client: mq.Client) -> None:
    later = [timedelta(seconds=5), timedelta(hours=2)]
    client.create_queue("listed", retry_policy="list", retry_delays=later, retry_jitter=0)
    (queue,) = [one for one in client.queues() if one.name == "listed"]
    assert queue.settings["retry_delays"] == ["00:00:05", "02:00:00"]
    client.enqueue("listed", 1)
    (one,) = client.dequeue("listed")
    assert client.nack("listed", one.receipt) == 1
    due = client.next_due("listed")
    assert due is not None
    assert 0 <= (due - datetime.now(timezone.utc)).total_seconds() <= 5
    client.alter_queue("listed", retry_policy="fixed")
    with pytest.raises(mq.InvalidArgument, match="retry_delays"):
        client.alter_queue("listed", retry_delays=later)


def test_dedup_keys(client: mq.Client) -> None:
    client.create_queue("once", dedup_window=timedelta(hours=1))
    first = client.enqueue("once", 1, dedup_key="k")
    assert client.enqueue("once", 2, dedup_key="k") == first
    with pytest.raises(mq.Duplicate) as error:
        client.enqueue("once", 3, dedup_key="k", on_duplicate="reject")
    assert error.value.msg_id == first
    second = client.enqueue("once", 4, dedup_key="k", on_duplicate="replace")
    assert client.enqueue_batch("once", [5, 6, 7], dedup_keys=["k", "l", None])[0] == second
    assert client.copy_in("once", [mq.Message(8, dedup_key="l"), mq.Message(9, dedup_key="m")]) == 2
    assert [message.payload for message in client.peek("once")] == [4, 6, 7, 9]
    client.alter_queue("once", dedup_window=timedelta(0))
    (queue,) = [one for one in client.queues() if one.name == "once"]
    assert queue.settings["dedup_window"] == "00:00:00"


def test_priorities(client: mq.Client, queue: str) -> None:
    low = client.enqueue(queue, "low", priority=0)
    client.enqueue_batch(queue, ["high", "higher"], priority=8)
    client.copy_in(queue, ["plain", mq.Message("highest", priority=9)])
    status = client.message_status(queue, low)
    assert status is not None
    assert (status.state, status.priority) == ("ready", 0)
    assert [m.priority for m in client.peek(queue)] == [0, 8, 8, 4, 9]
    got = [client.dequeue(queue, 10) for _ in range(4)]
    assert [[d.payload for d in some] for some in got] == [
        ["highest"],
        ["high", "higher"],
        ["plain"],
        ["low"],
    ]
    with pytest.raises(mq.InvalidArgument, match="priority"):
        client.enqueue(queue, 1, priority=10)


def test_priority_ageing(client: mq.Client) -> None:
    client.create_queue("ageing", priority_ageing=MINUTE)

    def setting() -> str | None:
        (found,) = [one for one in client.queues() if one.name == "ageing"]
        ageing: str | None = found.settings["priority_ageing"]
        return ageing

    assert setting() == "00:01:00"
    client.alter_queue("ageing", max_attempts=7)
    assert setting() == "00:01:00"
    client.alter_queue("ageing", priority_ageing=timedelta(0))
    assert setting() is None
    with pytest.raises(mq.InvalidArgument, match="priority_ageing"):
        client.alter_queue("ageing", priority_ageing=-MINUTE)


def test_a_full_queue(client: mq.Client) -> None:
    client.create_queue("short", max_depth=2)
    client.enqueue_batch("short", [1, 2])
    with pytest.raises(mq.QueueFull, match="is full") as error:
        client.enqueue("short", 3)
    assert error.value.sqlstate == "MQ008"
    assert error.value.hint is not None
    client.alter_queue("short", overflow="dead_letter")
    client.enqueue("short", 3)
    assert [dead.reason for dead in client.dead_letters("short")] == ["overflow"]
    client.alter_queue("short", max_depth=0)
    (queue,) = [one for one in client.queues() if one.name == "short"]
    assert (queue.settings["max_depth"], queue.settings["overflow"]) == (None, "reject")
    with pytest.raises(mq.InvalidArgument, match="overflow"):
        client.alter_queue("short", overflow="drop_oldest")


def test_limits(client: mq.Client) -> None:
    client.create_queue("few", max_in_flight=2, rate_limit=3, rate_period=MINUTE)
    client.enqueue_batch("few", [1, 2, 3, 4])
    first = client.dequeue("few", 4)
    assert [one.payload for one in first] == [1, 2]
    assert client.dequeue("few", 4) == []
    client.ack("few", first[0].receipt)
    assert [one.payload for one in client.dequeue("few", 4)] == [3]
    due = client.next_due("few")
    assert due is not None
    client.alter_queue("few", max_in_flight=0, rate_limit=0)
    (queue,) = [one for one in client.queues() if one.name == "few"]
    assert (queue.settings["max_in_flight"], queue.settings["rate_period"]) == (None, None)
    assert [one.payload for one in client.dequeue("few", 4)] == [4]
    with pytest.raises(mq.InvalidArgument, match="rate_period"):
        client.alter_queue("few", rate_period=MINUTE)


def test_a_message_may_be_put_off(client: mq.Client, queue: str) -> None:
    client.enqueue(queue, 1)
    for _ in range(20):
        (one,) = client.dequeue(queue)
        assert one.attempt == 1
        assert client.nack(queue, one.receipt, delay=timedelta(0), count_attempt=False) == 1
    (one,) = client.dequeue(queue)
    with pytest.raises(mq.InvalidArgument, match="count_attempt"):
        client.nack(queue, one.receipt, dead=True, count_attempt=False)


def test_nack(client: mq.Client, queue: str) -> None:
    client.enqueue_batch(queue, [1, 2, 3])
    one, two, three = client.dequeue(queue, 3)
    assert client.nack(queue, one.receipt, [one.msg_id], delay=timedelta(0), reason="why") == 1
    assert client.nack(queue, one.receipt, [two.msg_id], dead=True, reason="bad") == 1
    assert client.nack(queue, one.receipt, delay=timedelta(hours=1)) == 1
    (again,) = client.dequeue(queue, 3)
    assert (again.msg_id, again.attempt) == (one.msg_id, 2)
    (dead,) = client.dead_letters(queue)
    assert (dead.msg_id, dead.reason, dead.payload, dead.attempts) == (two.msg_id, "bad", 2, 1)
    assert dead.died_at >= dead.enqueued_at
    assert dead.history
    status = client.message_status(queue, three.msg_id)
    assert status is not None
    assert status.state == "deferred"


def test_extend(client: mq.Client, queue: str) -> None:
    client.enqueue(queue, 1)
    (got,) = client.dequeue(queue)
    until = client.extend(queue, got.receipt, timedelta(hours=1))
    assert until is not None
    assert until > got.leased_until
    client.ack(queue, got.receipt)
    assert client.extend(queue, got.receipt) is None


def test_schedules(client: mq.Client, queue: str) -> None:
    hour = timedelta(hours=1)
    due = client.schedule(f"s.{queue}", "0 * * * *", queue, {"n": 1}, headers={"h": 1})
    assert timedelta() < due - datetime.now(timezone.utc) <= hour
    again = client.schedule(
        f"s.{queue}", "every day", queue, None, timezone="Europe/Berlin", catch_up="all"
    )
    (found,) = [s for s in client.schedules() if s.queue == queue]
    assert (found.name, found.cron, found.timezone) == (f"s.{queue}", "every day", "Europe/Berlin")
    assert (found.payload, found.headers, found.catch_up) == (None, None, "all")
    assert found.next_at == again == client.cron_next("every day")
    assert client.cron_next("every day", again, "Europe/Berlin") == again + 24 * hour
    sent = client.run_schedule(f"s.{queue}")
    assert [d.msg_id for d in client.dequeue(queue)] == [sent]
    assert client.unschedule(f"s.{queue}")
    assert not client.unschedule(f"s.{queue}")
    with pytest.raises(mq.ScheduleNotFound):
        client.run_schedule(f"s.{queue}")
    with pytest.raises(mq.InvalidArgument):
        client.schedule("s", "61 * * * *", queue, 1)


def test_redrive_and_purge_dead_letters(client: mq.Client, queue: str) -> None:
    client.enqueue_batch(queue, [1, 2])
    got = client.dequeue(queue, 2)
    client.nack(queue, got[0].receipt, dead=True)
    assert client.redrive(queue, [got[0].msg_id]) == 1
    assert [d.msg_id for d in client.dequeue(queue, 2)] == [got[0].msg_id]
    assert client.purge_dead_letters(queue, older_than=timedelta(days=1)) == 0
    assert client.purge_dead_letters(queue) == 1
    assert client.dead_letters(queue, 5) == []


def test_rewind_and_history(client: mq.Client, queue: str) -> None:
    with pytest.raises(mq.InvalidArgument, match="queue"):
        client.rewind(queue, to_msg_id=1)
    client.alter_queue(queue, retention=timedelta(days=1))
    client.enqueue_batch(queue, [1, 2, 3])
    one, *_ = client.dequeue(queue, 3)
    client.ack(queue, one.receipt, [1, 2])
    first, second = client.history(queue)
    assert (first.msg_id, first.attempts, first.outcome, first.history) == (1, 1, "acked", [])
    assert (first.payload, first.headers) == (1, None)
    assert first.enqueued_at <= first.settled_at
    at = second.enqueued_at + timedelta(microseconds=1)
    assert [m.msg_id for m in client.history(queue, to_time=at, n=1)] == [1]
    assert client.history(queue, from_time=at) == []
    assert client.rewind(queue, to_time=at) == 0
    assert client.rewind(queue, to_msg_id=2) == 1
    assert [d.msg_id for d in client.dequeue(queue, 3)] == [2]
    assert client.rewind(queue, to_time=one.enqueued_at) == 1


def test_peek_status_stats(client: mq.Client, queue: str) -> None:
    first, second = client.enqueue_batch(queue, ["a", "b"])
    client.dequeue(queue)
    peeked = {p.msg_id: p for p in client.peek(queue, 10)}
    assert peeked[second].state == "ready"
    assert peeked[second].payload == "b"
    status = client.message_status(queue, first)
    assert status is not None
    assert status.state == "leased"
    assert status.leased_until is not None
    assert client.message_status(queue, 10**9) is None
    (stats,) = client.queue_stats(queue)
    assert (stats.queue, stats.ready, stats.leased, stats.deferred, stats.dead) == (
        queue,
        1,
        1,
        0,
        0,
    )
    assert isinstance(stats.oldest_ready_age, timedelta)
    assert queue in [stats.queue for stats in client.queue_stats()]


def test_upkeep(client: mq.Client, queue: str) -> None:
    assert client.sweep_stale(queue) == 0
    assert client.sweep_stale() >= 0  # also what earlier tests leased
    client.rotate_segment(queue)
    for action in client.maintain(queue):
        assert isinstance(action, mq.MaintenanceAction)
        assert action.queue == queue
    assert isinstance(client.maintain(), list)


def test_listen(client: mq.Client, connect: Connect, queue: str) -> None:
    ears = connect()
    mq.Client(ears).listen(queue)
    client.enqueue(queue, 1)
    (notify,) = ears.notifies(timeout=10, stop_after=1)
    assert (notify.channel, notify.payload) == (f"mq_{queue}", "")
    mq.Client(ears).unlisten(queue)
    assert ears.execute("select count(*) from pg_listening_channels()").fetchone() == (0,)


def test_version(client: mq.Client) -> None:
    assert client.version().startswith("0.1")


def test_copy_in(client: mq.Client, queue: str) -> None:
    client.create_queue("other")
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    messages: list[object] = [
        {"plain": 1},
        None,
        mq.Message("with headers", {"h": 1}),
        mq.Message("later", deliver_at=due),
        mq.Message("elsewhere", queue="other"),
    ]
    assert client.copy_in(queue, iter(messages)) == 5
    got = client.dequeue(queue, 10)
    assert [(d.payload, d.headers) for d in got] == [
        ({"plain": 1}, None),
        (None, None),
        ("with headers", {"h": 1}),
    ]
    assert client.next_due(queue) == due
    assert [d.payload for d in client.dequeue("other", 10)] == ["elsewhere"]


def test_copy_in_is_all_or_nothing(client: mq.Client, queue: str) -> None:
    with pytest.raises(mq.QueueNotFound):
        client.copy_in(queue, [1, mq.Message(2, queue="nowhere")])

    def broken() -> Any:
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.copy_in(queue, broken())
    assert client.dequeue(queue, 10) == []


def test_cancel(client: mq.Client, queue: str) -> None:
    waits, leased = client.enqueue(queue, 1, delay=timedelta(hours=1)), client.enqueue(queue, 2)
    assert [message.payload for message in client.dequeue(queue, 10)] == [2]
    assert client.cancel(queue, waits)
    assert not client.cancel(queue, waits)
    assert not client.cancel(queue, leased)
    status = client.message_status(queue, waits)
    assert status is not None
    assert status.state == "cancelled"


def test_time_to_live(client: mq.Client, queue: str) -> None:
    late = client.enqueue(queue, "late", ttl=timedelta(microseconds=1))
    client.enqueue_batch(queue, ["in", "time"], ttl=timedelta(hours=1))
    assert [message.payload for message in client.dequeue(queue, 10)] == ["in", "time"]
    (dead,) = client.dead_letters(queue)
    assert (dead.msg_id, dead.reason, dead.attempts) == (late, "expired", 0)
    with pytest.raises(mq.InvalidArgument):
        client.enqueue(queue, 1, ttl=timedelta(minutes=1), delay=timedelta(minutes=2))


def test_what_is_not_supported_says_so(client: mq.Client, queue: str) -> None:
    client.create_queue(f"{queue}.transaction", mode="transaction")
    with pytest.raises(mq.NotSupported) as caught:
        client.alter_queue(f"{queue}.transaction", max_depth=1)
    assert caught.value.hint


def test_dequeue_wants_read_committed(database: str, queue: str) -> None:
    with psycopg.connect(database) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        mq.Client(conn).enqueue(queue, 1)
        with pytest.raises(mq.NotSupported):
            mq.Client(conn).dequeue(queue)


def test_results_and_progress(client: mq.Client, queue: str) -> None:
    ids = client.enqueue_batch(queue, [1, 2, 3, 4])
    taken = client.dequeue(queue, 4)
    receipt = taken[0].receipt
    assert client.wait_for(queue, ids[0], timedelta(0)) is None
    assert client.report(queue, receipt, ids[0], {"percent": 50}) is True
    assert client.report(queue, receipt, ids[1], None) is True
    assert client.ack(queue, receipt, [ids[0]], result={"n": 1}) == 1
    assert client.ack(queue, receipt, [ids[1]], result=Jsonb(None)) == 1
    assert client.ack(queue, receipt, [ids[2]]) == 1
    assert client.report(queue, receipt, ids[0], 1) is False
    assert client.wait_for(queue, ids[0]) == mq.Result({"n": 1})
    assert client.wait_for(queue, ids[1]) == mq.Result(None)
    assert client.wait_for(queue, ids[2], timedelta(0)) == mq.Result(None)
    status = client.message_status(queue, ids[0])
    assert status is not None
    assert (status.state, status.progress, status.result) == (
        "completed",
        {"percent": 50},
        {"n": 1},
    )
    client.nack(queue, receipt, dead=True, reason="bad")
    with pytest.raises(mq.MessageDead) as caught:
        client.wait_for(queue, ids[3])
    assert caught.value.detail == "bad"
    with pytest.raises(mq.InvalidArgument):
        client.wait_for(queue, ids[3] + 1)


def test_results_are_kept_for_so_long(client: mq.Client) -> None:
    client.create_queue("kept", result_retention=MINUTE)
    client.alter_queue("kept", result_retention=timedelta(hours=2))
    (queue,) = [one for one in client.queues() if one.name == "kept"]
    assert queue.settings["result_retention"] == "02:00:00"


def test_a_result_that_cannot_be_decoded(
    conn: psycopg.Connection[Any], client: mq.Client, queue: str
) -> None:
    msg_id = client.enqueue(queue, 1)
    (one,) = client.dequeue(queue)
    digits = "9" * 5000
    conn.execute("select mq.ack(%s, %s, result => %s::jsonb)", (queue, one.receipt, digits))
    for call in (client.wait_for, client.message_status):
        with pytest.raises(mq.Undecodable, match="what is kept cannot be decoded") as caught:
            call(queue, msg_id)
        assert (caught.value.msg_ids, caught.value.rows) == ([], [digits])
