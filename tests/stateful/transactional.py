"""A queue of mode transaction and a model of it: three sessions that take, give back, commit, roll back and get lost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from stateful.machine import PICK, SESSIONS, WHO
from support import wait
from support.race import value


@dataclass(eq=False)
class Message:
    """One that was committed."""

    id: int
    attempt: int = 1  # of its next delivery
    is_suspect: bool = False  # somebody had it and rolled back: it comes alone
    state: str = "ready"  # deferred: it joins with the next sweep; done, dead, cancelled
    holder: Session | None = None


@dataclass(eq=False)
class Taken:
    """What one dequeue of an open transaction gave."""

    receipt: str
    messages: list[Message]
    back: dict[Message, dict[str, Any]] = field(default_factory=dict)  # and how


class Session:
    """A connection, and what its transaction has done, as far as it was not undone."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connect()
        self.forget()

    def connect(self) -> None:
        self.conn = psycopg.connect(
            self.dsn, autocommit=True, options="-c statement_timeout=15s -c lock_timeout=5s"
        )
        self.conn.execute("select setseed(0)")

    def forget(self) -> None:
        self.is_open = False
        self.sent: list[Message] = []
        self.taken: list[Taken] = []
        self.saved: tuple[int, int] | None = None  # how much there was of both


class InTransactions(RuleBasedStateMachine):
    """Each message is consumed once, or dead after max_attempts deliveries; each delivery has the attempt that it must have."""

    dsn: ClassVar[str]

    @initialize(most=st.integers(1, 4))
    def begins(self, most: int) -> None:
        self.conn = psycopg.connect(self.dsn, autocommit=True, options="-c statement_timeout=30s")
        self.conn.execute("select mq.drop_queue(q.name) from mq.queues() as q")
        self.conn.execute(
            "select mq.create_queue('q', mode => 'transaction', max_attempts => %s, retry_backoff => '0')",
            (most,),
        )
        self.most = most
        self.ids = 0
        self.messages: dict[int, Message] = {}
        self.sessions = [Session(self.dsn) for _ in range(SESSIONS)]

    def begin(self, session: Session) -> None:
        if not session.is_open:
            session.conn.execute("begin")
            session.is_open = True

    def taken(self) -> list[tuple[Session, Taken]]:
        return [(s, t) for s in self.sessions for t in s.taken]

    def may_be_delivered(self, m: Message) -> bool:
        return m.state == "ready" and m.holder is None and m.attempt <= self.most

    # -- what sessions do -----------------------------------------------------------------------

    @rule(who=WHO, count=st.sampled_from((1, 3, 10)), priority=st.sampled_from((None, None, 9)))
    def enqueue(self, who: int, count: int, priority: int | None) -> None:
        session = self.sessions[who]
        for _ in range(count):
            self.ids += 1
            query = "select mq.enqueue('q', %s, priority => %s)"
            assert value(session.conn, query, json.dumps(self.ids), priority) == self.ids
            session.sent.append(Message(self.ids))
        if not session.is_open:
            self.committed(session)

    @rule(who=WHO, n=st.sampled_from((1, 1, 3, 20)))
    def dequeue(self, who: int, n: int) -> None:
        session = self.sessions[who]
        self.begin(session)
        may = [m for m in self.messages.values() if self.may_be_delivered(m)]
        rows = session.conn.execute(
            "select msg_id, receipt, attempt, payload from mq.dequeue('q', %s)", (n,)
        ).fetchall()
        got = [self.messages[row[0]] for row in rows]
        assert len(set(got)) == len(got) <= n
        assert set(got) <= set(may)
        assert [row[2] for row in rows] == [m.attempt for m in got]
        assert [row[3] for row in rows] == [m.id for m in got]
        assert len(got) == 1 or not any(m.is_suspect for m in got), "a suspect comes alone"
        if may and not any(s.is_open for s in self.sessions if s is not session):
            assert got, "somebody waits, and nobody is in his way"
        if got:
            session.taken.append(Taken(rows[0][1], got))
        for m in got:
            m.holder = session

    @precondition(lambda self: self.taken())
    @rule(
        which=PICK,
        some=st.none() | st.sets(st.integers(0, 3)),
        how=st.sampled_from(({}, {"delay": 3600}, {"dead": True}, {"count_attempt": False})),
    )
    def nack(self, which: int, some: set[int] | None, how: dict[str, Any]) -> None:
        session, taken = self.taken()[which % len(self.taken())]
        if session.saved is not None and session.taken.index(taken) < session.saved[1]:
            return  # the savepoint would have to undo it
        left = [m for m in taken.messages if m not in taken.back]
        chosen = [m for i, m in enumerate(left) if some is None or i in some]
        query = "select mq.nack('q', %s, %s, delay => make_interval(secs => %s), dead => %s, count_attempt => %s)"
        ids = [m.id for m in chosen]
        how = {"delay": 0, "dead": False, "count_attempt": True} | how
        assert value(session.conn, query, taken.receipt, ids, *how.values()) == len(chosen)
        taken.back |= dict.fromkeys(chosen, how)

    @precondition(lambda self: self.taken())
    @rule(which=PICK)
    def ack_and_report(self, which: int) -> None:
        """Nothing changes but the answer."""
        session, taken = self.taken()[which % len(self.taken())]
        left = [m for m in taken.messages if m not in taken.back]
        assert value(session.conn, "select mq.ack('q', %s)", taken.receipt) == len(left)
        for m in taken.messages:
            query = "select mq.report('q', %s, %s, '1')"
            assert value(session.conn, query, taken.receipt, m.id) == (m in left)

    @rule(who=WHO)
    def savepoint(self, who: int) -> None:
        session = self.sessions[who]
        self.begin(session)
        session.conn.execute("savepoint s")
        session.saved = len(session.sent), len(session.taken)

    @precondition(lambda self: any(s.saved for s in self.sessions))
    @rule(which=PICK)
    def rollback_to_savepoint(self, which: int) -> None:
        saved = [s for s in self.sessions if s.saved is not None]
        session = saved[which % len(saved)]
        assert session.saved is not None
        session.conn.execute("rollback to s")
        sent, taken = session.saved
        self.undone(session.taken[taken:])
        del session.sent[sent:], session.taken[taken:]

    @precondition(lambda self: any(s.is_open for s in self.sessions))
    @rule(which=PICK, how=st.sampled_from(("commit", "commit", "rollback", "lost")))
    def end(self, which: int, how: str) -> None:
        is_open = [s for s in self.sessions if s.is_open]
        session = is_open[which % len(is_open)]
        if how == "lost":
            pid = wait.backend_pid(session.conn)
            self.conn.execute("select pg_terminate_backend(%s)", (pid,))
            session.conn.close()
            wait.until_gone(self.conn, pid)
            session.connect()
        else:
            session.conn.execute(how)
        if how == "commit":
            self.committed(session)
        else:
            self.undone(session.taken)
            session.forget()

    # -- what becomes of it ---------------------------------------------------------------------

    def committed(self, session: Session) -> None:
        self.messages |= {m.id: m for m in session.sent}
        for taken in session.taken:
            for m in taken.messages:
                m.holder = None
                how = taken.back.get(m)
                if how is None:
                    m.state = "done"
                elif how["dead"] or (how["count_attempt"] and m.attempt >= self.most):
                    m.state = "dead"
                else:
                    m.state, m.is_suspect = "deferred", False
                    m.attempt += how["count_attempt"]
        session.forget()

    def undone(self, takings: list[Taken]) -> None:
        for taken in takings:
            for m in taken.messages:
                m.holder, m.is_suspect = None, True
                m.attempt += 1

    # -- the others -----------------------------------------------------------------------------

    @rule(how=st.sampled_from(("sweep_stale", "maintain")))
    def upkeep(self, how: str) -> None:
        self.conn.execute(f"select * from mq.{how}('q')".encode())
        waiting = {row[0] for row in self.conn.execute("select msg_id from mq.peek('q', 100000)")}
        for m in self.messages.values():
            if m.state == "deferred" and self.is_in_log(m):
                m.state = "ready"
            assert (m.id in waiting) >= self.may_be_delivered(m)

    def is_in_log(self, m: Message) -> bool:
        """It joined: what is deferred has a time."""
        query = (
            "select bool_or(p.due_at is null) from mq.peek('q', 100000) as p where p.msg_id = %s"
        )
        return bool(value(self.conn, query, m.id))

    @rule(hours=st.just(2))
    def time_passes(self, hours: int) -> None:
        if not any(s.is_open for s in self.sessions):
            queue_id = value(self.conn, "select queue_id from mq.queue where name = 'q'")
            for table in ("deferred", "timer"):
                for i in (0, 1):
                    self.conn.execute(
                        f"update mq.{table}_{queue_id}_{i} set due_at = due_at - make_interval(hours => %s)".encode(),
                        (hours,),
                    )

    @rule()
    def rotate(self) -> None:
        if value(self.conn, "select count(*) from mq.segment") < 4:
            self.conn.execute("select mq.rotate_segment('q')")

    @precondition(lambda self: any(m.state == "ready" for m in self.messages.values()))
    @rule(which=PICK)
    def cancel(self, which: int) -> None:
        ready = [m for m in self.messages.values() if m.state == "ready"]
        m = ready[which % len(ready)]
        if any(s.is_open for s in self.sessions) or m.attempt > self.most:
            return  # who looked at it may have it locked, or somebody buried it
        assert value(self.conn, "select mq.cancel('q', %s)", m.id)
        m.state = "cancelled"

    # -- the end --------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "sessions"):
            return
        try:
            for session in self.sessions:
                if session.is_open:
                    session.conn.execute("rollback")
                    self.undone(session.taken)
                    session.forget()
            self.drain()
        finally:
            for session in self.sessions:
                session.conn.close()
            self.conn.close()

    def drain(self) -> None:
        """What waits is delivered; what was rolled back too often, or rejected, is dead: nothing else is."""
        waits = {m.id: m for m in self.messages.values() if m.state in ("ready", "deferred")}
        self.time_passes(2)
        got: dict[int, int] = {}
        for _ in range(3):
            self.conn.execute("select mq.sweep_stale('q')")
            while rows := self.conn.execute("select * from mq.dequeue('q', 50)").fetchall():
                assert not {row[0] for row in rows} & set(got)
                got |= {row[0]: row[2] for row in rows}
        assert got == {m.id: m.attempt for m in waits.values() if m.attempt <= self.most}
        dead = {
            row[0] for row in self.conn.execute("select msg_id from mq.dead_letters('q', 100000)")
        }
        expected = {m.id for m in self.messages.values() if m.state == "dead"}
        assert dead == expected | {m.id for m in waits.values() if m.attempt > self.most}
        stats = self.conn.execute(
            "select ready, deferred, leased from mq.queue_stats('q')"
        ).fetchone()
        assert stats == (0, 0, 0)
