"""A line to the database: a connection that can be made anew, and a sleep that can be ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import socket
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .async_client import AsyncClient
from .calls import Call
from .client import Client
from .errors import ConnectionLost, Error, connecting, translated
from .flow import Cancel, Connect, Deliver, DeliveringFlow, Execute, Flow, Sleep, Step

T = TypeVar("T")
Connection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]
C = TypeVar("C", Connection, AsyncConnection)

CANCEL_SECONDS = 2.0  # to reach the server with a request to cancel
# So that a server that says nothing is noticed; seconds, and milliseconds.
_PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
# dequeue needs it, and a role or a database may default to another. Nothing is set where it is so.
_READ_COMMITTED = (
    "select set_config('default_transaction_isolation', 'read committed', false)"
    " where current_setting('default_transaction_isolation') <> 'read committed'"
)


def with_patience(conninfo: str) -> str:
    """`conninfo` with limits of our own for a server that does not answer, where it sets none."""
    given = conninfo_to_dict(conninfo)
    if "service" in given:  # whose file may set them
        return conninfo
    unset = {o.keyword.decode() for o in psycopg.pq.Conninfo.get_defaults() if o.val is None}
    ours = {name: v for name, v in _PATIENCE.items() if name in unset and name not in given}
    return make_conninfo(conninfo, **ours)


def _read_notifications(connection: Connection | AsyncConnection) -> bool:
    """Take in what the server sent unasked; True if a notification was among it."""
    found = False
    with translated(connection):
        connection.pgconn.consume_input()
        while connection.pgconn.notifies() is not None:
            found = True
    return found


class LineBase(Generic[C]):
    """What both lines have: a connection, or none, and what is known of it."""

    def __init__(self, pooled: bool) -> None:
        self._pooled = pooled
        self._connection: C | None = None
        #: Since when a statement has been waited for; None: there is none.
        self.busy_since: float | None = None
        self.reached = False  # a server, at least once
        self._notified = False

    @property
    def connection(self) -> C:
        """The open connection.

        Raises:
            ConnectionLost.
        """
        if self._connection is None or self._connection.closed:
            raise ConnectionLost("the connection is closed")
        return self._connection

    @property
    def last_connection(self) -> C:
        """The connection that there was last, lost or not."""
        if self._connection is None:
            raise ConnectionLost("there is no connection")
        return self._connection

    def hang_up(self) -> None:
        """Break the connection under a statement that another thread, or task, waits for."""
        # Not close(): whoever uses it is told by the end of its socket.
        if (connection := self._connection) is not None:
            with (
                contextlib.suppress(OSError, psycopg.Error),
                socket.socket(fileno=os.dup(connection.fileno())) as end,
            ):
                end.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        self.busy_since = time.monotonic()
        try:
            yield
        finally:
            self.busy_since = None

    def _on_notify(self, _: psycopg.Notify) -> None:
        self._notified = True


class Line(LineBase[Connection]):
    """The sync one. Only `wake` may be called from another thread, or from a signal handler."""

    def __init__(self, connect: Callable[[], Connection], *, pooled: bool = False) -> None:
        """`connect` makes a connection. `pooled`: its session may be another's after a commit."""
        super().__init__(pooled)
        self._connect = connect
        self._closed = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)

    def perform(self, step: Step) -> Any:
        """Do one step of a flow."""
        if isinstance(step, Execute):
            with self._busy():
                return self.call(step.call)
        if isinstance(step, Sleep):
            return self.sleep(step.seconds)
        if isinstance(step, Cancel):
            return step.line.cancel()
        self.disconnect()
        if isinstance(step, Connect):
            with connecting():
                self._connection = self._connect()
                self.reached = True
                with self._busy():
                    self._make_ready(self._connection)
        return None

    def _make_ready(self, connection: Connection) -> None:
        connection.autocommit = True
        connection.add_notify_handler(self._on_notify)
        if connection.isolation_level is None:
            connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        if self._pooled:
            connection.prepare_threshold = None
        else:
            connection.execute(_READ_COMMITTED)
        if self._closed:  # we were left alone while connecting
            self.disconnect()

    def call(self, call: Call[T]) -> T:
        """Run a statement in a transaction of its own."""
        return Client(self.connection).call(call)

    def sleep(self, seconds: float | None) -> bool:
        """Wait for the time, a notification, or `wake`; True if a notification came."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_in, selectors.EVENT_READ)
            if self._connection is not None and not self._connection.closed:
                selector.register(self._connection.fileno(), selectors.EVENT_READ)
            while not self._notified:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                ready = {key.fileobj for key, _ in selector.select(left)}
                if self._wake_in in ready:
                    with contextlib.suppress(BlockingIOError):
                        self._wake_in.recv(4096)
                    return False
                if ready:
                    self._notified = _read_notifications(self.connection)
        self._notified = False
        return True

    def wake(self) -> None:
        """End the sleep that is or the next that will be."""
        with contextlib.suppress(OSError):  # full: it will wake; closed: nobody sleeps
            self._wake_out.send(b".")

    def disconnect(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._notified = False

    def cancel(self) -> None:
        """Ask the server to end the statement that runs in another thread."""
        if (connection := self._connection) is not None:
            with contextlib.suppress(psycopg.Error):
                connection.cancel_safe(timeout=CANCEL_SECONDS)

    def close(self) -> None:
        """Close everything."""
        self._closed = True
        self.disconnect()
        self._wake_in.close()
        self._wake_out.close()

    def deliver(self, flow: DeliveringFlow[None]) -> Generator[Any, None, None]:
        """Run a flow to its end and yield what it delivers."""
        try:
            step = next(flow)
            while True:
                try:
                    answer = None
                    if isinstance(step, Deliver):
                        yield step.unit
                    else:
                        answer = self.perform(step)
                except Error as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration:
            return

    def run(self, flow: Flow[None]) -> None:
        """Run a flow that delivers nothing to its end."""
        for _ in self.deliver(flow):
            raise AssertionError("the flow delivers")


class AsyncLine(LineBase[AsyncConnection]):
    """The async one. Only `wake` may be called from another thread, or from a signal handler."""

    def __init__(
        self, connect: Callable[[], Awaitable[AsyncConnection]], *, pooled: bool = False
    ) -> None:
        """As `Line`."""
        super().__init__(pooled)
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._stir = asyncio.Event()
        self._failure: Error | None = None

    async def perform(self, step: Step) -> Any:
        """Do one step of a flow."""
        if isinstance(step, Execute):
            with self._busy():
                return await self.call(step.call)
        if isinstance(step, Sleep):
            return await self.sleep(step.seconds)
        if isinstance(step, Cancel):
            return await step.line.cancel()
        await self.disconnect()
        if isinstance(step, Connect):
            with connecting():
                try:
                    self._connection = await self._connect()
                    self.reached = True
                except asyncio.CancelledError as error:
                    # psycopg leaves a connection that was being made to be closed when its frames go.
                    traceback.clear_frames(error.__traceback__)
                    raise
                with self._busy():
                    await self._make_ready(self._connection)
        return None

    async def _make_ready(self, connection: AsyncConnection) -> None:
        await connection.set_autocommit(True)
        connection.add_notify_handler(self._on_notify)
        if connection.isolation_level is None:
            await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        if self._pooled:
            connection.prepare_threshold = None
        else:
            await connection.execute(_READ_COMMITTED)

    async def call(self, call: Call[T]) -> T:
        """Run a statement in a transaction of its own."""
        return await AsyncClient(self.connection).call(call)

    async def sleep(self, seconds: float | None) -> bool:
        """Wait for the time, a notification, or `wake`; True if a notification came."""
        listening = -1
        if self._connection is not None and not self._connection.closed:
            listening = self._connection.fileno()
            self._loop.add_reader(listening, self._on_readable)
        try:
            if not self._notified:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._stir.wait(), seconds)
        finally:
            if listening >= 0:
                self._loop.remove_reader(listening)
        self._stir.clear()
        if (failure := self._failure) is not None:
            self._failure = None
            raise failure
        notified, self._notified = self._notified, False
        return notified

    def wake(self) -> None:
        """End the sleep that is or the next that will be."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody sleeps
            self._loop.call_soon_threadsafe(self._stir.set)

    async def disconnect(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
        self._notified = False

    async def cancel(self) -> None:
        """Ask the server to end the statement that runs in another task."""
        if (connection := self._connection) is not None:
            with contextlib.suppress(psycopg.Error):
                await connection.cancel_safe(timeout=CANCEL_SECONDS)

    def _on_readable(self) -> None:
        try:
            if _read_notifications(self.connection):
                self._notified = True
                self._stir.set()
        except Error as error:
            self._failure = error
            self._stir.set()

    async def deliver(self, flow: DeliveringFlow[None]) -> AsyncGenerator[Any, None]:
        """Run a flow to its end and yield what it delivers."""
        try:
            step = next(flow)
            while True:
                try:
                    answer = None
                    if isinstance(step, Deliver):
                        yield step.unit
                    else:
                        answer = await self.perform(step)
                except Error as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration:
            return

    async def run(self, flow: Flow[None]) -> None:
        """Run a flow that delivers nothing to its end."""
        async for _ in self.deliver(flow):
            raise AssertionError("the flow delivers")
