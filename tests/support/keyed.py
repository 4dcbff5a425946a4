"""Chaos with ordering keys, and who checks it: each message says its key and its number in it.

Whoever receives a message tells the checker, before he gives it back or the server could know that he has it no more: so
whatever the checker finds, the queue did wrong.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import psycopg


@dataclass
class Order:
    """Never two leases of a key, never out of order, none forgotten."""

    put: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """How many messages each key was given, those that were rolled back aside."""
    holder: dict[int, int] = field(default_factory=dict)
    done: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """What was acknowledged, or is dead or cancelled."""
    maybe: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """What may be done for without anybody being told: it has a ttl, or is being cancelled."""
    last: dict[int, int] = field(default_factory=lambda: defaultdict(lambda: -1))
    """The highest number of a key that was acknowledged."""
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def received(
        self, who: int, rows: list[Any], asked: int, freed: set[int], settled: list[tuple[int, int]]
    ) -> dict[int, list[tuple[int, int]]]:
        """The messages of a lease by their keys: (number, msg_id). freed, settled: by the same transaction, before."""
        keys: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row in rows:
            keys[row[5]["k"]].append((row[5]["s"], row[0]))
        with self.lock:
            if len(rows) > asked:
                self.wrong.append(f"{len(rows)} messages instead of {asked}")
            for key, messages in keys.items():
                numbers = [number for number, _ in messages]
                mine = {number for k, number in settled if k == key}
                last = max(self.last[key], *mine, -1)
                if key in self.holder and not (self.holder[key] == who and key in freed):
                    self.wrong.append(f"{who} has {key}, as {self.holder[key]} has")
                self.holder[key] = who
                skipped = set(range(last + 1, numbers[-1])) - set(numbers) - mine
                if numbers[0] <= last or numbers != sorted(numbers):
                    self.wrong.append(f"{numbers} of {key} came after {self.last[key]}")
                elif missing := skipped - self.done[key] - self.maybe[key]:
                    self.wrong.append(f"{numbers} of {key} came before {missing}")
        return dict(keys)

    def settled(self, key: int, number: int) -> None:
        with self.lock:
            if number in self.done[key]:
                self.wrong.append(f"{number} of {key} was done twice")
            self.done[key].add(number)
            self.last[key] = max(self.last[key], number)

    def dropped(self, key: int, number: int) -> None:
        """It is dead, or cancelled: not in any order."""
        with self.lock:
            self.done[key].add(number)

    def free(self, *keys: int) -> None:
        with self.lock:
            for key in keys:
                self.holder.pop(key, None)

    def missing(self) -> dict[int, set[int]]:
        """What was put, and neither was acknowledged nor is dead or cancelled."""
        left = {key: set(range(count)) - self.done[key] for key, count in self.put.items()}
        return {key: numbers for key, numbers in left.items() if numbers}


@dataclass
class Chaos:
    dsn: str
    keys: int
    messages: int
    consumers: int
    seed: int
    order: Order = field(default_factory=Order)
    priorities: bool = True
    trouble: float = 1.0
    """1: half of all leases do not simply end with an ack."""
    hot: float = 0.2
    """Which part of the messages has one of two keys: those come one after the other, however many consumers there are."""
    producing: bool = True
    errors: list[str] = field(default_factory=list)
    empty: int = 0
    """How many polls gave nothing while producers were at work."""
    polls: int = 0

    def run(self) -> None:
        producers = [threading.Thread(target=self._try, args=(self._produce, i)) for i in range(2)]
        others = [threading.Thread(target=self._try, args=(self._keep, 0))]
        if self.trouble:
            others.append(threading.Thread(target=self._try, args=(self._cancel, 0)))
        consumers = [
            threading.Thread(target=self._try, args=(self._consume, i))
            for i in range(self.consumers)
        ]
        for thread in producers + others + consumers:
            thread.start()
        for thread in producers:
            thread.join()
        self.producing = False
        for thread in consumers + others:
            thread.join()

    def _try(self, what: Any, no: int) -> None:
        try:
            with psycopg.connect(self.dsn, autocommit=True) as conn:
                what(conn, no, random.Random(self.seed * 1000 + no))
        except psycopg.Error as error:
            self.errors.append(f"{what.__name__}: {error}")

    def _is_over(self) -> bool:
        return bool(self.errors or self.order.wrong)

    def _produce(self, conn: psycopg.Connection, no: int, rnd: random.Random) -> None:
        """Each producer has its own keys, so it knows in which order they come."""
        mine = range(no, self.keys, 2)
        count = 0
        while count < self.messages // 2 and not self._is_over():
            keys = [
                no if rnd.random() < self.hot else rnd.choice(mine)
                for _ in range(rnd.choice((1, 1, 5, 40)))
            ]
            next_: dict[int, int] = {}
            payloads, names = [], []
            for key in keys:
                number = next_.get(key, self.order.put[key])
                next_[key] = number + 1
                payloads.append(f'{{"k": {key}, "s": {number}}}')
                names.append(f"key {key}")
            options = ""
            if self.priorities and rnd.random() < 0.2:
                options += f", priority => {rnd.choice((2, 7))}"
            if self.trouble and rnd.random() < 0.05:
                options += ", ttl => '3 ms'"
                with self.order.lock:
                    for key, number in next_.items():
                        self.order.maybe[key].update(range(self.order.put[key], number))
            with conn.transaction(
                force_rollback=bool(self.trouble) and rnd.random() < 0.05
            ) as block:
                conn.execute(
                    f"select mq.enqueue_batch('q', %s::jsonb[], ordering_keys => %s{options})",
                    (payloads, names),
                )
            if not block.force_rollback:
                self.order.put.update(next_)
                count += len(keys)

    def _cancel(self, conn: psycopg.Connection, no: int, rnd: random.Random) -> None:
        while self.producing and not self._is_over():
            waiting = conn.execute(
                "select msg_id, payload from mq.peek('q', 200) where state <> 'leased'"
            ).fetchall()
            for msg_id, payload in rnd.sample(waiting, min(len(waiting), 4)):
                key, number = payload["k"], payload["s"]
                with self.order.lock:
                    known = number in self.order.maybe[key]
                    self.order.maybe[key].add(number)
                try:
                    row = conn.execute("select mq.cancel('q', %s)", (msg_id,)).fetchone()
                except psycopg.errors.LockNotAvailable:  # where many are at it
                    row = (False,)
                assert row is not None
                if row[0]:
                    self.order.dropped(key, number)
                elif not known:
                    with self.order.lock:
                        self.order.maybe[key].discard(number)
            time.sleep(0.02)

    def _keep(self, conn: psycopg.Connection, no: int, rnd: random.Random) -> None:
        while not self._is_over() and (self.producing or self.order.holder or self._waiting(conn)):
            conn.execute("select mq.maintain('q')")
            if rnd.random() < 0.2:
                conn.execute("select mq.rotate_segment('q')")
            if rnd.random() < 0.1:
                # Leases may outlive their segment.
                conn.execute("update mq.segment set exhausted_at = exhausted_at - interval '1 day'")
            time.sleep(0.2)

    def _waiting(self, conn: psycopg.Connection) -> bool:
        row = conn.execute(
            "select ready + deferred + leased > 0 from mq.queue_stats('q')"
        ).fetchone()
        assert row is not None
        return bool(row[0])

    def _consume(self, conn: psycopg.Connection, no: int, rnd: random.Random) -> None:
        idle = 0.0
        while not self._is_over():
            asked = rnd.choice((1, 1, 3, 10, 50))
            whole = rnd.random() < 0.1 * self.trouble  # all in a transaction
            if not whole:
                got = self._lease(conn, no, rnd, asked, False)
            else:
                got = False
                with conn.transaction(force_rollback=rnd.random() < 0.5) as block:
                    got = self._lease(conn, no, rnd, asked, block.force_rollback)
                    if rnd.random() < 0.5:
                        got = self._lease(conn, no, rnd, asked, block.force_rollback) or got
                    self._before_end(no, block.force_rollback)
            self.polls += self.producing
            self.empty += self.producing and not got
            if got:
                idle = 0
            elif not self.producing and rnd.random() < 0.02 and not self._waiting(conn):
                return  # not asked each time: that reads everything
            else:
                time.sleep(0.01)
                idle += 0.01
                if idle > 30 and not self.producing:
                    return

    def _before_end(self, no: int, is_undone: bool) -> None:
        pending = self._pending.pop(no, [])
        for key, number in pending:
            if not is_undone:
                self.order.settled(key, number)
        self.order.free(*self._held.pop(no, ()))

    _pending: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    _held: dict[int, set[int]] = field(default_factory=dict)

    def _lease(
        self, conn: psycopg.Connection, no: int, rnd: random.Random, asked: int, is_undone: bool
    ) -> bool:
        """One lease, and what becomes of it. In a transaction the checker is told only as that ends."""
        rows = conn.execute("select * from mq.dequeue('q', %s)", (asked,)).fetchall()
        if not rows:
            return False
        order = self.order
        in_transaction = conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
        keys = order.received(no, rows, asked, self._held.get(no, set()), self._pending.get(no, []))
        self._held.get(no, set()).difference_update(keys)
        receipt = rows[0][1]

        def settle(key: int, number: int) -> None:
            if in_transaction:
                self._pending.setdefault(no, []).append((key, number))
            else:
                order.settled(key, number)

        def free(*which: int) -> None:
            if in_transaction:  # others have it when this ends
                self._held.setdefault(no, set()).update(which)
            else:
                order.free(*which)

        def call(what: str, *args: Any) -> int:
            row = conn.execute(f"select mq.{what}", (receipt, *args)).fetchone()
            assert row is not None
            return int(row[0])

        def expect(count: int, wanted: int, what: str) -> None:
            if count != wanted:
                order.wrong.append(f"{what} of {receipt}: {count} instead of {wanted}")

        chance = rnd.random() / self.trouble if self.trouble else 1
        delay = rnd.choice(("0", "0", "20 ms", "100 ms"))
        if chance > 0.5:
            for key, messages in keys.items():
                for number, _ in messages:
                    settle(key, number)
            free(*keys)
            expect(call("ack('q', %s)"), len(rows), "ack")
        elif chance > 0.25:
            # One fails: what stands before it, and other keys, are acknowledged.
            bad = rnd.choice(list(keys))
            at = rnd.randrange(len(keys[bad]))
            good = [(k, m) for k, ms in keys.items() for m in (ms[:at] if k == bad else ms)]
            for key, (number, _) in good:
                settle(key, number)
            free(*(key for key in keys if key != bad))
            first = rnd.random() < 0.5
            if good and first:
                expect(call("ack('q', %s, %s)", [m[1] for _, m in good]), len(good), "part of ack")
            free(bad)
            if chance > 0.3:
                expect(call("nack('q', %s, %s, delay => %s)", [keys[bad][at][1]], delay), 1, "nack")
            elif chance > 0.27:
                if not in_transaction:
                    order.dropped(bad, keys[bad][at][0])
                else:
                    self._pending.setdefault(no, []).append((bad, keys[bad][at][0]))
                expect(call("nack('q', %s, %s, dead => true)", [keys[bad][at][1]]), 1, "dead")
                rest = len(keys[bad]) - at - 1
                if rest:
                    expect(
                        call(
                            "nack('q', %s, %s, delay => '0')", [m[1] for m in keys[bad][at + 1 :]]
                        ),
                        rest,
                        "rest",
                    )
            else:
                expect(
                    call(
                        "nack('q', %s, %s, delay => %s, count_attempt => false)",
                        [keys[bad][at][1]],
                        delay,
                    ),
                    1,
                    "snooze",
                )
            if good and not first:
                expect(call("ack('q', %s, %s)", [m[1] for _, m in good]), len(good), "late ack")
        elif chance > 0.1:
            free(*keys)
            expect(call("nack('q', %s, delay => %s)", delay), len(rows), "whole nack")
        else:
            free(*keys)
            queue, slot, _, _, _, _, _, _, token = receipt.split(".")
            for table in ("lease", "settlement"):
                conn.execute(
                    f"update mq.{table}_{queue}_{slot} set leased_until = clock_timestamp() - interval '1 ms'"
                    f" where leased_until > '-infinity' and {'token = %(t)s' if table == 'lease' else 'false and %(t)s = 0'}",
                    {"t": int(token)},
                )
            conn.execute(
                "update mq.survivor set leased_until = clock_timestamp() - interval '1 ms' where token = %s",
                (int(token),),
            )
        return True
