"""`AsyncClient`: what `Client` is, on an `AsyncConnection`."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import psycopg
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from . import calls
from .calls import Call
from .errors import translated
from .message import (
    DeadLetter,
    Delivery,
    MaintenanceAction,
    MessageStatus,
    PeekedMessage,
    QueueInfo,
    QueueStats,
    Result,
    Schedule,
    SettledMessage,
)

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """Calls the functions of mq on `connection`; the methods of `mq.Client`, as coroutines.

    Arguments, results and errors are described there. Neither ever begins, commits or rolls back:
    that is the caller's.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection

    async def call(self, call: Call[T]) -> T:
        """Run a call of `mq.calls` and read its answer."""
        with translated(self.connection):
            async with self.connection.cursor(row_factory=tuple_row) as cursor:
                calls.tolerate(cursor)
                await cursor.execute(call.sql, call.params)
                return call.read(await cursor.fetchall() if cursor.description else [])

    # Queues

    async def create_queue(
        self,
        queue: str,
        *,
        mode: str | None = None,
        visibility_timeout: timedelta | None = None,
        max_attempts: int | None = None,
        retry_backoff: timedelta | None = None,
        retry_backoff_max: timedelta | None = None,
        retention: timedelta | None = None,
        notify: str | None = None,
        segment_age: timedelta | None = None,
        segment_bytes: int | None = None,
        retry_policy: str | None = None,
        retry_delays: Sequence[timedelta] | None = None,
        retry_jitter: float | None = None,
        priority_ageing: timedelta | None = None,
        result_retention: timedelta | None = None,
        max_depth: int | None = None,
        overflow: str | None = None,
        dedup_window: timedelta | None = None,
        max_in_flight_per_key: int | None = None,
        fair: bool | None = None,
        max_in_flight: int | None = None,
        rate_limit: int | None = None,
        rate_period: timedelta | None = None,
        if_not_exists: bool | None = None,
    ) -> None:
        """Make a queue: `mq.create_queue`."""
        await self.call(
            calls.create_queue(
                queue=queue,
                mode=mode,
                visibility_timeout=visibility_timeout,
                max_attempts=max_attempts,
                retry_backoff=retry_backoff,
                retry_backoff_max=retry_backoff_max,
                retention=retention,
                notify=notify,
                segment_age=segment_age,
                segment_bytes=segment_bytes,
                retry_policy=retry_policy,
                retry_delays=calls.maybe_list(retry_delays),
                retry_jitter=retry_jitter,
                priority_ageing=priority_ageing,
                result_retention=result_retention,
                max_depth=max_depth,
                overflow=overflow,
                dedup_window=dedup_window,
                max_in_flight_per_key=max_in_flight_per_key,
                fair=fair,
                max_in_flight=max_in_flight,
                rate_limit=rate_limit,
                rate_period=rate_period,
                if_not_exists=if_not_exists,
            )
        )

    async def alter_queue(
        self,
        queue: str,
        *,
        mode: str | None = None,
        visibility_timeout: timedelta | None = None,
        max_attempts: int | None = None,
        retry_backoff: timedelta | None = None,
        retry_backoff_max: timedelta | None = None,
        retention: timedelta | None = None,
        notify: str | None = None,
        segment_age: timedelta | None = None,
        segment_bytes: int | None = None,
        retry_policy: str | None = None,
        retry_delays: Sequence[timedelta] | None = None,
        retry_jitter: float | None = None,
        priority_ageing: timedelta | None = None,
        result_retention: timedelta | None = None,
        max_depth: int | None = None,
        overflow: str | None = None,
        dedup_window: timedelta | None = None,
        max_in_flight_per_key: int | None = None,
        fair: bool | None = None,
        max_in_flight: int | None = None,
        rate_limit: int | None = None,
        rate_period: timedelta | None = None,
    ) -> None:
        """Change settings of a queue (see `create_queue`); None leaves one as it is."""
        await self.call(
            calls.alter_queue(
                queue=queue,
                mode=mode,
                visibility_timeout=visibility_timeout,
                max_attempts=max_attempts,
                retry_backoff=retry_backoff,
                retry_backoff_max=retry_backoff_max,
                retention=retention,
                notify=notify,
                segment_age=segment_age,
                segment_bytes=segment_bytes,
                retry_policy=retry_policy,
                retry_delays=calls.maybe_list(retry_delays),
                retry_jitter=retry_jitter,
                priority_ageing=priority_ageing,
                result_retention=result_retention,
                max_depth=max_depth,
                overflow=overflow,
                dedup_window=dedup_window,
                max_in_flight_per_key=max_in_flight_per_key,
                fair=fair,
                max_in_flight=max_in_flight,
                rate_limit=rate_limit,
                rate_period=rate_period,
            )
        )

    async def drop_queue(self, queue: str) -> None:
        """Drop a queue with all its messages: `mq.drop_queue`."""
        await self.call(calls.drop_queue(queue=queue))

    async def purge_queue(self, queue: str) -> int:
        """Throw away what is undelivered; returns how many messages: `mq.purge_queue`."""
        return await self.call(calls.purge_queue(queue=queue))

    async def pause_queue(self, queue: str) -> None:
        """Deliver nothing until `resume_queue`: `mq.pause_queue`."""
        await self.call(calls.pause_queue(queue=queue))

    async def resume_queue(self, queue: str) -> None:
        """Deliver again: `mq.resume_queue`."""
        await self.call(calls.resume_queue(queue=queue))

    async def queues(self) -> list[QueueInfo]:
        """All queues with their settings: `mq.queues`."""
        return await self.call(calls.queues())

    # Producing

    async def enqueue(
        self,
        queue: str,
        payload: object,
        headers: Mapping[str, Any] | None = None,
        *,
        delay: timedelta | None = None,
        deliver_at: datetime | None = None,
        priority: int | None = None,
        ordering_key: str | None = None,
        dedup_key: str | None = None,
        ttl: timedelta | None = None,
        on_duplicate: str | None = None,
    ) -> int:
        """Send a message, which exists once the caller's transaction commits: `mq.enqueue`."""
        return await self.call(
            calls.enqueue(
                queue=queue,
                payload=Jsonb(payload),
                headers=calls.maybe_json(headers),
                delay=delay,
                deliver_at=deliver_at,
                priority=priority,
                ordering_key=ordering_key,
                dedup_key=dedup_key,
                ttl=ttl,
                on_duplicate=on_duplicate,
            )
        )

    async def enqueue_batch(
        self,
        queue: str,
        payloads: Iterable[object],
        headers: Iterable[Mapping[str, Any] | None] | None = None,
        *,
        delay: timedelta | None = None,
        deliver_at: datetime | None = None,
        priority: int | None = None,
        ordering_key: str | None = None,
        dedup_key: str | None = None,
        ttl: timedelta | None = None,
        on_duplicate: str | None = None,
        dedup_keys: Sequence[str | None] | None = None,
        ordering_keys: Sequence[str | None] | None = None,
    ) -> list[int]:
        """Send many messages in one round trip: `mq.enqueue_batch`."""
        return await self.call(
            calls.enqueue_batch(
                queue=queue,
                payloads=calls.json_array(payloads),
                headers=calls.maybe_json_array(headers),
                delay=delay,
                deliver_at=deliver_at,
                priority=priority,
                ordering_key=ordering_key,
                dedup_key=dedup_key,
                ttl=ttl,
                on_duplicate=on_duplicate,
                dedup_keys=calls.maybe_list(dedup_keys),
                ordering_keys=calls.maybe_list(ordering_keys),
            )
        )

    async def copy_in(self, queue: str, messages: Iterable[object] | AsyncIterable[object]) -> int:
        """Send any number of messages by ``COPY mq.inbox``, from an async iterable if need be."""
        sent = 0
        with translated(self.connection):
            async with self.connection.cursor() as cursor, cursor.copy(calls.COPY_IN) as copy:
                copy.set_types(calls.COPY_TYPES)
                async for item in _each(messages):
                    await copy.write_row(calls.copy_row(queue, item))
                    sent += 1
        return sent

    # Consuming

    async def dequeue(
        self,
        queue: str,
        n: int | None = None,
        *,
        visibility_timeout: timedelta | None = None,
        ack: str | None = None,
        wait: timedelta | None = None,
        subscription: str | None = None,
    ) -> list[Delivery]:
        """Lease up to `n` messages (default 1), oldest first, under one receipt: `mq.dequeue`."""
        return await self.call(
            calls.dequeue(
                queue=queue,
                n=n,
                visibility_timeout=visibility_timeout,
                ack=ack,
                wait=wait,
                subscription=subscription,
            )
        )

    async def ack(
        self,
        queue: str,
        receipt: str,
        msg_ids: Sequence[int] | None = None,
        *,
        strict: bool | None = None,
        result: object = None,
    ) -> int:
        """Settle messages as done: `mq.ack`."""
        return await self.call(
            calls.ack(
                queue=queue,
                receipt=receipt,
                msg_ids=calls.maybe_list(msg_ids),
                strict=strict,
                result=calls.maybe_json(result),
            )
        )

    async def nack(
        self,
        queue: str,
        receipt: str,
        msg_ids: Sequence[int] | None = None,
        *,
        delay: timedelta | None = None,
        reason: str | None = None,
        dead: bool | None = None,
        count_attempt: bool | None = None,
    ) -> int:
        """Give messages back, to be tried again: `mq.nack`."""
        return await self.call(
            calls.nack(
                queue=queue,
                receipt=receipt,
                msg_ids=calls.maybe_list(msg_ids),
                delay=delay,
                reason=reason,
                dead=dead,
                count_attempt=count_attempt,
            )
        )

    async def extend(
        self, queue: str, receipt: str, visibility_timeout: timedelta | None = None
    ) -> datetime | None:
        """Let a lease last for `visibility_timeout` (default: the queue's) from now on."""
        until: datetime | None = await self.call(
            calls.extend(queue=queue, receipt=receipt, visibility_timeout=visibility_timeout)
        )
        return until

    async def report(self, queue: str, receipt: str, msg_id: int, progress: object) -> bool:
        """Say how far the work on a leased message is, for `message_status`: `mq.report`."""
        return await self.call(
            calls.report(queue=queue, receipt=receipt, msg_id=msg_id, progress=calls.json(progress))
        )

    async def listen(self, queue: str) -> None:
        """Hear of new messages on this connection, from the commit on: `mq.listen`."""
        await self.call(calls.listen(queue=queue))

    async def unlisten(self, queue: str) -> None:
        """Undo `listen`: `mq.unlisten`."""
        await self.call(calls.unlisten(queue=queue))

    async def next_due(self, queue: str) -> datetime | None:
        """When the next deferred message is due; None: there is none: `mq.next_due`."""
        due: datetime | None = await self.call(calls.next_due(queue=queue))
        return due

    # Upkeep

    async def sweep_stale(self, queue: str | None = None) -> int:
        """Take back leases that ran out, of one queue or all; returns how many messages."""
        return await self.call(calls.sweep_stale(queue=queue))

    async def maintain(self, queue: str | None = None) -> list[MaintenanceAction]:
        """All upkeep of one queue or all, best in a transaction of its own: `mq.maintain`."""
        return await self.call(calls.maintain(queue=queue))

    async def rotate_segment(self, queue: str) -> None:
        """Begin a new segment now: `mq.rotate_segment`."""
        await self.call(calls.rotate_segment(queue=queue))

    # Schedules

    async def schedule(
        self,
        name: str,
        cron: str,
        queue: str,
        payload: object,
        *,
        timezone: str | None = None,
        headers: Mapping[str, Any] | None = None,
        catch_up: str | None = None,
    ) -> datetime:
        """Send a message each time that a cron expression is due; returns when that is next: `mq.schedule`."""
        due: datetime = await self.call(
            calls.schedule(
                name=name,
                cron=cron,
                queue=queue,
                payload=Jsonb(payload),
                timezone=timezone,
                headers=calls.maybe_json(headers),
                catch_up=catch_up,
            )
        )
        return due

    async def unschedule(self, name: str) -> bool:
        """End a schedule; False: there was none: `mq.unschedule`."""
        return await self.call(calls.unschedule(name=name))

    async def schedules(self) -> list[Schedule]:
        """All schedules: `mq.schedules`."""
        return await self.call(calls.schedules())

    async def run_schedule(self, name: str) -> int:
        """Send the message of a schedule now, besides those that are due: `mq.run_schedule`."""
        return await self.call(calls.run_schedule(name=name))

    async def cron_next(
        self, expression: str, after: datetime | None = None, timezone: str | None = None
    ) -> datetime:
        """When a cron expression is due, after `after` (default now): `mq.cron_next`."""
        due: datetime = await self.call(
            calls.cron_next(expression=expression, after=after, timezone=timezone)
        )
        return due

    # Looking

    async def dead_letters(self, queue: str, n: int | None = None) -> list[DeadLetter]:
        """Up to `n` (default 100) messages that were given up: `mq.dead_letters`."""
        return await self.call(calls.dead_letters(queue=queue, n=n))

    async def redrive(
        self,
        queue: str,
        msg_ids: Sequence[int] | None = None,
        *,
        to_queue: str | None = None,
        max_messages: int | None = None,
    ) -> int:
        """Send dead letters again: `mq.redrive`."""
        return await self.call(
            calls.redrive(
                queue=queue,
                msg_ids=calls.maybe_list(msg_ids),
                to_queue=to_queue,
                max_messages=max_messages,
            )
        )

    async def purge_dead_letters(self, queue: str, older_than: timedelta | None = None) -> int:
        """Delete dead letters, those older than `older_than` or all; returns how many."""
        return await self.call(calls.purge_dead_letters(queue=queue, older_than=older_than))

    async def rewind(
        self, queue: str, *, to_time: datetime | None = None, to_msg_id: int | None = None
    ) -> int:
        """Deliver again what was acknowledged and is kept; returns how many: `mq.rewind`."""
        return await self.call(calls.rewind(queue=queue, to_time=to_time, to_msg_id=to_msg_id))

    async def history(
        self,
        queue: str,
        *,
        from_time: datetime | None = None,
        to_time: datetime | None = None,
        n: int | None = None,
    ) -> list[SettledMessage]:
        """Up to `n` (default 100) messages that are done and kept, the oldest first: `mq.history`."""
        return await self.call(
            calls.history(queue=queue, from_time=from_time, to_time=to_time, n=n)
        )

    async def peek(self, queue: str, n: int | None = None) -> list[PeekedMessage]:
        """Look at up to `n` (default 10) messages without taking them: `mq.peek`."""
        return await self.call(calls.peek(queue=queue, n=n))

    async def message_status(self, queue: str, msg_id: int) -> MessageStatus | None:
        """Where a message stands; None: it is forgotten: `mq.message_status`."""
        return await self.call(calls.message_status(queue=queue, msg_id=msg_id))

    async def wait_for(
        self, queue: str, msg_id: int, timeout: timedelta | None = None
    ) -> Result | None:
        """Wait until a message is done, and get its result; None: not yet: `mq.wait_for`."""
        return await self.call(calls.wait_for(queue=queue, msg_id=msg_id, timeout=timeout))

    async def cancel(self, queue: str, msg_id: int) -> bool:
        """Withdraw a message that was not delivered yet; True if it worked: `mq.cancel`."""
        return await self.call(calls.cancel(queue=queue, msg_id=msg_id))

    async def queue_stats(self, queue: str | None = None) -> list[QueueStats]:
        """Figures of one queue or all: `mq.queue_stats`."""
        return await self.call(calls.queue_stats(queue=queue))

    async def version(self) -> str:
        """The version of the installed schema: `mq.version`."""
        return await self.call(calls.version())


async def _each(items: Iterable[object] | AsyncIterable[object]) -> AsyncIterator[object]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
