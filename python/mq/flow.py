"""Work written once for sync and async: generators of steps that are told what came of them.

A flow decides, a line (see `mq.line`) does: connecting, running a statement, sleeping. Errors of a
step are raised in the flow where it waits for the step.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from .calls import Call

T = TypeVar("T")


class Connect:
    """Open the connection of the line; one that is open is closed first."""


class Disconnect:
    """Close the connection of the line, if it has one."""


@dataclass(frozen=True, slots=True)
class Execute:
    """Run a statement and read its answer."""

    call: Call[Any]


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for so many seconds (None: for ever), less if a notification comes or the line is woken.

    The answer is True if a notification came.
    """

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand something to the program, and go on when it comes back for more."""

    unit: Any


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ask the server to end the statement that another line waits for. Takes a moment at most."""

    line: Any


Step = Connect | Disconnect | Execute | Sleep | Cancel
Flow = Generator[Step, Any, T]
DeliveringFlow = Generator[Step | Deliver, Any, T]


def execute(call: Call[T]) -> Flow[T]:
    """Run a call; the step with its type kept."""
    answer: T = yield Execute(call)
    return answer
