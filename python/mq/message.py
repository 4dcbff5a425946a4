"""What goes in and comes out: frozen dataclasses, one for each row type of the SQL functions.

Times are aware `datetime`s in the time zone of the session, intervals are `timedelta`s, payloads
and headers are what `json` makes of them. The fields of a row type carry the names of the SQL
columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

__all__ = [
    "DeadLetter",
    "Delivery",
    "MaintenanceAction",
    "Message",
    "MessageStatus",
    "PeekedMessage",
    "QueueInfo",
    "QueueStats",
    "Result",
]


@dataclass(frozen=True, slots=True)
class Message:
    """A message to be sent with `Client.copy_in`, when there is more to say than its payload.

    Attributes:
        payload: any value that `json` can write.
        headers: a mapping for what is not business, such as a type or a trace id.
        deliver_at: not before this time (aware); None: at once.
        queue: the queue to send it to; None: the one that `copy_in` was called with.
        priority: 0 to 9; 9 goes first; None: 4.
        dedup_key, ordering_key: as in `Client.enqueue`; None: none.
    """

    payload: object
    headers: dict[str, Any] | None = None
    deliver_at: datetime | None = None
    queue: str | None = None
    priority: int | None = None
    dedup_key: str | None = None
    ordering_key: str | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message under a lease (SQL: `mq.delivery`, a row of `mq.dequeue`).

    Attributes:
        msg_id: number of the message in its queue, the same across retries.
        receipt: names the lease; the same for all messages of one `dequeue` call.
        attempt: 1 for the first delivery.
        enqueued_at: when it was enqueued.
        leased_until: when the lease ends unless it is extended or settled before.
        payload: the message.
        headers: what the producer added, or None.
    """

    msg_id: int
    receipt: str
    attempt: int
    enqueued_at: datetime
    leased_until: datetime
    payload: Any
    headers: Any


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up (SQL: a row of `mq.dead_letters`).

    Attributes:
        msg_id: number of the message in its queue.
        enqueued_at: when it was enqueued.
        died_at: when it was given up.
        attempts: how often it had been delivered.
        reason: why the last attempt failed.
        history: the attempts, oldest first, as JSON.
        payload: the message.
        headers: what the producer added, or None.
    """

    msg_id: int
    enqueued_at: datetime
    died_at: datetime
    attempts: int
    reason: str | None
    history: Any
    payload: Any
    headers: Any


@dataclass(frozen=True, slots=True)
class SettledMessage:
    """A message that is done and still kept (SQL: a row of `mq.history`).

    Attributes:
        msg_id: number of the message in its queue.
        enqueued_at: when it was enqueued.
        settled_at: when it was acknowledged, or given up.
        attempts: how often it had been delivered, since it was enqueued, redriven or rewound.
        outcome: acked or dead.
        history: the attempts before that failed, and rewinds, oldest first, as JSON.
        payload: the message.
        headers: what the producer added, or None.
    """

    msg_id: int
    enqueued_at: datetime
    settled_at: datetime
    attempts: int
    outcome: str
    history: Any
    payload: Any
    headers: Any


@dataclass(frozen=True, slots=True)
class Schedule:
    """What enqueues a message again and again (SQL: a row of `mq.schedules`).

    Attributes:
        name: of the schedule.
        queue: where its messages go.
        cron: when, as a cron expression.
        timezone: whose clocks.
        payload: of its messages.
        headers: of its messages, or None.
        catch_up: what becomes of times that nobody was there for: one, all or none.
        next_at: when it is due next; in the past if nobody has been there to see to it.
        created_at: when it was made.
    """

    name: str
    queue: str
    cron: str
    timezone: str
    payload: Any
    headers: Any
    catch_up: str
    next_at: datetime
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PeekedMessage:
    """A message looked at without taking it (SQL: a row of `mq.peek`).

    Attributes:
        msg_id: number of the message in its queue.
        state: ready, deferred, leased, completed or dead.
        attempt: how often it was delivered, or will have been with the next delivery.
        enqueued_at: when it was enqueued.
        due_at: when it becomes ready; None if it is.
        payload: the message.
        headers: what the producer added, or None.
        priority: 0 to 9; 9 goes first.
    """

    msg_id: int
    state: str
    attempt: int
    enqueued_at: datetime
    due_at: datetime | None
    payload: Any
    headers: Any
    priority: int


@dataclass(frozen=True, slots=True)
class MessageStatus:
    """Where one message stands (SQL: `mq.message_status`).

    Attributes:
        state: ready, deferred, leased, completed or dead.
        attempt: of the newest or the next delivery; None if only the result is left.
        enqueued_at: when it was enqueued; None if only the result is left.
        due_at: when it becomes ready; None if it waits for nothing.
        leased_until: when its lease ends; None if it is not leased.
        settled_at: when it was completed or given up; None if it was not.
        reason: why it was given back or given up; None if it was not.
        priority: 0 to 9; 9 goes first.
        progress: what was reported last; None if nothing was, or JSON's null.
        result: what it was acknowledged with; None if there is none, or JSON's null.
    """

    state: str
    attempt: int | None
    enqueued_at: datetime | None
    due_at: datetime | None
    leased_until: datetime | None
    settled_at: datetime | None
    reason: str | None
    priority: int
    progress: Any
    result: Any


@dataclass(frozen=True, slots=True)
class Result:
    """What a message that is done was acknowledged with (SQL: `mq.wait_for`).

    Attributes:
        value: the result; None: JSON's null, or it was acknowledged without one.
    """

    value: Any


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue and its settings (SQL: a row of `mq.queues`).

    Attributes:
        name: the name.
        settings: the settings of `create_queue` by name, intervals as text, as JSON carries them.
        created_at: when it was made.
        paused: True while nothing is delivered.
    """

    name: str
    settings: dict[str, Any]
    created_at: datetime
    paused: bool


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Figures of a queue (SQL: a row of `mq.queue_stats`).

    Attributes:
        queue: the name.
        ready, deferred, leased, dead: messages in each state.
        oldest_ready_age: how long the oldest ready message has waited; None if there is none.
        enqueued_total, delivered_total, settled_total: since the queue was made; a message that was
            rewound counts again in the last two.
        segments: number of segments, those that are only kept too.
        bytes: disk space of the segments.
        paused: True while nothing is delivered.
        maintenance_overdue: True when nobody calls `maintain`.
    """

    queue: str
    ready: int
    deferred: int
    leased: int
    dead: int
    oldest_ready_age: timedelta | None
    enqueued_total: int
    delivered_total: int
    settled_total: int
    segments: int
    bytes: int
    paused: bool
    maintenance_overdue: bool


@dataclass(frozen=True, slots=True)
class MaintenanceAction:
    """One thing that upkeep did (SQL: a row of `mq.maintain`).

    Attributes:
        queue: the queue; None: it is for all queues.
        action: what was done.
        detail: to what.
    """

    queue: str | None
    action: str
    detail: str | None
