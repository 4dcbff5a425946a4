"""Checks the model: with every fix in, nothing is found; with one out, what that fix is there for.

    python model/run.py [--list] [--trace] [name ...]

Exit status 1: a variant did not do what is expected of it; 2: spin or a C compiler is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

MODEL = Path(__file__).resolve().parent
MEGABYTES = 6000  # for one search; the largest needs about a third
NOTHING = "nothing"


class SearchFailed(Exception):
    """A model that does not compile, or a search that did not come to its end."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A model, its sizes, the fixes that are left out, and the property that is violated then."""

    model: str
    hazard: str
    without: tuple[str, ...]
    sizes: str
    expected: str = NOTHING
    shortest: bool = False  # search breadth first, for a short trace, where that is not too much

    @property
    def name(self) -> str:
        fixes = " and ".join(fix.lower().replace("_", " ") for fix in self.without)
        return f"without {fixes}" if fixes else f"all fixes, {self.sizes.lower()}"

    @property
    def defines(self) -> list[str]:
        return [f"-D{size}" for size in self.sizes.split()] + [
            f"-DWITHOUT_{fix}" for fix in self.without
        ]


@dataclass(frozen=True, slots=True)
class Result:
    found: str
    states: int
    seconds: float
    trace: str


CLAIM = "MESSAGES=2 ROUNDS=2 SWEEPS=1"
SEGMENT = "CALLS=3 CONSUMERS=1 SWEEPS=0"

VARIANTS = (
    Variant("window", "", (), "PRODUCERS=2 CALLS=3"),
    Variant("window", "", (), "PRODUCERS=3 CALLS=1"),
    Variant("window", "", (), "PRODUCERS=2 CALLS=1 MARKS=1"),
    Variant("window", "1", ("ONE_SNAPSHOT",), "PRODUCERS=3 CALLS=1", "all_delivered"),
    Variant("window", "1", ("STRAGGLERS",), "PRODUCERS=3 CALLS=1", "all_delivered"),
    Variant("window", "2", ("OWN_RUNNING",), "PRODUCERS=1 CALLS=3", "all_delivered", True),
    Variant("window", "4", ("LOOK_AFTER_LOCK",), "PRODUCERS=2 CALLS=1", "call_succeeds", True),
    Variant(
        "window",
        "4",
        ("LOOK_AFTER_LOCK", "BLOCK_KEY"),
        "PRODUCERS=2 CALLS=1",
        "delivered_once",
        True,
    ),
    Variant("window", "4", ("LOOK_IN_MARK",), "PRODUCERS=2 CALLS=1 MARKS=1", "call_succeeds"),
    Variant("claim", "", (), "MESSAGES=3 ROUNDS=2 SWEEPS=1"),
    Variant("claim", "", (), "MESSAGES=2 ROUNDS=1 SWEEPS=2"),
    Variant("claim", "4", ("LOOK_AFTER_LOCK",), CLAIM, "call_succeeds", True),
    Variant("claim", "4", ("LOOK_AFTER_LOCK", "LEASE_KEY"), CLAIM, "one_live_lease", True),
    Variant("claim", "4", ("LEASE_KEY",), CLAIM, "one_live_lease", True),
    Variant("claim", "4", ("SLICE_LOCK",), CLAIM, "call_succeeds", True),
    Variant("claim", "28", ("TOKEN",), CLAIM, "own_lease_only", True),
    Variant("claim", "", ("SETTLEMENT_KEY",), CLAIM, "own_lease_only", True),
    Variant("segment", "", (), "CALLS=3 CONSUMERS=2 SWEEPS=0"),
    Variant("segment", "", (), "CALLS=3 CONSUMERS=1 SWEEPS=1 DEFERRED=1"),
    Variant("segment", "", (), "CALLS=5 CONSUMERS=1 SWEEPS=0 DEFERRED=1"),
    Variant("segment", "14", ("CURSOR_FIRST",), SEGMENT, "emptied_when_settled", True),
    Variant("segment", "", ("FENCE",), SEGMENT, "not_into_sealed", True),
    Variant("segment", "", ("SEAL_WAITING",), SEGMENT, "not_into_sealed", True),
    Variant("segment", "", ("FENCE_ON_FREE",), SEGMENT, "not_into_sealed", True),
    Variant("segment", "38", ("REGISTER_CHECK",), f"{SEGMENT} DEFERRED=1", "not_into_sealed", True),
    Variant("segment", "", (), f"{SEGMENT} STRICT_HEAD"),
    Variant("segment", "", ("COMMITTED_HEAD",), f"{SEGMENT} STRICT_HEAD", "head_is_right", True),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trace", action="store_true", help="show how each violation comes about")
    parser.add_argument(
        "words", nargs="*", help="of the variants to check: a model, a fix; default: all variants"
    )
    options = parser.parse_args()

    compiler = find_compiler()
    if compiler is None or shutil.which("spin") is None:
        missing = "a C compiler" if compiler is None else "spin"
        print(f"the model needs {missing} (Debian: apt install spin gcc)", file=sys.stderr)
        return 2
    variants = [
        v for v in VARIANTS if all(word.lower() in f"{v.model} {v.name}" for word in options.words)
    ]
    if not variants:
        print("no variant has all of these words", file=sys.stderr)
        return 2

    console = Console(width=None if sys.stdout.isatty() else 160)
    # In a pipe it goes into a page.
    table = Table(box=SIMPLE_HEAD if console.is_terminal else MARKDOWN)
    for title in ("model", "hazard", "variant", "expected", "found"):
        table.add_column(title, no_wrap=not console.is_terminal)
    table.add_column("states", justify="right")
    table.add_column("seconds", justify="right")
    wrong = 0
    # Two at a time, on two cores: more would be a matter of memory.
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        try:
            results = list(pool.map(lambda v: check(v, compiler), variants))
        except SearchFailed as error:
            print(error, file=sys.stderr)
            return 1
    for variant, result in zip(variants, results, strict=True):
        right = result.found == variant.expected
        wrong += not right
        table.add_row(
            variant.model,
            variant.hazard,
            variant.name,
            variant.expected,
            result.found if right else f"[red]{result.found}",
            f"{result.states:,}",
            f"{result.seconds:.1f}",
        )
        if result.trace and (options.trace or not right):
            console.print(f"{variant.model}, {variant.name}:", style="bold")
            console.print(result.trace, markup=False, highlight=False)
    console.print(table)
    print(f"model: {len(variants) - wrong} of {len(variants)} as expected")
    return 1 if wrong else 0


def find_compiler() -> str | None:
    candidates = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((c for c in candidates if c and shutil.which(c)), None)


def check(variant: Variant, compiler: str) -> Result:
    """Compiles a variant and searches all its states, or up to the first violation."""
    file = f"{variant.model}.pml"
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mq-model-") as folder:
        shutil.copy(MODEL / file, folder)
        run(folder, "spin", "-a", *variant.defines, file)
        # -w: gcc warns of code that spin generates. A short search is not worth optimizing for.
        options = [
            "-w",
            "-O1" if variant.without else "-O2",
            "-DSAFETY",
            "-DNOCLAIM",
            f"-DMEMLIM={MEGABYTES}",
        ]
        options += ["-DBFS"] if variant.shortest else []
        run(folder, compiler, *options, "-o", "pan", "pan.c")
        said = run(folder, "./pan", "-m1000000")
        counted = re.search(r"^\s*(\d+) states, stored", said, re.MULTILINE)
        errors = re.search(r"errors: (\d+)", said)
        if counted is None or errors is None:
            raise SearchFailed(f"{variant.model}, {variant.name}\n{said}")
        if errors[1] == "0":
            if "not completed" in said or "too small" in said or "out of memory" in said:
                raise SearchFailed(f"{variant.model}, {variant.name}\n{said}")
            found, trace = NOTHING, ""
        else:
            found = violation(said)
            shown = run(folder, "spin", "-t", "-T", *variant.defines, file).splitlines()
            trace = "\n".join(line for line in shown if re.match(r"\d+: ", line))
    return Result(found, int(counted[1]), time.monotonic() - begin, trace)


def violation(said: str) -> str:
    """The property that the search found violated: the variable in the assertion."""
    asserted = re.search(r"^pan:1: assertion violated \(?(\w+)", said, re.MULTILINE)
    if asserted:
        return asserted[1]
    first = re.search(r"^pan:1: (.*?)(?: \(at depth|$)", said, re.MULTILINE)
    return first[1] if first else "an error"  # "invalid end state": a deadlock


def run(folder: str, *command: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    # pan itself exits with 0 whatever it finds; spin complains on the standard output.
    if done.returncode != 0 and command[0] != "./pan":
        raise SearchFailed(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
