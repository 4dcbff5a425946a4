"""What calls cost, counted in buffers and WAL by EXPLAIN: figures that no other load can change."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

# A payload as wide as the ones of docs/benchmarks.md.
PAYLOAD = json.dumps({"p": "x" * 190})

# One call of a consumer: it acknowledges what it got before, and remembers its receipt, without a table of its own.
CONSUME = (
    "select set_config('cost.receipt', coalesce(max(receipt), ''), false)"
    " from mq.dequeue('{queue}', {n}, ack => nullif(current_setting('cost.receipt', true), ''))"
)
LEASE = "select * from mq.dequeue('{queue}', {n})"


@dataclass(frozen=True, slots=True)
class Call:
    """What one statement took."""

    buffers: int
    wal_records: int
    wal_bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What many calls of one statement took, in shared buffers each."""

    median: float
    mean: float
    most: int
    calls: tuple[Call, ...]

    def within(self, factor: float, of: Cost) -> bool:
        return self.median <= factor * of.median and self.mean <= factor * of.mean

    def __str__(self) -> str:
        return f"median {self.median:g}, mean {self.mean:.1f}, most {self.most} buffers"


def call(conn: psycopg.Connection[Any], statement: str) -> Call:
    """Runs a statement and says what it took; planning of the statement itself is left out."""
    row = conn.execute(
        "explain (analyze, buffers, wal, timing off, summary off, costs off, format json) "
        + statement
    ).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    source = plan.get("Plans", [plan])[0]
    return Call(
        plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
        plan["WAL Records"],
        plan["WAL Bytes"],
        source["Actual Rows"],
    )


def cost(calls: Sequence[Call]) -> Cost:
    buffers = [one.buffers for one in calls]
    return Cost(statistics.median(buffers), statistics.fmean(buffers), max(buffers), tuple(calls))


def dequeues(
    conn: psycopg.Connection[Any],
    queue: str = "q",
    *,
    n: int = 1,
    times: int = 256,
    warm: int = 5,
    ack: bool = True,
) -> Cost:
    """What dequeue costs, over so many calls that at n = 1 two blocks are opened."""
    statement = (CONSUME if ack else LEASE).format(queue=queue, n=n)
    for _ in range(warm):
        call(conn, statement)
    calls = [call(conn, statement) for _ in range(times)]
    assert all(one.rows == n for one in calls), "the queue ran out of messages"
    return cost(calls)


def fill(
    conn: psycopg.Connection[Any], messages: int, queue: str = "q", *, delay: str | None = None
) -> None:
    """Enqueues so many messages, at most 10,000 in one transaction if `conn` is in autocommit."""
    while messages > 0:
        conn.execute(
            "select count(*) from mq.enqueue_batch("
            "%s, array_fill('{\"a\": 1}'::jsonb, array[%s]), delay => %s::interval)",
            (queue, min(messages, 10_000), delay),
        )
        messages -= 10_000


def consume(conn: psycopg.Connection[Any], messages: int, queue: str = "q", *, n: int = 1) -> None:
    """Dequeues and acknowledges so many messages, in as few round trips as calls."""
    statement = "select coalesce(max(receipt), '') from mq.dequeue(%s, %s, ack => nullif(%s, ''))"
    receipt = ""
    for _ in range(0, messages, n):
        row = conn.execute(statement, (queue, n, receipt), prepare=True).fetchone()
        assert row is not None
        receipt = row[0]
    if receipt:
        conn.execute("select mq.ack(%s, %s)", (queue, receipt))


def plans(conn: psycopg.Connection[Any], run: Callable[[], object]) -> list[tuple[str, str]]:
    """Statement and plan, without figures, of all that `run` makes functions run.

    Raises: psycopg.Error where there is no auto_explain.
    """
    said: list[str] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        if notice.message_primary and "plan:" in notice.message_primary:
            said.append(notice.message_primary.split("plan:", 1)[1])

    conn.execute("load 'auto_explain'")
    conn.execute(
        "set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;"
        " set auto_explain.log_format = 'json'; set auto_explain.log_level = 'notice'"
    )
    conn.add_notice_handler(hear)
    try:
        run()
    finally:
        conn.remove_notice_handler(hear)
        conn.execute("set auto_explain.log_min_duration = -1")
    found = [json.loads(plan) for plan in said]
    return [(" ".join(plan["Query Text"].split()), _node(plan["Plan"])) for plan in found]


def _node(node: dict[str, Any]) -> str:
    name = str(node["Node Type"])
    if over := node.get("Index Name") or node.get("Relation Name"):
        name += f" {over}"
    if "Index Cond" in node:
        name += f" [{node['Index Cond']}]"
    inner = ", ".join(_node(child) for child in node.get("Plans", []))
    return f"{name} ({inner})" if inner else name
