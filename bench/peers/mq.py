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
