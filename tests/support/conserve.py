"""The conservation check that every fault test ends with, and the calls that it can account for.

What is sent is written down in the statement that enqueues it, what is acknowledged in the statement that
does so: a commit whose outcome its client never heard of counts as what it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import psycopg

from support import wait
from support.race import value

LEDGERS = """
create table sent (tag bigint primary key, queue text not null);
create table done (tag bigint not null, queue text not null, msg_id bigint not null);
"""

SEND = """
with message as materialized (
    select t, mq.enqueue(%(queue)s, jsonb_build_object('tag', t), delay => %(delay)s) from unnest(%(tags)s::bigint[]) as t
)
insert into sent select t, %(queue)s from message
"""
RECEIVE = """
select msg_id, receipt, attempt, (payload ->> 'tag')::bigint from mq.dequeue(%s, %s, visibility_timeout => %s)
"""
SETTLE = """
with acked as materialized (select mq.ack(%(queue)s, %(receipt)s) as count),
     noted as (insert into done select t, %(queue)s, m from unnest(%(tags)s::bigint[], %(ids)s::bigint[]) as u (t, m), acked
               where acked.count > 0)
select count from acked
"""
# Locks of sessions that are in no transaction, and of prepared transactions.
LEFT_LOCKS = """
select coalesce(a.application_name, 'prepared'), l.locktype, l.mode, l.relation::regclass::text, l.objid
from pg_locks as l left join pg_stat_activity as a using (pid)
where l.database = (select oid from pg_database where datname = current_database())
  and l.locktype in ('advisory', 'relation', 'object', 'tuple') and (a.pid is null or a.state = 'idle')
"""
# Tags, where something is wrong; `dead` are those of the dead letters.
LEDGER_CHECKS = {
    "missing": "select tag from sent except select tag from done except select tag from dead",
    "phantom": "(select tag from done union select tag from dead) except select tag from sent",
    "acked twice": "select tag from done group by tag having count(*) > 1",
    "in another queue": "select tag from done join sent using (tag) where done.queue <> sent.queue",
    "acked and dead": "select tag from done intersect select tag from dead",
    "dead twice": "select tag from dead group by tag having count(*) > 1",
    "two of one msg_id": "select min(tag) from done group by queue, msg_id having count(*) > 1",
}

# Tables of slots that no segment uses, and that still take space.
NOT_GIVEN_BACK = """
select string_agg(c.relname, ' ') from mq.slot as s
join pg_class as c on c.relname in (select x || '_' || s.queue_id || '_' || s.slot
                                    from unnest(array['log', 'block', 'lease', 'settlement']) as x)
where c.relnamespace = 'mq'::regnamespace and pg_relation_size(c.oid) > 0
  and not exists (select from mq.segment as g where g.queue_id = s.queue_id and g.slot = s.slot)
"""


class Row(NamedTuple):
    """A message under lease."""

    msg_id: int
    receipt: str
    attempt: int
    tag: int


def prepare(dsn: str, *queues: str, **settings: Any) -> None:
    """Makes the ledgers, and queues whose messages are not given up soon."""
    settings = {"max_attempts": 1000, "retry_backoff": "10 ms", **settings}
    named = "".join(f", {name} => %({name})s" for name in settings)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(LEDGERS)
        for queue in queues or ("q",):
            conn.execute(f"select mq.create_queue(%(queue)s{named})", {"queue": queue, **settings})


def send(
    conn: psycopg.Connection, tags: Iterable[int], queue: str = "q", delay: str | None = None
) -> None:
    """Enqueues messages; one statement, in the transaction that is there."""
    conn.execute(SEND, {"queue": queue, "tags": list(tags), "delay": delay})


def receive(
    conn: psycopg.Connection, n: int = 1, queue: str = "q", timeout: str | None = None
) -> list[Row]:
    """Dequeues up to n of them."""
    return [Row(*row) for row in conn.execute(RECEIVE, (queue, n, timeout)).fetchall()]


def settle(conn: psycopg.Connection, rows: list[Row], queue: str = "q") -> bool:
    """Acknowledges what one `receive` gave; False: the lease was lost. One statement."""
    if not rows:
        return False
    count = value_of(
        conn,
        SETTLE,
        queue=queue,
        receipt=rows[0].receipt,
        tags=[row.tag for row in rows],
        ids=[row.msg_id for row in rows],
    )
    assert count in (0, len(rows)), f"{count} of {len(rows)}: a lease is lost as a whole"
    return bool(count)


def value_of(conn: psycopg.Connection, query: str, **parameters: Any) -> Any:
    row = conn.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def pass_time(conn: psycopg.Connection, by: str) -> None:
    """Lets so much time pass (negative: go back) for all queues: every time that is stored gets older."""
    columns = conn.execute(
        "select c.oid::regclass::text, string_agg(format('%%1$I = %%1$I - %%2$L::interval', a.attname, %s::text), ', ')"
        " from pg_class as c join pg_attribute as a on a.attrelid = c.oid"
        " where c.relnamespace = 'mq'::regnamespace and c.relkind = 'r' and not a.attisdropped"
        " and a.atttypid = 'timestamptz'::regtype group by c.oid",
        (by,),
    ).fetchall()
    with conn.transaction():
        for table, changes in columns:
            conn.execute(f"update {table} set {changes}")


def check(dsn: str, *, known: Collection[int] = (), least: int = 1) -> None:
    """Takes and acknowledges whatever is left, then asserts that each committed message was acknowledged once.

    `known` are tags that a client was told are committed; at least `least` messages must have been sent. All
    load must have ended; sessions may still be there.
    """
    with psycopg.connect(dsn, autocommit=True, application_name="conservation") as conn:
        wait.until(
            lambda: not conn.execute(LEFT_LOCKS).fetchall(),
            f"no lock to be left: {conn.execute(LEFT_LOCKS).fetchall()}",
            seconds=5,
        )
        queues = [name for (name,) in conn.execute("select name from mq.queues()").fetchall()]
        for queue in queues:
            conn.execute("select mq.resume_queue(%s)", (queue,))
        conn.execute("select mq.unschedule(s.name) from mq.schedules() as s")  # they never end
        drain(conn, queues)
        wrong = ledger(conn, known)
        assert wrong == {}, wrong
        assert value(conn, "select count(*) from sent") >= least
        reclaim(conn, queues)


def drain(conn: psycopg.Connection, queues: list[str]) -> None:
    """Until every queue says that nothing is left."""

    def left() -> int:
        return int(
            value(conn, "select coalesce(sum(ready + deferred + leased), 0) from mq.queue_stats()")
        )

    def look() -> bool:
        for queue in queues:
            while rows := receive(conn, 500, queue, "1 hour"):
                assert settle(conn, rows, queue)
        if left() == 0:
            return True
        pass_time(conn, "1 day 00:00:01.000001")  # leases run out, what is deferred is due
        conn.execute("select mq.maintain()")
        return False

    wait.until(look, "everything to be delivered", seconds=60)


def ledger(conn: psycopg.Connection, known: Collection[int]) -> dict[str, list[int]]:
    """What is wrong, with examples."""
    wrong = {}
    dead = "with dead as (select (payload ->> 'tag')::bigint as tag from mq.dead_letter) "
    for what, query in LEDGER_CHECKS.items():
        if found := [tag for (tag,) in conn.execute(dead + query).fetchall()]:
            wrong[what] = sorted(found)[:10]
    lost = conn.execute(
        "select x from unnest(%s::bigint[]) as x except select tag from sent", (list(known),)
    ).fetchall()
    if lost:
        wrong["committed and lost"] = sorted(tag for (tag,) in lost)[:10]
    return wrong


def reclaim(conn: psycopg.Connection, queues: list[str]) -> None:
    """Every segment but a new one goes, and the queue works."""

    def segments() -> int:
        return int(value(conn, "select count(*) from mq.segment"))

    for queue in queues:
        for _ in range(
            3
        ):  # maintain may have used the spare slot just now; the next one makes another
            conn.execute("select mq.maintain(%s)", (queue,))
            with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState):
                conn.execute("select mq.rotate_segment(%s)", (queue,))
                break

    def look() -> bool:
        conn.execute("select mq.maintain()")
        return segments() == len(queues)

    wait.until(look, "the segments to be reclaimed")
    assert value(conn, NOT_GIVEN_BACK) is None
    assert value(conn, "select count(*) from mq.survivor") == 0
    tag = value(conn, "select coalesce(max(tag), 0) from sent")
    for number, queue in enumerate(queues, start=1):
        send(conn, [tag + number], queue)
        rows = wait.until(lambda queue=queue: receive(conn, 2, queue), "a message")  # type: ignore[misc]
        assert [row.tag for row in rows] == [tag + number]
        assert settle(conn, rows, queue)
