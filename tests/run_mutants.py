"""Breaks mq on purpose: applies each patch of tests/mutants to a copy of the tree and expects red.

A patch begins with lines for us, then what `git diff` prints:

    Breaks: invariant 2, a slice may be leased twice
    Tests: tests/py/test_claim.py::test_two_consumers tests/sql/dequeue.sql

    python tests/run_mutants.py [-v] [name ...]

A mutant is killed when one of its tests fails; a test that passes on a broken mq proves nothing. Nor does one that
fails on mq as it is, so all these tests run without any patch first, and have to be green.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
    mutants: dict[Path, tuple[str, list[str]]] = {}
    survived = 0
    for patch in patches:
        try:
            mutants[patch] = read(patch)
        except BadMutant as error:
            survived += 1
            print(f"BROKEN    {patch.stem}: {error}", flush=True)
    began = time.monotonic()
    red, said = baseline(sorted({test for _, tests in mutants.values() for test in tests}))
    print(f"without a patch: {len(red)} red, {time.monotonic() - began:.0f}s", flush=True)
    if red:
        print(said)
    for patch, (what, tests) in mutants.items():
        began = time.monotonic()
        try:
            if failing := [test for test in tests if test in red]:
                raise BadMutant(f"red without it: {' '.join(failing)}")
            killed, said = try_out(patch, tests)
        except BadMutant as error:
            survived += 1
            print(f"BROKEN    {patch.stem}: {error}", flush=True)
            continue
        survived += not killed
        verdict = "killed  " if killed else "SURVIVED"
        print(f"{verdict}  {patch.stem}: {what} ({time.monotonic() - began:.0f}s)", flush=True)
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


def baseline(tests: list[str]) -> tuple[set[str], str]:
    """Which of these tests are red on mq as it is, and what they said."""
    files = [test for test in tests if test.endswith(".sql")]
    others = [test for test in tests if not test.endswith(".sql")]
    red, said = set(), ""
    with copy_of_the_tree() as tree:
        for some in (others, files):
            try:
                some_are_red, heard = run(tree, some, at_once=False)
            except BadMutant as error:
                some_are_red, heard = True, str(error)
            if some_are_red:
                said += heard
                # pytest says which of its tests, with their parameters; else they are run one by one.
                named = re.findall(r"^(?:FAILED|ERROR) (\S+)", heard, re.MULTILINE)
                red |= {
                    test
                    for test in some
                    if any(
                        one == test or one.startswith((f"{test}[", f"{test}::")) for one in named
                    )
                    or (not named and _is_red(tree, test))
                }
    return red, said


def _is_red(tree: Path, test: str) -> bool:
    try:
        return run(tree, [test], at_once=True)[0]
    except BadMutant:
        return True


def try_out(patch: Path, tests: list[str]) -> tuple[bool, str]:
    """Whether a test failed with the patch applied, and what the tests said."""
    with copy_of_the_tree() as tree:
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
        return run(tree, tests, at_once=True)


@contextlib.contextmanager
def copy_of_the_tree() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mq-mutant-") as folder:
        tree = Path(folder)
        for name in COPIED:
            source = REPO / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree / name)
        yield tree


def run(tree: Path, tests: list[str], *, at_once: bool) -> tuple[bool, str]:
    """Whether one of the tests is red, and what they said; at_once: no more after the first.

    Raises: BadMutant where they do not even run.
    """
    files = [test for test in tests if test.endswith(".sql")]
    others = [test for test in tests if not test.endswith(".sql")]
    commands = []
    if others:
        commands.append([sys.executable, "-m", "pytest", "-q", *["-x"][: int(at_once)], *others])
    if files:
        commands.append([sys.executable, "tests/run_pgtap.py", *files])
    is_red, said = False, ""
    for command in commands:
        if is_red and at_once:
            break
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
        is_red = is_red or red
    return is_red, said


if __name__ == "__main__":
    sys.exit(main())
