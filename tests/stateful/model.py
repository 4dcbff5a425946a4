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
    """state: ready (deferred until it is due, expired from then on), leased, completed, cancelled, dead, purged."""

    id: int
    payload: Any
    due: float = 0
    options: dict[str, Any] = field(default_factory=dict)
    born: float = 0
    priority: int = 4
    plain: bool = True  # no option that consumers have to mind
    expires: int | None = None  # if it is not delivered before
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
    hole: bool = (
        False  # who claimed it rolled back: what is less urgent may come first, until upkeep
    )
    ordering_key: str | None = None
    place: int = 0  # in the order in which they were committed
    vague: bool = False  # where it stands among those of its key is free
    returned: bool = False  # it comes back to its place, and holds up those behind it until then
    skipped: bool = False  # a tick that is left out when its turn comes
    progress: Note | None = None
    result: Note | None = None

    @property
    def lane(self) -> tuple[int, bool]:
        """Messages of one lane are in order, and one call gives those of one. Priority 4 has two."""
        return self.priority, self.plain or self.priority != 4


@dataclass(frozen=True)
class Note:
    """What a consumer said of a message, and when."""

    value: Any
    at: int


@dataclass(eq=False)
class Entry:
    """Which message has a deduplication key, and until when; None: until it is settled."""

    message: Message
    until: int | None


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
    taker: Transaction | None = None  # has taken it back, and is not over


class Transaction:
    """What a session did and did not commit."""

    def __init__(self, began: int, *, repeatable: bool = False) -> None:
        self.began = began  # the step of its snapshot, if that is held
        self.repeatable = repeatable
        self.steps: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self.savepoints: list[int] = []
        self.sent: list[Message] = []
        self.keys: dict[str, Entry | None] = {}  # that it took or freed
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

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings  # those of create_queue; in minutes, where they are intervals
        self.paused = False
        self.now = 0
        self.step = 0
        self.upkept = 0  # the step of the last upkeep
        self.ids = 0  # given out so far
        self.placed = 0
        self.delivered = 0
        self.acked = 0
        self.messages: dict[int, Message] = {}  # that were committed
        self.leases: list[Lease] = []
        self.keys: dict[str, Entry] = {}
        self.purged = (0, -1)  # up to which message, and when, by purge_queue
        self.history: list[tuple[Message, int, int, int]] = []  # acknowledged: attempt, notes, when

    @property
    def max_attempts(self) -> int:
        return int(self.settings["max_attempts"])

    def backoff(self, attempt: int) -> int:
        """How long to wait after it."""
        first, most = self.settings["retry_backoff"], self.settings["retry_backoff_max"]
        delays = self.settings["retry_delays"]
        waits = {
            "fixed": lambda: min(first, most),
            "linear": lambda: min(first * attempt, most),
            "exponential": lambda: min(first * 2 ** (attempt - 1), most),
            "list": lambda: delays[min(attempt, len(delays)) - 1],
        }
        return int(waits[self.settings["retry_policy"]]())

    # -- what others see ------------------------------------------------------------------------

    def shown(self, m: Message) -> str:
        if m.state != "ready":
            return m.state
        if m.expires is not None and m.expires < self.now:
            return "expired"  # as good as dead: the next that comes by buries it
        return "deferred" if m.due > self.now else "ready"

    def having(self, *states: str) -> list[Message]:
        return [m for m in self.messages.values() if self.shown(m) in states]

    def is_fresh(self, note: Note) -> bool:
        """Later it may be forgotten."""
        return self.now - note.at < int(self.settings["result_retention"])

    def ran_out(self, lease: Lease) -> bool:
        """A sweep may take it back, unless somebody is settling it."""
        return (
            not lease.lost and lease.holder is None and lease.until < self.now and any(lease.left)
        )

    def is_ready(self, m: Message) -> bool:
        return m.holder is None and self.shown(m) == "ready" and not m.skipped

    def may_be_delivered(self, m: Message, tx: Transaction | None = None) -> bool:
        """Ready; or its lease ran out, and the call took that back itself, or an earlier one of the same transaction."""
        return self.is_ready(m) or (
            m.state == "leased"
            and m.lease is not None
            and m.holder is None
            and (self.ran_out(m.lease) or (tx is not None and m.lease.taker is tx))
            and m.attempt < self.max_attempts
        )

    def would_die(self, m: Message, tx: Transaction | None) -> bool:
        """With the lease that ran out, and the call took back itself."""
        return (
            m.state == "leased"
            and m.lease is not None
            and m.holder is None
            and (self.ran_out(m.lease) or (tx is not None and m.lease.taker is tx))
            and m.attempt >= self.max_attempts
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
                m.vague = late or m.due > 0
                m.loose = m.loose or m.vague or m.ordering_key is not None
                m.place = self.placed = self.placed + 1
                self.messages[m.id] = m

        before = tx.sent
        tx.sent = before + mine

        def undo() -> None:
            tx.sent = before

        tx.do(undo, commit)

    # -- dequeue --------------------------------------------------------------------------------

    def claim(self, tx: Transaction, receipt: str, messages: list[Message], minutes: int) -> Lease:
        """A lease over messages that may be delivered; each is delivered for the attempt that next_attempt says."""
        lease = Lease(
            receipt, self.now + minutes, {m.id: m for m in messages}, tx, changed=self.step
        )
        self.leases.append(lease)
        stale = {m.lease: m.lease.taker for m in messages if m.lease is not None}
        for old in stale:
            self.hold(tx, old)
            old.taker = tx
        for m in messages:
            m.holder = tx

        def undo() -> None:
            # It was never delivered: the attempt does not count. Who finds nothing fresh takes it, or a sweep.
            lease.left, lease.lost, lease.changed = {}, True, self.step
            for old, taker in stale.items():
                old.taker = taker
            for m in messages:
                m.holder, m.loose, m.hole = None, True, True

        def commit() -> None:
            for old in stale:
                self.take_back(old)
            for m in messages:
                m.state, m.lease, m.holder = "leased", lease, None
                m.hole = False
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

    def ack(
        self, tx: Transaction, lease: Lease, ids: list[int] | None = None, result: Any = None
    ) -> int:
        def then(m: Message) -> None:
            m.state, m.lease = "completed", None
            if result is not None:
                m.result = Note(result, self.now)
            self.acked += 1
            self.history.append((m, m.attempt, m.notes, self.now))

        messages = self.chosen(lease, ids)
        self.settle(tx, lease, messages, then)
        for m in messages:
            self.release(tx, m)
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
        most = self.max_attempts

        def dies(m: Message) -> bool:
            return count_attempt and (dead or m.attempt >= most)

        def then(m: Message) -> None:
            wait = self.backoff(m.attempt) if delay is None else delay
            if dies(m):
                self.bury(m, reason or ("rejected" if dead else "out of attempts"))
                return
            if count_attempt:
                m.attempt, m.notes = m.attempt + 1, m.notes + 1
            self.again(m, wait)

        messages = self.chosen(lease, ids)
        self.settle(tx, lease, messages, then)
        for m in messages:
            if dies(m):
                self.release(tx, m)
        if not dead:
            self.settle(tx, lease, self.behind(lease, messages), self.hand_back)
        return len(messages)

    def behind(self, lease: Lease, messages: list[Message]) -> list[Message]:
        """What is left of the lease and stands behind these in their ordering keys: by number, within a lease."""
        first: dict[str, int] = {}
        for m in messages:
            if m.ordering_key is not None:
                first[m.ordering_key] = min(m.id, first.get(m.ordering_key, m.id))
        return [
            m
            for m in lease.left.values()
            if m.ordering_key is not None and m.id > first.get(m.ordering_key, m.id)
        ]

    def hand_back(self, m: Message) -> None:
        """It was not tried."""
        expires = m.expires
        self.again(m, 0)
        m.expires = expires

    def again(self, m: Message, wait: int) -> None:
        """Only the first delivery has to be in time."""
        m.state, m.lease, m.due, m.loose, m.expires = "ready", None, self.now + wait, True, None
        m.returned = True

    def bury(self, m: Message, reason: str) -> None:
        m.state, m.lease, m.reason, m.died, m.died_at = "dead", None, reason, self.step, self.now
        if reason in ("expired", "overflow"):  # it was not delivered for this attempt
            m.attempt -= 1
        if reason != "expired":
            m.notes += 1
        m.expires = None
        self.free(m)

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

    def learn(self, seen: dict[int, tuple[str, int]], dead: set[int]) -> None:
        """Any dequeue that finds nothing, and any upkeep, may take back what ran out: a lease as a whole, or not at all.

        Any dequeue may bury what has expired.
        """
        for m in self.having("expired"):
            if m.id in dead:
                self.bury(m, "expired")
        for lease in self.leases:
            if self.ran_out(lease):
                m = next(iter(lease.left.values()))
                if seen.get(m.id) != ("leased", m.attempt):
                    self.take_back(lease)

    # -- the rest -------------------------------------------------------------------------------

    def comes_anew(self, m: Message) -> None:
        """Behind what waits of its ordering key."""
        m.attempt, m.notes = 1, m.notes + 1
        self.again(m, 0)
        m.vague, m.returned = True, False

    def redrive(self, messages: list[Message]) -> None:
        """Who died has no key any more."""
        for m in messages:
            self.comes_anew(m)

    def rewind(self, messages: list[Message]) -> None:
        """Behind what waits, in the order of their numbers."""
        for m in messages:
            self.comes_anew(m)

    def purge(self, messages: Iterable[Message]) -> int:
        gone = list(messages)
        for m in gone:
            m.state, m.lease = "purged", None
        return len(gone)

    def drop(self, m: Message) -> None:
        """For one that comes."""
        m.state = "purged"
        self.free(m)

    def purge_queue(self) -> int:
        for lease in self.leases:
            lease.left, lease.lost, lease.changed = {}, True, self.step
        for m in self.messages.values():
            m.progress = m.result = None
        self.keys, self.history, self.purged = {}, [], (self.ids, self.now)
        return self.purge(self.having("ready", "deferred", "leased", "expired"))

    def cancel(self, m: Message) -> None:
        """Its key is free, whatever the window."""
        m.state = "cancelled"
        self.keys = {k: e for k, e in self.keys.items() if e.message is not m}

    # -- deduplication keys ---------------------------------------------------------------------

    def entry(self, tx: Transaction, key: str) -> Entry | None:
        """Who has a key, as this transaction sees it."""
        e = tx.keys[key] if key in tx.keys else self.keys.get(key)
        return None if e is None or (e.until is not None and e.until < self.now) else e

    def take_key(self, tx: Transaction, key: str, m: Message) -> None:
        window = self.settings["dedup_window"]
        self.set_key(tx, key, Entry(m, self.now + window if window else None))

    def set_key(self, tx: Transaction, key: str, e: Entry | None) -> None:
        before = dict(tx.keys)
        tx.keys[key] = e

        def undo() -> None:
            tx.keys = before

        def commit() -> None:
            if e is not None:
                self.keys[key] = e  # a key that was freed: see release

        tx.do(undo, commit)

    def release(self, tx: Transaction, m: Message) -> None:
        """Its end frees its key, for this transaction at once, unless that is for a time, or another's by now."""
        for key in {**self.keys, **tx.keys}:
            e = self.entry(tx, key)
            if e is not None and e.message is m and e.until is None:
                self.set_key(tx, key, None)
        tx.do(lambda: None, lambda: self.free(m))

    def free(self, m: Message) -> None:
        """The same, for all."""
        self.keys = {
            k: e for k, e in self.keys.items() if e.message is not m or e.until is not None
        }

    def disturb(self) -> None:
        """From here on the order of what is ready now is free."""
        for m in self.having("ready"):
            m.loose = True
