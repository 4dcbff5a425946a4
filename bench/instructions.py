"""What a call costs in machine instructions, before and after: the same number whatever else the machine does.

python -m bench.instructions BEFORE                   another checkout, against this one
python -m bench.instructions BEFORE --only 'dequeue*'

Both are in databases of one server, which runs in valgrind (Debian's), fifty times as slow, and a session of each makes the
same calls. Counted is what its process does outside of the kernel; not seen are waits, cold caches and the disk. Those are in
`python -m bench --contestants 'mq:next before:next'`. Exit status 1 says that something costs over 3 % more than before.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / "python"), str(REPO / "tests")]

from bench.peers import Load  # noqa: E402
from bench.revision import revision  # noqa: E402
from mqctl import migrate  # noqa: E402
from mqctl.source import load  # noqa: E402
from support.server import Server  # noqa: E402


@dataclass(frozen=True, slots=True)
class Work:
    """A statement that is made again and again, each time in a transaction of its own, in a queue of its own.

    %(last)s is what the call before it gave. takes: messages that have to be there for each call. calls: enough to open
    blocks, which are of 256 messages one by one, of 128 times 10, of 64 times 100.
    """

    name: str
    statement: str
    takes: int = 0
    calls: int = 100


PAYLOAD = Load("enqueue").json()
ONE = "(select max(receipt) from mq.dequeue(%(queue)s))"
NEXT = "select max(receipt) from mq.dequeue(%(queue)s, {n}, ack => %(last)s)"
WORKS = (
    Work("enqueue", f"select mq.enqueue(%(queue)s, {PAYLOAD})"),
    Work("enqueue delayed", f"select mq.enqueue(%(queue)s, {PAYLOAD}, delay => '1 hour')"),
    Work(
        "enqueue_batch 10", f"select mq.enqueue_batch(%(queue)s, array_fill({PAYLOAD}, array[10]))"
    ),
    Work(
        "inbox 100",
        f"insert into mq.inbox (queue, payload) select %(queue)s, {PAYLOAD} from generate_series(1, 100) returning 1",
    ),
    Work("dequeue 1, ack", NEXT.format(n=1), takes=1, calls=512),
    Work("dequeue 10, ack", NEXT.format(n=10), takes=10, calls=512),
    Work("dequeue 100, ack", NEXT.format(n=100), takes=100, calls=256),
    Work("ack (dequeue)", f"select mq.ack(%(queue)s, {ONE})", takes=1, calls=256),
    Work("extend (dequeue)", f"select mq.extend(%(queue)s, {ONE}, '1 hour')", takes=1),
    Work("nack (dequeue)", f"select mq.nack(%(queue)s, {ONE}, delay => '1 hour')", takes=1),
    Work("dequeue nothing", "select max(receipt) from mq.dequeue(%(queue)s)"),
)
WARM = 20
# callgrind writes what it has counted, and begins anew, where this function is called.
MARK = "pg_sleep"
WANTED = 0.97


def prepare(server: Server, dbname: str, sql: Path, works: Sequence[Work]) -> None:
    """A database with what is there, and the queues."""
    server.create_database(dbname)
    with server.connect(dbname) as conn:
        migrate.install(conn, load(sql))
        for work in works:
            conn.execute("select mq.create_queue(%s)", (queue(work),))
            for _ in range(0, work.takes * (WARM + work.calls), 1000):
                batch = f"array_fill({PAYLOAD}, array[1000])"
                conn.execute(f"select mq.enqueue_batch(%s, {batch})".encode(), (queue(work),))


def queue(work: Work) -> str:
    """Its name."""
    return re.sub("[^a-z0-9]+", "_", work.name)


def count(server: Server, dbname: str, works: Sequence[Work], folder: Path) -> list[float]:
    """Instructions of a call, of each work."""
    found = []
    with server.connect(dbname) as conn:
        conn.prepare_threshold = 0
        for number, work in enumerate(works, start=1):
            last = None
            for times in (WARM, work.calls):
                for _ in range(times):
                    asked = {"queue": queue(work), "last": last}
                    row = conn.execute(work.statement.encode(), asked).fetchone()
                    last = row[0] if row else None
                conn.execute(f"select {MARK}(0)".encode())
            dump = (folder / f"{conn.info.backend_pid}.{2 * number}").read_text()
            (total,) = re.findall(r"^totals: (\d+)", dump, re.MULTILINE)
            found.append(int(total) / work.calls)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--only", default="*", help="works whose names match, with * and ?")
    parser.add_argument("--out", type=Path, help="lines of JSON are added to this file")
    options = parser.parse_args()
    installed = revision()
    works = [work for work in WORKS if fnmatch.fnmatch(work.name, options.only)]
    with (
        tempfile.TemporaryDirectory(prefix="mq-instructions-", dir="/tmp") as name,
        Server("debian", settings={"autovacuum": "off", "max_wal_size": "8GB"}) as server,
    ):
        folder = Path(name)
        folder.chmod(0o777)  # the server has another user
        prepare(server, "before", options.before / "sql", works)
        prepare(server, "after", REPO / "sql", works)
        server.stop()
        server.runner = (
            *("valgrind", "--quiet", "--tool=callgrind", f"--dump-before={MARK}"),
            f"--callgrind-out-file={folder}/%p",
        )
        server.start()
        before, after = (count(server, dbname, works, folder) for dbname in ("before", "after"))
    print(f"{'instructions a call':24}{'before':>12}{'after':>12}{'before/after':>14}")
    for work, old, new in zip(works, before, after, strict=True):
        print(f"{work.name:24}{old:12,.0f}{new:12,.0f}{old / new:14.3f}")
        if options.out:
            with options.out.open("a") as out:
                line = {"work": work.name, "before": round(old), "after": round(new)}
                out.write(json.dumps(line | {"revision": installed}) + "\n")
    return int(any(old / new < WANTED for old, new in zip(before, after, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
