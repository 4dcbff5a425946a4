"""Where the time of a call goes: line by line with plprofiler, and by C function with perf.

python -m bench.profile dequeue              one message a call, which acks the receipt of the one before
python -m bench.profile dequeue --n 100
python -m bench.profile enqueue --calls 5000

It needs Debian's postgresql-15-plprofiler; perf where there is one. Times include what the profiler itself costs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / "python"), str(REPO / "tests")]

import psycopg  # noqa: E402

from bench.arena import SETTINGS  # noqa: E402
from bench.peers import Load  # noqa: E402
from bench.peers.mq import Mq  # noqa: E402
from bench.revision import revision  # noqa: E402
from support.server import Server  # noqa: E402

WARM = 300
LINES = """
select p.proname, s.line_number, s.exec_count, s.total_time, split_part(p.prosrc, e'\\n', s.line_number::int)
from pl_profiler_linestats_local() as s join pg_proc as p on p.oid = s.func_oid
where s.exec_count > 0 and s.line_number > 0 and s.total_time > %s
order by p.proname, s.line_number
"""
# What says something; names of static functions are not in Debian's binaries.
SYMBOLS = (
    "CommitTransactionCommand",
    "XLogFlush",
    "standard_ExecutorStart",
    "standard_ExecutorRun",
    "standard_ExecutorEnd",
    "ExecInitNode",
    "plpgsql_exec_function",
    "SPI_execute_plan_with_paramlist",
    "GetCachedPlan",
    "fmgr_security_definer",
    "index_getnext_slot",
    "heap_insert",
    "ExecInsertIndexTuples",
    "XLogInsert",
    "LockAcquireExtended",
    "LockReleaseAll",
    "pg_sequence_last_value",
    "nextval_oid",
    "gen_random_uuid",
    "textregexeq",
)


class Calls:
    """One session that makes one call after the other, each a transaction."""

    def __init__(self, server: Server, work: str, n: int, total: int) -> None:
        self.conn = server.connect("profiled", autocommit=True)
        self.conn.prepare_threshold = 0
        self.payload = '{"p": "%s"}' % ("x" * 190)
        self.work, self.n = work, n
        self.receipt: str | None = None
        if work == "dequeue":
            Mq().fill(self.conn, Load("drain", n), n * total + 10_000)
            self.conn.execute("set synchronous_commit = on")

    def make(self, count: int) -> None:
        for _ in range(count):
            if self.work == "enqueue":
                self.conn.execute("select mq.enqueue('b', %s)", (self.payload,))
                continue
            row = self.conn.execute(
                "select max(receipt) from mq.dequeue('b', %s, ack => %s)", (self.n, self.receipt)
            ).fetchone()
            assert row is not None
            self.receipt = row[0]
            assert self.receipt is not None, "it ran dry"


def lines(calls: Calls, count: int) -> None:
    """Prints microseconds a call of each line that takes one or more."""
    calls.conn.execute("create extension if not exists plprofiler")
    calls.conn.execute("select pl_profiler_set_enabled_local(true)")
    calls.make(WARM)
    calls.conn.execute("select pl_profiler_reset_local()")
    calls.make(count)
    calls.conn.execute("select pl_profiler_set_enabled_local(false)")
    print(f"\n{'function':18}{'line':>5}{'us/call':>9}{'execs/call':>12}")
    for name, line, execs, total, source in calls.conn.execute(LINES, (count,)):
        text = source.strip()[:100]
        print(f"{name:18}{line:5}{total / count:9.1f}{execs / count:12.2f}  {text}")


def symbols(calls: Calls, count: int) -> None:
    """Prints the share of C functions, with all that they call, in the time of the session."""
    if shutil.which("perf") is None:
        print("\nno perf here")
        return
    calls.make(WARM)
    with tempfile.TemporaryDirectory(prefix="mq-profile-") as folder:
        file = f"{folder}/perf.data"
        pid = str(calls.conn.info.backend_pid)
        command = ["perf", "record", "--quiet", "--call-graph", "dwarf,16384", "--freq", "997"]
        with subprocess.Popen(
            [*command, "--output", file, "--pid", pid], stderr=subprocess.DEVNULL
        ) as perf:
            calls.make(count)
            perf.terminate()
        command = ["perf", "report", "--children", "--call-graph", "none", "--sort", "symbol"]
        said = subprocess.run(
            [*command, "--stdio", "--input", file], capture_output=True, text=True, check=False
        ).stdout
    print("\n  with callees    alone  symbol")
    seen = set()
    for line in said.splitlines():
        words = line.split()
        if len(words) > 3 and words[3] in SYMBOLS and words[3] not in seen:
            seen.add(words[3])
            print(f"{words[0]:>14}{words[1]:>9}  {words[3]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("work", choices=("enqueue", "dequeue"))
    parser.add_argument("--n", type=int, default=1)
    parser.add_argument("--calls", type=int, default=3000)
    options = parser.parse_args()
    with Server("debian", durable=True, settings=SETTINGS) as server:
        server.create_database("profiled")
        Mq().install(server, "profiled", "")
        print(f"{options.work}, n = {options.n}, {options.calls} calls, revision {revision()}")
        for profile in (lines, symbols):
            total = options.calls + WARM
            calls = Calls(server, options.work, options.n, total)
            try:
                profile(calls, options.calls)
            except psycopg.errors.FeatureNotSupported as error:
                print(f"\nno plprofiler here: {error}")
            finally:
                calls.conn.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
