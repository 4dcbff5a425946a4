"""Rotation for days: one session's memory, the catalogue and the cost of a dequeue stay as they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from support import measure
from support.measure import Cost

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

MEMORY = "select sum(total_bytes)::bigint from pg_backend_memory_contexts"
CATALOGUE = """
select (select count(*) from pg_class) + (select count(*) from pg_proc)
     + (select count(*) from pg_attribute) + (select count(*) from pg_depend)
     + (select count(*) from pg_type) + (select count(*) from pg_trigger)
     + (select count(*) from mq.slot) + (select count(*) from mq.segment)
"""


@dataclass(frozen=True, slots=True)
class Look:
    consumer_memory: int
    upkeep_memory: int
    catalogue: int
    dequeue: Cost


def value(conn: Connection, statement: str) -> int:
    row = conn.execute(statement).fetchone()
    assert row is not None
    return int(row[0])


def rotate(consumer: Connection, upkeep: Connection, times: int) -> Cost:
    """Rotations with messages before, between and after; what the dequeues cost meanwhile."""
    calls: list[measure.Call] = []
    for _ in range(times):
        measure.fill(consumer, 14)
        calls += measure.dequeues(consumer, times=10, warm=0).calls
        upkeep.execute("select mq.rotate_segment('q')")
        # Some are left in the closed segment.
        calls += measure.dequeues(consumer, times=2, warm=0).calls
        measure.fill(consumer, 4)
        upkeep.execute("select mq.maintain('q')")
        calls += measure.dequeues(consumer, times=6, warm=0).calls
    return measure.cost(calls)


@pytest.mark.parametrize("rotations", [40, pytest.param(200, marks=[pytest.mark.slow])])
def test_rotations_leave_nothing_behind(
    rotations: int, connect: Connect, conn: Connection, queue: str
) -> None:
    consumer, upkeep = connect(), connect()

    def look(times: int) -> Look:
        cost = rotate(consumer, upkeep, times)
        return Look(value(consumer, MEMORY), value(upkeep, MEMORY), value(conn, CATALOGUE), cost)

    rotate(consumer, upkeep, 10)
    start = look(10)
    rotate(consumer, upkeep, rotations - 20)
    end = look(10)
    for one in (start, end):
        print(
            f"memory of the consumer {one.consumer_memory / 1024:.0f} kB,"
            f" of upkeep {one.upkeep_memory / 1024:.0f} kB,"
            f" {one.catalogue} catalogue rows; {one.dequeue}"
        )
    assert end.consumer_memory <= 1.1 * start.consumer_memory
    assert end.upkeep_memory <= 1.1 * start.upkeep_memory
    assert end.catalogue <= 1.01 * start.catalogue
    assert end.dequeue.within(1.2, start.dequeue)
