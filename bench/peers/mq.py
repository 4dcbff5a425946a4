"""mq itself."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path

import psycopg

from bench.peers.base import ASYNC, STAMPED, Absent, Load, Peer, upkeep
from bench.tally import Tally
from mqctl.source import Source, load
from support.server import Server

# Receipts of what could not be had are '0': pgbench knows no null.
TAKE = "select coalesce(max(receipt), '0') as r from mq.dequeue('b', {n}) \\gset\n"
ACK = "select mq.ack('b', :r) where :r::text <> '0';\n"
CYCLES = {
    # The receipt of one call is acknowledged by the next one.
    "next": "select coalesce(max(receipt), '0') as r from mq.dequeue('b', {n}, ack => nullif(:r::text, '0')) \\gset\n",
    "tx": f"begin;\n{TAKE}{ACK}commit;\n",
    "separate": f"{TAKE}{ACK}",
    "retry": f"""{TAKE}\\set k random(1, 10)
\\if :k = 1
select mq.nack('b', :r, delay => '0') where :r::text <> '0';
\\else
{ACK}\\endif
""",
}
CYCLES["async"] = CYCLES["next"]
# What a queue is, and what its messages have: settings; an option of enqueue; that of a batch of {n}.
FEATURES = {
    "priority": ("", "priority => (random() * 9)::int", "priority => (random() * 9)::int"),
    "ttl": ("", "ttl => '1 hour'", "ttl => '1 hour'"),
    "delay": ("", "delay => '1 ms'", "delay => '1 ms'"),
    "dedup": (
        "",
        "dedup_key => gen_random_uuid()::text",
        "dedup_keys => array(select gen_random_uuid()::text from generate_series(1, {n}))",
    ),
    "keys": (
        "",
        "ordering_key => (random() * 10000)::int::text",
        "ordering_keys => array(select (random() * 10000)::int::text from generate_series(1, {n}))",
    ),
    "hot-key": (
        "",
        "ordering_key => (random() * random() * 2 * 10000)::int::text",
        "ordering_keys => array(select greatest((random() - 0.5) * 20000, 0)::int::text from generate_series(1, {n}))",
    ),
    "depth": ("max_depth => 1000000000", "", ""),
    "retention": ("retention => '1 day'", "", ""),
    "transaction": ("mode => 'transaction'", "", ""),
}
CYCLES |= dict.fromkeys(FEATURES, CYCLES["next"])
CYCLES["transaction"] = f"begin;\n{TAKE}commit;\n"
NOTIFY = ("auto", "always", "never")
TEN_MS = timedelta(milliseconds=10)
MOST_IN_A_SEGMENT = 5_000_000
SECOND = timedelta(seconds=1)


@cache
def _source(root: Path | None = None) -> Source:
    """Read once, so that an edit in the middle of a run does not change what is measured."""
    return load(root)


def _options(variant: str, part: int, n: int) -> str:
    """What a feature adds to the arguments of enqueue (1), or of a batch (2) of n."""
    option = FEATURES.get(variant, ("", "", ""))[part].replace("{n}", str(n))
    return f", {option}" if option else ""


class Mq(Peer):
    """`next`: dequeue acks the receipt of the call before; `tx`: dequeue and ack in one transaction; `separate`: in two;
    `retry`: in two, and one lease in ten is given back with nack; `async`: `next` with synchronous_commit off.

    For enqueue the variant says how the queue notifies, and whether messages are copied into the inbox. The names of FEATURES
    are `next` in a queue that has that feature, with messages that use it.
    """

    name = "mq"
    variants = (*CYCLES, *NOTIFY, "copy")

    def source(self) -> Source:
        """The SQL that is measured. Raises: Absent."""
        return _source()

    def version(self, server: Server) -> str:
        return self.source().version

    def install(self, server: Server, dbname: str, variant: str) -> None:
        from mqctl import migrate

        with server.connect(dbname) as conn:
            migrate.install(conn, self.source())
            settings = [f"notify => '{variant if variant in NOTIFY else 'auto'}'"]
            settings += filter(None, FEATURES.get(variant, ("",))[:1])
            conn.execute(f"select mq.create_queue('b', {', '.join(settings)})".encode())
            # Goes with the database where that is copied.
            conn.execute(f"create table public.variant as select '{variant}' as name".encode())

    def template(self, variant: str) -> str:
        return variant if variant in NOTIFY[1:] or variant in FEATURES else ""

    def fill(self, conn: psycopg.Connection, load: Load, count: int) -> None:
        conn.execute("set synchronous_commit = off")
        row = conn.execute("select v.name from public.variant as v").fetchone()
        size = min(1000, count)
        options = _options(row[0] if row else "", 2, size)
        for done in range(0, count, 100_000):
            conn.execute(
                f"""select count(*) from (
                        select mq.enqueue_batch('b', array_fill({load.json()}, array[{size}]){options})
                        from generate_series(1, {max(1, min(100_000, count - done) // 1000)})) as x""".encode()
            )
            if count > MOST_IN_A_SEGMENT:
                conn.execute("select * from mq.maintain('b')")  # as somebody would meanwhile

    def script(self, load: Load, variant: str) -> str:
        if variant == "copy":
            return "copy mq.inbox (queue, payload) from '@folder@/inbox';\n"
        if load.n == 1:
            enqueue = f"select mq.enqueue('b', {load.json()}{_options(variant, 1, 1)});\n"
        else:
            options = _options(variant, 2, load.n)
            enqueue = f"select count(*) from mq.enqueue_batch('b', array_fill({load.json()}, array[{load.n}]){options});\n"
        if load.work == "enqueue":
            return enqueue
        if variant not in CYCLES:
            raise Absent(f"mq has no cycle called {variant}")
        cycle = CYCLES[variant].format(n=load.n)
        return enqueue + cycle if load.work == "steady" else cycle

    def environment(self, variant: str) -> dict[str, str]:
        return ASYNC if variant == "async" else {}

    def stamped(self, variant: str) -> str:
        return f"select mq.enqueue('b', {STAMPED});\n"

    def consume(self, dsn: str, variant: str, concurrency: int, n: int, tally: Tally) -> None:
        """Consumers of the Python client, each in a thread. `never`: they look every 10 ms."""
        import mq

        poll_min, poll_max = (TEN_MS, TEN_MS) if variant == "never" else (SECOND, 10 * SECOND)
        consumers = [
            mq.consume(dsn, "b", n=n, poll_min=poll_min, poll_max=poll_max, signals=False)
            for _ in range(concurrency)
        ]

        def stop(*_: object) -> None:
            for consumer in consumers:
                consumer.stop()

        def work(consumer: mq.Consumer) -> None:
            with consumer:
                for batch in consumer.batches():
                    for delivery in batch:
                        tally.add(delivery.payload)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        threads = [threading.Thread(target=work, args=(consumer,)) for consumer in consumers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def files(self, load: Load, variant: str) -> dict[str, str]:
        return {"inbox": f"b\t{load.text()}\n" * load.n} if variant == "copy" else {}

    @contextlib.contextmanager
    def attended(self, server: Server, dbname: str, load: Load) -> Iterator[None]:
        """In a steady state somebody must call maintain()."""
        if load.work != "steady":
            yield
            return
        with upkeep(server, dbname, 5, "select * from mq.maintain('b')"):
            yield

    def define(self) -> dict[str, str]:
        return {"r": "0"}

    def left(self, conn: psycopg.Connection) -> int:
        row = conn.execute("select ready + deferred from mq.queue_stats('b')").fetchone()
        assert row is not None
        return int(row[0])


class Before(Mq):
    """mq as it is in another checkout, which MQ_BEFORE names: what has become of its speed since."""

    name = "before"

    def source(self) -> Source:
        checkout = os.environ.get("MQ_BEFORE")
        if not checkout:
            raise Absent("MQ_BEFORE does not say where the checkout is that mq is compared with")
        return _source(Path(checkout) / "sql")
