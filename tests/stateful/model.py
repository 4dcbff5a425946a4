"""A queue as mq promises it. Time is in minutes and moves only when it is told to.

A transaction that is open changes what its session may do next, at once, and what others see, at its end. So each change is
two functions: how to undo it, and what it means when it is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

# Where the status may be null: their segment may be gone.
FORGOTTEN = ("completed", "cancelled", "purged")


@dataclass(eq=False)
class Message:
    """state: ready (deferred until it is due), leased, completed, cancelled, dead, purged."""

    id: int
    payload: Any
    due: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    state: str = "ready"
    attempt: int = 1  # of the delivery to come, or of the last one
    notes: int = 0  # entries in its history
    reason: str = ""  # of its death
    died: int = 0  # in which step, and when
    died_at: int = 0
    lease: Lease | None = None
    holder: Transaction | None = None  # which claimed it and is not over
    loose: bool = (
        False  # the order of delivery is free: it was deferred, taken back, or committed late
    )


@dataclass(eq=False)
class Lease:
    """What one dequeue gave. `left` is not settled yet, as its holder sees it."""

    receipt: str
    until: int
    left: dict[int, Message]
    holder: Transaction | None  # has claimed, settled or extended it, and is not over
    changed: int  # the step of the last commit that changed it
    committed: bool = False
    lost: bool = False


class Transaction:
    """What a session did and did not commit."""

    def __init__(self, began: int, *, repeatable: bool = False) -> None:
        self.began = began  # the step of its snapshot, if that is held
        self.repeatable = repeatable
        self.steps: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self.savepoints: list[int] = []
        self.sent: list[Message] = []
        self.extended: list[Lease] = []
        self.perhaps: list[Lease] = []  # which ran out, and which it may have taken back
        self.wrote = False
        self.claimed = False  # has locks that others pass by
        self.settled = False
        self.rotated = False

    def do(self, undo: Callable[[], None], commit: Callable[[], None]) -> None:
        self.steps.append((undo, commit))

    def rollback(self, to: int = 0) -> None:
        while len(self.steps) > to:
            self.steps.pop()[0]()

    def commit(self) -> None:
        for _, commit in self.steps:
            commit()


class Model:
    """One queue."""

    def __init__(self, max_attempts: int, backoff: int) -> None:
        self.max_attempts = max_attempts
        self.backoff = backoff
        self.paused = False
        self.now = 0
        self.step = 0
        self.upkept = 0  # the step of the last upkeep
        self.ids = 0  # given out so far
        self.delivered = 0
        self.acked = 0
        self.messages: dict[int, Message] = {}  # that were committed
        self.leases: list[Lease] = []

    # -- what others see ------------------------------------------------------------------------

    def shown(self, m: Message) -> str:
        return "deferred" if m.state == "ready" and m.due > self.now else m.state

    def having(self, *states: str) -> list[Message]:
        return [m for m in self.messages.values() if self.shown(m) in states]

    def ran_out(self, lease: Lease) -> bool:
        """A sweep may take it back, unless somebody is settling it."""
        return (
            not lease.lost and lease.holder is None and lease.until < self.now and any(lease.left)
        )

    def is_ready(self, m: Message) -> bool:
        return m.holder is None and self.shown(m) == "ready"

    def may_be_delivered(self, m: Message) -> bool:
        """Ready; or its lease ran out, and the call took that back itself."""
        return self.is_ready(m) or (
            m.state == "leased"
            and m.lease is not None
            and self.ran_out(m.lease)
            and m.attempt < self.max_attempts
        )

    # -- enqueue --------------------------------------------------------------------------------

    def next_id(self) -> int:
        self.ids += 1  # a rollback leaves a gap
        return self.ids

    def enqueue(self, tx: Transaction, messages: Iterable[Message], *, late: bool) -> None:
        """late: in a transaction that goes on, so others may overtake them."""
        mine = list(messages)

        def commit() -> None:
            for m in mine:
                m.loose = m.loose or late or m.due > 0
                self.messages[m.id] = m

        tx.sent += mine
        tx.do(lambda: None, commit)

    # -- dequeue --------------------------------------------------------------------------------

    def claim(self, tx: Transaction, receipt: str, messages: list[Message], minutes: int) -> Lease:
        """A lease over messages that may be delivered; each is delivered for the attempt that next_attempt says."""
        lease = Lease(
            receipt, self.now + minutes, {m.id: m for m in messages}, tx, changed=self.step
        )
        self.leases.append(lease)
        stale = {m.lease: None for m in messages if m.state == "leased"}
        for old in stale:
            assert old is not None
            self.hold(tx, old)
        for m in messages:
            m.holder = tx

        def undo() -> None:
            # It was never delivered: the attempt does not count. Who finds nothing fresh takes it, or a sweep.
            lease.left, lease.lost, lease.changed = {}, True, self.step
            for m in messages:
                m.holder, m.loose = None, True

        def commit() -> None:
            for old in stale:
                assert old is not None
                self.take_back(old)
            for m in messages:
                m.state, m.lease, m.holder = "leased", lease, None
            self.delivered += len(messages)
            lease.holder, lease.changed, lease.committed = None, self.step, True

        tx.do(undo, commit)
        return lease

    def next_attempt(self, m: Message) -> int:
        return m.attempt + (m.state == "leased")

    def hold(self, tx: Transaction, lease: Lease) -> None:
        """While the transaction is open nobody else can settle the lease."""
        before, lease.holder = lease.holder, tx

        def undo() -> None:
            lease.holder = before

        def commit() -> None:
            lease.holder, lease.changed = None, self.step

        tx.do(undo, commit)

    # -- settle ---------------------------------------------------------------------------------

    def chosen(self, lease: Lease, ids: list[int] | None) -> list[Message]:
        """What a call that names these messages settles: none if the lease is lost."""
        return [m for m in lease.left.values() if not lease.lost and (ids is None or m.id in ids)]

    def settle(
        self,
        tx: Transaction,
        lease: Lease,
        messages: list[Message],
        then: Callable[[Message], None],
    ) -> None:
        if not messages:
            return
        self.hold(tx, lease)
        before = dict(lease.left)
        for m in messages:
            del lease.left[m.id]

        def undo() -> None:
            lease.left = before

        def commit() -> None:
            for m in messages:
                then(m)

        tx.do(undo, commit)

    def ack(self, tx: Transaction, lease: Lease, ids: list[int] | None = None) -> int:
        def then(m: Message) -> None:
            m.state, m.lease = "completed", None
            self.acked += 1

        messages = self.chosen(lease, ids)
        self.settle(tx, lease, messages, then)
        return len(messages)

    def nack(
        self,
        tx: Transaction,
        lease: Lease,
        ids: list[int] | None = None,
        *,
        delay: int | None = None,
        reason: str | None = None,
        dead: bool = False,
        count_attempt: bool = True,
    ) -> int:
        most, wait = self.max_attempts, self.backoff if delay is None else delay

        def then(m: Message) -> None:
            if not count_attempt:
                self.again(m, wait)
            elif dead or m.attempt >= most:
                self.bury(m, reason or ("rejected" if dead else "out of attempts"))
            else:
                m.attempt, m.notes = m.attempt + 1, m.notes + 1
                self.again(m, wait)

        messages = self.chosen(lease, ids)
        self.settle(tx, lease, messages, then)
        return len(messages)

    def again(self, m: Message, wait: int) -> None:
        m.state, m.lease, m.due, m.loose = "ready", None, self.now + wait, True

    def bury(self, m: Message, reason: str) -> None:
        m.state, m.lease, m.reason, m.died, m.notes = "dead", None, reason, self.step, m.notes + 1
        m.died_at = self.now

    def extend(self, tx: Transaction, lease: Lease, minutes: int) -> None:
        """Never to an earlier time."""
        self.hold(tx, lease)
        tx.extended.append(lease)
        before, lease.until = lease.until, max(lease.until, self.now + minutes)

        def undo() -> None:
            lease.until = before

        tx.do(undo, lambda: None)

    def take_back(self, lease: Lease) -> None:
        """It ran out: as a nack, but due at once. From here on its receipt is worth nothing."""
        for m in lease.left.values():
            if m.attempt >= self.max_attempts:
                self.bury(m, "lease expired")
            else:
                m.attempt, m.notes = m.attempt + 1, m.notes + 1
                self.again(m, 0)
        lease.left, lease.lost, lease.changed = {}, True, self.step

    def learn(self, seen: dict[int, tuple[str, int]]) -> None:
        """Any dequeue that finds nothing, and any upkeep, may take back what ran out: a lease as a whole, or not at all."""
        for lease in self.leases:
            if self.ran_out(lease):
                m = next(iter(lease.left.values()))
                if seen.get(m.id) != ("leased", m.attempt):
                    self.take_back(lease)

    # -- the rest -------------------------------------------------------------------------------

    def redrive(self, messages: list[Message]) -> None:
        for m in messages:
            m.attempt, m.notes = 1, m.notes + 1
            self.again(m, 0)

    def purge(self, messages: Iterable[Message]) -> int:
        gone = list(messages)
        for m in gone:
            m.state, m.lease = "purged", None
        return len(gone)

    def purge_queue(self) -> int:
        for lease in self.leases:
            lease.left, lease.lost, lease.changed = {}, True, self.step
        return self.purge(self.having("ready", "deferred", "leased"))

    def cancel(self, m: Message) -> None:
        m.state = "cancelled"

    def disturb(self) -> None:
        """From here on the order of what is ready now is free."""
        for m in self.having("ready"):
            m.loose = True
