"""Rules of consumers: dequeue, ack, nack, extend, and receipts that are worth nothing any more."""

from __future__ import annotations

from typing import Any

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from stateful.machine import DELAYS, SLACK, TIMEOUTS, Machine, Session, interval
from stateful.model import Lease
from stateful.producing import WHO

MANY = st.sampled_from((1, 3, 2, 5, 50))
PICK = st.integers(0, 1000)
SOME = st.none() | st.lists(st.integers(0, 20), max_size=4)


class Consuming(Machine):
    def may_dequeue(self) -> bool:
        return any(s.tx is None or not s.tx.repeatable for s in self.sessions)

    def consumer_(self, who: int) -> Session:
        """Not in REPEATABLE READ, where it is refused."""
        able = [s for s in self.sessions if s.tx is None or not s.tx.repeatable]
        session: Session = self.pick(who, able)
        return session

    def live(self, session: Session) -> list[Lease]:
        return [x for x in self.usable(session) if x.left]

    def ids(self, lease: Lease, some: list[int] | None) -> list[int] | None:
        """Of the lease, by their places; one that is not of it, too."""
        if some is None:
            return None
        places = list(lease.left)
        return [places[i] if i < len(places) else 10**9 + i for i in some]

    # -- dequeue --------------------------------------------------------------------------------

    @precondition(lambda self: self.may_dequeue())
    @rule(who=WHO, n=MANY, minutes=st.none() | st.sampled_from(TIMEOUTS))
    def takes(self, who: int, n: int, minutes: int | None) -> None:
        self.dequeue(self.consumer_(who), n, minutes)

    @precondition(lambda self: self.may_dequeue())
    @rule(who=WHO, n=MANY, times=st.integers(1, 12))
    def works(self, who: int, n: int, times: int) -> None:
        """Takes and acknowledges, several times."""
        session = self.consumer_(who)
        for _ in range(times):
            if not self.dequeue(session, n):
                break
            self.acks(session, self.model.leases[-1], None)

    @precondition(lambda self: self.may_dequeue())
    @rule(who=WHO, n=MANY, which=PICK)
    def takes_and_acks(self, who: int, n: int, which: int) -> None:
        session = self.consumer_(who)
        if leases := self.live(session):
            self.dequeue(session, n, ack=self.pick(which, leases))

    # -- settle ---------------------------------------------------------------------------------

    def acks(self, session: Session, lease: Lease, ids: list[int] | None) -> None:
        with self.in_transaction(session) as tx, self.blurred(session, lease):
            with session.conn.transaction():
                got = self.value(session, "select mq.ack('q', %s, %s)", lease.receipt, ids)
            assert got == self.model.ack(tx, lease, ids)
            tx.wrote = tx.settled = True

    @rule(who=WHO, which=PICK, some=SOME)
    def ack(self, who: int, which: int, some: list[int] | None) -> None:
        session = self.sessions[who]
        if leases := self.live(session):
            lease = self.pick(which, leases)
            self.acks(session, lease, self.ids(lease, some))

    @rule(who=WHO, which=PICK, some=SOME)
    def ack_strictly(self, who: int, which: int, some: list[int] | None) -> None:
        """All that was asked for, or nothing."""
        session = self.sessions[who]
        if not (leases := self.live(session)):
            return
        lease = self.pick(which, leases)
        ids = self.ids(lease, some)
        wanted = 1 if ids is None else len(set(ids))
        with self.in_transaction(session) as tx, self.blurred(session, lease):
            tx.wrote = tx.settled = True
            try:
                with session.conn.transaction():
                    query = "select mq.ack('q', %s, %s, strict => true)"
                    got = self.value(session, query, lease.receipt, ids)
            except psycopg.Error as error:
                if error.sqlstate == "40001":
                    raise
                assert error.sqlstate == "MQ003", error
                assert len(self.model.chosen(lease, ids)) < wanted
            else:
                assert got == self.model.ack(tx, lease, ids)
                assert got >= wanted

    @rule(
        who=WHO,
        which=PICK,
        some=SOME,
        how=st.fixed_dictionaries(
            {},
            optional={"delay": st.sampled_from((0, *DELAYS)), "reason": st.just("because")},
        ),
        end=st.sampled_from(({}, {}, {"dead": True}, {"count_attempt": False})),
    )
    def nack(
        self,
        who: int,
        which: int,
        some: list[int] | None,
        how: dict[str, Any],
        end: dict[str, bool],
    ) -> None:
        session = self.sessions[who]
        if not (leases := self.live(session)):
            return
        lease = self.pick(which, leases)
        ids = self.ids(lease, some)
        named = {**how, **end}
        given = {k: interval(v) if k == "delay" else v for k, v in named.items()}
        extra = "".join(f", {name} => %({name})s" for name in given)
        query = f"select mq.nack('q', %(receipt)s, %(ids)s{extra})"
        with self.in_transaction(session) as tx, self.blurred(session, lease):
            with session.conn.transaction():
                row = session.conn.execute(
                    query.encode(), {"receipt": lease.receipt, "ids": ids, **given}
                ).fetchone()
            assert row == (self.model.nack(tx, lease, ids, **named),)
            tx.wrote = tx.settled = True

    @rule(who=WHO, which=PICK, minutes=st.sampled_from(TIMEOUTS))
    def extend(self, who: int, which: int, minutes: int) -> None:
        session = self.sessions[who]
        # A held snapshot shows deadlines of before the time that passed.
        if session.tx is not None and session.tx.repeatable:
            return
        if not (leases := self.live(session)):
            return
        lease = self.pick(which, leases)
        query = (
            "select extract(epoch from mq.extend('q', %s, %s) - clock_timestamp())::float8 / 60"
        )
        with self.in_transaction(session) as tx:
            got = self.value(session, query, lease.receipt, interval(minutes))
            assert got is not None
            self.model.extend(tx, lease, minutes)
            assert abs(lease.until - self.model.now - got) < SLACK
            tx.wrote = tx.settled = True

    @rule(who=WHO, which=PICK, how=st.sampled_from(("ack", "nack", "extend", "dequeue")))
    def comes_late(self, who: int, which: int, how: str) -> None:
        """The receipt of a lease that is lost, or settled: nothing happens, and the answer says so."""
        session = self.sessions[who]
        leases = [x for x in self.usable(session) if not x.left]
        if not leases:
            return
        lease = self.pick(-1 - which, leases)
        if how == "dequeue":
            if session.tx is None or not session.tx.repeatable:
                self.dequeue(session, 1, ack=lease)
            return
        with self.in_transaction(session), self.blurred(session, lease):
            with session.conn.transaction():
                got = self.value(session, f"select mq.{how}('q', %s)", lease.receipt)
            assert got in ((0,) if how != "extend" else (None,))
