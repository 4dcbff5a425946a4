"""Rules of deduplication keys: one message of a key, within a window or until that message is settled."""

from __future__ import annotations

import json
from typing import ClassVar

import psycopg
from hypothesis import strategies as st

from stateful.consuming import Consuming
from stateful.machine import PICK, WHO, Draws, Machine, Session, step
from stateful.model import Lease, Message, Transaction
from stateful.producing import Producing

KEYS = ("a", "b", "c")
HELD = """
select d.dedup_key, d.msg_id
from (select distinct on (x.dedup_key) x.* from mq.dedup as x order by x.dedup_key, x.no desc) as d
where d.dedup_key <> '' and d.msg_id is not null and d.until > clock_timestamp()
"""
KEY = st.sampled_from(KEYS)


class Deduplicating(Producing, Consuming):
    settings: ClassVar[Draws] = {**Machine.settings, "dedup_window": st.sampled_from((0, 110))}

    def check_one(self) -> None:
        """Who has which key, besides."""
        super().check_one()
        model = self.model
        rows: dict[str, int] = dict(self.conn.execute(HELD).fetchall())
        e = {key: model.entry(Transaction(0), key) for key in KEYS}
        assert rows == {key: x.message.id for key, x in e.items() if x is not None}

    def clear(self, session: Session, key: str) -> bool:
        """Nobody else's open transaction takes it, which would be waited for, and this one has not perhaps freed it."""
        if any(tx.keys.get(key) is not None for tx in self.others(session)):
            return False
        e = self.model.entry(session.tx or Transaction(0), key)
        return e is None or session.tx is None or not self.may_be_buried(session.tx, e.message)

    def may_be_buried(self, tx: Transaction, m: Message) -> bool:
        """By this transaction, which does not say so."""
        ours = m.lease in tx.perhaps or self.model.shown(m) == "expired"
        return ours and tx.claimed

    def keyed(self, count: int) -> list[Message]:
        """So many messages that have a key that is given, with their numbers."""
        messages = self.messages(count, {})
        for m in messages:
            m.plain = self.model.settings["dedup_window"] > 0
        return messages

    def producers(self) -> list[Session]:
        """Those that see the newest row of a key."""
        return [s for s in self.sessions if s.tx is None or not s.tx.repeatable]

    @step(
        4,
        when=lambda self: self.producers(),
        who=WHO,
        key=KEY,
        how=st.sampled_from((None, "keep", "reject")),
    )
    def enqueue_once(self, who: int, key: str, how: str | None) -> None:
        session = self.pick(who, self.producers())
        if not self.clear(session, key):
            return
        with self.in_transaction(session) as tx:
            e = self.model.entry(tx, key)
            if e is None:
                self.enters(session, tx, key, how)
                return
            payload = json.dumps({"n": 0})
            query = "select mq.enqueue('q', %s, dedup_key => %s, on_duplicate => %s)"
            try:
                with session.conn.transaction():
                    got = self.value(session, query, payload, key, how)
            except psycopg.Error as error:
                got = (error.sqlstate, error.diag.message_detail)
            wanted = ("MQ009", f"msg_id {e.message.id}") if how == "reject" else e.message.id
            assert got == wanted

    def enters(
        self, session: Session, tx: Transaction, key: str, how: str | None, swaps: int = 0
    ) -> None:
        """It is free, or replaced."""
        (m,) = self.keyed(1)
        query = "select mq.enqueue('q', %s, dedup_key => %s, on_duplicate => %s)"

        def call() -> None:
            assert self.value(session, query, json.dumps(m.payload), key, how) == m.id

        if self.put(session, tx, [m], call, swaps):
            self.model.take_key(tx, key, m)

    @step(
        2, when=lambda self: self.producers(), who=WHO, keys=st.lists(st.none() | KEY, max_size=4)
    )
    def enqueue_batch_once(self, who: int, keys: list[str | None]) -> None:
        """Of equal keys the first counts."""
        session = self.pick(who, self.producers())
        if not all(self.clear(session, key) for key in keys if key):
            return
        with self.in_transaction(session) as tx:
            held = {k: e.message for k in KEYS if (e := self.model.entry(tx, k)) is not None}
            at = {key: i for i, key in reversed(list(enumerate(keys))) if key and key not in held}
            mine = [i for i, key in enumerate(keys) if key is None or at.get(key) == i]
            new = dict(zip(mine, self.keyed(len(mine)), strict=True))
            for i, m in new.items():
                m.plain = m.plain or keys[i] is None
            wanted = [new[i] if i in new else held.get(k) or new[at[k]] for i, k in enumerate(keys)]  # type: ignore[index,arg-type]
            payloads = [json.dumps(new[i].payload if i in new else None) for i in range(len(keys))]
            query = (
                "select array(select mq.enqueue_batch('q', %s::jsonb[], dedup_keys => %s::text[]))"
            )

            def call() -> None:
                assert self.value(session, query, payloads, keys) == [m.id for m in wanted]

            if self.put(session, tx, list(new.values()), call):
                for key, i in at.items():
                    self.model.take_key(tx, key, new[i])

    @step(
        2,
        when=lambda self: (
            self.closed() and not any(tx.claimed or tx.rotated or tx.keys for tx in self.others())
        ),
        who=WHO,
        key=KEY,
        end=st.sampled_from(("commit", "rollback")),
    )
    def replace(self, who: int, key: str, end: str) -> None:
        """In a transaction that ends at once: others would wait for it."""
        session = self.pick(who, self.closed())
        tx = Transaction(self.model.step)
        self.sound = False
        session.conn.execute("begin")
        before = self.model.entry(tx, key)
        waits = before is not None and self.model.shown(before.message) in ("ready", "deferred")
        self.enters(session, tx, key, "replace", swaps=int(waits))
        session.conn.execute(end)
        if end == "rollback" or not tx.steps:
            tx.rollback()
            return
        if before is not None and waits:
            self.model.cancel(before.message)
        tx.commit()

    def keyed_leases(self, session: Session) -> list[Lease]:
        keyed = {e.message for e in self.model.keys.values()}
        return [x for x in self.live(session) if keyed & set(x.left.values())]

    @step(
        2,
        when=lambda self: self.having(self.keyed_leases),
        who=WHO,
        which=PICK,
        how=st.sampled_from(("dead", "ack", "nack")),
    )
    def settles_a_key(self, who: int, which: int, how: str) -> None:
        session = self.pick(who, self.having(self.keyed_leases))
        lease = self.pick(which, self.keyed_leases(session))
        if how == "ack":
            self.acks(session, lease, None)
        else:
            self.nacks(session, lease, None, {"dead": how == "dead"})

    def closed(self) -> list[Session]:
        return [s for s in self.sessions if s.tx is None]
