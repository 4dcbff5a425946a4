"""mq is nowhere slower than its prototype. bench/prototype.py measures, this only asks it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PROTOTYPE = Path(os.environ.get("MQ_PROTOTYPE") or REPO.parent / "shared/prototype/engine.sql")

pytestmark = [
    pytest.mark.perf,
    pytest.mark.skipif(
        not PROTOTYPE.exists(),
        reason=f"the prototype is not at {PROTOTYPE}; MQ_PROTOTYPE can say where it is",
    ),
]


@pytest.mark.parametrize(
    "workload", ["enqueue", "dequeue-1", "dequeue-10", "dequeue-100", "dequeue-500"]
)
def test_no_slower_than_the_prototype(workload: str, tmp_path: Path) -> None:
    """Medians of five interleaved pairs with 1, 4, 16 and 64 clients."""
    done = subprocess.run(
        [
            *(sys.executable, str(REPO / "bench/prototype.py"), "--workload", workload),
            *("--pairs", "5", "--seconds", "3", "--out", str(tmp_path / "results.jsonl")),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
