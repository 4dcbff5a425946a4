"""`Consumer` and `AsyncConsumer`: a queue as an iterator that never ends.

The flows of `ConsumerBase` decide everything; the two classes only say how a line of theirs is
opened, and how flows run side by side (threads, tasks). Connections of a consumer:

* its own, in autocommit mode, for dequeue, ack and waiting; lent to ``job.transaction()``; in mode
  transaction it begins and commits around each dequeue and what is done with it;
* one to extend a lease, opened when a handler has used up half of it;
* one for upkeep, opened for each `mq.maintain` and closed again.

A fourth flow has no connection: once the consumer is to end, it sees that no statement of the others is
waited for longer than `GRACE`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg

from . import calls
from .backoff import Backoff
from .calls import Call, Function, Row
from .errors import (
    ConnectionLost,
    Error,
    LeaseLost,
    PermissionDenied,
    RetryTransaction,
    translated,
)
from .flow import Cancel, Connect, Deliver, DeliveringFlow, Disconnect, Flow, Sleep, execute
from .job import AT_ONCE, AsyncBatch, AsyncJob, Batch, Job, Unit, failure_reason, storable
from .lease import Claim, Lease, Nack
from .line import AsyncLine, Line, with_patience
from .message import Delivery
from .signals import stops_on_signal

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncConsumer", "Consumer"]

log = logging.getLogger("mq")

C = TypeVar("C")
Split = Callable[[Lease, list[Delivery]], Iterable[Unit[Any]]]

CANCELLED = "57014"
RECONNECT_FIRST = 0.1  # seconds
SHORT_FIRST = 0.005  # between looks while producers that did not see us may still be at work
EXTEND_IDLE = 60.0  # how long the connection for extending is kept without use
PATIENCE = 1.0  # how long the acks of a lease are collected
POLL_LEAST = timedelta(milliseconds=10)
RESTART = 1.0  # after a defect
DOUBT = 0.2  # before a lease that the server did not know is asked for again
TEND = 1.0  # in mode transaction, between looks of a busy consumer for what is due again
# What a server that says nothing may take of our end (see also `line.CANCEL_SECONDS`):
GRACE = 3.0  # a statement, before it is cancelled,
HANG_UP = 0.5  # and before the connection is broken
JOIN_SECONDS = 1.0  # a thread that still connects is left to itself


@dataclass(frozen=True, slots=True)
class Outlook:
    """What an idle consumer asks."""

    all_see_us: bool  # the transactions that ran when we registered have ended
    due_in: float | None  # seconds until the next deferred message


@dataclass(frozen=True, slots=True)
class Taken:
    """What `mq.dequeue` gave."""

    deliveries: list[Delivery]
    length: float  # seconds that the lease lasts, by the server's own clock
    undecodable: dict[int, str]  # of which messages Python can make nothing, and why


def _leased(rows: list[Row]) -> Taken:
    plain, failed = calls.split_undecoded(rows)
    return Taken([Delivery(*r[:-1]) for r in plain], float(rows[0][-1]) if rows else 0.0, failed)


_dequeue = Function(
    "dequeue",
    _leased,
    (*calls.dequeue.columns, "extract(epoch from leased_until - clock_timestamp())::float8"),
)
_extend: Function[float | None] = Function(
    "extend", lambda rows: rows[0][0], ("extract(epoch from extend - clock_timestamp())::float8",)
)
_BEGIN: Call[None] = Call("begin isolation level read committed", (), lambda rows: None)
_COMMIT: Call[None] = Call("commit", (), lambda rows: None)
_ROLLBACK: Call[None] = Call("rollback", (), lambda rows: None)
_own_xid: Call[str] = Call("select pg_current_xact_id()::text", (), lambda rows: str(rows[0][0]))


def _outlook(queue: str, xid: str) -> Call[Outlook]:
    return Call(
        "select pg_snapshot_xmin(pg_current_snapshot()) > %s::xid8,"
        " extract(epoch from mq.next_due(queue => %s::text) - clock_timestamp())::float8",
        (xid, queue),
        lambda rows: Outlook(*rows[0]),
    )


def _max_attempts(queue: str) -> Call[float]:
    def read(rows: list[Row]) -> float:
        return next(
            (q.settings["max_attempts"] for q in calls.queues.read(rows) if q.name == queue),
            math.inf,
        )

    return Call(calls.queues().sql, (), read)


class ConsumerBase(Generic[C]):
    """What `Consumer` and `AsyncConsumer` have in common: the options, and what to do when."""

    _line: Line | AsyncLine

    def __init__(
        self,
        connect: str | Callable[[], C],
        queue: str,
        *,
        n: int = 1,
        visibility_timeout: timedelta | None = None,
        subscription: str | None = None,
        listen: bool = True,
        poll_min: timedelta = timedelta(seconds=1),
        poll_max: timedelta = timedelta(seconds=10),
        extend_limit: timedelta | None = None,
        maintain_every: timedelta | None = timedelta(minutes=1),
        stop_when_empty: bool = False,
        signals: bool = True,
    ) -> None:
        """Nothing is connected before the first message is asked for.

        Args:
            connect: a connection string, or a function (for `AsyncConsumer` a coroutine function)
                that makes a new connection whenever it is called. The consumer owns what it makes.
            queue: the queue.
            n: at most so many messages a lease.
            visibility_timeout: how long a lease lasts before it is extended (None: the queue's).
            subscription: whose messages (None: 'default').
            listen: False: only poll, and prepare no statements; for a connection through a pooler
                in transaction mode.
            poll_min: the first wait of an idle consumer, doubled with each; 10 ms or more.
            poll_max: the longest; no sleep is ever longer; 10 ms or more.
            extend_limit: a lease is extended no more when it is so old; None: as long as the
                handler runs. Zero: never.
            maintain_every: how often, about, to call `mq.maintain` for the queue; None: never.
            stop_when_empty: True: end when nothing can be delivered, instead of waiting.
            signals: True: SIGTERM and SIGINT call `stop`, if iterated in the main thread.

        Raises:
            ValueError: poll_min or poll_max is too short.
        """
        if min(poll_min, poll_max) < POLL_LEAST:
            raise ValueError("poll_min and poll_max are 10 milliseconds or more")
        self.queue = queue
        self._connect = connect
        self._take_call = partial(
            _dequeue,
            queue=queue,
            n=n,
            visibility_timeout=visibility_timeout,
            subscription=subscription,
        )
        self._visibility_timeout = visibility_timeout
        self._listen = listen
        self._extend_limit = math.inf if extend_limit is None else extend_limit.total_seconds()
        self._maintain_every = maintain_every.total_seconds() if maintain_every else None
        self._stop_when_empty = stop_when_empty
        self._signals = signals

        cap = poll_max.total_seconds()
        self._idle = Backoff(poll_min.total_seconds(), cap)
        self._short = Backoff(SHORT_FIRST, cap)
        self._reconnect_in = Backoff(RECONNECT_FIRST, max(cap, 1))

        self._started = False
        self._stopping = False
        self._closed = False
        self._over = False
        self._lines: list[Line] | list[AsyncLine] = []  # main, extend, maintain, guard
        #: In hand: the lease, its messages not handed out yet, and the one that is out.
        self._lease: Lease | None = None
        self._units: deque[Unit[Any]] = deque()
        self._out: Unit[Any] | None = None
        #: All done, to be settled by the next dequeue.
        self._done: Lease | None = None
        #: The queue is of mode transaction; ours is open.
        self._transactional = False
        self._begun = False
        self._tend_at = 0.0
        #: While we are registered for notifications: a transaction id that is younger than the
        #: registration, and whether all older ones have ended. Producers of those may not have
        #: seen us.
        self._guard: str | None = None
        self._all_see_us = False
        #: When the extending line means to wake up by itself.
        self._beat_at = math.inf
        self._entered = False
        self._error: BaseException | None = None

    def stop(self) -> None:
        """End the iteration, soon: what is handed out is finished, what is not goes back.

        May be called from any thread, and from a signal handler.
        """
        self._stopping = True
        for line in self._lines:
            line.wake()

    def _close(self) -> None:
        self._closed = True
        self._lines[-1].wake()  # the guard

    def _end(self) -> None:
        self._over = True

    def _log_defect(self) -> None:
        log.exception(
            "queue %s: a defect of mq; what runs beside the handler begins anew", self.queue
        )

    def _start(self) -> None:
        if self._started:
            raise RuntimeError("a consumer is iterated once; make another one")
        self._started = True

    # The main flow

    def _main(self, split: Split) -> DeliveringFlow[None]:
        """Hand out units until told to stop. The first connection must succeed."""
        try:
            yield Connect()
        except ConnectionLost:
            if self._stopping:
                return
            if not self._line.reached:  # else it did, and was ended at once
                raise
            yield from self._reconnect()
        while True:
            try:
                yield from self._work(split)
                return
            except ConnectionLost as error:
                log.warning("queue %s: connection lost: %s", self.queue, error.message)
                yield from self._reconnect()
            except RetryTransaction as error:
                log.info("queue %s: %s; trying again", self.queue, error.message)
                yield Sleep(self._short.next())
            except Error as error:
                if not (self._stopping and error.sqlstate == CANCELLED):  # by _guarding
                    raise
            if self._stopping:  # what is in hand is left to _finish, which tries once more
                return

    def _reconnect(self) -> Flow[None]:
        """Until there is a connection again, or we are told to stop."""
        self._guard = None
        self._begun = False
        yield Disconnect()
        while not self._stopping:
            yield Sleep(self._reconnect_in.next())
            try:
                yield Connect()
                return
            except ConnectionLost as error:
                log.warning("queue %s: no connection: %s", self.queue, error.message)

    def _work(self, split: Split) -> DeliveringFlow[None]:
        """The same, on one connection. What is in hand survives it and is gone on with."""
        yield from self._learn_mode()
        if self._transactional:
            yield from self._work_in_transactions(split)
            return
        if self._done is not None:  # a dequeue failed, and may have settled it or not
            yield from self._settle(self._done, doubtful=True)
            self._done = None
        looked_again = False
        while True:
            if self._lease is not None:
                if self._guard is not None:  # busy: spare the producers
                    yield from execute(calls.unlisten(queue=self.queue))
                    self._guard = None
                yield from self._hand_out(self._lease)
            if self._stopping:
                return
            asked_at = time.monotonic()
            try:
                taken = yield from execute(
                    self._take_call(ack=self._done.receipt if self._done else None)
                )
            except LeaseLost:
                self._warn_lost(self._done)
                self._done = None
                continue
            self._done = None
            self._reconnect_in.reset()
            if taken.deliveries:
                self._idle.reset()
                self._short.reset()
                self._hold(taken, asked_at, split)
                looked_again = False
            elif self._stop_when_empty and looked_again:
                return
            elif self._stop_when_empty:
                looked_again = True  # what a call finds due may come with the next one
            else:
                yield from self._wait()

    def _learn_mode(self) -> Flow[None]:
        self._transactional = any(
            queue.name == self.queue and queue.settings["mode"] == "transaction"
            for queue in (yield from execute(calls.queues()))
        )

    def _work_in_transactions(self, split: Split) -> DeliveringFlow[None]:
        """The same in mode transaction: what is handed out is worked on in the transaction that dequeued.

        What an earlier one had in hand when it failed is not ours any more: the server gave it back.
        """
        if self._lease is not None:
            self._lease.lost = True
            self._lease = None
            self._units.clear()
        if self._begun:
            self._begun = False
            yield from execute(_ROLLBACK)
        while not self._stopping:
            if time.monotonic() >= self._tend_at:
                yield from self._tend()
            asked_at = time.monotonic()
            self._begun = True
            yield from execute(_BEGIN)
            taken = yield from execute(self._take_call())
            if taken.deliveries:
                self._hold(taken, asked_at, split)
                if self._lease is not None:
                    yield from self._hand_out(self._lease)
            yield from self._commit()  # also of nothing: it may have buried something
            self._reconnect_in.reset()
            if taken.deliveries:
                self._idle.reset()
                self._short.reset()
                if self._guard is not None:
                    yield from execute(calls.unlisten(queue=self.queue))
                    self._guard = None
            elif (yield from self._tend()):
                continue  # something has joined what can be had
            elif self._stop_when_empty:
                return
            else:
                yield from self._wait()

    def _commit(self) -> Flow[None]:
        """What keeps it from committing (a deferred constraint) is a failed attempt like others."""
        self._begun = False
        try:
            yield from execute(_COMMIT)
        except ConnectionLost:
            raise
        except Error as error:
            log.error("queue %s: rolled back: %s", self.queue, error.message)

    def _tend(self) -> Flow[int]:
        """Nobody's dequeue lets what is due join the others: its transaction might last. How many did."""
        self._tend_at = time.monotonic() + TEND
        return (yield from execute(calls.sweep_stale(queue=self.queue)))

    def _hold(self, taken: Taken, asked_at: float, split: Split) -> None:
        kind = Claim if self._transactional else Lease
        self._lease = lease = kind(self.queue, taken.deliveries, asked_at, taken.length)
        for msg_id, reason in taken.undecodable.items():
            # It will not get better by trying again, and must not stand in the way of the others.
            log.error("queue %s: message %s cannot be decoded: %s", self.queue, msg_id, reason)
            lease.decide([msg_id], Nack(None, storable(f"cannot be decoded: {reason}"), dead=True))
        fine = [d for d in taken.deliveries if d.msg_id not in taken.undecodable]
        if fine:
            self._units.extend(split(lease, fine))
        if lease.renew_at < self._beat_at and len(self._lines) > 1:
            self._lines[1].wake()

    def _hand_out(self, lease: Lease) -> DeliveringFlow[None]:
        told = False
        while self._units:
            if lease.pressing(PATIENCE):
                yield from self._settle(lease)
            if lease.ran_out:
                yield from self._take_up(lease)
                if not self._units:
                    break
            elif self._stopping and not told:
                yield from self._give_back("consumer stopped")
                told = True
                continue
            self._out = self._units.popleft()
            yield Deliver(self._out)
            self._out._finish()
            self._out = None
        if lease.all_done and not self._stopping:
            self._done = lease
        else:
            yield from self._settle(lease)
        self._lease = None

    def _give_back(self, reason: str) -> Flow[None]:
        """Decide to return what was not handed out yet, but what is in its last attempt.

        To return a message uses up the attempt, so that the last one would bury it unseen.
        """
        limit = yield from execute(_max_attempts(self.queue))
        keep: deque[Unit[Any]] = deque()
        for unit in self._units:
            if all(delivery.attempt < limit for delivery in unit.deliveries):
                unit._finish(Nack(AT_ONCE, reason))
            else:
                keep.append(unit)
        self._units = keep

    def _take_up(self, lease: Lease) -> Flow[None]:
        """The lease may be over: return what was not handed out, and ask for what must not be."""
        if not lease.lost:
            yield from self._give_back("the lease ran out before it was handled")
            yield from self._settle(lease)
        if self._units and not lease.lost:
            asked_at = time.monotonic()
            length = yield from execute(self._extend_call(lease))
            if length is None:
                self._warn_lost(lease)
                lease.lost = True
            else:
                lease.renewed(asked_at, length)
        if lease.lost:
            self._units.clear()

    def _settle(self, lease: Lease, *, doubtful: bool = False) -> Flow[None]:
        """Tell the server what it does not know. What fails stays to be told.

        `doubtful`: it was told before, and we did not hear the answer.
        """
        while (unsent := lease.unsent) is not None:
            count, call = unsent
            settled = count if lease.lost or call is None else (yield from execute(call))
            lease.sent()
            if settled < count and not doubtful:
                self._warn_lost(lease)

    def _warn_lost(self, lease: Lease | None) -> None:
        if lease is not None:
            ids = [delivery.msg_id for delivery in lease.deliveries]
            log.warning("queue %s: lease of %s lost, or settled before", self.queue, ids)

    def _wait(self) -> Flow[None]:
        """Nothing to do: register, make sure that nobody has missed it, then sleep."""
        if self._listen and self._guard is None:
            yield from execute(calls.listen(queue=self.queue))
            self._guard = yield from execute(_own_xid)
            self._all_see_us = False
            return
        outlook = yield from execute(_outlook(self.queue, self._guard or "0"))
        if self._guard is not None and not self._all_see_us:
            self._all_see_us = outlook.all_see_us
            if self._all_see_us:
                return  # one more look, then there is nothing that we would not be told of
            wait = self._short.next()
        else:
            wait = self._idle.next()
        if outlook.due_in is not None:
            # Due and not delivered: somebody else is at it.
            wait = min(wait, outlook.due_in if outlook.due_in > 0 else self._short.next())
        notified = yield Sleep(wait)
        if notified:
            self._idle.reset()

    def _finish(self) -> Flow[None]:
        """Whatever ended the iteration: return what is in hand."""
        if self._out is not None:  # the loop was left with it
            error = self._error
            reason = failure_reason(error) if error else "the loop was left before it was done"
            self._out._finish(Nack(None if isinstance(error, Exception) else AT_ONCE, reason))
        lease = self._lease or self._done
        for last in (False, True):
            try:
                if lease is not None:
                    if self._units and not lease.lost:
                        yield from self._give_back("consumer stopped")
                    yield from self._settle(lease, doubtful=lease is self._done)
                if self._begun:
                    yield from self._commit()
                return
            except Error as error:
                if self._transactional:
                    log.warning("queue %s: %s; rolled back", self.queue, error.message)
                    return
                if last or not isinstance(error, ConnectionLost):
                    log.warning("queue %s: %s; the lease will run out", self.queue, error.message)
                    return
            try:
                yield Connect()
            except Error as error:
                log.warning("queue %s: %s; the lease will run out", self.queue, error.message)
                return

    # The side flows, each on a line of its own

    def _extending(self) -> Flow[None]:
        """Extend the lease in hand when half of it is over, again and again."""
        connected = False
        retry = Backoff(RECONNECT_FIRST, 5)
        while not self._closed:
            # First this, then the look: who takes a lease in between wakes us.
            self._beat_at = math.inf
            lease = self._lease or self._done
            due = self._extend_at(lease)
            wait = due - time.monotonic()
            try:
                if lease is None or wait > 0:
                    if connected and wait > EXTEND_IDLE:
                        yield Disconnect()
                        connected = False
                    self._beat_at = due
                    try:
                        yield Sleep(None if wait == math.inf else wait)
                    except ConnectionLost:  # nothing was asked of it: no matter
                        yield Disconnect()
                        connected = False
                    continue
                if not connected:
                    yield Connect()
                    connected = True
                asked_at = time.monotonic()
                length = yield from execute(self._extend_call(lease))
            except (ConnectionLost, RetryTransaction) as error:
                log.warning("queue %s: lease not extended: %s", self.queue, error.message)
                yield Disconnect()
                connected = False
                yield Sleep(retry.next())
            except Error as error:
                log.error("queue %s: lease not extended: %s", self.queue, error.message)
                if lease is not None:
                    lease.renew_at = math.inf
            else:
                retry.reset()
                self._extended(lease, asked_at, length)

    def _extend_call(self, lease: Lease) -> Call[float | None]:
        return _extend(
            queue=self.queue,
            receipt=lease.receipt,
            visibility_timeout=self._visibility_timeout,
        )

    def _extended(self, lease: Lease, asked_at: float, length: float | None) -> None:
        if length is not None:
            lease.renewed(asked_at, length)
        elif not lease.doubtful:
            lease.doubtful = True
            lease.renew_at = time.monotonic() + DOUBT
        elif lease.left and lease in (self._lease, self._done):
            self._warn_lost(lease)
            lease.lost = True

    def _extend_at(self, lease: Lease | None) -> float:
        if lease is None or lease.lost or not lease.left:
            return math.inf
        if lease.renew_at - lease.since > self._extend_limit and not lease.doubtful:
            return math.inf
        return lease.renew_at

    def _maintaining(self) -> Flow[None]:
        """Call `mq.maintain` now and then."""
        every = self._maintain_every
        if every is None:
            return
        wait = every * random.uniform(0.1, 0.5)
        while not self._closed:
            yield Sleep(wait)
            if self._closed or self._stopping:
                return
            try:
                yield Connect()
                done = yield from execute(calls.maintain(queue=self.queue))
                log.debug("queue %s: upkeep: %s", self.queue, done)
            except PermissionDenied as error:
                log.warning("queue %s: no upkeep: %s", self.queue, error.message)
                return
            except Error as error:
                log.warning("queue %s: upkeep failed: %s", self.queue, error.message)
            yield Disconnect()
            wait = every * random.uniform(0.8, 1.2)

    def _guarding(self) -> Flow[None]:
        """Once we are to end, let no statement be waited for that the server does not answer."""
        since = math.inf
        while not self._over:
            ending = self._stopping or self._closed
            since = min(since, time.monotonic()) if ending else math.inf
            yield Sleep(GRACE / 4 if ending else None)
            for line in self._lines[:-1]:
                busy = line.busy_since
                if busy is None or time.monotonic() - max(busy, since) < GRACE:
                    continue
                log.warning("queue %s: no answer from the server: cancelling", self.queue)
                yield Cancel(line)
                yield Sleep(HANG_UP)
                if line.busy_since == busy:
                    line.hang_up()


class Consumer(ConsumerBase[psycopg.Connection[Any]]):
    """The messages of a queue as an iterator; `mq.consume` is another name for it.

    Iterate it, or its `batches`, or give a handler to `run`. Coming back for the next message acks
    the one before, unless it was settled otherwise; `Job` tells how. Best used in a ``with``
    statement: then an exception that leaves the loop gives back what is in hand, with the exception
    as reason.

    Raises, while iterating: `mq.Error` for what the database refuses (no such queue, no right to
    it). A lost connection is made anew, and not raised, except for the first one.
    """

    def __iter__(self) -> Iterator[Job]:
        """One message after the other."""
        return self._iterate(lambda lease, given: [Job(self._begin, lease, [d]) for d in given])

    def batches(self) -> Iterator[Batch]:
        """All messages of a lease (up to `n`) at a time."""
        return self._iterate(lambda lease, given: [Batch(self._begin, lease, given)])

    def run(self, handler: Callable[[Job], object]) -> None:
        """Call `handler` for each message until stopped; what it raises is the reason of a nack."""
        with self:
            for job in self:
                with job:
                    handler(job)

    def __enter__(self) -> Self:
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._error = error
        if self._iterator is not None:
            self._iterator.close()

    _iterator: Generator[Any, None, None] | None = None
    _line: Line

    def _iterate(self, split: Split) -> Iterator[Any]:
        self._start()
        iterator = self._deliver(split)
        if self._entered:  # closed by __exit__, which knows the exception
            self._iterator = iterator
        return iterator

    def _deliver(self, split: Split) -> Generator[Any, None, None]:
        with ExitStack() as stack:
            self._line, extend, maintain, guard = self._lines = [
                stack.enter_context(closing(Line(self._open, pooled=not self._listen)))
                for _ in range(4)
            ]
            if self._signals:
                stack.enter_context(stops_on_signal(self.stop))
            stack.enter_context(self._beside(guard, self._guarding))
            stack.callback(self._end)
            stack.enter_context(self._beside(extend, self._extending))
            stack.enter_context(self._beside(maintain, self._maintaining))
            try:
                yield from self._line.deliver(self._main(split))
            finally:
                self._close()
                self._line.run(self._finish())

    def _open(self) -> psycopg.Connection[Any]:
        if callable(self._connect):
            return self._connect()
        return psycopg.connect(
            with_patience(self._connect),
            fallback_application_name=f"mq {self.queue}",
        )

    @contextlib.contextmanager
    def _beside(self, line: Line, flow: Callable[[], Flow[None]]) -> Iterator[None]:
        """Run a flow in a thread of its own."""

        def run() -> None:
            while not self._closed:
                try:
                    line.run(flow())
                    return
                except Exception:
                    if self._closed:  # left to ourselves, see JOIN_SECONDS
                        return
                    self._log_defect()
                    line.disconnect()
                    line.sleep(RESTART)

        thread = threading.Thread(target=run, name="mq", daemon=True)
        thread.start()
        try:
            yield
        finally:
            line.wake()
            line.cancel()
            thread.join(HANG_UP)
            line.hang_up()
            thread.join(JOIN_SECONDS)

    def _begin(self, stack: ExitStack) -> psycopg.Connection[Any]:
        """The connection, in a transaction that ends with `stack`; waits until there is one."""
        if self._transactional:  # in ours; if that is lost, its connection will say so
            connection = self._line.last_connection
            with contextlib.suppress(psycopg.OperationalError):
                stack.enter_context(connection.transaction())
            return connection
        while True:
            try:
                connection = self._line.connection
                with translated(connection):
                    stack.enter_context(connection.transaction())
                return connection
            except ConnectionLost:
                if self._stopping:
                    raise
                self._line.run(self._reconnect())


class AsyncConsumer(ConsumerBase[Awaitable[psycopg.AsyncConnection[Any]]]):
    """The messages of a queue as an async iterator; `mq.consume_async` is another name for it.

    As `Consumer`, with ``async for``. ``with job:`` stays as it is; ``async with
    job.transaction()``. Use it in an ``async with`` statement: without, Python closes a loop that
    was left whenever it likes.
    """

    def __aiter__(self) -> AsyncIterator[AsyncJob]:
        """One message after the other."""
        return self._iterate(
            lambda lease, given: [AsyncJob(self._begin, lease, [d]) for d in given]
        )

    def batches(self) -> AsyncIterator[AsyncBatch]:
        """All messages of a lease (up to `n`) at a time."""
        return self._iterate(lambda lease, given: [AsyncBatch(self._begin, lease, given)])

    async def run(self, handler: Callable[[AsyncJob], Awaitable[object]]) -> None:
        """Await `handler` for each message until stopped; what it raises is the reason of a nack."""
        async with self:
            async for job in self:
                with job:
                    await handler(job)

    async def __aenter__(self) -> Self:
        self._entered = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._error = error
        if self._iterator is not None:
            await self._iterator.aclose()

    _iterator: AsyncGenerator[Any, None] | None = None
    _line: AsyncLine

    def _iterate(self, split: Split) -> AsyncIterator[Any]:
        self._start()
        iterator = self._deliver(split)
        if self._entered:  # closed by __aexit__, which knows the exception
            self._iterator = iterator
        return iterator

    async def _deliver(self, split: Split) -> AsyncGenerator[Any, None]:
        async with AsyncExitStack() as stack:
            self._line, extend, maintain, guard = self._lines = [
                AsyncLine(self._open, pooled=not self._listen) for _ in range(4)
            ]
            stack.push_async_callback(self._line.disconnect)
            if self._signals:
                stack.enter_context(stops_on_signal(self.stop))
            await stack.enter_async_context(self._beside(guard, self._guarding))
            stack.callback(self._end)
            await stack.enter_async_context(self._beside(extend, self._extending))
            await stack.enter_async_context(self._beside(maintain, self._maintaining))
            units = self._line.deliver(self._main(split))
            try:
                async for unit in units:
                    yield unit
            finally:
                self._close()
                await units.aclose()
                await self._line.run(self._finish())

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        if callable(self._connect):
            return await self._connect()
        return await psycopg.AsyncConnection.connect(
            with_patience(self._connect),
            fallback_application_name=f"mq {self.queue}",
        )

    @contextlib.asynccontextmanager
    async def _beside(self, line: AsyncLine, flow: Callable[[], Flow[None]]) -> AsyncIterator[None]:
        """Run a flow in a task of its own."""

        async def run() -> None:
            while not self._closed:
                try:
                    await line.run(flow())
                    return
                except Exception:
                    if self._closed:
                        return
                    self._log_defect()
                    await line.disconnect()
                    await line.sleep(RESTART)

        task = asyncio.create_task(run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await line.disconnect()

    async def _begin(self, stack: AsyncExitStack) -> psycopg.AsyncConnection[Any]:
        """The connection, in a transaction that ends with `stack`; waits until there is one."""
        if self._transactional:
            connection = self._line.last_connection
            with contextlib.suppress(psycopg.OperationalError):
                await stack.enter_async_context(connection.transaction())
            return connection
        while True:
            try:
                connection = self._line.connection
                with translated(connection):
                    await stack.enter_async_context(connection.transaction())
                return connection
            except ConnectionLost:
                if self._stopping:
                    raise
                await self._line.run(self._reconnect())
