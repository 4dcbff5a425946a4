"""The soak itself: load, upkeep and chaos, a line for each window, then the crash and the count."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console

from bench.arena import Arena
from bench.peers import Load
from bench.peers.base import upkeep
from bench.peers.mq import Mq
from bench.results import Store
from bench.soak import verdict
from bench.soak.crew import Crew
from bench.soak.gauges import Beat, Pgbench, own_memory, percentiles
from bench.soak.ledger import SETTLE, Ledger

DATABASE = "soak"
SETTINGS = {"max_wal_size": "1GB", "checkpoint_timeout": "5min"}
CLIENTS = 4  # producers, and as many consumers
SHARE = 0.8
PEAK_SECONDS = 20
WARM_SECONDS = 5  # of these, not counted
QUEUE = """select mq.alter_queue('b', visibility_timeout => '5 s', max_attempts => 3,
    retry_backoff => '500 ms', retry_backoff_max => '5 s')"""
AGE = "select mq.alter_queue('b', segment_age => '{age} s')"
# Headers tell delayed messages, whose age says nothing.
PRODUCE = f"""\\set k random(1, 20)
\\if :k = 1
select mq.enqueue('b', {Load("enqueue").json()}, headers => '{{"delayed": true}}', delay => '2 s');
\\else
select mq.enqueue('b', {Load("enqueue").json()});
\\endif
"""
# Who got less than it asked for sleeps, so that empty polls do not eat what the others need.
CONSUME = f"""select count(*) as n, coalesce(max(receipt), '0') as r, coalesce(array_agg(msg_id)::text, '{{}}') as ids, \
extract(epoch from statement_timestamp()) as t, \
coalesce(extract(epoch from clock_timestamp() - max(enqueued_at) filter (where attempt = 1 and headers is null)), -1) as age \
from mq.dequeue('b', 10) \\gset
\\if :n > 0
\\set k random(1, 100)
\\if :k <= 8
select mq.nack('b', :r, reason => 'soak');
\\else
{SETTLE.format(r=":r", ids=":ids", took="extract(epoch from statement_timestamp()) - :t::numeric", age=":age")};
\\endif
\\endif
\\if :n < 10
\\sleep 5 ms
\\endif
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """Times, in seconds; those of a short soak are those of half an hour in small."""

    seconds: float

    def _scaled(self, share: float, least: float, most: float) -> float:
        return min(most, max(least, self.seconds * share))

    @property
    def window(self) -> float:
        return self._scaled(1 / 36, 2, 10)

    @property
    def warm(self) -> float:
        return self._scaled(1 / 9, 1, 120)

    @property
    def segment_age(self) -> float:
        return self._scaled(1 / 12, 2, 60)

    @property
    def upkeep(self) -> float:
        return self.segment_age / 20

    @property
    def hold(self) -> float:
        return self._scaled(1 / 30, 1, 60)

    @property
    def pause(self) -> float:
        return 4 * self.hold


@dataclass(slots=True)
class Soak:
    """A run on a server: its books, and what it found out so far."""

    place: Arena
    plan: Plan
    folder: Path
    ledger: Ledger
    committed: int = 0  # by pgbench
    lost_clients: int = 0

    def sql(self, statement: str) -> Any:
        """The first row of a statement's answer."""
        with self.place.server.connect(DATABASE, application_name="sampler") as conn:
            return conn.execute(statement.encode()).fetchone()

    def pgbench(self, name: str, script: str, *more: str) -> Pgbench:
        return Pgbench.start(self.place, DATABASE, self.folder, name, script, CLIENTS, *more)

    def produce(self, seconds: float, *more: str) -> Pgbench:
        return self.pgbench("producer", PRODUCE, "--time", str(round(seconds)), *more)

    def enough(self, producers: Pgbench) -> None:
        """Waits for the end of producers and books what they did. A client that gave up may have committed once more."""
        committed, lost = producers.end()
        self.committed += committed
        self.lost_clients += lost

    def peak(self) -> float:
        """Messages a second that go in and out with nobody held back: what less of the two is."""
        producers = self.produce(PEAK_SECONDS)
        counts = "select clock_timestamp(), enqueued_total, settled_total from mq.queue_stats('b')"
        time.sleep(WARM_SECONDS)
        begun, *before = self.sql(counts)
        time.sleep(PEAK_SECONDS - WARM_SECONDS - 1)
        ended, *after = self.sql(counts)
        self.enough(producers)
        seconds = (ended - begun).total_seconds()
        return float(min(b - a for a, b in zip(before, after, strict=True)) / seconds)

    def windows(self, rate: float, crew: Crew, beat: Beat) -> Iterator[verdict.Window]:
        """One after the other, until the producers have ended."""
        sample = min(1.0, 500 / rate)  # so that the logs stay small
        producers = self.produce(
            self.plan.seconds,
            *("--rate", f"{rate:.1f}", "--sampling-rate", f"{sample:.4f}"),
            *("--log", "--log-prefix", str(self.folder / "producer")),
        )
        self.ledger.take()
        begun = before = time.monotonic()
        warming = True
        settled = self.ledger.settled
        while True:
            time.sleep(max(0.0, before + self.plan.window - time.monotonic()))
            if producers.process.poll() is not None:
                break  # that was not a whole window
            now = time.monotonic()
            if warming and now - begun > self.plan.warm / 2:
                warming = False
                self.sql(AGE.format(age=self.plan.segment_age))
            dequeues, ages = self.ledger.take()
            found = {"at": round(now - begun, 1), "held": sorted(crew.holding)}
            found["messages_s"] = round((self.ledger.settled - settled) / (now - before), 1)
            before, settled = now, self.ledger.settled
            found |= percentiles("enqueue", producers.take())
            found |= percentiles("dequeue", dequeues) | percentiles("age", ages)
            found |= percentiles("control", beat.take())
            yield found | self.look()
        self.enough(producers)

    def look(self) -> verdict.Window:
        """What can be seen at any time."""
        with self.place.server.connect(DATABASE, application_name="sampler") as conn:
            sessions = conn.execute(
                "select application_name, pid from pg_stat_activity where datname = current_database()"
            ).fetchall()
            row = conn.execute(
                """select (select row_to_json(s) from mq.queue_stats('b') as s),
                          json_build_object('database_mb', pg_database_size(current_database()) / 1e6,
                              'wal_mb', (select sum(size) from pg_ls_waldir()) / 1e6,
                              'dead_rows', (select sum(n_dead_tup) from pg_stat_all_tables),
                              'slots', (select count(*) from mq.slot),
                              'rotations', (select max(segment) - 1 from mq.segment))"""
            ).fetchone()
        assert row is not None
        stats: verdict.Window = row[0]
        found: verdict.Window = row[1]
        for what in ("ready", "leased", "deferred", "dead", "segments"):
            found[what] = stats[what]
        for role in verdict.ROLES:
            kilobytes = [kb for name, pid in sessions if name == role and (kb := own_memory(pid))]
            if kilobytes:
                found[f"{role}_kb_max"] = max(kilobytes)
                found[f"{role}_kb_mean"] = round(statistics.fmean(kilobytes))
        return {"load": round(os.getloadavg()[0], 1)} | found

    def settle(self, seconds: float = 60) -> tuple[int, int]:
        """After the crash: all that is left is delivered and booked; then how much that was not, and the segments."""
        statement = SETTLE.format(r="%(r)s", ids="%(ids)s", took="0", age="-1")
        deadline = time.monotonic() + seconds
        rotated = False
        with self.place.server.connect(DATABASE) as conn:
            while True:
                conn.execute("select mq.maintain('b')")
                while rows := conn.execute(
                    "select receipt, msg_id from mq.dequeue('b', 1000)"
                ).fetchall():
                    conn.execute(statement, {"r": rows[0][0], "ids": [row[1] for row in rows]})
                for half in (0, 1):
                    self.ledger.collect(conn, half)
                self.ledger.bury(conn)
                row = conn.execute(
                    "select ready + leased + deferred + dead, segments from mq.queue_stats('b')"
                ).fetchone()
                assert row is not None
                if (row == (0, 1) and rotated) or time.monotonic() > deadline:
                    return row
                if row[0] == 0 and not rotated:  # what is open now goes as well
                    with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState):
                        conn.execute("select mq.rotate_segment('b')")
                        rotated = True
                time.sleep(0.2)


def soak(place: Arena, plan: Plan, rate: float | None, store: Store, console: Console) -> None:
    """The whole of it; lines go to the store as they come."""
    server = place.server
    server.create_database(DATABASE)
    Mq().install(server, DATABASE, "auto")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mq-soak-")))
        run = Soak(place, plan, folder, Ledger(server, DATABASE))
        run.sql(QUEUE)
        # At first it rotates often, so that sessions soon know every set of tables that they will meet: they keep plans of each.
        run.sql(AGE.format(age=plan.segment_age / 6))
        empty = run.look()["database_mb"]
        crew = Crew(server, DATABASE, pause=plan.pause, hold=plan.hold)
        beat = Beat(place)
        with upkeep(server, DATABASE, plan.upkeep, "select * from mq.maintain('b')"), run.ledger:
            consumers = run.pgbench("consumer", CONSUME, "--time", "1000000")
            stack.callback(consumers.process.kill)
            if rate is None:
                peak = run.peak()
                rate = SHARE * peak
                console.print(f"peak: {peak:,.0f} messages/s, soaked with {rate:,.0f}")
                store.add({"peak": round(peak), "rate": round(rate)})
            with beat, crew:
                for window in run.windows(rate, crew, beat):
                    store.add({"window": window})
                    console.print(said(window), highlight=False)
        (alive,) = run.sql(
            "select count(*) from pg_stat_activity where application_name = 'consumer'"
        )
        run.lost_clients += CLIENTS - alive
        run.enough(run.produce(1))  # so that consumers are in the middle of it
        server.kill9()
        consumers.kill()
        server.start()
        left, segments = run.settle()
        committed = run.committed + crew.committed
        ledger = run.ledger
        store.add(
            {
                "end": {
                    "rate": rate,
                    "committed": committed,
                    "settled": ledger.settled,
                    "purged": ledger.buried,
                    "redriven": ledger.redriven,
                    "unaccounted": abs(committed - ledger.settled),
                    "twice": ledger.twice,
                    "torn": ledger.torn,
                    "phantoms": ledger.among(crew.undone),
                    "left": left,
                    "lost_clients": run.lost_clients,
                    "errors": sum(crew.errors.values()) + len(ledger.errors),
                    "segments": segments,
                    "empty_mb": empty,
                    "database_mb": run.look()["database_mb"],
                    "crew": dict(crew.did),
                    "what_errors": [*crew.errors, *ledger.errors],
                }
            }
        )


SHOWN = (
    *("messages_s", "enqueue_p50_ms", "enqueue_p99_ms", "dequeue_p50_ms", "dequeue_p99_ms"),
    *("age_p50_ms", "control_p50_ms", "consumer_kb_max", "database_mb", "ready", "load"),
)


def said(window: verdict.Window) -> str:
    """A line about it."""
    shown = ", ".join(f"{key} {window[key]}" for key in SHOWN if key in window)
    return f"{window['at']:6.0f} s  {shown} {' '.join(window['held'])}"
