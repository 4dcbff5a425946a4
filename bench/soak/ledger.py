"""Who settled what: the consumers of a soak note it in the statement that acknowledges, a thread reads it and empties the
tables again, so that millions of messages are accounted for one by one and the disk stays as it is.
"""

from __future__ import annotations

import time

import psycopg

from bench.soak.gauges import Thread
from support.server import Server

PERIOD = 2  # seconds that each half is written to
HALF = f"mod(floor(extract(epoch from clock_timestamp()) / {PERIOD})::int, 2)"
# took: seconds from the dequeue to here, as the consumer saw it; age: of the messages when they came, -1: not of interest.
TABLES = """
create table done (half int, count int, ids bigint[], took float8, age float8) partition by list (half);
create table done_0 partition of done for values in (0);
create table done_1 partition of done for values in (1);
"""
SETTLE = f"""with acked as materialized (select mq.ack('b', {{r}}) as count)
insert into done select {HALF}, count, {{ids}}::bigint[], {{took}}, {{age}}::float8 from acked where count > 0"""


class Ledger(Thread):
    """Keeps the books for the length of a `with`; buries dead letters, too, every other time by redrive."""

    def __init__(self, server: Server, dbname: str) -> None:
        super().__init__()
        self.settled = 0  # messages acknowledged or purged
        self.buried = 0  # purged
        self.redriven = 0
        self.twice = 0  # settled again
        self.torn = 0  # leases of which not all messages were acknowledged
        self.took: list[float] = []  # samples since they were last taken, ms
        self.ages: list[float] = []
        self.errors: list[str] = []
        self._seen = bytearray()  # by id: whether it is settled
        self._server = server
        self._dbname = dbname
        with server.connect(dbname) as conn:
            conn.execute(TABLES)

    def _run(self) -> None:
        try:
            with self._server.connect(self._dbname, application_name="ledger") as conn:
                turn = 0
                while not self._over.wait(PERIOD / 2):
                    self.collect(conn, int(time.time() / PERIOD + 1) % 2)
                    turn += 1
                    if turn % 10 == 0:
                        self.bury(conn, redrive=turn % 20 == 0)
        except psycopg.Error as error:
            self.errors.append(f"ledger: {error.sqlstate} {error}")

    def collect(self, conn: psycopg.Connection, half: int) -> None:
        """Books a half and empties it. The lock waits for who still writes there; others write to the other half."""
        with conn.transaction():
            conn.execute(f"lock table done_{half} in access exclusive mode")
            with conn.cursor(binary=True) as cursor:
                cursor.execute(f"select count, ids, took, age from done_{half}")
                rows = cursor.fetchall()
            if rows:
                conn.execute(f"truncate done_{half}")
        for count, ids, took, age in rows:
            self.settle(ids)
            self.torn += count != len(ids)
            self.took.append(took * 1000)
            if age >= 0:
                self.ages.append(age * 1000)

    def bury(self, conn: psycopg.Connection, *, redrive: bool = False) -> None:
        """Redrives the dead letters, or purges and books them."""
        if redrive:
            row = conn.execute("select mq.redrive('b')").fetchone()
            self.redriven += row[0] if row else 0
            return
        with conn.transaction():
            # One snapshot: what dies meanwhile is not purged.
            conn.execute("set transaction isolation level repeatable read")
            dead = conn.execute("select msg_id from mq.dead_letters('b', n => 1000000000)")
            ids = [row[0] for row in dead]
            purged = conn.execute("select mq.purge_dead_letters('b')").fetchone()
        assert purged == (len(ids),)
        self.settle(ids)
        self.buried += len(ids)

    def settle(self, ids: list[int]) -> None:
        """Books messages that are gone for good."""
        if ids and max(ids) >= len(self._seen):
            self._seen.extend(bytes(max(ids) + 100_000 - len(self._seen)))
        for number in ids:
            self.twice += self._seen[number]
            self.settled += not self._seen[number]
            self._seen[number] = 1

    def among(self, ids: set[int]) -> int:
        """How many of these were settled."""
        return sum(number < len(self._seen) and self._seen[number] for number in ids)

    def take(self) -> tuple[list[float], list[float]]:
        """The samples of both kinds since the last call."""
        found = self.took, self.ages
        self.took, self.ages = [], []
        return found
