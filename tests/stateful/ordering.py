"""Ordering keys: the messages of one are delivered in order, under one lease at a time; what failed holds up its key only."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import strategies as st

from stateful.consuming import MANY, NACKS, Consuming
from stateful.machine import PICK, WHO, Draws, Machine, Session, step
from stateful.model import Message, Transaction


class Ordering(Consuming):
    """What a nack takes along: Model.nack."""

    options: ClassVar[Draws] = {
        **Machine.options,
        "ordering_key": st.sampled_from(("x", "y", "x", "z")),
    }
    settings: ClassVar[Draws] = {
        **Machine.settings,
        "fair": st.booleans(),
        "max_in_flight_per_key": st.sampled_from((None, 2)),
    }

    @step(2, when=lambda self: self.able(), who=WHO, n=MANY, place=PICK, how=st.sampled_from(NACKS))
    def fails_at(self, who: int, n: int, place: int, how: dict[str, Any]) -> None:
        """One of the messages that it takes, mostly in the middle of a key."""
        session = self.pick(who, self.able())
        if rows := self.dequeue(session, n):
            self.nacks(session, self.model.leases[-1], [self.pick(place, rows)[0]], how)

    def of(self, key: str | None) -> list[Message]:
        return [m for m in self.model.messages.values() if m.ordering_key == key]

    def check_order(
        self, session: Session, tx: Transaction, n: int, got: list[Message], before: list[Message]
    ) -> None:
        super().check_order(session, tx, n, got, before)
        for key in {m.ordering_key for m in got if m.ordering_key is not None}:
            self.check_key(tx, [m for m in got if m.ordering_key == key], self.of(key))

    def check_key(self, tx: Transaction, got: list[Message], all_: list[Message]) -> None:
        """A run from the front of its key, of which nobody has anything."""
        assert len(got) <= (self.model.settings["max_in_flight_per_key"] or len(got))
        places = [m.place for m in got if not m.vague]
        assert places == sorted(places)
        for x in all_:
            if x in got:
                continue
            assert not self.is_in_hand(tx, x), f"message {x.id} of this key is in hand"
            if x.state == "leased" and not self.is_settled_by(tx, x):
                taken_back = self.model.may_be_delivered(x, tx) or self.model.would_die(x, tx)
                assert taken_back, f"message {x.id} of this key is leased"
            waits = x.holder is None and (
                self.model.shown(x) in ("ready", "deferred") or self.model.may_be_delivered(x, tx)
            )
            assert not waits or x.vague or all(m.vague or m.place < x.place for m in got), (
                f"message {x.id} of this key comes first"
            )

    def is_in_hand(self, tx: Transaction, m: Message) -> bool:
        """Of a transaction that is open; of this one, unless it has settled it."""
        ours = [x for x in self.model.leases if x.holder is tx and m.id in x.left]
        return m.holder is not None and (m.holder is not tx or any(ours))

    def is_settled_by(self, tx: Transaction, m: Message) -> bool:
        """What a transaction sets free it may take itself."""
        lease = m.lease
        return lease is not None and lease.holder is tx and m.id not in lease.left

    def in_turn(self, before: list[Message]) -> list[Message]:
        """What has nothing of its key in front of it, for certain. One that was delayed joins its key in a call that may

        give nothing: it notifies, and the next call has it. That none is forgotten, the end shows.
        """
        held = {x.ordering_key for x in self.model.messages.values() if self.holds_up(x)}
        return [
            m
            for m in super().in_turn(before)
            if m.ordering_key is None or (m.ordering_key not in held and not self.was_delayed(m))
        ]

    def was_delayed(self, m: Message) -> bool:
        return m.due > 0 or m.vague

    def holds_up(self, m: Message) -> bool:
        """Those behind it: it is in hand, or not back yet, perhaps."""
        return (
            m.holder is not None
            or m.state == "leased"
            or (self.model.shown(m) in ("ready", "deferred") and m.returned)
        )

    def first(self, m: Message) -> bool:
        """Order goes before priority, and who was delayed joins its key first."""
        waits = [x for x in self.of(m.ordering_key) if self.model.shown(x) in ("ready", "deferred")]
        alone = waits == [m] and not self.was_delayed(m)
        return super().first(m) and (m.ordering_key is None or alone)
