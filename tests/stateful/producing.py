"""Rules of producers: enqueue with every option, batches, COPY."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from stateful.machine import WHO, Machine, Session, interval, step
from stateful.model import Message, Transaction

# What an option is in SQL, where it is not what was drawn.
ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "delay": interval,
    "headers": json.dumps,
    "ttl": interval,
}


class Producing(Machine):
    @step(
        4,
        who=WHO,
        count=st.sampled_from((1, 3, 10, 30, 1, 0)),
        options=lambda self: st.fixed_dictionaries({}, optional=self.options),
    )
    def enqueue(self, who: int, count: int, options: dict[str, Any]) -> None:
        """One message, or a batch."""
        if count != 1:
            options.pop("headers", None)
        if options.get("ttl", 1) <= options.get("delay", 0):
            options.pop("ttl", None)  # it would end before: refused
        self.send(self.sessions[who], count, options)

    @step(
        who=WHO,
        count=st.integers(0, 5),
        due=st.sampled_from((None, -5, 200)),
        priority=lambda self: self.options.get("priority", st.just(4)),
    )
    def copy(self, who: int, count: int, due: int | None, priority: int) -> None:
        session = self.sessions[who]
        messages = self.messages(count, {"delay": max(due or 0, 0), "priority": priority})

        def call() -> None:
            at = self.value(session, "select clock_timestamp() + %s", interval(due or 0))
            with (
                session.conn.cursor() as cursor,
                cursor.copy(
                    "copy mq.inbox (queue, payload, deliver_at, priority) from stdin"
                ) as copy,
            ):
                for m in messages:
                    copy.write_row(("q", json.dumps(m.payload), at if due else None, priority))

        with self.in_transaction(session) as tx:
            self.put(session, tx, messages, call)

    def messages(self, count: int, options: dict[str, Any]) -> list[Message]:
        """With the ids that they will get: one after the other."""
        delay = options.get("delay")
        due = self.model.now + delay if delay else 0
        self.read_ids()
        return [
            Message(
                self.model.next_id(),
                {"n": self.model.ids},
                due,
                options,
                self.model.now,
                options.get("priority", 4),
                plain="ttl" not in options and "ordering_key" not in options,
                ordering_key=options.get("ordering_key"),
                expires=self.model.now + options["ttl"] if "ttl" in options else None,
            )
            for _ in range(count)
        ]

    def send(self, session: Session, count: int, options: dict[str, Any]) -> None:
        """Messages with the same options, in one statement."""
        messages = self.messages(count, options)
        payloads = [json.dumps(m.payload) for m in messages]
        named = {k: ARGUMENTS.get(k, lambda v: v)(v) for k, v in options.items()}
        extra = "".join(f", {name} => %({name})s" for name in named)
        if count == 1:
            query = f"select array[mq.enqueue('q', %(payload)s{extra})]"
            named["payload"] = payloads[0]
        else:
            query = f"select array(select mq.enqueue_batch('q', %(payloads)s::jsonb[]{extra}))"
            named["payloads"] = payloads

        def call() -> None:
            row = session.conn.execute(query.encode(), named).fetchone()
            assert row == ([m.id for m in messages],)

        with self.in_transaction(session) as tx:
            self.put(session, tx, messages, call)

    def put(
        self,
        session: Session,
        tx: Transaction,
        messages: list[Message],
        call: Callable[[], None],
        swaps: int = 0,
    ) -> bool:
        """What adds these messages, so many of them in place of others; False: they were refused."""
        with session.conn.transaction():
            call()
        self.model.enqueue(tx, messages, late=session.tx is not None)
        tx.wrote = True
        return True
