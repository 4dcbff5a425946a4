"""A pytest plugin that runs pgTAP files: `pytest -p support.pytest_tap tests/sql`.

Each file is one test. Which psql, where and how, says the environment that tests/run_pgtap.py sets.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import tap

PSQL_OPTIONS = (
    "--no-psqlrc",
    "--no-align",
    "--quiet",
    "--tuples-only",
    "--pset=pager=off",
    "--set=ON_ERROR_STOP=1",
)


class TapFailure(Exception):
    """A file whose output is not what it planned."""


class TapFile(pytest.File):
    def collect(self) -> Iterator[TapItem]:
        yield TapItem.from_parent(self, name=self.path.stem)


class TapItem(pytest.Item):
    def runtest(self) -> None:
        done = subprocess.run(
            [os.environ["MQ_TAP_PSQL"], *PSQL_OPTIONS, f"--file={self.path}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        problems = tap.read(done.stdout).problems
        if done.returncode != 0:
            problems.append(f"psql ended with {done.returncode}")
        if problems:
            raise TapFailure("\n".join([*problems, "", done.stdout, done.stderr]))

    def repr_failure(
        self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None
    ) -> str:
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.path.name


def pytest_collect_file(parent: pytest.Collector, file_path: Path) -> pytest.Collector | None:
    if file_path.suffix == ".sql":
        return TapFile.from_parent(parent, path=file_path)
    return None
