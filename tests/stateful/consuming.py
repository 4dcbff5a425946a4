"""Rules of consumers: dequeue, ack, nack, extend, and receipts that are worth nothing any more."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import psycopg
from hypothesis import strategies as st

from stateful.machine import (
    DELAYS,
    PICK,
    SLACK,
    SOME,
    TIMEOUTS,
    WHO,
    Machine,
    Session,
    interval,
    step,
)
from stateful.model import Lease

MANY = st.sampled_from((1, 3, 2, 5, 50))
NACKS: tuple[dict[str, Any], ...] = (
    {},
    {"delay": 0},
    {"delay": DELAYS[0]},
    {"delay": 0, "count_attempt": False},
    {"count_attempt": False, "reason": "snooze"},
    {"dead": True},
    {"dead": True, "reason": "because"},
    {"reason": "because"},
)


class Consuming(Machine):
    def live(self, session: Session) -> list[Lease]:
        return [x for x in self.usable(session) if x.left]

    def settled(self, session: Session) -> list[Lease]:
        """Or lost; the newest first."""
        return [x for x in reversed(self.usable(session)) if not x.left]

    def having(self, leases: Any) -> list[Session]:
        return [s for s in self.sessions if leases(s)]

    # -- dequeue --------------------------------------------------------------------------------

    @step(
        5,
        when=lambda self: self.able(),
        who=WHO,
        n=MANY,
        minutes=st.none() | st.sampled_from(TIMEOUTS),
    )
    def takes(self, who: int, n: int, minutes: int | None) -> None:
        self.dequeue(self.pick(who, self.able()), n, minutes)

    @step(
        2,
        when=lambda self: self.able(),
        who=WHO,
        n=MANY,
        times=st.integers(1, 12),
        how=st.sampled_from(("ack", "dequeue")),
    )
    def works(self, who: int, n: int, times: int, how: str) -> None:
        """Takes and acknowledges, several times; the receipt goes along with the next dequeue, or before."""
        session = self.pick(who, self.able())
        last = None
        for _ in range(times):
            if not self.dequeue(session, n, ack=last):
                break
            lease = self.model.leases[-1]
            if how == "ack":
                self.acks(session, lease, None)
            else:
                last = lease

    @step(2, when=lambda self: any(self.live(s) for s in self.able()), who=WHO, n=MANY, which=PICK)
    def takes_and_acks(self, who: int, n: int, which: int) -> None:
        session = self.pick(who, [s for s in self.able() if self.live(s)])
        self.dequeue(session, n, ack=self.pick(which, self.live(session)))

    # -- settle ---------------------------------------------------------------------------------

    def ids(self, lease: Lease, some: list[int] | None) -> list[int] | None:
        """Of a lease, by their places; one that is not of it, too."""
        if some is None:
            return None
        places = list(lease.left)
        return [places[i] if i < len(places) else 10**9 + i for i in some]

    def acks(self, session: Session, lease: Lease, ids: list[int] | None) -> None:
        with self.in_transaction(session) as tx, self.blurred(session, lease):
            tx.wrote = tx.settled = True
            with session.conn.transaction():
                got = self.value(session, "select mq.ack('q', %s, %s)", lease.receipt, ids)
            assert got == self.model.ack(tx, lease, ids)

    @step(4, when=lambda self: self.having(self.live), who=WHO, which=PICK, some=SOME)
    def ack(self, who: int, which: int, some: list[int] | None) -> None:
        session = self.pick(who, self.having(self.live))
        lease = self.pick(which, self.live(session))
        self.acks(session, lease, self.ids(lease, some))

    @step(when=lambda self: self.having(self.live), who=WHO, which=PICK, some=SOME)
    def ack_strictly(self, who: int, which: int, some: list[int] | None) -> None:
        """All that was asked for, or nothing."""
        session = self.pick(who, self.having(self.live))
        lease = self.pick(which, self.live(session))
        ids = self.ids(lease, some)
        wanted = 1 if ids is None else len(set(ids))
        with self.in_transaction(session) as tx, self.blurred(session, lease):
            tx.wrote = tx.settled = True
            try:
                with session.conn.transaction():
                    query = "select mq.ack('q', %s, %s, strict => true)"
                    got = self.value(session, query, lease.receipt, ids)
            except psycopg.Error as error:
                if error.sqlstate != "MQ003":
                    raise
                assert len(self.model.chosen(lease, ids)) < wanted
            else:
                assert got == self.model.ack(tx, lease, ids)
                assert got >= wanted

    @step(
        5,
        when=lambda self: self.having(self.live),
        who=WHO,
        which=PICK,
        some=SOME,
        how=st.sampled_from(NACKS),
    )
    def nack(self, who: int, which: int, some: list[int] | None, how: dict[str, Any]) -> None:
        session = self.pick(who, self.having(self.live))
        lease = self.pick(which, self.live(session))
        self.nacks(session, lease, self.ids(lease, some), how)

    def nacks(
        self, session: Session, lease: Lease, ids: list[int] | None, how: dict[str, Any]
    ) -> None:
        given = {k: interval(v) if k == "delay" else v for k, v in how.items()}
        extra = "".join(f", {name} => %({name})s" for name in given)
        query = f"select mq.nack('q', %(receipt)s, %(ids)s{extra})"
        given |= {"receipt": lease.receipt, "ids": ids}
        with self.in_transaction(session) as tx, self.blurred(session, lease):
            tx.wrote = tx.settled = True
            with session.conn.transaction():
                row = session.conn.execute(query.encode(), given).fetchone()
            assert row == (self.model.nack(tx, lease, ids, **how),)

    @step(
        2,
        when=lambda self: any(self.live(s) for s in self.able()),
        who=WHO,
        which=PICK,
        minutes=st.sampled_from(TIMEOUTS),
    )
    def extend(self, who: int, which: int, minutes: int) -> None:
        """Not with a held snapshot, which shows deadlines as they were before time was moved."""
        session = self.pick(who, [s for s in self.able() if self.live(s)])
        lease = self.pick(which, self.live(session))
        query = "select extract(epoch from mq.extend('q', %s, %s) - clock_timestamp())::float8 / 60"
        with self.in_transaction(session) as tx:
            tx.wrote = tx.settled = True
            got = self.value(session, query, lease.receipt, interval(minutes))
            assert got is not None
            self.model.extend(tx, lease, minutes)
            assert abs(lease.until - self.model.now - got) < SLACK

    @step(
        4,
        when=lambda self: self.having(self.settled),
        who=WHO,
        which=st.integers(0, 4),
        how=st.sampled_from(("ack", "nack", "extend", "dequeue")),
    )
    def comes_late(self, who: int, which: int, how: str) -> None:
        """The receipt of a lease that is lost, or settled: nothing happens, and the answer says so. The newest, mostly."""
        session = self.pick(who, self.having(self.settled))
        lease = self.pick(which, self.settled(session))
        if how == "dequeue" and session in self.able():
            self.dequeue(session, 1, ack=lease)
            return
        self.is_late(session, lease, "ack" if how == "dequeue" else how)

    @step(2, when=lambda self: self.having(self.live), who=WHO, which=PICK)
    def forges(self, who: int, which: int) -> None:
        """The receipt of another part of a lease, which nobody was given, is worth nothing."""
        session = self.pick(who, self.having(self.live))
        lease = self.pick(which, self.live(session))
        fields = lease.receipt.split(".")
        for at, how in itertools.product((5, 6), ("extend", "nack", "ack")):
            other = [*fields[:at], str(int(fields[at]) + 1), *fields[at + 1 :]]
            self.is_late(session, replace(lease, receipt=".".join(other)), how)

    def is_late(self, session: Session, lease: Lease, how: str) -> None:
        with self.in_transaction(session), self.blurred(session, lease):
            with session.conn.transaction():
                got = self.value(session, f"select mq.{how}('q', %s)", lease.receipt)
            assert got == (None if how == "extend" else 0)
