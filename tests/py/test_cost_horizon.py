"""While something holds the vacuum horizon back, enqueue and dequeue go on as they began."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

from support import holders, measure, wait
from support.holders import Holder
from support.measure import Call, Cost
from support.server import Server

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

WINDOW = 512
BACKLOG = 300  # or each dequeue would open a block
# One message in, one message out; of ten, one is delayed and one fails, when `share` is 0.1.
PAIRS = """
do $$
declare
    v_receipt text;
begin
    for i in 1 .. {pairs} loop
        perform mq.enqueue('q', '{{"a": 1}}', delay => case when random() < {share} then interval '20 ms' end);
        commit;
        select max(receipt) into v_receipt from mq.dequeue('q', 1);
        commit;
        if v_receipt is not null and random() < {share} then
            perform mq.nack('q', v_receipt);
        elsif v_receipt is not null then
            perform mq.ack('q', v_receipt);
        end if;
        commit;
    end loop;
end $$
"""
DEQUEUE = (
    "select set_config('cost.receipt', coalesce(max(receipt), ''), false) from mq.dequeue('q', 1)"
)
ENQUEUE = "select mq.enqueue('q', '{\"a\": 1}', delay => %s)"


@dataclass(frozen=True, slots=True)
class Window:
    enqueue: Cost
    dequeue: Cost


def window(conn: Connection, share: float) -> Window:
    """The cost of so many pairs."""
    enqueues: list[Call] = []
    dequeues: list[Call] = []
    every = round(1 / share) if share else WINDOW + 1
    for i in range(1, WINDOW + 1):
        delay = "interval '20 ms'" if i % every == 0 else "null"
        enqueues.append(measure.call(conn, ENQUEUE % delay))
        got = measure.call(conn, DEQUEUE)
        if got.rows:
            dequeues.append(got)
            settle = "nack" if i % every == every // 2 else "ack"
            conn.execute(f"select mq.{settle}('q', current_setting('cost.receipt'))")
    return Window(measure.cost(enqueues), measure.cost(dequeues))


def catch_up(conn: Connection) -> None:
    """Everything is consumed; then all but what is open is gone."""

    def drained() -> bool:
        conn.execute("select mq.ack('q', receipt) from mq.dequeue('q', 100) limit 1")
        row = conn.execute("select ready + deferred + leased from mq.queue_stats('q')").fetchone()
        return bool(row and row[0] == 0)

    def gone() -> bool:
        conn.execute("select mq.maintain('q')")
        row = conn.execute("select count(*) from mq.segment").fetchone()
        return bool(row and row[0] == 1)

    wait.until(drained, "the last retries")
    wait.until(gone, "the closed segments to go")


@pytest.mark.parametrize("share", [0.0, 0.1], ids=["plain", "retries-and-delays"])
@pytest.mark.parametrize(
    ("holder", "messages"),
    [
        pytest.param(holders.everything, 5_000, id="everything"),
        *(
            pytest.param(holder, 30_000, id=holder.__name__, marks=[pytest.mark.slow])
            for holder in holders.ALL
        ),
    ],
)
def test_a_held_horizon(
    holder: Holder,
    share: float,
    messages: int,
    server: Server,
    database: str,
    connect: Connect,
    conn: Connection,
) -> None:
    conn.execute(
        "select mq.create_queue('q', retry_backoff => '10 ms', retry_backoff_max => '10 ms',"
        " max_attempts => 1000)"
    )
    factor = 1.3 if share else 1.2
    dbname = str(conninfo.conninfo_to_dict(database)["dbname"])
    pairs = PAIRS.format(pairs=messages - 2 * WINDOW - 500, share=share)
    session = connect()
    with holder(server, dbname):
        measure.fill(conn, BACKLOG)
        session.execute(PAIRS.format(pairs=500, share=share))
        start = window(session, share)
        session.execute(pairs)
        end = window(session, share)
        print(f"\nenqueue: {start.enqueue}, then {end.enqueue}")
        print(f"dequeue: {start.dequeue}, then {end.dequeue}")
        conn.execute("select mq.rotate_segment('q')")
        conn.execute("select mq.maintain('q')")
    assert end.enqueue.within(factor, start.enqueue)
    assert end.dequeue.within(factor, start.dequeue)
    catch_up(conn)
