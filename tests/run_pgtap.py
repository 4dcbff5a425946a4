"""Runs the pgTAP files of tests/sql on a throw-away server, each in a database of its own.

    python tests/run_pgtap.py [--server embedded|debian|npm:14 ...] [-j N] [-v] [file ...]

With pg_prove where it is installed (as root it is fetched with apt, unless MQ_NO_APT is set), else
with pytest; --runner chooses.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from support import binaries, template
from support.server import Server

TESTS = Path(__file__).resolve().parent
PACKAGE = "libtap-parser-sourcehandler-pgtap-perl"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", default=os.environ.get("MQ_TEST_SERVER", "embedded"))
    parser.add_argument("--runner", choices=["auto", "pg_prove", "pytest"], default="auto")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()

    files = options.files or sorted((TESTS / "sql").glob("*.sql"))
    if not files:
        print("no pgTAP files in tests/sql", file=sys.stderr)
        return 2
    with Server(options.server) as server:
        env = server.env() | {
            "MQ_PSQL": str(binaries.psql()),
            "MQ_TAP_PSQL": str(TESTS / "support" / "psql-fresh"),
            "MQ_TAP_TEMPLATE": template.make_tap(server),
            "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        }
        print(f"pgTAP on PostgreSQL {server.major} ({server.name})", flush=True)
        if options.runner != "pytest" and (pg_prove := find_pg_prove()):
            command = [
                *(pg_prove, "--psql-bin", env["MQ_TAP_PSQL"]),
                *("--jobs", str(options.jobs), "--failures", "--comments", "--nocount"),
                *(["--verbose"] if options.verbose else []),
            ]
        elif options.runner == "pg_prove":
            print(f"pg_prove is not installed (Debian: {PACKAGE})", file=sys.stderr)
            return 2
        else:
            command = [
                *(sys.executable, "-m", "pytest", "-q", "-p", "support.pytest_tap"),
                *(["-v"] if options.verbose else []),
            ]
        status = subprocess.run([*command, *map(str, files)], env=env, check=False).returncode
        if status != 0:
            print(f"the server's log ends with\n{server.log_tail(15)}", file=sys.stderr)
        return status


def find_pg_prove() -> str | None:
    """Where pg_prove is, after an attempt to install it where that needs nobody's leave."""
    if found := shutil.which("pg_prove"):
        return found
    if os.geteuid() != 0 or os.environ.get("MQ_NO_APT") or not shutil.which("apt-get"):
        return None
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", PACKAGE]
    for command in (install, ["apt-get", "update", "-qq"], install):
        try:
            subprocess.run(command, env=env, capture_output=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            return None
        if found := shutil.which("pg_prove"):
            return found
    return None


if __name__ == "__main__":
    sys.exit(main())
