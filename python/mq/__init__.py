"""mq: a message queue that is nothing but SQL in one PostgreSQL schema; its Python client."""

from __future__ import annotations

from .async_client import AsyncClient
from .client import Client
from .consumer import AsyncConsumer, Consumer
from .errors import (
    ConnectionLost,
    Duplicate,
    Error,
    InstallationError,
    InvalidArgument,
    InvalidState,
    LeaseLost,
    MalformedReceipt,
    MessageDead,
    NotSupported,
    PermissionDenied,
    QueueExists,
    QueueFull,
    QueueNotFound,
    RetryTransaction,
    ScheduleNotFound,
    TransactionTooLarge,
    Undecodable,
)
from .job import AsyncBatch, AsyncJob, Batch, Job
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

__all__ = [
    "AsyncBatch",
    "AsyncClient",
    "AsyncConsumer",
    "AsyncJob",
    "Batch",
    "Client",
    "ConnectionLost",
    "Consumer",
    "DeadLetter",
    "Delivery",
    "Duplicate",
    "Error",
    "InstallationError",
    "InvalidArgument",
    "InvalidState",
    "Job",
    "LeaseLost",
    "MaintenanceAction",
    "MalformedReceipt",
    "Message",
    "MessageDead",
    "MessageStatus",
    "NotSupported",
    "PeekedMessage",
    "PermissionDenied",
    "QueueExists",
    "QueueFull",
    "QueueInfo",
    "QueueNotFound",
    "QueueStats",
    "Result",
    "RetryTransaction",
    "Schedule",
    "ScheduleNotFound",
    "SettledMessage",
    "TransactionTooLarge",
    "Undecodable",
    "consume",
    "consume_async",
]

#: ``for job in mq.consume(conninfo, queue): ...``
consume = Consumer
#: ``async for job in mq.consume_async(conninfo, queue): ...``
consume_async = AsyncConsumer
