"""Conservation under chaos, see chaos/run.py. MQ_CHAOS_SECONDS=600 makes it longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.matrix

RUN = Path(__file__).resolve().parent / "chaos" / "run.py"


def storm(seconds: float, max_n: int) -> None:
    """One run on a server of its own; prints what was done, for -s and for failures."""
    seconds = float(os.environ.get("MQ_CHAOS_SECONDS", seconds))
    done = subprocess.run(
        [
            sys.executable,
            str(RUN),
            os.environ.get("MQ_TEST_SERVER", "embedded"),
            str(seconds),
            str(max_n),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + 170,
        check=False,
    )
    print(done.stdout + done.stderr)
    assert done.returncode == 0


@pytest.mark.faults
@pytest.mark.timeout(1000)
def test_every_message_is_acknowledged_once_or_dead_after_chaos() -> None:
    storm(15, 20)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("max_n", [1, 5, 120, 1000])
def test_every_message_is_acknowledged_once_or_dead_after_a_long_chaos(max_n: int) -> None:
    storm(60, max_n)
