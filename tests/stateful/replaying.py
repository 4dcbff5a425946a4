"""Rules of retention: what was acknowledged is kept for so long, and can be delivered again."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import psycopg
from hypothesis import strategies as st

from stateful.machine import PICK, Draws, Machine, interval, step
from stateful.model import Message

HISTORY = """
select msg_id, attempts, jsonb_array_length(history), outcome, payload from mq.history('q', n => 1000000)
"""


class Replaying(Machine):
    settings: ClassVar[Draws] = {**Machine.settings, "retention": st.sampled_from((900, 5000))}

    def is_kept(self, m: Message) -> bool:
        model = self.model
        kept = [at for x, _, _, at in model.history if x is m and m.state == "completed"]
        return super().is_kept(m) or any(model.now - at < self.retention for at in kept)

    @property
    def retention(self) -> int:
        return int(self.model.settings["retention"])

    @step()
    def history(self) -> None:
        """All of the retention, perhaps more; and dead letters."""
        model = self.model
        rows = self.conn.execute(HISTORY).fetchall()
        for msg_id, *_, payload in rows:
            assert payload == model.messages[msg_id].payload
        dead = {row[0]: row[1] for row in rows if row[3] == "dead"}
        assert dead == {m.id: m.attempt for m in model.having("dead")}
        seen = Counter(row[:3] for row in rows if row[3] == "acked")
        ever = Counter((m.id, *x) for m, *x, _ in model.history)
        kept = Counter((m.id, *x) for m, *x, at in model.history if model.now - at < self.retention)
        assert kept <= seen <= ever

    @step(
        3,
        when=lambda self: self.model.history and not any(tx.rotated for tx in self.others()),
        which=PICK,
        by=st.sampled_from(("to_msg_id", "to_time")),
        end=st.sampled_from(("commit", "rollback")),
    )
    def rewind(self, which: int, by: str, end: str) -> None:
        """All that was acknowledged since; an error where some of it is forgotten."""
        model = self.model
        m = self.pick(which, list(model.messages.values()))
        if by == "to_msg_id":
            to: object = m.id
            since = [x for x in model.messages.values() if x.id >= m.id]
            purged = m.id <= model.purged[0]
        else:
            # Nothing was enqueued just then: see PASSES.
            to = self.admin(
                "select clock_timestamp() - %s::interval", interval(model.now - m.born + 7)
            )
            since = [x for x in model.messages.values() if x.born > m.born - 7]
            purged = m.born - 7 <= model.purged[1]
        chosen = sorted((x for x in since if x.state == "completed"), key=lambda x: x.id)
        self.sound = False
        self.conn.execute("begin")
        try:
            got = self.conn.execute(f"select mq.rewind('q', {by} => %s)".encode(), (to,)).fetchone()
        except psycopg.errors.InvalidParameterValue:
            self.conn.execute("rollback")
            assert purged or any(model.now - x.born >= self.retention for x in since)
            return
        self.conn.execute(end)
        assert got == (len(chosen),)
        if end == "commit":
            model.rewind(chosen)

    def reclaims(self) -> None:
        """Once the retention is over."""
        self.history()
        self.closes()
        for _ in range(4):
            self.conn.execute("select mq.maintain('q')")
        self.history()
        self.pass_time(self.retention + 1)
        super().reclaims()
