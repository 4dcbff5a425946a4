"""What `consume` hands out: a `Job` is one message, a `Batch` all messages of one lease."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg

from .async_client import AsyncClient
from .calls import Call
from .client import Client
from .errors import LeaseLost
from .lease import ACK, Ack, Lease, Nack, Outcome
from .message import Delivery

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncBatch", "AsyncJob", "Batch", "Job"]

log = logging.getLogger("mq")

BeginT = TypeVar("BeginT")
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # as JSON writes it
REASON_LENGTH = 1000  # of an exception's text in a history
AT_ONCE = timedelta(0)


class _OwnLeaseLost(LeaseLost):
    """The lease of the unit itself; a handler may lose others."""


class Unit(Generic[BeginT]):
    """Messages that are settled together.

    ``with unit:`` counts them as done when the block ends, and gives them back, with the exception
    as the reason, when the block raises; the exception is logged (logger "mq") and goes no further,
    so that a loop goes on. What is not an `Exception` (KeyboardInterrupt, SystemExit,
    asyncio.CancelledError) does go further; the messages are given back.
    """

    def __init__(self, begin: BeginT, lease: Lease, deliveries: Sequence[Delivery]) -> None:
        #: The messages.
        self.deliveries = tuple(deliveries)
        self._begin = begin
        self._lease = lease
        self._msg_ids = [delivery.msg_id for delivery in deliveries]
        self._outcome: Outcome | None = None
        self._settled = False

    @property
    def queue(self) -> str:
        """The queue."""
        return self._lease.queue

    @property
    def receipt(self) -> str:
        """Names the lease."""
        return self._lease.receipt

    @property
    def lost(self) -> bool:
        """True once it is known that the lease was lost: somebody else may have the messages now.

        A handler that runs for long may look, and stop.
        """
        return self._lease.lost

    def ack(self, *, result: object = None) -> None:
        """Done. The server is told when the loop comes back for more. SQL: `mq.ack`.

        Args:
            result: any value that `json` can write, for `mq.wait_for`; None: no result.

        Raises:
            TypeError, ValueError: the result is nothing that the server can store.
        """
        self._outcome = Ack(storable_json(result))

    def nack(
        self, *, delay: timedelta | None = None, reason: str | None = None, dead: bool = False
    ) -> None:
        """Give back. The server is told when the loop comes back for more. SQL: `mq.nack`.

        Args:
            delay: when to try again; None: after the queue's backoff.
            reason: why, for the history.
            dead: True: never again, straight to the dead letters.
        """
        self._outcome = Nack(delay, storable(reason), dead)

    def snooze(self, delay: timedelta | None = None) -> None:
        """Put off without using up an attempt, as often as you like. SQL: `mq.nack(count_attempt => false)`.

        Args:
            delay: until when, from now; None: the queue's backoff.
        """
        self._outcome = Nack(delay, count_attempt=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None:
            self._outcome = self._outcome or ACK
            return False
        return self._failed(error)

    def _failed(self, error: BaseException) -> bool:
        """Note what a handler raised; True if it goes no further."""
        if isinstance(error, _OwnLeaseLost) and not self._lease.commit_acks:
            log.warning("queue %s: lease of %s lost, rolled back", self.queue, self._msg_ids)
            self._lease.doubt()
            self._mark_settled()
            return True
        if isinstance(error, Exception):
            log.error("queue %s: %s failed", self.queue, self._msg_ids, exc_info=error)
            self.nack(reason=failure_reason(error))
            return True
        self.nack(delay=AT_ONCE, reason=failure_reason(error))
        return False

    def _mark_settled(self) -> None:
        self._settled = True
        self._lease.settled(len(self._msg_ids))

    def _finish(self, outcome: Outcome = ACK) -> None:
        """The program is through with it: hand over what it said, else `outcome`."""
        if not self._settled:
            self._lease.decide(self._msg_ids, self._outcome or outcome)
            self._settled = True

    def _end_transaction(self, committed: bool) -> None:
        if committed:
            self._mark_settled()
        elif self._outcome is None:  # psycopg.Rollback, which psycopg keeps to itself
            self.nack(reason="rolled back")

    def _settling(self) -> Call[int] | None:
        outcome = self._outcome or ACK
        if self._lease.commit_acks and outcome == ACK:
            return None
        return self._lease.settling(self._msg_ids, outcome, strict=True)

    @contextmanager
    def _strictly(self) -> Iterator[list[int]]:
        """Around the settling call of a transaction, which appends how many it settled."""
        settled: list[int] = []
        try:
            yield settled
        except LeaseLost as error:
            raise _OwnLeaseLost(error.message, sqlstate=error.sqlstate) from error
        if sum(settled) < len(self._msg_ids):
            raise _OwnLeaseLost("the lease was lost")


class _Sync(Unit[Callable[[ExitStack], psycopg.Connection[Any]]]):
    def _report(self, msg_id: int, progress: object) -> bool:
        with ExitStack() as stack:
            client = Client(self._begin(stack))
            return client.report(self.queue, self.receipt, msg_id, progress)

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """A transaction that does the work and acks, strictly, at its end: effects exactly once.

        Yields the consumer's connection, inside a transaction that ends with the block. If the
        block raises, or the lease was lost meanwhile, nothing of it happens, and the exception is
        handled as by ``with job:``. After `nack` in the block, its writes commit together with the
        nack.

        If the connection was lost before, this waits until it is back. Raises: ConnectionLost, if
        the consumer was told to stop while it waited.

        In mode transaction it is the transaction that dequeued, which commits when the loop comes
        back for more; only what the block wrote is undone if it raises, and the message is given
        back. If the connection was lost, the block's first statement says so.
        """
        stack = ExitStack()
        connection = self._begin(stack)
        committed = False
        try:
            with stack:
                yield connection
                if (call := self._settling()) is not None:
                    with self._strictly() as settled:
                        settled.append(Client(connection).call(call))
                committed = True
        except BaseException as error:
            if not self._failed(error):
                raise
        else:
            self._end_transaction(committed)


class _Async(Unit[Callable[[AsyncExitStack], Awaitable[psycopg.AsyncConnection[Any]]]]):
    async def _report(self, msg_id: int, progress: object) -> bool:
        async with AsyncExitStack() as stack:
            client = AsyncClient(await self._begin(stack))
            return await client.report(self.queue, self.receipt, msg_id, progress)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A transaction that does the work and acks, strictly, at its end: effects exactly once.

        As `Job.transaction`, with ``async with`` and an `AsyncConnection`.
        """
        stack = AsyncExitStack()
        connection = await self._begin(stack)
        committed = False
        try:
            async with stack:
                yield connection
                if (call := self._settling()) is not None:
                    with self._strictly() as settled:
                        settled.append(await AsyncClient(connection).call(call))
                committed = True
        except BaseException as error:
            if not self._failed(error):
                raise
        else:
            self._end_transaction(committed)


class _One:
    deliveries: tuple[Delivery, ...]

    @property
    def delivery(self) -> Delivery:
        """The message as `mq.dequeue` gave it out."""
        return self.deliveries[0]

    @property
    def msg_id(self) -> int:
        """Number of the message in its queue, the same across retries."""
        return self.delivery.msg_id

    @property
    def payload(self) -> Any:
        """The message."""
        return self.delivery.payload

    @property
    def headers(self) -> Any:
        """What the producer added, or None."""
        return self.delivery.headers

    @property
    def attempt(self) -> int:
        """1 for the first delivery."""
        return self.delivery.attempt

    @property
    def enqueued_at(self) -> datetime:
        """When it was enqueued."""
        return self.delivery.enqueued_at


class _Many:
    deliveries: tuple[Delivery, ...]

    def __iter__(self) -> Iterator[Delivery]:
        return iter(self.deliveries)

    def __len__(self) -> int:
        return len(self.deliveries)


class Job(_One, _Sync):
    """One message of a `Consumer`; see `Unit` for how it is settled."""

    def report(self, progress: object) -> bool:
        """Say how far it is, now, for `mq.message_status`. SQL: `mq.report`.

        In the block of `transaction` it is seen when that commits. As there, this waits until there
        is a connection.

        Args:
            progress: any value that `json` can write.

        Returns:
            False: the lease is lost.
        """
        return self._report(self.msg_id, progress)


class Batch(_Many, _Sync):
    """All messages of one lease of a `Consumer`, settled together; see `Unit` for how."""

    def report(self, msg_id: int, progress: object) -> bool:
        """Say how far one of its messages is; as `Job.report`."""
        return self._report(msg_id, progress)


class AsyncJob(_One, _Async):
    """One message of an `AsyncConsumer`; see `Unit` for how it is settled."""

    async def report(self, progress: object) -> bool:
        """Say how far it is; as `Job.report`."""
        return await self._report(self.msg_id, progress)


class AsyncBatch(_Many, _Async):
    """All messages of one lease of an `AsyncConsumer`, settled together; see `Unit` for how."""

    async def report(self, msg_id: int, progress: object) -> bool:
        """Say how far one of its messages is; as `Job.report`."""
        return await self._report(msg_id, progress)


def failure_reason(error: BaseException) -> str:
    """What a history says about an exception."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def storable(reason: str | None) -> str | None:
    """As the database can store it: no NUL, no half of a surrogate pair, not too long."""
    if reason is None:
        return None
    return reason[:REASON_LENGTH].replace("\0", " ").encode("utf-8", "replace").decode()


def storable_json(value: object) -> str | None:
    """JSON text of a result; None stays None.

    What the server would refuse is refused here, where the handler can hear of it: later it would
    end the consumer. Raises: TypeError, ValueError.
    """
    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()  # no half of a surrogate pair
    if _NUL.search(text):
        raise ValueError("a result cannot contain the character NUL")
    return text
