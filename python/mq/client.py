"""`Client`: the SQL functions of mq as methods, on a psycopg connection that the caller owns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """Calls the functions of mq on `connection`; one method a function, same names, same arguments.

    The client never begins, commits or rolls back: that is the caller's, so that a message and
    other writes can be one transaction. On a connection in autocommit mode each call is a
    transaction of its own.

    Every argument that is None is left to the default of the SQL function. Every method raises
    `mq.Error` or a subclass of it, chosen by SQLSTATE, for what the database refuses; those a
    method is likely to meet are named with it.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def call(self, call: Call[T]) -> T:
        """Run a call of `mq.calls` and read its answer."""
        with translated(self.connection), self.connection.cursor(row_factory=tuple_row) as cursor:
            calls.tolerate(cursor)
            cursor.execute(call.sql, call.params)
            return call.read(cursor.fetchall() if cursor.description else [])

    # Queues

    def create_queue(
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
        """Make a queue: `mq.create_queue`.

        Args:
            queue: the name, 1 to 48 of ``A-Za-z0-9_.-``.
            mode: 'lease' (default) or 'transaction'.
            visibility_timeout: how long a lease lasts (default 30 seconds).
            max_attempts: deliveries before a message is given up (default 5).
            retry_policy: how the delay after a failed attempt grows: 'fixed', 'linear',
                'exponential' (default) or 'list'.
            retry_backoff: that delay after the first attempt (default 1 second).
            retry_backoff_max: the longest such delay (default 1 hour).
            retry_delays: with 'list', the delay after each attempt, the last from then on.
            retry_jitter: the share of a delay that chance may take off, 0 to 1 (default 0.5).
            priority_ageing: after each such time that its oldest message has waited, a priority counts
                as one more (default: never; in `alter_queue` 0 means that).
            max_depth: how many messages may wait, ready or delayed (default: any number).
            overflow: what becomes of more: 'reject' (default) raises QueueFull, 'drop_oldest' and
                'dead_letter' make room by removing the oldest that are ready.
            dedup_window: for how long a dedup_key is taken (default 5 minutes); zero: until its
                message is settled.
            max_in_flight_per_key: how many messages of one ordering_key may be under lease (default:
                any number; in `alter_queue` 0 means that).
            fair: True: ordering keys have their turn one after the other (default False: the key
                with the oldest message first).
            max_in_flight: how many messages may be leased at a time, over all consumers (default:
                any number; in `alter_queue` 0 means that).
            rate_limit: how many messages are delivered in any time of rate_period, at most (default:
                any number; in `alter_queue` 0 means that).
            rate_period: that time.
            retention: how long settled messages are kept (default: not at all).
            notify: 'auto' (default), 'always' or 'never'.
            segment_age: how old a segment gets before the next one.
            segment_bytes: how big a segment gets before the next one, in bytes.
            result_retention: how long results and progress are kept (default 1 hour).
            if_not_exists: True: a queue that exists already is left as it is.

        Raises:
            QueueExists, InvalidArgument.
        """
        self.call(
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

    def alter_queue(
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
        """Change settings (see `create_queue`); None leaves one as it is: `mq.alter_queue`.

        Raises:
            QueueNotFound, InvalidArgument.
        """
        self.call(
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

    def drop_queue(self, queue: str) -> None:
        """Drop a queue with all its messages: `mq.drop_queue`.

        Raises:
            QueueNotFound.
        """
        self.call(calls.drop_queue(queue=queue))

    def purge_queue(self, queue: str) -> int:
        """Throw away what is undelivered; returns how many messages: `mq.purge_queue`.

        Raises:
            QueueNotFound.
        """
        return self.call(calls.purge_queue(queue=queue))

    def pause_queue(self, queue: str) -> None:
        """Deliver nothing until `resume_queue`: `mq.pause_queue`.

        Raises:
            QueueNotFound.
        """
        self.call(calls.pause_queue(queue=queue))

    def resume_queue(self, queue: str) -> None:
        """Deliver again: `mq.resume_queue`.

        Raises:
            QueueNotFound.
        """
        self.call(calls.resume_queue(queue=queue))

    def queues(self) -> list[QueueInfo]:
        """All queues with their settings: `mq.queues`."""
        return self.call(calls.queues())

    # Producing

    def enqueue(
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
        """Send a message, which exists once the caller's transaction commits: `mq.enqueue`.

        Args:
            queue: the queue.
            payload: any value that `json` can write; None is JSON's null.
            headers: what is not business, such as a type or a trace id.
            delay: not to be delivered before this time has passed.
            deliver_at: not to be delivered before this time (aware).
            priority: 0 to 9; 9 goes first, 4 is the default.
            ordering_key: 1 to 512 bytes; messages of one key are delivered in order, under one lease at
                a time.
            dedup_key: 1 to 512 bytes; while a message has it, no other is enqueued with it.
            ttl: worthless after this time.
            on_duplicate: what to do where a message has the dedup_key: 'keep' (default) it, 'reject'
                this one, or 'replace' it if it waits.

        Returns:
            The msg_id; with 'keep' perhaps that of the message which has the dedup_key.

        Raises:
            QueueNotFound, InvalidArgument, NotSupported, Duplicate.
        """
        return self.call(
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

    def enqueue_batch(
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
        """Send many messages in one round trip: `mq.enqueue_batch`.

        `headers`, if given, has one entry (or None) for each payload; the other options, as in
        `enqueue`, hold for all. `dedup_keys` has one key (or None) for each payload; of equal keys
        the first one counts, or with ``on_duplicate='replace'`` the last. `ordering_keys` has one
        key (or None) for each payload, too.

        Returns:
            The msg_ids, in the order of the payloads.

        Raises:
            QueueNotFound, InvalidArgument, NotSupported, Duplicate.
        """
        return self.call(
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

    def copy_in(self, queue: str, messages: Iterable[object]) -> int:
        """Send any number of messages by ``COPY mq.inbox``.

        The fastest way, in constant memory; all or nothing. Each item of `messages` is a payload,
        or a `Message` where headers, a time or another queue are wanted. An exception of the
        iterable aborts the COPY and with it the caller's transaction.

        Returns:
            How many were sent.

        Raises:
            QueueNotFound, InvalidArgument.
        """
        sent = 0
        with (
            translated(self.connection),
            self.connection.cursor() as cursor,
            cursor.copy(calls.COPY_IN) as copy,
        ):
            copy.set_types(calls.COPY_TYPES)
            for item in messages:
                copy.write_row(calls.copy_row(queue, item))
                sent += 1
        return sent

    # Consuming

    def dequeue(
        self,
        queue: str,
        n: int | None = None,
        *,
        visibility_timeout: timedelta | None = None,
        ack: str | None = None,
        wait: timedelta | None = None,
        subscription: str | None = None,
    ) -> list[Delivery]:
        """Lease up to `n` messages (default 1), oldest first, under one receipt: `mq.dequeue`.

        Commit before working on them; in a transaction that stays open the lease keeps others
        waiting.

        Args:
            queue: the queue.
            n: at most so many messages.
            visibility_timeout: how long the lease lasts (default: the queue's).
            ack: a receipt to settle in the same round trip; if its lease was lost, nothing is
                leased.
            wait: poll inside the server for so long, at most 20 seconds.
            subscription: whose messages (default: 'default').

        Returns:
            The messages; an empty list says that nothing can be delivered now.

        Raises:
            QueueNotFound, InvalidArgument, NotSupported (not READ COMMITTED), LeaseLost (of `ack`),
            TransactionTooLarge, Undecodable (all is leased; the messages are in the error).
        """
        return self.call(
            calls.dequeue(
                queue=queue,
                n=n,
                visibility_timeout=visibility_timeout,
                ack=ack,
                wait=wait,
                subscription=subscription,
            )
        )

    def ack(
        self,
        queue: str,
        receipt: str,
        msg_ids: Sequence[int] | None = None,
        *,
        strict: bool | None = None,
        result: object = None,
    ) -> int:
        """Settle messages as done: `mq.ack`.

        Args:
            queue: the queue.
            receipt: of the lease.
            msg_ids: which of its messages; None: all that are left.
            strict: True: raise if any of them was lost, so that the caller's transaction rolls back
                with its other writes.
            result: any value that `json` can write, kept for each of these messages, for `wait_for`
                and `message_status`; None: no result (JSON's null is ``Jsonb(None)``).

        Returns:
            How many were settled; 0: the lease was lost, or settled before.

        Raises:
            QueueNotFound, MalformedReceipt, LeaseLost (strict), RetryTransaction.
        """
        return self.call(
            calls.ack(
                queue=queue,
                receipt=receipt,
                msg_ids=calls.maybe_list(msg_ids),
                strict=strict,
                result=calls.maybe_json(result),
            )
        )

    def nack(
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
        """Give messages back, to be tried again: `mq.nack`.

        Args:
            queue: the queue.
            receipt: of the lease.
            msg_ids: which of its messages; None: all that are left.
            delay: when to try again; None: after the queue's backoff.
            reason: why, for the history.
            dead: True: never again, straight to the dead letters.
            count_attempt: False: put off without using up an attempt, as often as you like.

        Returns:
            How many were settled; 0: the lease was lost, or settled before.

        Raises:
            QueueNotFound, MalformedReceipt, RetryTransaction.
        """
        return self.call(
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

    def extend(
        self, queue: str, receipt: str, visibility_timeout: timedelta | None = None
    ) -> datetime | None:
        """Let a lease last from now for `visibility_timeout` (default: the queue's): `mq.extend`.

        Returns:
            Until when it lasts; None: it was lost.

        Raises:
            QueueNotFound, MalformedReceipt.
        """
        until: datetime | None = self.call(
            calls.extend(queue=queue, receipt=receipt, visibility_timeout=visibility_timeout)
        )
        return until

    def report(self, queue: str, receipt: str, msg_id: int, progress: object) -> bool:
        """Say how far the work on a leased message is, for `message_status`: `mq.report`.

        It is seen once the caller's transaction commits. The lease is not made longer.

        Args:
            queue: the queue.
            receipt: of the lease.
            msg_id: which of its messages.
            progress: any value that `json` can write; None is JSON's null.

        Returns:
            False: the lease is lost, or has no such message left.

        Raises:
            QueueNotFound, MalformedReceipt, RetryTransaction.
        """
        return self.call(
            calls.report(queue=queue, receipt=receipt, msg_id=msg_id, progress=calls.json(progress))
        )

    def listen(self, queue: str) -> None:
        """Hear of new messages on this connection, from the commit on: `mq.listen`.

        Needs a session of its own: nothing arrives through a pooler in transaction mode.

        Raises:
            QueueNotFound.
        """
        self.call(calls.listen(queue=queue))

    def unlisten(self, queue: str) -> None:
        """Undo `listen`: `mq.unlisten`.

        Raises:
            QueueNotFound.
        """
        self.call(calls.unlisten(queue=queue))

    def next_due(self, queue: str) -> datetime | None:
        """When the next deferred message is due; None: there is none: `mq.next_due`.

        Raises:
            QueueNotFound.
        """
        due: datetime | None = self.call(calls.next_due(queue=queue))
        return due

    # Upkeep

    def sweep_stale(self, queue: str | None = None) -> int:
        """Take back leases that ran out, of one queue or all: `mq.sweep_stale`.

        Returns:
            How many messages.

        Raises:
            QueueNotFound, NotSupported (not READ COMMITTED).
        """
        return self.call(calls.sweep_stale(queue=queue))

    def maintain(self, queue: str | None = None) -> list[MaintenanceAction]:
        """All upkeep of one queue or all, best in a transaction of its own: `mq.maintain`.

        Returns:
            What was done.

        Raises:
            QueueNotFound, NotSupported (not READ COMMITTED).
        """
        return self.call(calls.maintain(queue=queue))

    def rotate_segment(self, queue: str) -> None:
        """Begin a new segment now: `mq.rotate_segment`.

        Raises:
            QueueNotFound.
        """
        self.call(calls.rotate_segment(queue=queue))

    # Schedules

    def schedule(
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
        """Send a message each time that a cron expression is due: `mq.schedule`.

        Whoever dequeues, or calls `maintain`, sees to it. Safe to call at each start of a program: given
        again as it is, nothing changes.

        Args:
            name: of the schedule; one that exists is replaced.
            cron: five fields, or six with seconds first, @daily and the like, or every 90 seconds.
            queue: where to.
            payload: any value that `json` can write; None is JSON's null.
            timezone: whose clocks; default UTC.
            headers: as in `enqueue`.
            catch_up: what becomes of times that nobody was there for: one (default; one message for
                all of them), all, or none.

        Returns:
            When it is due next.

        Raises:
            QueueNotFound, InvalidArgument, RetryTransaction.
        """
        due: datetime = self.call(
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

    def unschedule(self, name: str) -> bool:
        """End a schedule; False: there was none: `mq.unschedule`.

        Raises:
            RetryTransaction.
        """
        return self.call(calls.unschedule(name=name))

    def schedules(self) -> list[Schedule]:
        """All schedules: `mq.schedules`.

        Raises:
            Undecodable (all rows are in the error; what it names are schedules).
        """
        return self.call(calls.schedules())

    def run_schedule(self, name: str) -> int:
        """Send the message of a schedule now, besides those that are due: `mq.run_schedule`.

        Returns:
            The msg_id.

        Raises:
            ScheduleNotFound.
        """
        return self.call(calls.run_schedule(name=name))

    def cron_next(
        self, expression: str, after: datetime | None = None, timezone: str | None = None
    ) -> datetime:
        """When a cron expression is due, after `after` (aware; default now): `mq.cron_next`.

        Raises:
            InvalidArgument.
        """
        due: datetime = self.call(
            calls.cron_next(expression=expression, after=after, timezone=timezone)
        )
        return due

    # Looking

    def dead_letters(self, queue: str, n: int | None = None) -> list[DeadLetter]:
        """Up to `n` (default 100) messages that were given up: `mq.dead_letters`.

        Raises:
            QueueNotFound, Undecodable (all rows are in the error).
        """
        return self.call(calls.dead_letters(queue=queue, n=n))

    def redrive(
        self,
        queue: str,
        msg_ids: Sequence[int] | None = None,
        *,
        to_queue: str | None = None,
        max_messages: int | None = None,
    ) -> int:
        """Send dead letters again: `mq.redrive`.

        Args:
            queue: whose dead letters.
            msg_ids: which; None: all.
            to_queue: where to; None: the same queue, with the same msg_ids.
            max_messages: at most so many.

        Returns:
            How many.

        Raises:
            QueueNotFound, InvalidArgument.
        """
        return self.call(
            calls.redrive(
                queue=queue,
                msg_ids=calls.maybe_list(msg_ids),
                to_queue=to_queue,
                max_messages=max_messages,
            )
        )

    def purge_dead_letters(self, queue: str, older_than: timedelta | None = None) -> int:
        """Delete dead letters, all or those older than `older_than`: `mq.purge_dead_letters`.

        Returns:
            How many.

        Raises:
            QueueNotFound, InvalidArgument.
        """
        return self.call(calls.purge_dead_letters(queue=queue, older_than=older_than))

    def rewind(
        self, queue: str, *, to_time: datetime | None = None, to_msg_id: int | None = None
    ) -> int:
        """Deliver again what was acknowledged and is kept: `mq.rewind`.

        Args:
            queue: which; it must have a retention.
            to_time: messages that were enqueued then or later; or
            to_msg_id: messages with this number or a higher one.

        Returns:
            How many.

        Raises:
            QueueNotFound, InvalidArgument (also if some of it was dropped already), NotSupported (not in
            READ COMMITTED).
        """
        return self.call(calls.rewind(queue=queue, to_time=to_time, to_msg_id=to_msg_id))

    def history(
        self,
        queue: str,
        *,
        from_time: datetime | None = None,
        to_time: datetime | None = None,
        n: int | None = None,
    ) -> list[SettledMessage]:
        """Up to `n` (default 100) messages that are done and kept, the oldest first: `mq.history`.

        Args:
            queue: which.
            from_time: enqueued then or later; None: from the beginning.
            to_time: enqueued before that; None: to the end.
            n: at most so many.

        Raises:
            QueueNotFound, InvalidArgument, Undecodable (all rows are in the error).
        """
        return self.call(calls.history(queue=queue, from_time=from_time, to_time=to_time, n=n))

    def peek(self, queue: str, n: int | None = None) -> list[PeekedMessage]:
        """Look at up to `n` (default 10) messages without taking them: `mq.peek`.

        Raises:
            QueueNotFound, Undecodable (all rows are in the error).
        """
        return self.call(calls.peek(queue=queue, n=n))

    def message_status(self, queue: str, msg_id: int) -> MessageStatus | None:
        """Where a message stands; None: it is forgotten: `mq.message_status`.

        Raises:
            QueueNotFound.
        """
        return self.call(calls.message_status(queue=queue, msg_id=msg_id))

    def wait_for(self, queue: str, msg_id: int, timeout: timedelta | None = None) -> Result | None:
        """Wait until a message is done, and get its result: `mq.wait_for`.

        Commit what enqueued it first: nobody can work on it before.

        Args:
            queue: the queue.
            msg_id: of the message.
            timeout: at most so long, up to 20 seconds (default 20 seconds).

        Returns:
            The result; None: it is not done yet, ask again.

        Raises:
            QueueNotFound, MessageDead, InvalidArgument (also: there is no such message, or no more),
            NotSupported (not READ COMMITTED), Undecodable.
        """
        return self.call(calls.wait_for(queue=queue, msg_id=msg_id, timeout=timeout))

    def cancel(self, queue: str, msg_id: int) -> bool:
        """Withdraw a message that waits; False: it is leased, done, dead or not there: `mq.cancel`.

        Raises:
            QueueNotFound, NotSupported: not in READ COMMITTED.
        """
        return self.call(calls.cancel(queue=queue, msg_id=msg_id))

    def queue_stats(self, queue: str | None = None) -> list[QueueStats]:
        """Figures of one queue or all: `mq.queue_stats`.

        Raises:
            QueueNotFound.
        """
        return self.call(calls.queue_stats(queue=queue))

    def version(self) -> str:
        """The version of the installed schema: `mq.version`.

        Raises:
            InstallationError.
        """
        return self.call(calls.version())
