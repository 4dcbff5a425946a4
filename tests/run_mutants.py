"""Breaks mq on purpose: applies each patch of tests/mutants to a copy of the tree and expects red.

A patch begins with lines for us, then what `git diff` prints:

    Breaks: invariant 2, a slice may be leased twice
    Tests: tests/py/test_claim.py::test_two_consumers tests/sql/dequeue.sql

    python tests/run_mutants.py [-v] [name ...]

A mutant is killed when one of its tests fails; a test that passes on a broken mq proves nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
REPO = TESTS.parent
COPIED = ("sql", "python", "tests", "pyproject.toml")


class BadMutant(Exception):
    """A patch that says nothing, or does not apply."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-v", "--verbose", action="store_true", help="show what the tests said")
    parser.add_argument("names", nargs="*", help="patches, without .patch; default: all")
    options = parser.parse_args()

    patches = sorted((TESTS / "mutants").glob("*.patch"))
    if options.names:
        patches = [patch for patch in patches if patch.stem in options.names]
    survived = 0
    for patch in patches:
        try:
            what, tests = read(patch)
            killed, said = try_out(patch, tests)
        except BadMutant as error:
            survived += 1
            print(f"BROKEN    {patch.stem}: {error}", flush=True)
            continue
        survived += not killed
        print(f"{'killed  ' if killed else 'SURVIVED'}  {patch.stem}: {what}", flush=True)
        if options.verbose or not killed:
            print(said)
    print(f"mutants: {len(patches) - survived} of {len(patches)} killed")
    return 1 if survived else 0


def read(patch: Path) -> tuple[str, list[str]]:
    """What a patch breaks, and the tests that must notice."""
    head = patch.read_text().partition("diff --git")[0]
    what = re.search(r"^Breaks: (.+)$", head, re.MULTILINE)
    tests = re.search(r"^Tests: (.+)$", head, re.MULTILINE)
    if what is None or tests is None:
        raise BadMutant('it must begin with "Breaks: ..." and "Tests: ..."')
    return what[1], tests[1].split()


def try_out(patch: Path, tests: list[str]) -> tuple[bool, str]:
    """Whether a test failed with the patch applied, and what the tests said."""
    with tempfile.TemporaryDirectory(prefix="mq-mutant-") as folder:
        tree = Path(folder)
        for name in COPIED:
            source = REPO / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree / name)
        applied = subprocess.run(
            ["git", "apply", "--whitespace=nowarn", str(patch)],
            cwd=tree,
            env=os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        if applied.returncode != 0:
            raise BadMutant(applied.stderr.strip())
        files = [test for test in tests if test.endswith(".sql")]
        others = [test for test in tests if not test.endswith(".sql")]
        commands = []
        if others:
            commands.append([sys.executable, "-m", "pytest", "-q", "-x", *others])
        if files:
            commands.append([sys.executable, "tests/run_pgtap.py", *files])
        killed, said = False, ""
        for command in commands:
            done = subprocess.run(
                command,
                cwd=tree,
                env=os.environ
                | {"PYTHONPATH": str(tree / "python"), "MQ_TEST_CACHE": str(REPO / ".cache")},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            said += done.stdout + done.stderr
            red = re.search(r"^Result: FAIL|\b\d+ failed\b", done.stdout, re.MULTILINE) is not None
            if done.returncode != 0 and not red:  # does not even install, or no such test
                raise BadMutant(f"{' '.join(command[1:])} ended with {done.returncode}\n{said}")
            killed = killed or red
        return killed, said


if __name__ == "__main__":
    sys.exit(main())
