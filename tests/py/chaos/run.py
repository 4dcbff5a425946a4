"""Conservation under chaos: every committed message is acknowledged once or dead, and nothing else.

Producers roll back, dawdle, use savepoints, other isolation levels, batches and COPY. Consumers ack,
ack partly, nack, extend, forget, follow up, roll back and lose their connections. Meanwhile backends
are terminated, client processes killed with SIGKILL, the server restarted without a checkpoint,
queues paused, dead letters redriven, segments rotated, and all upkeep runs all the time.

What was sent and what was acknowledged is written to tables in the same transactions, so that a commit
whose outcome its client never heard of counts as what it was.

    python tests/py/chaos/run.py SERVER-OR-DSN SECONDS MAX_N [--restarts 2] [--seed 1] ...

SERVER is a name as in MQ_TEST_SERVER (embedded, debian, ...); with a DSN the database must be empty, and
nothing is restarted.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

HERE = Path(__file__).resolve()
# What is tried often, and what gives up after two attempts and is redriven.
QUEUES = {"chaos": 60, "brittle": 2}
DELIVERED = "select msg_id, receipt, attempt, (payload ->> 'tag')::bigint from mq.dequeue"
LEDGERS = """
create table sent (tag bigint not null);
create table done (tag bigint not null, msg_id bigint not null, queue text not null);
create table moved (tag bigint not null);
"""


class Wrong(Exception):
    """Something that must never be, seen by a worker."""


class Worker:
    """A client process: loops until the time is up, over lost connections."""

    def __init__(self, dsn: str, seed: int, until: float, max_n: int, log: Path) -> None:
        self.dsn = dsn
        self.random = random.Random(seed)
        self.seed = seed
        self.until = until
        self.max_n = max_n
        self.log = log
        self.tags = seed * 10_000_000
        self.seen: collections.Counter[str] = collections.Counter()

    def say(self, what: str) -> None:
        with self.log.open("a") as file:
            file.write(what.replace("\n", " | ") + "\n")

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def run(self, step: Callable[[psycopg.Connection], None]) -> None:
        conn: psycopg.Connection | None = None
        while time.time() < self.until:
            try:
                if conn is None or conn.closed:
                    conn = psycopg.connect(self.dsn, application_name="chaos worker")
                step(conn)
                conn.commit()
            except (
                psycopg.errors.SerializationFailure,  # told to retry
                psycopg.errors.LockNotAvailable,  # somebody else is in the way: bounded
            ) as error:
                self.seen[type(error).__name__] += 1
                if conn is not None and not conn.closed:
                    conn.rollback()
            except psycopg.errors.DatabaseError as error:
                if error.sqlstate == "MQ003" and conn is not None and not conn.closed:
                    self.seen["lease lost"] += 1
                    conn.rollback()
                elif is_lost(error):
                    self.seen["connection lost"] += 1
                    if conn is not None:
                        conn.close()
                    conn = None
                    time.sleep(0.05)
                else:
                    raise
            except psycopg.InterfaceError:
                conn = None
        if conn is not None:
            conn.close()
        self.say("SEEN " + json.dumps(self.seen))

    # -- producers ------------------------------------------------------------------------------

    def tag(self) -> int:
        self.tags += 1
        return self.tags

    def produce(self, conn: psycopg.Connection) -> None:
        if self.chance(0.15):
            conn.execute("set transaction isolation level repeatable read")
        elif self.chance(0.05):
            conn.execute("set transaction isolation level serializable")
        if self.chance(0.1):
            conn.execute(
                "select count(*) from sent where tag = 0"
            )  # an old snapshot, if it keeps one
            time.sleep(self.random.random() * 0.2)
        tags: list[int] = []
        for _ in range(self.random.randint(1, 5)):
            if self.chance(0.1):
                conn.execute("savepoint s")
                self.enqueue(conn)
                conn.execute("rollback to savepoint s")
            tags += self.enqueue(conn)
            if self.chance(0.05):
                time.sleep(self.random.random() * 0.3)
        conn.execute("insert into sent select unnest(%s::bigint[])", (tags,))
        if self.seed % 10 == 0:
            time.sleep(1.5)  # one producer always has an old transaction open
        if self.chance(0.2):
            conn.rollback()
        elif self.chance(0.02):
            conn.close()
        else:
            conn.commit()
        time.sleep(0.002)

    def enqueue(self, conn: psycopg.Connection) -> list[int]:
        queue = "chaos" if self.chance(0.8) else "brittle"
        kind = self.random.random()
        if kind < 0.1:
            tags = [self.tag() for _ in range(self.random.randint(0, 40))]
            conn.execute(
                "select mq.enqueue_batch(%s, (select coalesce(array_agg(jsonb_build_object('tag', t)), '{}')"
                " from unnest(%s::bigint[]) as t), delay => %s)",
                (queue, tags, "0.3 s" if self.chance(0.2) else None),
            )
            return tags
        if kind < 0.15:
            tags = [self.tag() for _ in range(self.random.randint(0, 40))]
            with (
                conn.cursor() as cursor,
                cursor.copy("copy mq.inbox (queue, payload, deliver_at) from stdin") as copy,
            ):
                for tag in tags:
                    due = "2020-01-01" if self.chance(0.1) else None
                    copy.write_row((queue, json.dumps({"tag": tag}), due))
            return tags
        tag = self.tag()
        delay = f"{self.random.random():.3f} s" if self.chance(0.2) else None
        conn.execute(
            "select mq.enqueue(%s, jsonb_build_object('tag', %s::bigint), delay => %s)",
            (queue, tag, delay),
        )
        return [tag]

    # -- consumers ------------------------------------------------------------------------------

    def consume(self, conn: psycopg.Connection) -> None:
        queue = "chaos" if self.chance(0.75) else "brittle"
        n = self.max_n if self.chance(0.2) else self.random.randint(1, self.max_n)
        timeout = "6 s" if self.chance(0.03) else "1 s"
        wait = "0.1 s" if self.chance(0.1) else None
        rows = self.dequeue(conn, queue, n, timeout, wait)
        then = self.random.random()
        if then > 0.95:
            conn.rollback()
            return
        if then > 0.93:
            conn.close()
            return
        if then > 0.90:  # more in the same transaction, of the other queue too
            conn.execute("savepoint more")
            self.dequeue(conn, "chaos", n, timeout)
            self.dequeue(conn, "brittle", 1, timeout)
            if self.chance(0.5):
                conn.execute("rollback to savepoint more")
        if then > 0.85:  # a follow-up in the transaction that dequeued
            conn.execute("insert into sent select unnest(%s::bigint[])", (self.enqueue(conn),))
        conn.commit()
        if not rows:
            time.sleep(0.005)
            return
        if self.chance(0.08):
            time.sleep(self.random.random() * 1.5)  # sometimes past the lease
        receipt = rows[0][1]
        if any(row[1] != receipt for row in rows):
            raise Wrong("one call gave two receipts")
        if then < 0.10:
            conn.execute("select mq.extend(%s, %s, '1.5 s')", (queue, receipt))
            conn.commit()
            time.sleep(self.random.random())
        if then < 0.50:
            self.ack(conn, queue, receipt, rows, None)
        elif then < 0.60:  # strict, in an older snapshot at times
            if self.chance(0.3):
                conn.execute("set transaction isolation level repeatable read")
            self.record(conn, queue, rows)
            conn.execute("select mq.ack(%s, %s, strict => true)", (queue, receipt))
        elif then < 0.70:
            some = rows[: len(rows) // 2 or 1]
            self.ack(conn, queue, receipt, some, [row[0] for row in some])
            if self.chance(0.5):
                conn.commit()
            conn.execute("select mq.nack(%s, %s)", (queue, receipt))
        elif then < 0.78:
            conn.execute(
                "select mq.nack(%s, %s, delay => %s, reason => 'chaos')",
                (queue, receipt, "0.1 s" if self.chance(0.5) else "0"),
            )
        elif then < 0.88:  # the receipt goes along with the next dequeue
            more = self.dequeue(conn, queue, n, "1 s", ack=receipt)
            self.record(conn, queue, rows)
            conn.commit()
            if more:
                self.ack(conn, queue, more[0][1], more, None)
        if self.chance(0.05):
            conn.rollback()
        conn.commit()

    def dequeue(
        self,
        conn: psycopg.Connection,
        queue: str,
        n: int,
        timeout: str,
        wait: str | None = None,
        ack: str | None = None,
    ) -> list[Any]:
        began = time.time()
        rows = conn.execute(
            DELIVERED + "(%s, %s, visibility_timeout => %s, wait => %s, ack => %s)",
            (queue, n, timeout, wait, ack),
        ).fetchall()
        if time.time() - began > 5:
            self.seen["dequeue took more than 5 s"] += 1
        if len(rows) > n:
            raise Wrong(f"{len(rows)} messages where {n} were asked for")
        if len({row[0] for row in rows}) < len(rows):
            raise Wrong("a message twice in one lease")
        if any(row[2] > QUEUES[queue] for row in rows):
            raise Wrong("more attempts than max_attempts")
        return rows

    def ack(
        self,
        conn: psycopg.Connection,
        queue: str,
        receipt: str,
        rows: list[Any],
        ids: list[int] | None,
    ) -> None:
        answer = conn.execute("select mq.ack(%s, %s, %s)", (queue, receipt, ids)).fetchone()
        if answer == (len(rows),):
            self.record(conn, queue, rows)
        elif answer != (0,):
            raise Wrong(f"{answer} of {len(rows)} were acknowledged: a lease is lost as a whole")

    def record(self, conn: psycopg.Connection, queue: str, rows: list[Any]) -> None:
        conn.execute(
            "insert into done select t, m, %s from unnest(%s::bigint[], %s::bigint[]) as u (t, m)",
            (queue, [row[3] for row in rows], [row[0] for row in rows]),
        )

    # -- upkeep ---------------------------------------------------------------------------------

    def upkeep(self, conn: psycopg.Connection) -> None:
        queue = None if self.chance(0.3) else self.random.choice(list(QUEUES))
        what = self.random.random()
        if what < 0.5:
            self.maintain(conn, queue)
        elif what < 0.8:
            conn.execute("select mq.sweep_stale(%s)", (queue,))
        elif what < 0.9:
            conn.execute("select mq.next_due(%s)", (queue or "chaos",))
            conn.execute("select * from mq.queue_stats()")
        else:
            conn.execute(
                "select mq.redrive('brittle', max_messages => %s)", (self.random.randint(1, 50),)
            )
        if self.chance(0.05):
            conn.rollback()
        conn.commit()
        time.sleep(0.05)

    def maintain(self, conn: psycopg.Connection, queue: str | None) -> None:
        for row in conn.execute("select action from mq.maintain(%s)", (queue,)).fetchall():
            self.seen[f"maintain: {row[0]}"] += 1

    def rotate(self, conn: psycopg.Connection) -> None:
        time.sleep(0.5)
        queue = self.random.choice(list(QUEUES))
        try:
            conn.execute("select mq.rotate_segment(%s)", (queue,))
        except psycopg.errors.ObjectNotInPrerequisiteState:  # the spare was lost to a rollback
            self.seen["no slot"] += 1
            conn.rollback()
        if self.chance(0.2):
            conn.rollback()
        conn.commit()
        if self.chance(0.1):
            conn.execute("select mq.pause_queue(%s)", (queue,))
            conn.commit()
            time.sleep(0.2)
        conn.execute("select mq.resume_queue('chaos'), mq.resume_queue('brittle')")


ROLES: list[Callable[[Worker], Callable[[psycopg.Connection], None]]] = [
    *[lambda w: w.produce] * 5,
    *[lambda w: w.consume] * 7,
    *[lambda w: w.upkeep] * 2,
    lambda w: w.rotate,
]


def is_lost(error: psycopg.Error) -> bool:
    """Whether the connection is gone, or the server is on its way down or up."""
    return isinstance(error, psycopg.OperationalError) and (
        error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))
    )


def start(role: int, seed: int, options: argparse.Namespace, until: float, log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        worker = Worker(options.dsn, seed, until, options.max_n, log)
        try:
            worker.run(ROLES[role](worker))
            status = 0
        except BaseException:
            worker.say("DIED " + traceback.format_exc()[-1500:])
    finally:
        os._exit(status)


def storm(options: argparse.Namespace, restart: Callable[[], None] | None, log: Path) -> list[str]:
    """The chaos itself. Returns what went wrong."""
    rnd = random.Random(options.seed)
    began = time.time()
    until = began + options.seconds
    seed = options.seed * 1000
    workers: dict[int, int] = {}
    restarts = [
        began + options.seconds * (i + 1) / (options.restarts + 1)
        for i in range(options.restarts if restart else 0)
    ]
    kills = 0
    for role in range(len(ROLES)):
        workers[start(role, seed + role * 10, options, until, log)] = role
    seed += len(ROLES) * 10
    while workers:
        with contextlib.suppress(ChildProcessError):
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid in workers:
                role = workers.pop(pid)
                if time.time() < until - 0.5:
                    seed += 1
                    workers[start(role, seed, options, until, log)] = role
        if time.time() < until - 0.5:
            if rnd.random() < 0.02:
                os.kill(rnd.choice(list(workers)), signal.SIGKILL)
                kills += 1
            if rnd.random() < 0.02:
                with (
                    contextlib.suppress(psycopg.Error),
                    psycopg.connect(options.dsn, autocommit=True) as conn,
                ):
                    conn.execute(
                        "select pg_terminate_backend(pid) from (select pid from pg_stat_activity"
                        " where application_name = 'chaos worker' order by random() limit 1) as x"
                    )
            if restart and restarts and time.time() > restarts[0]:
                restarts.pop(0)
                restart()
        elif time.time() > until + 60:
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            return [f"{len(workers)} workers did not end: {sorted(workers.values())}"]
        time.sleep(0.02)
    said = log.read_text().splitlines() if log.exists() else []
    total: collections.Counter[str] = collections.Counter()
    for line in said:
        if line.startswith("SEEN "):
            total.update(json.loads(line[5:]))
    print(
        f"kills {kills}, restarts {options.restarts if restart else 0}, {dict(sorted(total.items()))}"
    )
    return [line for line in said if line.startswith("DIED ")]


def drain(conn: psycopg.Connection, log: Path, options: argparse.Namespace) -> list[str]:
    """Calm: everything that is left is taken and acknowledged. Returns what went wrong."""
    worker = Worker(options.dsn, 0, 0, 0, log)
    for queue in QUEUES:
        conn.execute("select mq.resume_queue(%s)", (queue,))
    deadline = time.time() + 60
    while time.time() < deadline:
        got = 0
        for queue in QUEUES:
            with conn.transaction():
                rows = conn.execute(
                    DELIVERED + "(%s, %s, visibility_timeout => '60 s')",
                    (queue, max(options.max_n, 50)),
                ).fetchall()
            if rows:
                got += len(rows)
                with conn.transaction():
                    worker.ack(conn, queue, rows[0][1], rows, None)
        if not got:
            conn.execute("select mq.sweep_stale()")
            left = conn.execute(
                "select sum(ready + deferred + leased) from mq.queue_stats()"
            ).fetchone()
            if left == (0,):
                break
            if left and left[0] and time.time() > deadline - 50:
                # a lease of six seconds is the longest there is
                conn.execute("select mq.maintain()")
            time.sleep(0.02)
    else:
        stats = conn.execute("select * from mq.queue_stats()").fetchall()
        return [f"not drained: {stats}"]
    # Everything old goes: what holds nothing is reclaimed, both sets of what is deferred are empty.
    for queue in QUEUES:
        for _ in range(3):  # maintain may just have used the spare slot, the next one makes another
            conn.execute("select mq.maintain(%s)", (queue,))
            with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState):
                conn.execute("select mq.rotate_segment(%s)", (queue,))
                break
    for _ in range(300):
        conn.execute("select mq.maintain()")
        if conn.execute("select count(*) from mq.segment").fetchone() == (len(QUEUES),):
            break
    else:
        rows = conn.execute("select * from mq.segment order by 1, 2").fetchall()
        return [f"segments left: {rows}"]
    return []


def check(conn: psycopg.Connection) -> list[str]:
    """The ledgers against each other. Returns what went wrong."""

    def tags(query: str) -> list[int]:
        return [row[0] for row in conn.execute(query).fetchall()]

    sent = tags("select tag from sent")
    done = tags("select tag from done")
    dead = tags("select (payload ->> 'tag')::bigint from mq.dead_letter")
    print(f"sent {len(sent)}, acknowledged {len(done)}, dead {len(dead)}")
    wrong = []
    times = collections.Counter(done)
    for what, found in {
        "sent twice (a fault of the test)": [
            t for t, n in collections.Counter(sent).items() if n > 1
        ],
        "missing": set(sent) - set(done) - set(dead),
        "phantom": (set(done) | set(dead)) - set(sent),
        "acknowledged twice": [t for t, n in times.items() if n > 1],
        "acknowledged and dead": set(done) & set(dead),
        "dead twice": [t for t, n in collections.Counter(dead).items() if n > 1],
        "two messages under one msg_id": tags(
            "select msg_id from done group by queue, msg_id having count(*) > 1"
        ),
        "dead without a history": tags(
            "select msg_id from mq.dead_letter where jsonb_array_length(history) < 1 or attempts > 2"
        ),
        "survivors left": tags("select msg_id from mq.survivor"),
        "still deferred": tags("select msg_id from mq.queues() as q, mq.peek(q.name, 1000) as p"),
    }.items():
        if found:
            wrong.append(f"{what}: {len(found)}, such as {sorted(found)[:5]}")
    for tag in sorted(set(sent) - set(done) - set(dead))[:3]:
        print(
            f"tag {tag}:",
            conn.execute(
                "select q.name, p.* from mq.queues() as q, mq.peek(q.name, 1000) as p"
                " where p.payload = jsonb_build_object('tag', %s::bigint)",
                (tag,),
            ).fetchall(),
            conn.execute("select * from mq.segment").fetchall(),
        )
    if len(sent) < 100:
        wrong.append("hardly anything was sent")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("server", help="embedded, debian, npm:14, ... or a connection string")
    parser.add_argument("seconds", type=float)
    parser.add_argument("max_n", type=int, nargs="?", default=20)
    parser.add_argument(
        "--restarts", type=int, default=2, help="of the server, without a checkpoint"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1, 1000))
    options = parser.parse_args()
    print(f"seed {options.seed}, n up to {options.max_n}, {options.seconds:g} s", flush=True)
    sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[3] / "python")]
    from mqctl import migrate
    from support.server import Server

    with contextlib.ExitStack() as stack:
        restart = None
        if "=" in options.server or "://" in options.server:
            options.dsn = options.server
            folder = Path(os.environ.get("TMPDIR", "/tmp"))
        else:
            server = stack.enter_context(Server(options.server))
            server.create_database("chaos")
            options.dsn = server.dsn("chaos")
            folder = server.folder

            def restart() -> None:
                server.restart("immediate")

        log = folder / f"chaos-{os.getpid()}.log"
        with psycopg.connect(options.dsn, autocommit=True) as conn:
            migrate.install(conn)
            conn.execute(LEDGERS)
            for queue, max_attempts in QUEUES.items():
                conn.execute(
                    "select mq.create_queue(%s, max_attempts => %s, retry_backoff => '0.05 s',"
                    " segment_age => '2 s')",
                    (queue, max_attempts),
                )
        try:
            wrong = storm(options, restart, log)
            with psycopg.connect(options.dsn, autocommit=True) as conn:
                wrong += drain(conn, log, options)
                wrong += check(conn)
        finally:
            log.unlink(missing_ok=True)
        for line in wrong:
            print(f"WRONG {line}")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
