"""The SQL functions as data, for sync and async: text, parameters, and how to read the answer.

Arguments go by name, and one that is None is left out, so that SQL's own default holds. Columns are
named one by one, so that a newer schema with more of them still fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Generic, TypeVar

from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.types.json import Jsonb

from .errors import Undecodable
from .message import (
    DeadLetter,
    Delivery,
    MaintenanceAction,
    Message,
    MessageStatus,
    PeekedMessage,
    QueueInfo,
    QueueStats,
    Result,
    Schedule,
    SettledMessage,
)

T = TypeVar("T")
Row = tuple[Any, ...]

_SETTINGS = {
    "mode": "text",
    "visibility_timeout": "interval",
    "max_attempts": "int",
    "retry_backoff": "interval",
    "retry_backoff_max": "interval",
    "retention": "interval",
    "notify": "text",
    "segment_age": "interval",
    "segment_bytes": "bigint",
}
_RETRIES = {
    "retry_policy": "text",
    "retry_delays": "interval[]",
    "retry_jitter": "double precision",
}
_AGEING = {"priority_ageing": "interval"}
_DEDUP = {"dedup_window": "interval"}
_KEYS = {"max_in_flight_per_key": "int", "fair": "boolean"}
_RESULTS = {"result_retention": "interval"}
_LIMITS = {"max_in_flight": "int", "rate_limit": "int", "rate_period": "interval"}
_DEPTH = {"max_depth": "bigint", "overflow": "text"}
_OPTIONS = {
    "delay": "interval",
    "deliver_at": "timestamptz",
    "priority": "int",
    "ordering_key": "text",
    "dedup_key": "text",
    "ttl": "interval",
    "on_duplicate": "text",
}
_QUEUE = {"queue": "text"}
_LEASE = {"queue": "text", "receipt": "text"}

#: The arguments of each SQL function and their types, in the order of the contract.
ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    "create_queue": {
        **_QUEUE,
        **_SETTINGS,
        "if_not_exists": "boolean",
        **_RETRIES,
        **_AGEING,
        **_RESULTS,
        **_DEPTH,
        **_DEDUP,
        **_KEYS,
        **_LIMITS,
    },
    "alter_queue": {
        **_QUEUE,
        **_SETTINGS,
        **_RETRIES,
        **_AGEING,
        **_RESULTS,
        **_DEPTH,
        **_DEDUP,
        **_KEYS,
        **_LIMITS,
    },
    "drop_queue": _QUEUE,
    "purge_queue": _QUEUE,
    "pause_queue": _QUEUE,
    "resume_queue": _QUEUE,
    "queues": {},
    "enqueue": {**_QUEUE, "payload": "jsonb", "headers": "jsonb", **_OPTIONS},
    "enqueue_batch": {
        **_QUEUE,
        "payloads": "jsonb[]",
        "headers": "jsonb[]",
        **_OPTIONS,
        "dedup_keys": "text[]",
        "ordering_keys": "text[]",
    },
    "dequeue": {
        **_QUEUE,
        "n": "int",
        "visibility_timeout": "interval",
        "ack": "text",
        "wait": "interval",
        "subscription": "text",
    },
    "ack": {**_LEASE, "msg_ids": "bigint[]", "strict": "boolean", "result": "jsonb"},
    "nack": {
        **_LEASE,
        "msg_ids": "bigint[]",
        "delay": "interval",
        "reason": "text",
        "dead": "boolean",
        "count_attempt": "boolean",
    },
    "extend": {**_LEASE, "visibility_timeout": "interval"},
    "report": {**_LEASE, "msg_id": "bigint", "progress": "jsonb"},
    "sweep_stale": _QUEUE,
    "maintain": _QUEUE,
    "rotate_segment": _QUEUE,
    "next_due": _QUEUE,
    "dead_letters": {**_QUEUE, "n": "int"},
    "redrive": {**_QUEUE, "msg_ids": "bigint[]", "to_queue": "text", "max_messages": "int"},
    "purge_dead_letters": {**_QUEUE, "older_than": "interval"},
    "rewind": {**_QUEUE, "to_time": "timestamptz", "to_msg_id": "bigint"},
    "history": {**_QUEUE, "from_time": "timestamptz", "to_time": "timestamptz", "n": "int"},
    "peek": {**_QUEUE, "n": "int"},
    "message_status": {**_QUEUE, "msg_id": "bigint"},
    "wait_for": {**_QUEUE, "msg_id": "bigint", "timeout": "interval"},
    "cancel": {**_QUEUE, "msg_id": "bigint"},
    "queue_stats": _QUEUE,
    "listen": _QUEUE,
    "unlisten": _QUEUE,
    "version": {},
    "cron_next": {"expression": "text", "after": "timestamptz", "timezone": "text"},
    "schedule": {
        "name": "text",
        "cron": "text",
        **_QUEUE,
        "payload": "jsonb",
        "timezone": "text",
        "headers": "jsonb",
        "catch_up": "text",
    },
    "unschedule": {"name": "text"},
    "schedules": {},
    "run_schedule": {"name": "text"},
}


@dataclass(frozen=True, slots=True)
class Undecoded:
    """JSON of one column of one row that cannot be decoded, and why."""

    text: str
    reason: str


_JSONB = 3802  # its oid


@cache
def _tolerant(kind: type[Loader]) -> type[Loader]:
    class Tolerant(kind):  # type: ignore[misc, valid-type]
        def load(self, data: Buffer) -> Any:
            try:
                return super().load(data)
            except MemoryError:
                raise
            except Exception as error:
                return Undecoded(bytes(data).decode(), f"{type(error).__name__}: {error}")

    return Tolerant


def tolerate(cursor: AdaptContext) -> None:
    """Let `cursor` read `Undecoded` where its connection's way of decoding JSON raises.

    One message that cannot be decoded must not take away the others of its lease.
    """
    adapters = cursor.adapters
    if (kind := adapters.get_loader(_JSONB, Format.TEXT)) is not None:
        adapters.register_loader("jsonb", _tolerant(kind))


def split_undecoded(rows: list[Row]) -> tuple[list[Row], dict[int, str]]:
    """The rows with text instead of `Undecoded`, and why, by msg_id, the first column."""
    failed = {row[0]: value.reason for row in rows for value in row if isinstance(value, Undecoded)}
    if not failed:
        return rows, failed
    plain = [tuple(v.text if isinstance(v, Undecoded) else v for v in row) for row in rows]
    return plain, failed


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A statement, its parameters, and how to read its rows."""

    sql: str
    params: Row
    read: Callable[[list[Row]], T]


@dataclass(frozen=True, slots=True)
class Function(Generic[T]):
    """One SQL function of mq: calling this object makes the `Call`."""

    name: str
    read: Callable[[list[Row]], T]
    columns: tuple[str, ...] = ()  # of a set of rows; empty: one value a row

    def __call__(self, **arguments: object) -> Call[T]:
        """The call with those of the arguments that are not None."""
        given = {name: value for name, value in arguments.items() if value is not None}
        return Call(_text(self.name, self.columns, tuple(given)), tuple(given.values()), self.read)


@cache
def _text(name: str, columns: tuple[str, ...], given: tuple[str, ...]) -> str:
    types = ARGUMENTS[name]
    call = f"mq.{name}({', '.join(f'{a} => %s::{types[a]}' for a in given)})"
    return f"select {', '.join(columns)} from {call}" if columns else f"select {call}"


def _nothing(rows: list[Row]) -> None:
    """Of a void function."""


def _value(rows: list[Row]) -> Any:
    return rows[0][0]


def _values(rows: list[Row]) -> list[Any]:
    return [row[0] for row in rows]


def _void(name: str) -> Function[None]:
    return Function(name, _nothing)


def _table(name: str, kind: Callable[..., T]) -> Function[list[T]]:
    return Function(name, lambda rows: [kind(*row) for row in rows], _columns(kind))


def _messages(name: str, kind: Callable[..., T]) -> Function[list[T]]:
    def read(rows: list[Row]) -> list[T]:
        plain, failed = split_undecoded(rows)
        messages = [kind(*row) for row in plain]
        if failed:
            raise Undecodable(list(failed), messages, next(iter(failed.values())))
        return messages

    return Function(name, read, _columns(kind))


def _columns(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _status(rows: list[Row]) -> MessageStatus | None:
    return MessageStatus(*_decoded(rows)) if rows and rows[0][0] is not None else None


def _result(rows: list[Row]) -> Result | None:
    value, is_done = _decoded(rows)
    return Result(value) if is_done else None


def _decoded(rows: list[Row]) -> Row:
    """The one row, of a message that the caller named."""
    for value in rows[0]:
        if isinstance(value, Undecoded):
            raise Undecodable([], [value.text], value.reason)
    return rows[0]


create_queue = _void("create_queue")
alter_queue = _void("alter_queue")
drop_queue = _void("drop_queue")
purge_queue: Function[int] = Function("purge_queue", _value)
pause_queue = _void("pause_queue")
resume_queue = _void("resume_queue")
queues = _table("queues", QueueInfo)
enqueue: Function[int] = Function("enqueue", _value)
enqueue_batch: Function[list[int]] = Function("enqueue_batch", _values)
dequeue = _messages("dequeue", Delivery)
ack: Function[int] = Function("ack", _value)
nack: Function[int] = Function("nack", _value)
extend: Function[Any] = Function("extend", _value)
report: Function[bool] = Function("report", _value)
sweep_stale: Function[int] = Function("sweep_stale", _value)
maintain = _table("maintain", MaintenanceAction)
rotate_segment = _void("rotate_segment")
next_due: Function[Any] = Function("next_due", _value)
dead_letters = _messages("dead_letters", DeadLetter)
redrive: Function[int] = Function("redrive", _value)
purge_dead_letters: Function[int] = Function("purge_dead_letters", _value)
rewind: Function[int] = Function("rewind", _value)
history = _messages("history", SettledMessage)
peek = _messages("peek", PeekedMessage)
message_status: Function[MessageStatus | None] = Function(
    "message_status", _status, _columns(MessageStatus)
)
#: JSON's null and SQL's are both None in Python, so the statement tells them apart.
wait_for: Function[Result | None] = Function(
    "wait_for", _result, ("wait_for", "wait_for is not null")
)
cancel: Function[bool] = Function("cancel", _value)
queue_stats = _table("queue_stats", QueueStats)
listen = _void("listen")
unlisten = _void("unlisten")
version: Function[str] = Function("version", _value)
cron_next: Function[Any] = Function("cron_next", _value)
schedule: Function[Any] = Function("schedule", _value)
unschedule: Function[bool] = Function("unschedule", _value)
schedules = _messages("schedules", Schedule)
run_schedule: Function[int] = Function("run_schedule", _value)

#: Bulk ingestion; the columns of `copy_row`.
COPY_IN = "copy mq.inbox (queue, payload, headers, deliver_at, priority, dedup_key, ordering_key) from stdin"
COPY_TYPES = ("text", "jsonb", "jsonb", "timestamptz", "int4", "text", "text")


def copy_row(queue: str, item: object) -> Row:
    """A row for COPY: `item` is a `Message`, or a payload."""
    message = item if isinstance(item, Message) else Message(item)
    return (
        message.queue or queue,
        Jsonb(message.payload),
        maybe_json(message.headers),
        message.deliver_at,
        message.priority,
        message.dedup_key,
        message.ordering_key,
    )


def json(value: object) -> Jsonb:
    """JSON, of which None is the null; what is `Jsonb` already stays as it is."""
    return value if isinstance(value, Jsonb) else Jsonb(value)


def maybe_json(value: object) -> Jsonb | None:
    """The same, but None stays SQL's null, as headers and results want it (not so a payload)."""
    return None if value is None else json(value)


def json_array(values: Iterable[object]) -> list[Jsonb]:
    """The elements of a jsonb[] of payloads."""
    return [Jsonb(value) for value in values]


def maybe_json_array(values: Iterable[object] | None) -> list[Jsonb | None] | None:
    """The elements of a jsonb[] of headers, where None is SQL's null."""
    return None if values is None else [maybe_json(value) for value in values]


def maybe_list(values: Sequence[T] | None) -> list[T] | None:
    """Ids as psycopg wants an array: a list."""
    return None if values is None else list(values)
