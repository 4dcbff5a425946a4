"""The parts of the consumer that need no server: waiting times, and what a lease tells the server."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest

from mq import Delivery
from mq.backoff import Backoff
from mq.lease import ACK, Ack, Lease, Nack


def lease(n: int) -> Lease:
    now = datetime.now(timezone.utc)
    deliveries = [Delivery(i, "r", 1, now, now, None, None) for i in range(1, n + 1)]
    return Lease("q", deliveries, time.monotonic(), 30)


def drain(of: Lease) -> list[tuple[str, tuple[object, ...]]]:
    told = []
    while (unsent := of.unsent) is not None:
        _, call = unsent
        assert call is not None
        told.append((call.sql.split("(")[0].removeprefix("select mq."), call.params[2:]))
        of.sent()
    return told


def test_waits_double_up_to_the_cap() -> None:
    backoff = Backoff(1, 10, jitter=0)
    assert [backoff.next() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    backoff.reset()
    assert backoff.next() == 1


def test_jitter_only_shortens() -> None:
    waits = [Backoff(10, 10, jitter=0.2).next() for _ in range(200)]
    assert all(8 <= wait <= 10 for wait in waits)
    assert len(set(waits)) > 1


def test_what_is_all_done_waits_for_the_next_dequeue() -> None:
    three = lease(3)
    three.decide([1], ACK)
    three.decide([2], ACK)
    assert not three.all_done
    three.decide([3], ACK)
    assert three.all_done
    assert drain(three) == [("ack", ())]
    assert three.left == 0


def test_a_failure_is_told_apart_and_the_rest_in_short() -> None:
    three = lease(3)
    bad = Nack(reason="bad")
    three.decide([1], ACK)
    three.decide([2], bad)
    three.decide([3], ACK)
    assert three.pressing(1000)
    assert not three.all_done
    assert drain(three) == [("ack", ([1],)), ("nack", ([2], "bad")), ("ack", ())]


def test_equal_outcomes_in_a_row_are_one_statement() -> None:
    four = lease(4)
    back = Nack(reason="stopped")
    four.decide([1], ACK)
    four.decide([2], back)
    four.decide([3, 4], back)
    assert drain(four) == [("ack", ([1],)), ("nack", ("stopped",))]


def test_a_result_is_told_at_once_and_of_its_message_alone() -> None:
    four = lease(4)
    four.decide([1], Ack("1"))
    assert four.pressing(1000)
    assert not four.all_done
    four.decide([2], Ack("true"))  # 1 and true are equal in Python
    four.decide([3], Ack("true"))
    four.decide([4], ACK)
    assert drain(four) == [("ack", ([1], "1")), ("ack", ([2, 3], "true")), ("ack", ())]


def test_acks_are_collected_for_a_while() -> None:
    two = lease(2)
    two.decide([1], ACK)
    assert not two.pressing(1000)
    assert two.pressing(0)


@pytest.mark.parametrize(("length", "over"), [(30, False), (-1, True)])
def test_a_lease_runs_out(length: float, over: bool) -> None:
    one = lease(1)
    one.renewed(time.monotonic(), length)
    assert one.ran_out is over
    one.lost = True
    assert one.ran_out
