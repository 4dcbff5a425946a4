"""The table that everybody writes first, and a bare one as the yardstick of enqueueing."""

from __future__ import annotations

import psycopg

from bench.peers.base import ASYNC, Absent, Load, Peer
from support.server import Server

# Claiming changes a column of the partial index's predicate, so a row's new version is nowhere in that index.
JOBS = """
create table jobs (
    id bigint generated always as identity primary key,
    payload jsonb not null,
    created_at timestamptz not null default clock_timestamp(),
    claimed_at timestamptz
) with (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
create index jobs_queued on jobs (id) where claimed_at is null;
"""
FILL = "insert into jobs (payload) select {payload} from generate_series(1, {count})"
# Arrays instead of IN: otherwise the planner may join, and lock more rows than it takes.
CLAIM = """update jobs set claimed_at = clock_timestamp()
 where id = any (array(select id from jobs where claimed_at is null order by id limit {n} for update skip locked))
 returning id, payload"""
CLAIM_ONE = CLAIM.replace("any (array(", "(").replace("locked))", "locked)")
TAKEN = "select coalesce(array_agg(id), '{{}}')::text as ids from c \\gset\n"
BACK = "update jobs set claimed_at = null where id = any (:ids::bigint[]);\n"
ACK = "delete from jobs where id = any (:ids::bigint[]);\n"


class Plain(Peer):
    """A table, SKIP LOCKED, UPDATE to claim, DELETE to ack.

    `tx`: both in one transaction; `next`: one statement that deletes what the one before claimed, and claims;
    `separate`: a transaction each; `retry`: likewise, and one claim in ten is given back; `async`: `tx` with
    synchronous_commit off.
    """

    name = "plain"
    variants = ("tx", "next", "separate", "retry", "async")

    def version(self, server: Server) -> str:
        return "jobs (identity primary key, partial index of queued rows)"

    def install(self, server: Server, dbname: str, variant: str) -> None:
        with server.connect(dbname) as conn:
            conn.execute(JOBS)

    def fill(self, conn: psycopg.Connection, load: Load, count: int) -> None:
        conn.execute("set synchronous_commit = off")
        conn.execute(FILL.format(payload=load.json(), count=count).encode())
        conn.execute("vacuum analyze jobs")

    def script(self, load: Load, variant: str) -> str:
        claim = (CLAIM_ONE if load.n == 1 else CLAIM).format(n=load.n)
        taken = TAKEN.format()
        if variant in ("tx", "async"):
            cycle = f"begin;\nwith c as ({claim})\n{taken}{ACK}commit;\n"
        elif variant == "next":
            cycle = f"with d as ({ACK.rstrip()[:-1]}), c as ({claim})\n{taken}"
        elif variant == "separate":
            cycle = f"with c as ({claim})\n{taken}{ACK}"
        elif variant == "retry":
            chance = "\\set k random(1, 10)\n\\if :k = 1\n"
            cycle = f"with c as ({claim})\n{taken}{chance}{BACK}\\else\n{ACK}\\endif\n"
        else:
            raise Absent(f"the plain table has no cycle called {variant}")
        if load.work == "steady":
            return insert("jobs", load) + cycle
        return cycle if load.work == "drain" else insert("jobs", load)

    def environment(self, variant: str) -> dict[str, str]:
        return ASYNC if variant == "async" else {}

    def define(self) -> dict[str, str]:
        return {"ids": "{}"}

    def left(self, conn: psycopg.Connection) -> int:
        row = conn.execute("select count(*) from jobs").fetchone()
        assert row is not None
        return int(row[0])


class Bare(Peer):
    """A table with one index, nothing ever read: what INSERT costs at least.

    `unnest`: one INSERT of an array, as mq.enqueue_batch gets one; `values`: one INSERT with n rows of VALUES;
    `copy`: COPY of a file.
    """

    name = "bare"
    variants = ("unnest", "values", "copy")

    def version(self, server: Server) -> str:
        return "bare (identity primary key)"

    def install(self, server: Server, dbname: str, variant: str) -> None:
        with server.connect(dbname) as conn:
            conn.execute(
                "create table bare (id bigint generated always as identity primary key, payload jsonb not null,"
                " created_at timestamptz not null default clock_timestamp())"
            )

    def fill(self, conn: psycopg.Connection, load: Load, count: int) -> None:
        raise Absent("nothing takes messages out of a bare table")

    def script(self, load: Load, variant: str) -> str:
        if load.work != "enqueue":
            raise Absent("nothing takes messages out of a bare table")
        if variant == "copy":
            return "copy bare (payload) from '@folder@/bare';\n"
        if variant == "values" and load.n > 1:
            rows = ", ".join([f"({load.json()})"] * load.n)
            return f"with i as (insert into bare (payload) values {rows} returning id) select count(*) from i;\n"
        return insert("bare", load)

    def files(self, load: Load, variant: str) -> dict[str, str]:
        return {"bare": f"{load.text()}\n" * load.n} if variant == "copy" else {}

    def left(self, conn: psycopg.Connection) -> int:
        return 0


def insert(table: str, load: Load) -> str:
    """One statement that inserts n rows and returns their ids."""
    if load.n == 1:
        return f"insert into {table} (payload) values ({load.json()}) returning id;\n"
    rows = f"select unnest(array_fill({load.json()}, array[{load.n}]))"
    return (
        f"with i as (insert into {table} (payload) {rows} returning id) select count(*) from i;\n"
    )
