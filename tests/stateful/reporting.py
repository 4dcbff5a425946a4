"""Rules of results and progress: what consumers say of messages, and who waits for it."""

from __future__ import annotations

import json

import psycopg
from hypothesis import strategies as st

from stateful.consuming import Consuming
from stateful.machine import PICK, SOME, WHO, step
from stateful.model import Note

VALUES = st.sampled_from((1, "done", {"a": [1]}))


class Reporting(Consuming):
    @step(3, when=lambda self: self.having(self.live), who=WHO, which=PICK, some=SOME, value=VALUES)
    def ack_with_result(self, who: int, which: int, some: list[int] | None, value: object) -> None:
        """Of what this call acknowledges, and nothing else."""
        session = self.pick(who, self.having(self.live))
        lease = self.pick(which, self.live(session))
        ids = self.ids(lease, some)
        with self.in_transaction(session) as tx, self.blurred(session, lease):
            tx.wrote = tx.settled = True
            query = "select mq.ack('q', %s, %s, result => %s)"
            with session.conn.transaction():
                got = self.value(session, query, lease.receipt, ids, json.dumps(value))
            assert got == self.model.ack(tx, lease, ids, value)

    @step(
        2, when=lambda self: self.having(self.usable), who=WHO, which=PICK, place=PICK, value=VALUES
    )
    def report(self, who: int, which: int, place: int, value: object) -> None:
        """For as long as the message is under the lease; else it is not noted."""
        session = self.pick(who, self.having(self.usable))
        live = self.live(session)
        lease = self.pick(which, live if live and which % 3 else self.usable(session))
        all_ = list(self.model.messages.values())
        m = self.pick(place, all_ if place % 3 == 0 else list(lease.left.values()) or all_)
        holds = m.id in lease.left and not lease.lost
        with self.in_transaction(session) as tx, self.blurred(session, lease):
            tx.wrote = tx.settled = True  # time does not pass for what it noted
            query = "select mq.report('q', %s, %s, %s)"
            with session.conn.transaction():
                got = self.value(session, query, lease.receipt, m.id, json.dumps(value))
            assert got is holds
            if got:

                def commit() -> None:
                    m.progress = Note(value, self.model.now)

                tx.do(lambda: None, commit)

    @step(2, when=lambda self: self.model.messages, which=PICK)
    def wait_for(self, which: int) -> None:
        """Not at all: what is known by now."""
        m = self.pick(which, list(self.model.messages.values()))
        model, shown = self.model, self.model.shown(m)
        got: object
        try:
            got = (self.admin("select mq.wait_for('q', %s, timeout => '0')", m.id),)
        except psycopg.Error as error:
            got = error.sqlstate
        forgotten = {"completed": ((None,), "22023"), "cancelled": ("MQ010", "22023")}
        if m.result is not None and (model.is_fresh(m.result) or got == (m.result.value,)):
            assert got == (m.result.value,)
        elif shown in forgotten:
            # 'null' and null are one here: that it is done is what message_status says.
            assert got in forgotten[shown]
        else:
            assert got == {"dead": "MQ010", "expired": "MQ010", "purged": "22023"}.get(
                shown, (None,)
            )
