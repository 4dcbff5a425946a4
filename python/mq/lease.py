"""One lease while its messages are worked on: when to extend it, and what to tell the server."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from . import calls
from .calls import Call
from .message import Delivery

__all__ = ["ACK", "Ack", "Claim", "Lease", "Nack", "Outcome"]


@dataclass(frozen=True, slots=True)
class Ack:
    """Done, with a result as JSON text or without one."""

    result: str | None = None


@dataclass(frozen=True, slots=True)
class Nack:
    """To be tried again, or given up; as the arguments of `mq.nack`."""

    delay: timedelta | None = None
    reason: str | None = None
    dead: bool = False
    count_attempt: bool = True


Outcome = Ack | Nack
ACK = Ack()


class Lease:
    """One `dequeue` call: its messages, and which of them the server still counts as leased."""

    #: True: they are the open transaction's, whose commit acknowledges what was not given back.
    commit_acks = False

    def __init__(
        self, queue: str, deliveries: Sequence[Delivery], asked_at: float, length: float
    ) -> None:
        self.queue = queue
        self.receipt = deliveries[0].receipt
        self.deliveries = deliveries
        self.since = asked_at
        self.renew_at = self.ends_at = 0.0
        self.renewed(asked_at, length)
        #: True once the server said that it is gone.
        self.lost = False
        #: Messages that the server was told nothing of.
        self.left = len(deliveries)
        #: True once the server did not know it when asked to extend it. It may be that it was being
        #: settled at that moment, so that it is asked once more.
        self.doubtful = False
        #: Outcomes that the server was not told yet, in order, and when it heard of us last.
        self._unsent: deque[tuple[Outcome, list[int]]] = deque()
        self._told_at = asked_at

    def renewed(self, asked_at: float, length: float) -> None:
        """It lasts for `length` seconds from when the server was asked, if not a little longer.

        Half way is the time to extend it.
        """
        self.renew_at = asked_at + length / 2
        self.ends_at = asked_at + length
        self.doubtful = False

    def doubt(self) -> None:
        """It may be over: nothing more is handed out before the server was asked."""
        self.ends_at = -math.inf

    @property
    def ran_out(self) -> bool:
        """True if it ended, as far as can be known here."""
        return self.lost or time.monotonic() > self.ends_at

    def decide(self, msg_ids: Sequence[int], outcome: Outcome) -> None:
        """Note what became of messages, for the next `unsent`."""
        if self._unsent and self._unsent[-1][0] == outcome:
            self._unsent[-1][1].extend(msg_ids)
        else:
            self._unsent.append((outcome, list(msg_ids)))

    def settled(self, count: int) -> None:
        """The server knows of `count` more messages."""
        self.left -= count

    def pressing(self, patience: float) -> bool:
        """True if the server should hear now: something failed, or `patience` seconds are over.

        Those since it heard last, not since something was done: a slow handler's work is told of
        before the next begins.
        """
        return any(outcome != ACK for outcome, _ in self._unsent) or (
            bool(self._unsent) and time.monotonic() - self._told_at >= patience
        )

    @property
    def all_done(self) -> bool:
        """True if all that is left is done, so that the next `dequeue` can settle it by the way."""
        return (
            len(self._unsent) == 1
            and self._unsent[0][0] == ACK
            and len(self._unsent[0][1]) == self.left
        )

    @property
    def unsent(self) -> tuple[int, Call[int] | None] | None:
        """The next statement for the server, if it needs one, and of how many messages.

        None: it knows all.
        """
        if not self._unsent:
            return None
        outcome, msg_ids = self._unsent[0]
        if self.commit_acks and outcome == ACK:
            return len(msg_ids), None
        return len(msg_ids), self.settling(msg_ids, outcome)

    def sent(self) -> None:
        """The statement of `unsent` was run."""
        self.settled(len(self._unsent.popleft()[1]))
        self._told_at = time.monotonic()

    def settling(
        self, msg_ids: Sequence[int], outcome: Outcome, *, strict: bool | None = None
    ) -> Call[int]:
        """The statement that settles these messages; the short form if no others are left."""
        # What is done is settled already, or would be given back with the others.
        all_of_it = len(self.deliveries) if self.commit_acks else self.left
        ids = None if len(msg_ids) == all_of_it else list(msg_ids)
        if isinstance(outcome, Ack):
            return calls.ack(
                queue=self.queue,
                receipt=self.receipt,
                msg_ids=ids,
                strict=strict,
                result=outcome.result,
            )
        return calls.nack(
            queue=self.queue,
            receipt=self.receipt,
            msg_ids=ids,
            delay=outcome.delay,
            reason=outcome.reason,
            dead=outcome.dead or None,
            count_attempt=None if outcome.count_attempt else False,
        )


class Claim(Lease):
    """The same in mode transaction: no deadline, and nothing to tell the server of what is done."""

    commit_acks = True

    def renewed(self, asked_at: float, length: float) -> None:
        """It lasts as long as the transaction."""
        super().renewed(asked_at, math.inf)

    @property
    def all_done(self) -> bool:
        """False: no later `dequeue` can settle it."""
        return False
