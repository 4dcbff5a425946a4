"""Rules of max_depth: never more messages wait, and what is done about one too many."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import psycopg
from hypothesis import strategies as st

from stateful.consuming import MANY
from stateful.machine import SEEN, WHO, Draws, Machine, Session, step
from stateful.model import Message, Transaction
from stateful.producing import Producing


class Limiting(Producing):
    settings: ClassVar[Draws] = {
        **Machine.settings,
        "max_depth": st.sampled_from((12, 4, 40)),
        "overflow": st.sampled_from(("reject", "reject", "drop_oldest", "dead_letter")),
    }

    @step(3, who=WHO, more=st.integers(0, 1))
    def fills(self, who: int, more: int) -> None:
        """As many as there is room for, or one more."""
        sent = sum(len(tx.sent) for tx in self.others())
        room = self.model.settings["max_depth"] - len(self.waiting()) - sent
        self.send(self.sessions[who], max(room, 0) + more, {})

    @step(
        2,
        when=lambda self: any(s.tx is None for s in self.sessions),
        who=WHO,
        n=MANY,
        end=st.sampled_from(("rollback", "commit")),
    )
    def takes_and_sends(self, who: int, n: int, end: str) -> None:
        """What a transaction has taken out of a full queue is no room for it."""
        self.fills(who, 0)
        session = self.pick(who, [s for s in self.sessions if s.tx is None])
        session.conn.execute("begin")
        session.tx = Transaction(self.model.step)
        self.dequeue(session, n)
        self.send(session, 1, {})
        tx, session.tx = session.tx, None
        session.conn.execute(end)
        if end == "commit":
            tx.commit()
        else:
            tx.rollback()

    def waiting(self) -> list[Message]:
        """An expired one waits until somebody buries it."""
        return self.model.having("ready", "deferred", "expired")

    def read_ids(self) -> None:
        self.model.ids = self.admin("select enqueued_total from mq.queue_stats('q')")

    def put(
        self,
        session: Session,
        tx: Transaction,
        messages: list[Message],
        call: Callable[[], None],
        swaps: int = 0,
    ) -> bool:
        """Those of transactions that are open may come, too."""
        most, drops = self.model.settings["max_depth"], self.model.settings["overflow"] != "reject"
        alone = session.tx is None and not self.others()
        sent = [m for x in [*self.others(session), tx] for m in x.sent]
        missing = len(self.waiting()) + len(sent) + len(messages) - swaps - most
        if drops and (not alone or self.is_tick_due()):
            self.read_ids()
            return False
        try:
            super().put(session, tx, messages, call, swaps)
        except psycopg.Error as error:
            if error.sqlstate != "MQ008":
                raise
            self.read_ids()
            if alone:
                too_many = missing + self.ghosts()
                # What is above the limit already stays: as many go as come.
                go = min(too_many, len(messages)) if drops else too_many
                assert go > (len(self.had()) if drops else 0) or len(messages) > most
            return False
        assert drops or missing <= 0 or len(messages) == swaps, (
            f"{missing} messages too many may wait"
        )
        if drops and len(messages) > swaps:
            self.drops(session, tx, max(missing, 0), len(messages))
        return True

    def had(self) -> list[Message]:
        """What can be had to make room, for certain."""
        return [m for m in self.model.having("ready") if not m.hole and m.ordering_key is None]

    def drops(self, session: Session, tx: Transaction, missing: int, most: int) -> None:
        """The oldest of the lowest priority; which, is seen at once."""
        model = self.model
        seen = {row[0] for row in session.conn.execute(SEEN).fetchall()}
        gone = [m for m in model.having("ready") if m.id not in seen]
        assert min(missing, most) <= len(gone) <= min(missing + self.ghosts(), most)
        for m in self.had():
            assert m in gone or all(m.lane >= x.lane for x in gone), "a lower priority is there"
        for lane in {m.lane for m in gone}:
            there = sorted((m for m in model.having("ready") if m.lane == lane), key=lambda m: m.id)
            if not any(m.loose for m in there):
                ids = sorted(m.id for m in gone if m.lane == lane)
                assert ids == [m.id for m in there[: len(ids)]]

        def commit() -> None:
            for m in gone:
                if model.settings["overflow"] == "dead_letter":
                    model.bury(m, "overflow")
                else:
                    model.drop(m)

        tx.do(lambda: None, commit)
        self.consumer = None  # it took them as a consumer does
