"""PgQ (Debian's postgresql-15-pgq3): a log that is read in batches between ticks, by one consumer at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psycopg

from bench.peers.base import Absent, Load, Peer, upkeep
from bench.tally import Tally
from support.server import Server

CYCLE = """select coalesce(pgq.next_batch('b', 'c'), 0) as batch \\gset
\\if :batch > 0
select count(ev_data) from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);
\\endif
"""
# A tick after every n events, so that batches have n.
FILL = """do $$
begin
    for i in 1 .. {ticks} loop
        perform pgq.insert_event('b', 't', d) from (select $d${data}$d$::text as d from generate_series(1, {n})) as x;
        commit;
        perform pgq.ticker('b');
        commit;
    end loop;
end $$"""
MOST_TICKS = 40_000
STAMP = "json_build_object('t', extract(epoch from clock_timestamp()), 'p', repeat('x', 160))::text"


class PgQ(Peer):
    """Three statements a batch, each a transaction. The bench is its ticker: in a backlog a tick after every n
    events, else one a millisecond where there is something new."""

    name = "pgq"
    most_clients = 1

    def version(self, server: Server) -> str:
        with server.connect() as conn:
            row = conn.execute(
                "select default_version from pg_available_extensions where name = 'pgq'"
            ).fetchone()
        if row is None:
            raise Absent("this server has no extension pgq (Debian: postgresql-15-pgq3)")
        return str(row[0])

    def install(self, server: Server, dbname: str, variant: str) -> None:
        with server.connect(dbname) as conn:
            conn.execute("create extension pgq")
            conn.execute("select pgq.create_queue('b')")
            conn.execute("select pgq.register_consumer('b', 'c')")
            conn.execute("select pgq.set_queue_config('b', 'ticker_max_lag', '0')")

    def fill(self, conn: psycopg.Connection, load: Load, count: int) -> None:
        conn.execute("set synchronous_commit = off")
        ticks = min(MOST_TICKS, count // load.n)
        conn.execute(FILL.format(ticks=ticks, n=load.n, data=load.text()).encode())
        conn.execute("vacuum analyze pgq.tick")

    def script(self, load: Load, variant: str) -> str:
        if load.n == 1:
            enqueue = f"select pgq.insert_event('b', 't', '{load.text()}');\n"
        else:
            enqueue = (
                f"select count(pgq.insert_event('b', 't', '{load.text()}'))"
                f" from generate_series(1, {load.n});\n"
            )
        if load.work == "enqueue":
            return enqueue
        return CYCLE if load.work == "drain" else f"{enqueue}select pgq.ticker('b');\n{CYCLE}"

    def left(self, conn: psycopg.Connection) -> int:
        row = conn.execute("select pending_events from pgq.get_consumer_info('b', 'c')").fetchone()
        return int(row[0]) if row else 0

    def stamped(self, variant: str) -> str:
        return f"select pgq.insert_event('b', 't', {STAMP});\n"

    def consume(self, dsn: str, variant: str, concurrency: int, n: int, tally: Tally) -> None:
        """next_batch again and again, a millisecond apart where there is none, with a ticker beside it."""
        import json
        import signal

        over = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: over.set())

        def tick() -> None:
            with psycopg.connect(dsn, autocommit=True) as conn:
                while not over.wait(0.001):
                    conn.execute("select pgq.ticker('b')")

        ticker = threading.Thread(target=tick)
        ticker.start()
        with psycopg.connect(dsn, autocommit=True) as conn:
            while not over.is_set():
                row = conn.execute("select pgq.next_batch('b', 'c')").fetchone()
                if row is None or row[0] is None:
                    over.wait(0.001)
                    continue
                events = conn.execute("select ev_data from pgq.get_batch_events(%s)", row)
                for (data,) in events:
                    tally.add(json.loads(data))
                conn.execute("select pgq.finish_batch(%s)", row)
        ticker.join()

    @contextlib.contextmanager
    def attended(self, server: Server, dbname: str, load: Load) -> Iterator[None]:
        """Its tables are rotated, as its ticker daemon does."""
        steps = (
            "select pgq.maint_rotate_tables_step1('b')",
            "select pgq.maint_rotate_tables_step2()",
        )
        with upkeep(server, dbname, 10, *steps):
            yield
