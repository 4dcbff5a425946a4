"""What can go wrong: one root, `mq.Error`, and subclasses for what a program may tell apart.

An error is chosen by SQLSTATE alone, never by the text of a message. The psycopg exception stays
reachable as ``__cause__``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

__all__ = [
    "ConnectionLost",
    "Duplicate",
    "Error",
    "InstallationError",
    "InvalidArgument",
    "InvalidState",
    "LeaseLost",
    "MalformedReceipt",
    "MessageDead",
    "NotSupported",
    "PermissionDenied",
    "QueueExists",
    "QueueFull",
    "QueueNotFound",
    "RetryTransaction",
    "ScheduleNotFound",
    "TransactionTooLarge",
    "Undecodable",
]


class Error(Exception):
    """The root of every error that this package raises for what the database answered.

    Attributes:
        sqlstate: the five characters of the SQLSTATE; None if the server sent none (a lost
            connection).
        message: the server's message, one line.
        detail: the server's DETAIL, or None.
        hint: the server's HINT, what to do about it, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.detail:
            lines.append(f"DETAIL: {self.detail}")
        if self.hint:
            lines.append(f"HINT: {self.hint}")
        return "\n".join(lines)


class QueueNotFound(Error):
    """MQ001: there is no queue of that name."""


class QueueExists(Error):
    """MQ002: a queue of that name exists already."""


class QueueFull(Error):
    """MQ008: as many messages wait as max_depth allows; enqueue again later."""


class LeaseLost(Error):
    """MQ003: the lease ran out, or was settled before; a strict ack was refused."""


class MalformedReceipt(Error):
    """MQ004: the text is no receipt, or a receipt of another queue."""


class MessageDead(Error):
    """MQ010: the message that is waited for is a dead letter; `detail` says why."""


class InstallationError(Error):
    """3F000, 42883: mq is missing in this database, or old (`mqctl upgrade`), or damaged."""


class TransactionTooLarge(Error):
    """MQ007: one transaction dequeued too often; commit, and go on in a new one."""


class Duplicate(Error):
    """MQ009: a message has this dedup_key already, and the call was to be refused then."""

    @property
    def msg_id(self) -> int | None:
        """That message, as DETAIL names it."""
        found = re.search(r"\d+", self.detail or "")
        return int(found[0]) if found else None


class ScheduleNotFound(Error):
    """MQ011: there is no schedule of that name."""


class InvalidArgument(Error):
    """Class 22 (22023, 22004, ...): an argument is out of range, null, or cannot be stored."""


class NotSupported(Error):
    """0A000: not possible here, or not in this version."""


class RetryTransaction(Error):
    """40001, 40P01, 55P03: run the transaction again."""


class InvalidState(Error):
    """55000: the object is not in a state in which this can be done."""


class PermissionDenied(Error):
    """42501: the role lacks a right; the roles of mq are mq_producer, mq_consumer and mq_admin."""


class Undecodable(Error):
    """No SQLSTATE: the server sent JSON that Python cannot decode, such as a number of 5,000 digits.

    Nothing is lost by it: a lease stands, and all the messages are here.

    Attributes:
        msg_ids: the messages that cannot be decoded; none: it is the result or the progress of the
            message that was asked for.
        rows: all that the call returned; of those messages, payload and headers are JSON text
            (`str`); or, as its only element, the JSON text of that result or progress.
    """

    def __init__(self, msg_ids: Sequence[int], rows: Sequence[Any], reason: str) -> None:
        listed = ", ".join(map(str, msg_ids))
        what = f"message{'' if len(msg_ids) == 1 else 's'} {listed}" if msg_ids else "what is kept"
        super().__init__(
            f"{what} cannot be decoded: {reason}",
            hint="The attribute rows of this error has all of them, these as JSON text.",
        )
        self.msg_ids = list(msg_ids)
        self.rows = list(rows)


class ConnectionLost(Error):
    """The connection is gone, or could not be made: class 08, what ends a session, or no answer.

    Whether a statement under way took effect is not known.
    """


_BY_CODE: dict[str, type[Error]] = {
    "MQ001": QueueNotFound,
    "MQ002": QueueExists,
    "MQ003": LeaseLost,
    "MQ004": MalformedReceipt,
    "MQ007": TransactionTooLarge,
    "MQ008": QueueFull,
    "MQ009": Duplicate,
    "MQ010": MessageDead,
    "MQ011": ScheduleNotFound,
    "3F000": InstallationError,  # no schema mq
    "42883": InstallationError,  # no such function
    "0A000": NotSupported,
    "40001": RetryTransaction,
    "40P01": RetryTransaction,
    "55P03": RetryTransaction,
    "55000": InvalidState,
    "42501": PermissionDenied,
    "57P01": ConnectionLost,
    "57P02": ConnectionLost,
    "57P03": ConnectionLost,
    "57P04": ConnectionLost,
    "57P05": ConnectionLost,
    "25P03": ConnectionLost,
    "25P04": ConnectionLost,
}
_ENDS_SESSION = frozenset({"FATAL", "PANIC"})
_BY_CLASS: dict[str, type[Error]] = {"22": InvalidArgument, "08": ConnectionLost}


def from_sqlstate(sqlstate: str) -> type[Error]:
    """The class for a SQLSTATE: by the whole code, else by its class, else `Error` itself."""
    return _BY_CODE.get(sqlstate) or _BY_CLASS.get(sqlstate[:2], Error)


def from_psycopg(error: psycopg.Error, *, connected: bool = True) -> Error:
    """Translate what psycopg raised.

    `connected` says whether the connection still stands. Whatever the reason, an error on one that
    does not, or that ends its session, is a lost connection.
    """
    sqlstate = error.sqlstate
    if not connected or error.diag.severity_nonlocalized in _ENDS_SESSION:
        kind: type[Error] = ConnectionLost
    elif sqlstate is not None:
        kind = from_sqlstate(sqlstate)
    elif isinstance(error, psycopg.DataError):  # refused by psycopg before it was sent
        kind = InvalidArgument
    else:
        kind = Error
    return kind(
        error.diag.message_primary or str(error),
        sqlstate=sqlstate,
        detail=error.diag.message_detail,
        hint=error.diag.message_hint,
    )


@contextmanager
def translated(
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
) -> Iterator[None]:
    """Turn psycopg's errors on `connection` into those of this module."""
    try:
        yield
    except psycopg.Error as error:
        raise from_psycopg(error, connected=not connection.closed) from error


@contextmanager
def connecting() -> Iterator[None]:
    """Turn whatever keeps a connection from being made into `ConnectionLost`.

    Also what is not psycopg's: a function that makes connections may ask others first, for a token.
    """
    try:
        yield
    except psycopg.Error as error:
        raise from_psycopg(error, connected=False) from error
    except Error:
        raise
    except Exception as error:
        raise ConnectionLost(f"{type(error).__name__}: {error}") from error
