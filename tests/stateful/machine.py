"""What all rules stand on: three sessions, the calls, a clock that is moved, and the checks after each step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, ClassVar, TypeVar

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stateful.model import FORGOTTEN, Lease, Message, Model, Transaction
from support import conserve
from support.race import value

SESSIONS = 3
BACKOFF = 60
# Minutes. No sum of passes comes near to a delay or a timeout, so the seconds that a test takes do not matter.
PASSES = (41, 420, 1440)
DELAYS = (37, 200, 700)
TIMEOUTS = (60, 300)
SLACK = 3.0

WHO = st.integers(0, SESSIONS - 1)
PICK = st.integers(0, 1000)  # one of a list, whatever its length: see Machine.pick
SOME = st.none() | st.lists(st.integers(0, 5), max_size=4)

SEEN = """
select msg_id, state, attempt, extract(epoch from due_at - clock_timestamp())::float8 / 60, payload, headers, priority
from mq.peek('q', 1000000)
"""
DEAD = "select msg_id, attempts, reason, jsonb_array_length(history), payload from mq.dead_letters('q', 1000000)"
STATUS = """
select state, attempt, reason, extract(epoch from leased_until - clock_timestamp())::float8 / 60, priority, progress, result
from mq.message_status('q', %s)
"""
# Settings that are intervals, and drawn in minutes.
INTERVALS = (
    "visibility_timeout",
    "retry_backoff",
    "retry_backoff_max",
    "dedup_window",
    "retention",
    "result_retention",
    "rate_period",
)


Draws = dict[str, st.SearchStrategy[Any]]
F = TypeVar("F", bound=Callable[..., None])


@dataclass(frozen=True)
class Step:
    weight: int
    when: Callable[[Any], Any] | None
    arguments: dict[str, Any]


def step(
    weight: int = 1, *, when: Callable[[Any], Any] | None = None, **arguments: Any
) -> Callable[[F], F]:
    """A rule that is chosen so often, where `when` is true; arguments are strategies, or functions of the machine to one.

    Not hypothesis's @rule, which leaves out most rules of each example: here long runs need all of them.
    """

    def mark(method: F) -> F:
        method.step = Step(weight, when, arguments)  # type: ignore[attr-defined]
        return method

    return mark


class Session:
    """A connection, and the transaction that is open in it."""

    def __init__(self, dsn: str, no: int) -> None:
        self.dsn, self.no = dsn, no
        self.tx: Transaction | None = None
        self.connect()

    def connect(self) -> None:
        self.conn = psycopg.connect(
            self.dsn, autocommit=True, options="-c statement_timeout=15s -c lock_timeout=5s"
        )
        self.conn.execute("select setseed(0)")  # what mq leaves to chance is the same in each run


class Machine(RuleBasedStateMachine):
    """A fresh queue "q" and its model."""

    dsn: ClassVar[str]
    options: ClassVar[Draws] = {
        "headers": st.just({"h": 1}),
        "delay": st.sampled_from((0, *DELAYS)),
    }
    settings: ClassVar[Draws] = {
        "max_attempts": st.sampled_from((2, 3, 1)),
        "visibility_timeout": st.just(60),
        "retry_policy": st.just("fixed"),
        "retry_delays": st.none(),
        "retry_backoff": st.just(BACKOFF),
        "retry_backoff_max": st.just(150),
        "retry_jitter": st.just(0),
        "dedup_window": st.just(110),
        "retention": st.just(0),
        "result_retention": st.just(310),
    }

    def __init__(self) -> None:
        super().__init__()
        self.sound = False
        self.sessions = [Session(self.dsn, no) for no in range(SESSIONS)]
        self.conn = psycopg.connect(
            self.dsn, autocommit=True, options="-c statement_timeout=30s -c lock_timeout=10s"
        )
        self.conn.execute("select setseed(0)")
        self.begun = False
        self.consumer: tuple[int, int] | None = None  # who dequeued last, and how many at a time

    @initialize(data=st.data())
    def begins(self, data: st.DataObject) -> None:
        self.conn.execute("select mq.drop_queue(q.name) from mq.queues() as q")
        settings = data.draw(st.fixed_dictionaries(self.settings))
        self.model = Model(settings)
        given = {k: interval(v) if k in INTERVALS else v for k, v in settings.items()}
        is_list = settings["retry_policy"] == "list"
        given["retry_delays"] = [interval(x) for x in settings["retry_delays"]] if is_list else None
        named = ", ".join(f"{name} => %({name})s" for name in given)
        named = named.replace("%(retry_delays)s", "%(retry_delays)s::interval[]")
        self.conn.execute(f"select mq.create_queue('q', {named})".encode(), given)
        self.begun = True

    @rule(data=st.data())
    def next_step(self, data: st.DataObject) -> None:
        steps = self.steps()
        may = [x for x, one in steps.items() if one.when is None or one.when(self)]
        name = st.sampled_from([x for x in may for _ in range(steps[x].weight)])
        called, arguments = data.draw(name.flatmap(lambda x: st.tuples(st.just(x), self.drawn(x))))
        getattr(self, called)(**arguments)

    def drawn(self, name: str) -> st.SearchStrategy[dict[str, Any]]:
        """The arguments of a step."""
        given = self.steps()[name].arguments.items()
        return st.fixed_dictionaries(
            {k: v(self) if isinstance(v, FunctionType) else v for k, v in given}
        )

    @classmethod
    @cache
    def steps(cls) -> dict[str, Step]:
        """In the order in which the classes and their methods are written: draws shrink to the first."""
        names = {name: None for base in cls.__mro__ for name in vars(base)}
        return {x: f.step for x in names if hasattr(f := getattr(cls, x), "step")}

    # -- sessions and transactions --------------------------------------------------------------

    def pick(self, number: int, of: list[Any]) -> Any:
        """A draw that shrinks to the first one."""
        return of[number % len(of)]

    def others(self, session: Session | None = None) -> list[Transaction]:
        """The transactions that are open in other sessions."""
        return [s.tx for s in self.sessions if s.tx is not None and s is not session]

    def able(self) -> list[Session]:
        """Those that may dequeue: in REPEATABLE READ that is refused."""
        return [s for s in self.sessions if s.tx is None or not s.tx.repeatable]

    @contextlib.contextmanager
    def in_transaction(self, session: Session) -> Iterator[Transaction]:
        """That of the session, or one of this call's own."""
        self.sound = False
        if session.tx is not None:
            yield session.tx
            return
        tx = Transaction(self.model.step)
        try:
            yield tx
        except BaseException:
            tx.rollback()
            raise
        tx.commit()

    def value(self, session: Session, query: str, *parameters: Any) -> Any:
        """The one value of a query."""
        return value(session.conn, query, *parameters)

    def admin(self, query: str, *parameters: Any) -> Any:
        """The same, in a session that is never in a transaction."""
        self.sound = False
        return value(self.conn, query, *parameters)

    def usable(self, session: Session) -> list[Lease]:
        """Leases that the session may settle without waiting for another one, and with one possible answer."""
        return [
            x
            for x in self.model.leases
            if (x.holder is None or x.holder is session.tx) and x not in self.doubtful()
        ]

    def doubtful(self) -> list[Lease]:
        """Which ran out, and which a transaction that is open may have taken back, or not."""
        return [x for tx in self.others() for x in tx.perhaps]

    def is_blurred(self, session: Session, lease: Lease) -> bool:
        """Whether a held snapshot does not show what became of the lease: 40001 is right then."""
        tx = session.tx
        return (
            tx is not None
            and tx.repeatable
            and max(lease.changed, self.model.upkept) >= tx.began
            and lease.holder is not tx
        )

    @contextlib.contextmanager
    def blurred(self, session: Session, lease: Lease) -> Iterator[None]:
        """A call in a held snapshot may fail with 40001, where that is right; it undoes the call."""
        try:
            yield
        except psycopg.errors.SerializationFailure:
            assert self.is_blurred(session, lease), "40001, but the snapshot shows the lease"

    # -- time -----------------------------------------------------------------------------------

    def pass_time(self, minutes: int) -> None:
        """Nobody may have promoted, settled or rotated in a transaction that is open: its rows stay where they are."""
        self.sound = False
        conserve.pass_time(self.conn, interval(minutes))
        self.model.now += minutes
        self.model.upkept = self.model.step
        self.pass_more_time(minutes)

    def pass_more_time(self, minutes: int) -> None:
        """For times that are not in columns of type timestamptz."""

    # -- what may be delivered ------------------------------------------------------------------

    def check_delivery(
        self, session: Session, tx: Transaction, n: int, rows: list[Any], before: list[Message]
    ) -> None:
        """What a dequeue gave, out of the messages that were ready before."""
        assert len(rows) <= n
        assert len({row[0] for row in rows}) == len(rows), "a message twice in one lease"
        assert len({row[1] for row in rows}) <= 1, "two receipts in one call"
        for msg_id, _, attempt, _, payload, headers in rows:
            m = self.model.messages.get(msg_id)
            assert m is not None, f"message {msg_id} was not committed, or never sent"
            assert self.model.may_be_delivered(m, tx), (
                msg_id,
                self.model.shown(m),
                m.holder,
                m.attempt,
            )
            assert attempt == self.model.next_attempt(m)
            assert payload == m.payload
            assert headers == m.options.get("headers")
        self.check_order(session, tx, n, [self.model.messages[row[0]] for row in rows], before)

    def check_order(
        self, session: Session, tx: Transaction, n: int, got: list[Message], before: list[Message]
    ) -> None:
        """One consumer gets what others did not have in hand, and was not late, in the order of enqueue."""
        if self.consumer != (session.no, n):
            self.model.disturb()  # several consumers, or slices of another size, are side by side
        self.consumer = (session.no, n)
        lanes = {m.lane for m in got}
        assert len(lanes) <= 1, "two priorities in one call"
        orderly = sorted(m.id for m in before if not m.loose and m.lane in lanes)
        ids = [m.id for m in got if m.id in orderly]
        assert ids == orderly[: len(ids)], (ids, orderly)

    def check_turn(self, got: list[Message], before: list[Message], again: list[Message]) -> None:
        """Where nobody else has anything in hand: something comes if there is something, and what is most urgent."""
        if not got:
            assert before == []
            assert again == []
            return
        most = max(m.priority for m in got)
        assert [m for m in before if m.priority > most and not m.hole and self.first(m)] == []

    def in_turn(self, before: list[Message]) -> list[Message]:
        """Of what is ready, that which nothing holds up."""
        return before

    def first(self, m: Message) -> bool:
        """Whether its own priority is what counts."""
        return True

    def read_ids(self) -> None:
        """Where mq gives out numbers by itself, as far as it has come."""

    def is_tick_due(self) -> bool:
        """Of a schedule."""
        return False

    def ghosts(self) -> int:
        """What uses up room, though nobody sees it."""
        return 0

    def must_deliver(self, session: Session) -> bool:
        """Whether no rows would be wrong: nobody else has locks that a consumer passes by."""
        return not self.model.paused and not any(
            tx.claimed or tx.rotated for tx in self.others(session)
        )

    # -- checks after each step -----------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """Columns of queue_stats."""
        m = self.model
        return {
            **{state: len(m.having(state)) for state in ("ready", "deferred", "leased")},
            "dead": len(m.having("dead", "expired")),
            "enqueued_total": m.ids,
            "delivered_total": m.delivered,
            "settled_total": m.acked,
            "paused": m.paused,
        }

    @invariant()
    def is_as_the_model_says(self) -> None:
        """Where every message is, after each step; the rest in turn, as it costs time."""
        if not self.begun:
            return
        self.check_places()
        (self.check_dead, self.check_figures, self.check_one)[self.model.step % 3]()
        self.model.step += 1
        self.sound = True

    def check_places(self) -> None:
        model = self.model
        rows = self.conn.execute(SEEN).fetchall()
        seen = {row[0]: (row[1], row[2]) for row in rows}
        assert len(seen) == len(rows), "a message is in two places"
        self.learn(seen)
        live = model.having("ready", "deferred", "leased")
        assert seen == {m.id: (model.shown(m), m.attempt) for m in live}
        for msg_id, state, _, minutes, payload, headers, priority in rows:
            m = model.messages[msg_id]
            assert (payload, headers, priority) == (m.payload, m.options.get("headers"), m.priority)
            assert state != "deferred" or abs(m.due - model.now - minutes) < SLACK

    def learn(self, seen: dict[int, tuple[str, int]]) -> None:
        """What mq did by itself since the last look."""
        dead = self.conn.execute("select msg_id from mq.dead_letters('q', 1000000)").fetchall()
        self.model.learn(seen, {row[0] for row in dead})

    def check_dead(self) -> None:
        dead = {row[0]: row[1:] for row in self.conn.execute(DEAD).fetchall()}
        assert dead == {
            m.id: (m.attempt, m.reason, m.notes, m.payload) for m in self.model.having("dead")
        }

    def check_figures(self) -> None:
        figures = self.figures()
        query = f"select {', '.join(figures)} from mq.queue_stats('q')"
        row = self.conn.execute(query.encode()).fetchone()
        assert row is not None
        assert dict(zip(figures, row, strict=True)) == figures

    def check_one(self) -> None:
        """The status of one message, of each in turn."""
        if not self.model.messages:
            return
        m = self.pick(self.model.step, list(self.model.messages.values()))
        row = self.conn.execute(STATUS, (m.id,)).fetchone()
        assert row is not None
        self.check_status(m, *row)

    def check_status(
        self,
        m: Message,
        state: str | None,
        attempt: int | None,
        reason: str | None,
        minutes: float | None,
        priority: int | None,
        progress: Any,
        result: Any,
    ) -> None:
        model, shown = self.model, self.model.shown(m)
        for note, got in ((m.progress, progress), (m.result, result)):
            if note is None:
                assert got is None
            elif got is not None or (state is not None and model.is_fresh(note)):
                assert got == note.value
        if m.state in FORGOTTEN:
            may = {None, m.state, "completed" if m.result else None} - {"purged"}
            assert state in may
            assert state == m.state or not self.is_kept(m)
        elif shown == "expired":
            assert (state, attempt, reason) == ("dead", m.attempt - 1, "expired")
        else:
            assert (state, attempt, priority) == (shown, m.attempt, m.priority)
            assert (reason or "") == (m.reason if m.state == "dead" else "")
        if m.state == "leased" and m.lease is not None and m.lease.holder is None:
            assert minutes is not None
            assert abs(m.lease.until - model.now - minutes) < SLACK

    def is_kept(self, m: Message) -> bool:
        """Whether it cannot be forgotten that this message was acknowledged."""
        return m.state == "completed" and m.result is not None and self.model.is_fresh(m.result)

    # -- the end --------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if self.sound:
                self.ends()
        finally:
            for session in self.sessions:
                session.conn.close()
            self.conn.close()

    def ends(self) -> None:
        """Everything open is rolled back; what was committed is delivered and acknowledged, or dead, or purged."""
        model = self.model
        for session in self.sessions:
            if session.tx is not None:
                session.conn.execute("rollback")
                session.tx.rollback()
                session.tx = None
        self.is_as_the_model_says()
        self.stops()
        session = self.sessions[0]
        for _ in range(100):
            while self.dequeue(session, 50):
                with self.in_transaction(session) as tx:
                    lease = model.leases[-1]
                    wanted = model.ack(tx, lease)
                    assert self.value(session, "select mq.ack('q', %s)", lease.receipt) == wanted
            self.is_as_the_model_says()
            if not model.having("ready", "deferred", "leased", "expired"):
                break
            self.pass_time(1440)
        assert model.having("ready", "deferred", "leased", "expired") == []
        self.reclaims()

    def stops(self) -> None:
        """What would keep the queue from being empty."""
        self.admin("select mq.resume_queue('q')")
        self.model.paused = False

    def closes(self) -> None:
        """Begins another segment."""
        for _ in range(3):  # the spare slot may have gone to a rotation just now
            self.conn.execute("select mq.maintain('q')")
            with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState):
                self.conn.execute("select mq.rotate_segment('q')")
                break

    def reclaims(self) -> None:
        """Every segment goes but the open one, and none keeps space."""
        self.closes()
        for _ in range(20):
            self.conn.execute("select mq.maintain('q')")
            if self.admin("select count(*) from mq.segment") == 1:
                break
        assert self.admin("select count(*) from mq.segment") == 1
        assert self.admin(conserve.NOT_GIVEN_BACK) is None
        assert self.admin("select count(*) from mq.survivor") == 0
        self.check_places()
        self.check_dead()
        self.check_figures()

    # -- a dequeue, which several rules make ----------------------------------------------------

    def dequeue(
        self, session: Session, n: int, minutes: int | None = None, ack: Lease | None = None
    ) -> list[Any]:
        """Dequeues, and says whether that may be; with a receipt to acknowledge first."""
        model = self.model
        with self.in_transaction(session) as tx:
            begun = tx.wrote
            if ack is not None:
                tx.wrote = tx.settled = True
            acked = model.ack(tx, ack) if ack is not None else None
            before = [m for m in model.messages.values() if model.is_ready(m)]
            stale = [lease for lease in model.leases if model.ran_out(lease)]
            buried = model.having("expired", "cancelled")  # by who opens the block that they are in
            again = [
                m
                for x in stale
                if x not in self.doubtful()
                for m in x.left.values()
                if model.may_be_delivered(m) and m.ordering_key is None
            ]
            query = (
                "select msg_id, receipt, attempt, extract(epoch from leased_until - clock_timestamp())::float8 / 60,"
                " payload, headers from mq.dequeue('q', %s, visibility_timeout => %s, ack => %s)"
            )
            parameters = (n, minutes and interval(minutes), ack and ack.receipt)
            try:
                with session.conn.transaction():
                    rows = session.conn.execute(query, parameters).fetchall()
            except psycopg.Error as error:
                if error.sqlstate != "MQ003":
                    raise
                assert acked == 0, "MQ003, but the lease is there"
                return []
            assert acked != 0, "the lease was lost, and dequeue does not say so"
            assert not rows or not model.paused
            self.check_delivery(session, tx, n, rows, before)
            if acked is None and not begun and self.must_deliver(session):
                self.check_turn(
                    [model.messages[row[0]] for row in rows], self.in_turn(before), again
                )
            for row in rows:
                assert abs(row[3] - (minutes or 60)) < SLACK
            if not begun:
                tx.perhaps += stale
            if rows:
                tx.wrote = tx.claimed = True
                messages = [model.messages[row[0]] for row in rows]
                model.claim(tx, rows[0][1], messages, minutes or 60)
            elif (stale and not begun) or buried:
                tx.claimed = tx.settled = tx.wrote = True
            return rows


def interval(minutes: int) -> str:
    return f"{minutes} minutes"


def run_out(conn: psycopg.Connection, receipt: str) -> bool:
    """Lets one lease run out by editing its rows; False: it is not there, or somebody is settling it."""
    queue_id, slot, _, lane, block, piece, part, _, token = receipt.split(".")
    past = "set leased_until = clock_timestamp() - interval '1 ms'"
    moved = "select from mq.survivor where token = %s"
    if count := conn.execute(moved, (token,)).rowcount:
        with conn.transaction():
            free = conn.execute(moved + " for update skip locked", (token,)).rowcount
            if free == count:
                conn.execute(f"update mq.survivor {past} where token = %s", (token,))
        return free == count
    slot = f"{int(queue_id)}_{int(slot)}"
    at = f"lane = {int(lane)} and block_no = {int(block)}"
    which = at + f" and ({{}}slice, {{}}part) = ({int(piece)}, {int(part)})"
    found = conn.execute(
        f"update mq.lease_{slot} {past} where {which.format('head_', 'head_')}".encode()
    )
    conn.execute(
        f"update mq.settlement_{slot} {past} where {which.format('', '')} and leased_until is not null".encode()
    )
    return found.rowcount > 0
