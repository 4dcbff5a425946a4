"""Every public function with random arguments: an answer, or an error that its comment names; and nothing is lost."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import IsolationLevel

from support import arguments, attack, race
from support.arguments import Text
from support.attack import MALLORY, Function
from support.race import value
from support.server import Server
from support.server import database as temporary_database

Connect = Callable[..., psycopg.Connection]
Background = Callable[..., "Future[Any]"]

# PostgreSQL's own for arguments of the right type that are still no good. 22004: see docs/errors.md.
GENERIC = {"22003", "22008", "22004"}
# And when others are at it at the same time.
CONCURRENT = {"40001", "40P01", "55P03", "57014"}

QUEUES = ("a", "b", "c", "tx")
MODES = {"tx": "transaction"}
ITS_OWN = "="
"""Stands for the queue that a receipt belongs to."""

KEPT = "kept"
"""A queue that no call names: its messages have to be there in the end."""

OFTEN = {"enqueue": 6, "enqueue_batch": 5, "dequeue": 14, "ack": 6, "nack": 5, "extend": 4}
OFTEN |= {"maintain": 3, "rotate_segment": 2, "sweep_stale": 2, "resume_queue": 3}
"""How often a function is called; the others once."""

DESTRUCTIVE = {"drop_queue", "purge_queue", "purge_dead_letters", "redrive"}
DESTRUCTIVE |= {"schedule", "unschedule", "run_schedule"}  # which put in, or hide, what nobody sent

Call = tuple[Function, dict[str, str | None]]


@pytest.fixture(scope="module")
def database(server: Server, mq_template: str) -> Iterator[str]:
    with temporary_database(server, "security_fuzz", mq_template) as dsn:
        with psycopg.connect(dsn, autocommit=True) as owner:
            attack.make_users(owner)
        yield dsn


class World:
    """A session that makes the calls, and, if it is alone, a ledger of what has to come of them."""

    def __init__(
        self, connect: Connect, owner: psycopg.Connection, *, is_alone: bool = True
    ) -> None:
        self.owner = owner
        self.is_alone = is_alone
        self.connect = connect
        self.conn = self.reconnect()
        self.functions = attack.functions(owner)
        self.types = arguments.by_type(owner.info.server_version)
        self.allowed = GENERIC if is_alone else GENERIC | CONCURRENT
        self.called: set[str] = set()
        self.each: list[st.SearchStrategy[Call]] = []
        self.rounds = 0
        self.receipts: dict[str, tuple[str, set[int]]] = {}
        self.sent: dict[str, set[int]] = {}
        self.settled: dict[str, set[int]] = {}

    def reconnect(self) -> psycopg.Connection:
        """A new session: an old one keeps the plans of all queues that ever were."""
        options = f"-c statement_timeout={'60s' if self.is_alone else '3s'}"
        return self.connect(user=MALLORY, options=options, prepare_threshold=None)

    def strategy(self) -> st.SearchStrategy[list[Call]]:
        """Some calls for a transaction, more of those that a queue is there for."""
        receipt = st.integers(0, 7).map(self.receipt)
        receipt = st.one_of(receipt, receipt, receipt, arguments.WORDS, receipt.map(str.upper))
        queues = st.sampled_from((*QUEUES * 4, "", "none", "A"))
        names: dict[str, Text] = {
            "to_queue": st.sampled_from((*QUEUES, "none")),
            "receipt": receipt,
            "ack": receipt,
        }
        calls = []
        self.each = []
        for f in self.functions:
            has_receipt = any(argument.name == "receipt" for argument in f.arguments)
            queue = st.one_of(st.just(ITS_OWN), queues) if has_receipt else queues
            given = arguments.given(f.arguments, self.types, names | {"queue": queue})
            self.each.append(st.tuples(st.just(f), given))
            calls += self.each[-1:] * OFTEN.get(f.name, 1)
        return st.lists(st.sampled_from(calls).flatmap(lambda call: call), min_size=6, max_size=12)

    def receipt(self, age: int) -> str:
        """One of the last receipts."""
        known = [*self.receipts] or [""]
        return known[-1 - age % len(known)]

    def make(self, call: Call, ledger: list[Callable[[], None]]) -> None:
        """One call in a savepoint; what follows from it if the transaction commits goes to `ledger`."""
        function, given = call
        self.called.add(function.name)
        if given.get("queue") == ITS_OWN:
            given["queue"] = self.receipts.get(given.get("receipt") or "", ("a",))[0]
        query = function.call([*given])
        rows = attack.outcome(self.conn, query, given)
        if isinstance(rows, psycopg.Error):
            told = f"{rows.sqlstate} {attack.diagnosis(rows)}\n{query} {given}"
            assert rows.sqlstate in function.raises | self.allowed, told
            return
        queue = given.get("queue")
        if queue is not None and function.name == "dequeue" and rows:
            self.receipts[rows[0][1]] = (queue, {row[0] for row in rows})
            if rows[0][4].year == 9999:  # in mode transaction the commit is all that it takes
                ledger.append(lambda: self.consumed(queue, {row[0] for row in rows}))
        if queue is not None:
            ledger.append(lambda: self.note(function.name, queue, given, rows))

    def consumed(self, queue: str, msg_ids: set[int]) -> None:
        self.settled.setdefault(queue, set()).update(msg_ids)

    def note(self, name: str, queue: str, given: dict[str, str | None], rows: list[Any]) -> None:
        if name in ("enqueue", "enqueue_batch"):
            self.sent.setdefault(queue, set()).update(row[0] for row in rows)
        receipt = given.get("receipt") or given.get("ack")
        if receipt in self.receipts and (name == "dequeue" or (name == "ack" and rows[0][0] > 0)):
            self.settled.setdefault(queue, set()).update(self.receipts[receipt][1])

    def transaction(
        self, calls: list[Call], isolation: IsolationLevel | None, *, commit: bool = True
    ) -> None:
        """The calls in one transaction; without an isolation level, each in one of its own."""
        if isolation is None and len(calls) > 1:
            for call in calls:
                self.transaction([call], None)
            return
        ledger: list[Callable[[], None]] = []
        self.conn.isolation_level = isolation
        with self.conn.transaction(force_rollback=not commit):
            for call in calls:
                self.make(call, ledger)
        self.conn.isolation_level = None
        if commit and self.is_alone:
            for entry in ledger:
                entry()
            if any(function.name in DESTRUCTIVE for function, _ in calls):
                self.start_again()

    def start_again(self) -> None:
        """What was there is gone, or somewhere else: what is there now has to stay."""
        self.sent = {queue: self.present(queue) for queue in QUEUES}
        self.settled = {}

    def present(self, queue: str) -> set[int]:
        """The msg_ids of what is not settled; also what expired and nobody has buried yet."""
        return {
            row[0]
            for row in self.owner.execute(
                "select p.msg_id from mq.queue as q, mq._messages(q) as p where q.name = %(q)s union all"
                " select d.msg_id from mq.queues() as q, mq.dead_letters(q.name, null) as d where q.name = %(q)s",
                {"q": queue},
            )
        }

    def refill(self) -> None:
        """Every queue is there, open, and has something in it."""
        self.rounds += 1
        if self.rounds % 25 == 0:
            self.conn.close()
            self.conn = self.reconnect()
        for queue in QUEUES:
            with self.owner.transaction():
                if queue not in queues(self.owner):
                    create(self.owner, queue)
                    self.sent[queue] = set()
                self.owner.execute("select mq.resume_queue(%s)", (queue,))
                ids = self.owner.execute("select mq.enqueue_batch(%s, '{1,2,3}')", (queue,))
                self.sent.setdefault(queue, set()).update(row[0] for row in ids)

    def check_session(self) -> None:
        """Nothing of a call outlives it but what listen is for."""
        assert self.conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        held = self.owner.execute(
            """
            select l.classid, l.objid, l.mode from pg_locks as l
            where l.pid = %s and l.locktype <> 'virtualxid'
              and not (l.locktype = 'advisory' and l.mode = 'ShareLock'
                       and l.classid = ('mq.subscription'::regclass::oid::bigint & 2147483647)::oid)
            """,
            (self.conn.info.backend_pid,),
        ).fetchall()
        assert held == []
        assert value(self.conn, "select count(*) from pg_cursors where name <> ''") == 0

    def check_ledger(self) -> None:
        for queue in QUEUES:
            present = self.present(queue)
            sent = self.sent.get(queue, set())
            assert sent - self.settled.get(queue, set()) <= present <= sent, queue

    def drain(self, queue: str) -> list[int]:
        """The msg_ids of all that is delivered, and that died, whatever leases and delays there were."""
        got: list[int] = []
        queue_id = value(self.owner, "select queue_id from mq.queue where name = %s", queue)
        for generation in (0, 1):
            self.owner.execute(
                f"update mq.deferred_{queue_id}_{generation} set due_at = 'epoch'".encode()
            )
            self.owner.execute(
                f"update mq.timer_{queue_id}_{generation} set due_at = due_at - interval '300 years'".encode()
            )
        self.owner.execute("select mq.resume_queue(%s)", (queue,))
        if value(self.owner, "select mode = 'lease' from mq.queue where name = %s", queue):
            race.expire(self.owner, queue)
        self.owner.execute("select mq.maintain(%s)", (queue,))
        for _ in range(100):
            rows = race.take_rows(self.owner, 1000, queue)
            if not rows and self.present(queue) <= {*got} | {
                row[0]
                for row in self.owner.execute(
                    "select msg_id from mq.dead_letters(%s, null)", (queue,)
                )
            }:
                break
            got += [row[0] for row in rows]
            if rows:
                self.owner.execute("select mq.ack(%s, %s, strict => true)", (queue, rows[0][1]))
            else:
                self.owner.execute("select mq.maintain(%s)", (queue,))
        dead = self.owner.execute("select msg_id from mq.dead_letters(%s, null)", (queue,))
        return [*got, *(row[0] for row in dead)]


SETTINGS = functools.partial(
    settings,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # one example leads to the next: none can be tried again by itself
    suppress_health_check=[*HealthCheck],
)


def check_log(server: Server, mark: int) -> None:
    said = server.log_tail(1_000_000, since=mark)
    bad = r"^.*(?:PANIC|TRAP|terminated by signal|XX\d{3}).*$"
    assert re.findall(bad, said, re.MULTILINE) == []


def fill_kept(owner: psycopg.Connection) -> set[int]:
    """Messages in every state, which stay in it for as long as a test may take."""
    owner.execute("select mq.create_queue(%s, visibility_timeout => '1 day')", (KEPT,))
    race.fill(owner, 20, KEPT)
    race.put(owner, "later", KEPT, delay="1 day")
    for dead in ("true", "false"):
        owner.execute(
            "select mq.nack(%s, (select receipt from mq.dequeue(%s, 2) limit 1), dead => %s)",
            (KEPT, KEPT, dead),
        )
    race.lease(owner, 3, KEPT)
    race.rotate(owner, KEPT)
    race.fill(owner, 5, KEPT)
    return {*range(1, 27)}


def create(owner: psycopg.Connection, queue: str) -> None:
    """No lease runs out by itself, however slow the machine."""
    owner.execute(
        "select mq.create_queue(%s, mode => %s, visibility_timeout => '1 hour')",
        (queue, MODES.get(queue, "lease")),
    )


def queues(owner: psycopg.Connection) -> list[str]:
    return [row[0] for row in owner.execute("select name from mq.queues()")]


def fuzz(
    connect: Connect, owner: psycopg.Connection, server: Server, examples: int, *, random: bool
) -> None:
    race.fresh(owner.info.dsn)
    for queue in QUEUES:
        create(owner, queue)
    kept = fill_kept(owner)
    mark = server.log.stat().st_size
    world = World(connect, owner)
    calls = world.strategy()
    isolations = st.sampled_from([None, None, None, None, *IsolationLevel])

    @SETTINGS(max_examples=examples, derandomize=not random, print_blob=random)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        world.refill()
        commit = data.draw(st.sampled_from([True, True, True, False]))
        world.transaction(data.draw(calls), data.draw(isolations), commit=commit)
        world.check_session()

    @SETTINGS(max_examples=3, derandomize=not random)
    @given(drawn=st.tuples(*world.each))
    def run_each(drawn: tuple[Call, ...]) -> None:
        """None is left to luck."""
        world.refill()
        world.transaction([*drawn], None)
        world.check_session()

    run_each()
    run()
    assert world.called == {function.name for function in world.functions}
    world.check_ledger()
    assert world.present(KEPT) == kept
    # Or their ticks, made due with the rest, would be followed by others.
    owner.execute("select mq.unschedule(s.name) from mq.schedules() as s")
    for queue in queues(owner):
        expected = world.present(queue)
        assert sorted(world.drain(queue)) == sorted(expected), queue
    check_log(server, mark)


def test_random_arguments(connect: Connect, conn: psycopg.Connection, server: Server) -> None:
    fuzz(connect, conn, server, 80, random=False)


def test_random_rows_of_the_inbox(
    connect: Connect, conn: psycopg.Connection, server: Server
) -> None:
    race.fresh(conn.info.dsn)
    for queue in QUEUES:
        create(conn, queue)
    mark = server.log.stat().st_size
    world = World(connect, conn)
    columns = {
        name: world.types[type_] if name != "queue" else st.sampled_from((*QUEUES, "", "none"))
        for name, type_ in conn.execute(
            "select attname, format_type(atttypid, null) from pg_attribute"
            " where attrelid = 'mq.inbox'::regclass and attnum > 0 and not attisdropped"
        )
    }
    rows = st.fixed_dictionaries({name: st.none() | some for name, some in columns.items()})
    good = st.fixed_dictionaries(
        {name: st.none() for name in columns}
        | {"queue": st.sampled_from(QUEUES), "payload": columns["payload"]}
    )
    insert = f"insert into mq.inbox ({', '.join(columns)}) values %s returning 1"
    (enqueue,) = (function for function in world.functions if function.name == "enqueue")
    sent = dict.fromkeys(QUEUES, 0)

    @SETTINGS(max_examples=100, derandomize=True)
    @given(
        drawn=st.lists(rows, min_size=1, max_size=2) | st.lists(good | rows, min_size=1, max_size=4)
    )
    def run(drawn: list[dict[str, str | None]]) -> None:
        values = ", ".join(f"({', '.join(['%s'] * len(columns))})" for _ in drawn)
        given = [row[name] for row in drawn for name in columns]
        got = attack.outcome(world.conn, insert % values, given)
        if isinstance(got, psycopg.Error):
            assert got.sqlstate in enqueue.raises | GENERIC, (attack.diagnosis(got), given)
        else:
            for row in drawn:
                sent[str(row["queue"])] += 1
        world.check_session()

    run()
    assert sum(sent.values()) > 10
    assert {queue: len(world.present(queue)) for queue in QUEUES} == sent
    check_log(server, mark)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_random_arguments(connect: Connect, conn: psycopg.Connection, server: Server) -> None:
    fuzz(connect, conn, server, 1500, random=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_arguments_in_sessions_at_the_same_time(
    connect: Connect, conn: psycopg.Connection, server: Server, background: Background
) -> None:
    """Queues come and go under the calls: what they get to hear is what they may hear."""
    race.fresh(conn.info.dsn)
    for queue in QUEUES:
        create(conn, queue)
    kept = fill_kept(conn)
    mark = server.log.stat().st_size
    worlds = [World(connect, conn, is_alone=False) for _ in range(4)]
    for world in worlds:
        world.receipts = worlds[0].receipts

    strategies = [world.strategy() for world in worlds]

    @SETTINGS(max_examples=500, print_blob=True)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        worlds[0].refill()
        drawn = [data.draw(some) for some in strategies]
        isolation = data.draw(st.sampled_from([None, None, IsolationLevel.READ_COMMITTED]))
        running = [
            background(world.transaction, calls, isolation, commit=True)
            for world, calls in zip(worlds, drawn, strict=True)
        ]
        for call in running:
            call.result()
        for world in worlds:
            world.check_session()

    run()
    assert worlds[0].present(KEPT) == kept
    check_log(server, mark)
