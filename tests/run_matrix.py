"""pgTAP and the pytest tests marked `matrix` on every major version, two versions at a time.

python tests/run_matrix.py [--jobs 2] [--seconds 1200] [14 15 ...]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from support import binaries

TESTS = Path(__file__).resolve().parent
CHAOS = {"MQ_CHAOS_SECONDS": "5"}  # a short one on each version, unless it is said otherwise
TOO_MUCH = (
    "thousand or big or 64_clients or rotations_leave_nothing"  # of the processor, five times
)


@dataclass(frozen=True, slots=True)
class Outcome:
    major: int
    passed: bool
    seconds: float
    summary: str
    log: str


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1200, help="at most, for one version")
    parser.add_argument("majors", nargs="*", type=int, default=list(binaries.MAJORS))
    options = parser.parse_args()

    servers = {}
    for major in options.majors:  # downloads, one after the other
        try:
            servers[major] = binaries.for_major(major).name
        except binaries.Unavailable as error:
            print(f"PostgreSQL {major}: cannot be had here: {error}", flush=True)
    if not servers:
        return 1
    began = time.monotonic()
    failed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(run, *one, options.seconds) for one in servers.items()]
        for done in as_completed(runs):
            outcome = done.result()
            failed += not outcome.passed
            if not outcome.passed:
                print(outcome.log)
            verdict = "passed" if outcome.passed else "FAILED"
            print(
                f"PostgreSQL {outcome.major}: {verdict} in {outcome.seconds:.0f}s: {outcome.summary}",
                flush=True,
            )
    seconds = time.monotonic() - began
    print(f"matrix: {len(servers) - failed} of {len(servers)} versions passed in {seconds:.0f}s")
    return 1 if failed or len(servers) < len(options.majors) else 0


def run(major: int, server: str, seconds: float) -> Outcome:
    """Both suites on one version, one after the other."""
    began = time.monotonic()
    log, summaries, passed = "", [], True
    for command in (
        [sys.executable, str(TESTS / "run_pgtap.py"), "--jobs", "1", "--server", server],
        [
            *(sys.executable, "-m", "pytest", "-q"),
            *("-m", "matrix and not slow and not perf", "-k", f"not ({TOO_MUCH})"),
        ],
    ):
        left = seconds - (time.monotonic() - began)
        status, said = _run(command, server, left)
        log += said
        passed = passed and status == 0
        summaries.append(_last_word(said))
    return Outcome(major, passed, time.monotonic() - began, "; ".join(summaries), log)


def _run(command: list[str], server: str, seconds: float) -> tuple[int, str]:
    # A file, not a pipe: grandchildren that outlive a timeout must not keep us reading.
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(
            command,
            cwd=TESTS.parent,
            env=CHAOS | os.environ | {"MQ_TEST_SERVER": server},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            status = process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            file.write(b"\ntook too long, stopped\n")
            status = 1
        file.seek(0)
        return status, file.read().decode(errors="replace")


def _last_word(said: str) -> str:
    """pytest's last line, or prove's line of counts above its verdict."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    counts = [line for line in lines if line.startswith("Files=")]
    return (counts or lines or ["nothing said"])[-1].partition(" (")[0]


if __name__ == "__main__":
    sys.exit(main())
