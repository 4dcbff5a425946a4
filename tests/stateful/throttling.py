"""Limits of what consumers may have, and of how much they are given in a while: never above, and no less than that."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import strategies as st

from stateful.consuming import Consuming
from stateful.machine import Draws, Machine, Session
from stateful.model import Lease, Message, Transaction

PERIOD = 190  # no sum of passes comes near to it


class Throttling(Consuming):
    settings: ClassVar[Draws] = {
        **Machine.settings,
        "max_in_flight": st.sampled_from((3, 5, 2, None)),
        "rate_limit": st.sampled_from((1000, 1000, 15)),
        "rate_period": st.just(PERIOD),
    }

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[int, int, Lease]] = []  # when, and how many

    def in_flight(self) -> int:
        """Not what ran out: in a queue that is full that is taken back first."""
        return sum(
            len(x.left) for x in self.model.leases if not x.lost and x.until >= self.model.now
        )

    def in_period(self) -> int:
        """What was delivered, and not undone."""
        return sum(
            n
            for at, n, lease in self.given
            if at > self.model.now - PERIOD and (lease.committed or not lease.lost)
        )

    def room(self) -> int:
        """How many more may be delivered."""
        most, rate = (self.model.settings[x] for x in ("max_in_flight", "rate_limit"))
        return min(
            10**6 if most is None else most - self.in_flight(),
            10**6 if rate is None else rate - self.in_period(),
        )

    def dequeue(
        self, session: Session, n: int, minutes: int | None = None, ack: Lease | None = None
    ) -> list[Any]:
        rows = super().dequeue(session, n, minutes, ack)
        if rows:
            self.given.append((self.model.now, len(rows), self.model.leases[-1]))
        return rows

    def check_delivery(
        self, session: Session, tx: Transaction, n: int, rows: list[Any], before: list[Message]
    ) -> None:
        assert not rows or len(rows) <= self.room(), f"room for {self.room()}"
        super().check_delivery(session, tx, n, rows, before)

    def check_order(
        self, session: Session, tx: Transaction, n: int, got: list[Message], before: list[Message]
    ) -> None:
        """Who may have less than he asks for cuts slices."""
        if len(got) < n:
            self.model.disturb()
        super().check_order(session, tx, n, got, before)
        if len(got) < n:
            self.model.disturb()

    def must_deliver(self, session: Session) -> bool:
        """An ack counts when it is committed."""
        settling = any(tx.settled for tx in self.others(session))
        return super().must_deliver(session) and self.room() > 0 and not settling

    def stops(self) -> None:
        super().stops()
        if self.model.settings["rate_limit"] is not None:
            self.admin("select mq.alter_queue('q', rate_limit => 0)")
            self.model.settings["rate_limit"] = None
