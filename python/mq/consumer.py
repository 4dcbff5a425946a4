"""`Consumer` and `AsyncConsumer`: a queue as an iterator that never ends.

The flows of `ConsumerBase` decide everything; the two classes only say how a line of theirs is
opened, and how flows run side by side (threads, tasks). Connections of a consumer:

* its own, in autocommit mode, for dequeue, ack and waiting; lent to ``job.transaction()``;
* one to extend a lease, opened when a handler has used up half of it;
* one for upkeep, opened for each `mq.maintain` and closed again.
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
from .flow import Connect, Deliver, DeliveringFlow, Disconnect, Flow, Sleep, execute
from .job import AT_ONCE, AsyncBatch, AsyncJob, Batch, Job, Unit, failure_reason
from .lease import Lease, Nack
from .line import AsyncLine, Line
from .message import Delivery
from .signals import stops_on_signal

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncConsumer", "Consumer"]

log = logging.getLogger("mq")

C = TypeVar("C")

RECONNECT_FIRST = 0.1  # seconds
SHORT_FIRST = 0.005  # between looks while producers that did not see us may still be at work
EXTEND_IDLE = 60.0  # how long the connection for extending is kept without use
JOIN_SECONDS = 10.0  # a thread that still connects is left to itself
PATIENCE = 1.0  # how long the acks of a lease are collected


@dataclass(frozen=True, slots=True)
class Outlook:
    """What an idle consumer asks."""

    all_see_us: bool  # the transactions that ran when we registered have ended
    due_in: float | None  # seconds until the next deferred message


def _leased(rows: list[Row]) -> tuple[list[Delivery], float]:
    """Deliveries, and how many seconds their lease lasts, by the server's own clock."""
    return [Delivery(*row[:-1]) for row in rows], float(rows[0][-1]) if rows else 0.0


_dequeue = Function(
    "dequeue",
    _leased,
    (*calls.dequeue.columns, "extract(epoch from leased_until - clock_timestamp())::float8"),
)
_extend: Function[float | None] = Function(
    "extend", lambda rows: rows[0][0], ("extract(epoch from extend - clock_timestamp())::float8",)
)
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
            poll_min: the first wait of an idle consumer, doubled with each.
            poll_max: the longest; no sleep is ever longer.
            extend_limit: a lease is extended no more when it is so old; None: as long as the
                handler runs. Zero: never.
            maintain_every: how often, about, to call `mq.maintain` for the queue; None: never.
            stop_when_empty: True: end when nothing can be delivered, instead of waiting.
            signals: True: SIGTERM and SIGINT call `stop`, if iterated in the main thread.
        """
        self.queue = queue
        self._connect = connect
        self._prepare_threshold = 5 if listen else None
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
        self._reconnect_in = Backoff(RECONNECT_FIRST, cap)

        self._started = False
        self._stopping = False
        self._closed = False
        self._lines: list[Line] | list[AsyncLine] = []  # main, extend, maintain
        #: In hand: the lease, its messages not handed out yet, and the one that is out.
        self._lease: Lease | None = None
        self._units: deque[Unit[Any]] = deque()
        self._out: Unit[Any] | None = None
        #: All done, to be settled by the next dequeue.
        self._done: Lease | None = None
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

    def _start(self) -> None:
        if self._started:
            raise RuntimeError("a consumer is iterated once; make another one")
        self._started = True

    # The main flow

    def _main(self, split: Callable[[Lease], Iterable[Unit[Any]]]) -> DeliveringFlow[None]:
        """Hand out units until told to stop. The first connection must succeed."""
        yield Connect()
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
            if self._stopping:  # what is in hand is left to _finish, which tries once more
                return

    def _reconnect(self) -> Flow[None]:
        """Until there is a connection again, or we are told to stop."""
        self._guard = None
        yield Disconnect()
        while not self._stopping:
            yield Sleep(self._reconnect_in.next())
            try:
                yield Connect()
                return
            except ConnectionLost as error:
                log.warning("queue %s: no connection: %s", self.queue, error.message)

    def _work(self, split: Callable[[Lease], Iterable[Unit[Any]]]) -> DeliveringFlow[None]:
        """The same, on one connection. What is in hand survives it and is gone on with."""
        if self._done is not None:  # a dequeue failed, and may have settled it or not
            yield from self._settle(self._done)
            self._done = None
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
                deliveries, length = yield from execute(
                    self._take_call(ack=self._done.receipt if self._done else None)
                )
            except LeaseLost:
                self._warn_lost(self._done)
                self._done = None
                continue
            self._done = None
            self._reconnect_in.reset()
            if deliveries:
                self._idle.reset()
                self._short.reset()
                self._hold(Lease(self.queue, deliveries, asked_at, length), split)
            elif self._stop_when_empty:
                return
            else:
                yield from self._wait()

    def _hold(self, lease: Lease, split: Callable[[Lease], Iterable[Unit[Any]]]) -> None:
        self._lease = lease
        self._units.extend(split(lease))
        if lease.renew_at < self._beat_at and len(self._lines) > 1:
            self._lines[1].wake()

    def _hand_out(self, lease: Lease) -> DeliveringFlow[None]:
        told = False
        while self._units:
            if lease.ran_out:
                self._give_back("the lease ran out before it was handled")
                break
            if self._stopping and not told:
                # A message that goes back has used up an attempt: the last one is better used.
                limit = yield from execute(_max_attempts(self.queue))
                self._give_back("consumer stopped", attempts_below=limit)
                told = True
                continue
            self._out = self._units.popleft()
            yield Deliver(self._out)
            self._out._finish()
            self._out = None
            if lease.pressing(PATIENCE):
                yield from self._settle(lease)
        if lease.all_done and not self._stopping:
            self._done = lease
        else:
            yield from self._settle(lease)
        self._lease = None

    def _give_back(self, reason: str, *, attempts_below: float = math.inf) -> None:
        """Decide to return what was not handed out yet, but what is in its last attempt."""
        keep: deque[Unit[Any]] = deque()
        for unit in self._units:
            if all(delivery.attempt < attempts_below for delivery in unit.deliveries):
                unit._finish(Nack(AT_ONCE, reason))
            else:
                keep.append(unit)
        self._units = keep

    def _settle(self, lease: Lease) -> Flow[None]:
        """Tell the server what it does not know. What fails stays to be told."""
        while (unsent := lease.unsent) is not None:
            count, call = unsent
            settled = yield from execute(call)
            lease.sent()
            if settled < count:
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
        self._give_back("consumer stopped")
        lease = self._lease or self._done
        for last in (False, True):
            try:
                if lease is not None:
                    yield from self._settle(lease)
                return
            except Error as error:
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
                    yield Sleep(None if wait == math.inf else wait)
                    continue
                if not connected:
                    yield Connect()
                    connected = True
                asked_at = time.monotonic()
                length = yield from execute(
                    _extend(
                        queue=self.queue,
                        receipt=lease.receipt,
                        visibility_timeout=self._visibility_timeout,
                    )
                )
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

    def _extended(self, lease: Lease, asked_at: float, length: float | None) -> None:
        if length is not None:
            lease.renewed(asked_at, length)
        elif lease.left and lease in (self._lease, self._done):
            self._warn_lost(lease)
            lease.lost = True

    def _extend_at(self, lease: Lease | None) -> float:
        if lease is None or lease.lost or not lease.left:
            return math.inf
        if lease.renew_at - lease.since > self._extend_limit:
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
            if self._closed:
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
        return self._iterate(lambda lease: [Job(self._begin, lease, [d]) for d in lease.deliveries])

    def batches(self) -> Iterator[Batch]:
        """All messages of a lease (up to `n`) at a time."""
        return self._iterate(lambda lease: [Batch(self._begin, lease, lease.deliveries)])

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

    def _iterate(self, split: Callable[[Lease], Iterable[Unit[Any]]]) -> Iterator[Any]:
        self._start()
        iterator = self._deliver(split)
        if self._entered:  # closed by __exit__, which knows the exception
            self._iterator = iterator
        return iterator

    def _deliver(self, split: Callable[[Lease], Iterable[Unit[Any]]]) -> Generator[Any, None, None]:
        with ExitStack() as stack:
            self._line, extend, maintain = self._lines = [
                stack.enter_context(closing(Line(self._open))) for _ in range(3)
            ]
            if self._signals:
                stack.enter_context(stops_on_signal(self.stop))
            stack.enter_context(self._beside(extend, self._extending()))
            stack.enter_context(self._beside(maintain, self._maintaining()))
            try:
                yield from self._line.deliver(self._main(split))
            finally:
                self._closed = True
                self._line.run(self._finish())

    def _open(self) -> psycopg.Connection[Any]:
        if callable(self._connect):
            return self._connect()
        return psycopg.connect(
            self._connect,
            autocommit=True,
            prepare_threshold=self._prepare_threshold,
            fallback_application_name=f"mq {self.queue}",
        )

    @contextlib.contextmanager
    def _beside(self, line: Line, flow: Flow[None]) -> Iterator[None]:
        """Run a flow in a thread of its own."""
        thread = threading.Thread(target=line.run, args=(flow,), name="mq", daemon=True)
        thread.start()
        try:
            yield
        finally:
            line.wake()
            line.cancel()
            thread.join(JOIN_SECONDS)

    def _begin(self, stack: ExitStack) -> psycopg.Connection[Any]:
        """The connection, in a transaction that ends with `stack`; waits until there is one."""
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
            lambda lease: [AsyncJob(self._begin, lease, [d]) for d in lease.deliveries]
        )

    def batches(self) -> AsyncIterator[AsyncBatch]:
        """All messages of a lease (up to `n`) at a time."""
        return self._iterate(lambda lease: [AsyncBatch(self._begin, lease, lease.deliveries)])

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

    def _iterate(self, split: Callable[[Lease], Iterable[Unit[Any]]]) -> AsyncIterator[Any]:
        self._start()
        iterator = self._deliver(split)
        if self._entered:  # closed by __aexit__, which knows the exception
            self._iterator = iterator
        return iterator

    async def _deliver(
        self, split: Callable[[Lease], Iterable[Unit[Any]]]
    ) -> AsyncGenerator[Any, None]:
        async with AsyncExitStack() as stack:
            self._line, extend, maintain = self._lines = [AsyncLine(self._open) for _ in range(3)]
            stack.push_async_callback(self._line.disconnect)
            if self._signals:
                stack.enter_context(stops_on_signal(self.stop))
            await stack.enter_async_context(self._beside(extend, self._extending()))
            await stack.enter_async_context(self._beside(maintain, self._maintaining()))
            units = self._line.deliver(self._main(split))
            try:
                async for unit in units:
                    yield unit
            finally:
                self._closed = True
                await units.aclose()
                await self._line.run(self._finish())

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        if callable(self._connect):
            return await self._connect()
        return await psycopg.AsyncConnection.connect(
            self._connect,
            autocommit=True,
            prepare_threshold=self._prepare_threshold,
            fallback_application_name=f"mq {self.queue}",
        )

    @contextlib.asynccontextmanager
    async def _beside(self, line: AsyncLine, flow: Flow[None]) -> AsyncIterator[None]:
        """Run a flow in a task of its own."""
        task = asyncio.create_task(line.run(flow))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await line.disconnect()

    async def _begin(self, stack: AsyncExitStack) -> psycopg.AsyncConnection[Any]:
        """The connection, in a transaction that ends with `stack`; waits until there is one."""
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
