"""The chaos crew of a soak: what goes wrong around a queue, all the time, at small rates.

Each member is a thread with a session of its own. It knows what it committed and what it rolled back: a cancel is answered
by an error only where nothing was committed, and sessions are ended only where they have nothing to commit.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import psycopg

from bench import scenarios
from support.server import Server

BATCH = "select mq.enqueue_batch('b', array_fill('{\"crew\": true}'::jsonb, array[%s]))"
LEASE = "select receipt from mq.dequeue('b', %s)"


class Crew:
    """At work for the length of a `with`. The old snapshot is held `hold` seconds, with `pause` seconds between."""

    def __init__(self, server: Server, dbname: str, *, pause: float, hold: float) -> None:
        self.committed = 0  # messages
        self.undone: set[int] = set()  # their ids
        self.did: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()  # that nobody provoked
        self.holding: set[str] = set()
        self._server = server
        self._dbname = dbname
        self._hold = hold
        self._over = threading.Event()
        self._lock = threading.Lock()
        members: dict[Callable[[psycopg.Connection], None], float] = {
            self.forget: 3,
            self.die_with_a_lease: 5,
            self.undo_a_claim: 2,
            self.undo_an_enqueue: 1,
            self.reject: 2,
            self.be_cancelled: 1,
            self.be_too_slow: 1,
            self.keep_a_snapshot: pause,
            self.keep_what_it_wrote: pause / 2,
        }
        self._threads = [
            threading.Thread(target=self._run, args=member, daemon=True)
            for member in members.items()
        ]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, step: Callable[[psycopg.Connection], None], pause: float) -> None:
        name = step.__name__
        conn: psycopg.Connection | None = None
        while not self._over.wait(pause):
            try:
                if conn is None or conn.closed:
                    conn = self._server.connect(self._dbname, application_name="crew")
                step(conn)
                self.did[name] += 1
            except psycopg.Error as error:
                self.errors[f"{name}: {error.sqlstate} {error}"] += 1
                if conn is not None:
                    conn.close()
        if conn is not None:
            conn.close()

    def _enqueue(self, conn: psycopg.Connection, count: int) -> list[int]:
        return [row[0] for row in conn.execute(BATCH, (count,))]

    def _has_committed(self, messages: int) -> None:
        with self._lock:
            self.committed += messages

    def forget(self, conn: psycopg.Connection) -> None:
        """A consumer that never settles: its leases run out."""
        conn.execute(LEASE, (10,))

    def die_with_a_lease(self, conn: psycopg.Connection) -> None:
        """A consumer whose backend ends, every other time before it commits."""
        conn.autocommit = self.did["die_with_a_lease"] % 2 == 0
        conn.execute(LEASE, (5,))
        with self._server.connect() as killer:
            killer.execute("select pg_terminate_backend(%s, 5000)", (conn.info.backend_pid,))
        with contextlib.suppress(psycopg.OperationalError):
            conn.execute("select")
        conn.close()

    def undo_a_claim(self, conn: psycopg.Connection) -> None:
        """A consumer that rolls back."""
        with conn.transaction(force_rollback=True):
            conn.execute(LEASE, (10,))

    def undo_an_enqueue(self, conn: psycopg.Connection) -> None:
        """A producer that rolls back."""
        with conn.transaction(force_rollback=True):
            self.undone.update(self._enqueue(conn, 10))

    def reject(self, conn: psycopg.Connection) -> None:
        """A consumer that cannot bear what it gets."""
        if rows := conn.execute(LEASE, (2,)).fetchall():
            conn.execute("select mq.nack('b', %s, reason => 'poison', dead => true)", rows[0])

    def be_cancelled(self, conn: psycopg.Connection) -> None:
        """Calls that somebody cancels, mostly in the middle."""
        for call in (self._produce, self._consume):
            timer = threading.Timer(random.uniform(0, 0.01), conn.cancel_safe)
            timer.start()
            self._may_be_cancelled(call, conn)
            timer.join()

    def be_too_slow(self, conn: psycopg.Connection) -> None:
        """The same with statement_timeout."""
        for call in (self._produce, self._consume):
            conn.execute(f"set statement_timeout = {random.randint(1, 10)}")
            self._may_be_cancelled(call, conn)
            self._may_be_cancelled(lambda c: c.execute("set statement_timeout = 0"), conn)

    def _may_be_cancelled(
        self, call: Callable[[psycopg.Connection], object], conn: psycopg.Connection
    ) -> None:
        try:
            call(conn)
        except psycopg.errors.QueryCanceled:
            self.did["was cancelled"] += 1

    def _produce(self, conn: psycopg.Connection) -> None:
        self._has_committed(len(self._enqueue(conn, 20)))

    def _consume(self, conn: psycopg.Connection) -> None:
        conn.execute(LEASE, (20,))

    def keep_a_snapshot(self, conn: psycopg.Connection) -> None:
        """A report that takes long."""
        with self._held("snapshot"), scenarios.snapshot(self._server, self._dbname):
            self._over.wait(self._hold)

    def keep_what_it_wrote(self, conn: psycopg.Connection) -> None:
        """A producer that forgot its transaction; it commits, or rolls back every other time."""
        undo = self.did["keep_what_it_wrote"] % 2 == 0
        with self._held("writer"), conn.transaction(force_rollback=undo):
            ids = self._enqueue(conn, 10)
            self._over.wait(self._hold / 2)
        if undo:
            self.undone.update(ids)
        else:
            self._has_committed(len(ids))

    @contextlib.contextmanager
    def _held(self, what: str) -> Iterator[None]:
        self.holding.add(what)
        try:
            yield
        finally:
            self.holding.discard(what)
