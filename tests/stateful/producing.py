"""Rules of producers: enqueue with every option, batches, COPY."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from stateful.machine import SESSIONS, Machine, Session, interval
from stateful.model import Message

WHO = st.integers(0, SESSIONS - 1)
ARGUMENTS = {"delay": interval, "headers": json.dumps}


class Producing(Machine):
    @rule(who=WHO, data=st.data())
    def enqueue(self, who: int, data: st.DataObject) -> None:
        self.send(self.sessions[who], 1, self.draw_options(data), batch=False)

    @rule(who=WHO, count=st.sampled_from((3, 0, 1, 10, 30)), data=st.data())
    def enqueue_batch(self, who: int, count: int, data: st.DataObject) -> None:
        options = self.draw_options(data)
        options.pop("headers", None)
        self.send(self.sessions[who], count, options, batch=True)

    @rule(who=WHO, count=st.integers(0, 5), due=st.sampled_from((None, -5, 200)))
    def copy(self, who: int, count: int, due: int | None) -> None:
        """The ids follow on one another, as of any statement."""
        session = self.sessions[who]
        messages = self.messages(count, {"delay": max(due or 0, 0)})
        with self.in_transaction(session) as tx:
            at = self.value(session, "select clock_timestamp() + %s", interval(due or 0))
            with (
                session.conn.cursor() as cursor,
                cursor.copy("copy mq.inbox (queue, payload, deliver_at) from stdin") as copy,
            ):
                for m in messages:
                    copy.write_row(("q", json.dumps(m.payload), at if due else None))
            self.sent(session, messages)
            tx.wrote = True

    def draw_options(self, data: st.DataObject) -> dict[str, Any]:
        named: dict[str, Any] = data.draw(st.fixed_dictionaries({}, optional=self.options))
        return named

    def messages(self, count: int, options: dict[str, Any]) -> list[Message]:
        delay = options.get("delay") or 0
        due = self.model.now + delay if delay else 0
        return [
            Message(self.model.next_id(), {"n": self.model.ids}, due, options) for _ in range(count)
        ]

    def send(self, session: Session, count: int, options: dict[str, Any], *, batch: bool) -> None:
        """Messages with the same options, in one statement."""
        messages = self.messages(count, options)
        payloads = [json.dumps(m.payload) for m in messages]
        named = {k: ARGUMENTS.get(k, lambda v: v)(v) for k, v in options.items()}
        extra = "".join(f", {name} => %({name})s" for name in named)
        if batch:
            query = f"select array(select mq.enqueue_batch('q', %(payloads)s::jsonb[]{extra}))"
            named["payloads"] = payloads
        else:
            query = f"select array[mq.enqueue('q', %(payload)s{extra})]"
            named["payload"] = payloads[0]
        with self.in_transaction(session) as tx:
            row = session.conn.execute(query.encode(), named).fetchone()
            assert row is not None
            assert row[0] == [m.id for m in messages]
            self.sent(session, messages)
            tx.wrote = True

    def sent(self, session: Session, messages: list[Message]) -> None:
        with self.in_transaction(session) as tx:
            self.model.enqueue(tx, messages, late=session.tx is not None)
