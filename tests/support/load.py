"""Producers, consumers and upkeep at work in threads, over whatever happens to the server."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from support import conserve, wait

PASSING = (  # the call is to be made again
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.ObjectNotInPrerequisiteState,  # rotate: no spare slot just now
    psycopg.errors.ReadOnlySqlTransaction,  # a standby that is not promoted yet
)


class Load:
    """Work on queues until `stop`. `committed` are the tags that a producer was told are committed."""

    def __init__(
        self,
        dsn: str | Callable[[], str],
        *queues: str,
        producers: int = 2,
        consumers: int = 3,
        upkeep: bool = True,
        isolation: psycopg.IsolationLevel | None = None,
        passing: tuple[type[psycopg.Error], ...] = PASSING,
        connect: Callable[..., psycopg.Connection] = psycopg.connect,
        **params: Any,
    ) -> None:
        self.committed: set[int] = set()
        self.delivered = 0
        self.errors: list[BaseException] = []
        self.passed = 0  # errors that are as they should be
        self._dsn = dsn if callable(dsn) else lambda: dsn
        self._queues = queues or ("q",)
        self._isolation = isolation
        self._passing = passing
        self._connect = connect
        self._params = {"application_name": "load", **params}
        self._tags = itertools.count(1)
        self._stopping = threading.Event()
        steps = [self._produce] * producers + [self._consume] * consumers
        steps += [self._maintain] * upkeep
        self._threads = [threading.Thread(target=self._run, args=(step,)) for step in steps]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(wait.SECONDS)
        if error is None:
            assert self.errors == [], self.errors
            assert not any(thread.is_alive() for thread in self._threads)

    def goes_on(self, messages: int = 30) -> None:
        """Waits until so many more messages were sent, and delivered."""
        sent, delivered = len(self.committed) + messages, self.delivered + messages
        wait.until(
            lambda: self.errors or (len(self.committed) >= sent and self.delivered >= delivered),
            "the load to go on",
        )
        assert self.errors == [], self.errors

    def _run(self, step: Callable[[psycopg.Connection], None]) -> None:
        conn: psycopg.Connection | None = None
        while not self._stopping.is_set():
            try:
                if conn is None or conn.closed:
                    conn = self._connect(self._dsn(), autocommit=True, **self._params)
                    conn.isolation_level = self._isolation if step == self._produce else None
                step(conn)
            except self._passing:
                self.passed += 1
                # A rollback can be cancelled, too: what is left then is a transaction that takes no command.
                if conn is not None and conn.info.transaction_status != TransactionStatus.IDLE:
                    conn.close()
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if not is_lost(error):
                    self.errors.append(error)
                    break
                if conn is not None:
                    conn.close()
                time.sleep(0.02)
            except BaseException as error:
                self.errors.append(error)
                break
        if conn is not None:
            conn.close()

    def _produce(self, conn: psycopg.Connection) -> None:
        queue = random.choice(self._queues)
        tags = [next(self._tags) for _ in range(random.randint(1, 5))]
        delay = f"{random.randint(1, 200)} ms" if random.random() < 0.2 else None
        if random.random() < 0.2:
            with conn.transaction(force_rollback=True):
                conserve.send(conn, tags, queue, delay)
            return
        with conn.transaction():
            conserve.send(conn, tags[:1], queue)
            conserve.send(conn, tags[1:], queue, delay)
        self.committed.update(tags)
        time.sleep(0.002)

    def _consume(self, conn: psycopg.Connection) -> None:
        queue = random.choice(self._queues)
        then = random.random()
        if then < 0.1:  # all in one transaction
            with conn.transaction():
                rows = conserve.receive(conn, random.randint(1, 10), queue, "1 s")
                conserve.settle(conn, rows, queue)
        else:
            rows = conserve.receive(conn, random.randint(1, 10), queue, "1 s")
        self.delivered += len(rows)
        if not rows:
            time.sleep(0.005)
        elif then > 0.95:
            return  # forgotten
        elif then > 0.85:
            conn.execute("select mq.nack(%s, %s)", (queue, rows[0].receipt))
        elif then > 0.1:
            if then > 0.8:
                conn.execute("select mq.extend(%s, %s, '1.5 s')", (queue, rows[0].receipt))
            conserve.settle(conn, rows, queue)

    def _maintain(self, conn: psycopg.Connection) -> None:
        queue = random.choice(self._queues)
        conn.execute("select mq.maintain(%s)", (queue,))
        if random.random() < 0.3:
            conn.execute("select mq.rotate_segment(%s)", (queue,))
        self._stopping.wait(0.1)


def is_lost(error: psycopg.Error) -> bool:
    """Whether the connection is gone, or the server is on its way down or up."""
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))
