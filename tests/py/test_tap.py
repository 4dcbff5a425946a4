"""The TAP reader that stands in for pg_prove: what it must not let pass."""

from __future__ import annotations

import pytest

from support import tap


@pytest.mark.parametrize(
    "output",
    [
        "1..2\nok 1 - a\nok 2 - b",
        "ok 1\nok 2\n1..2",
        "1..1\nnot ok 1 - later # TODO not yet",
        "1..1\nok 1 # SKIP no need",
        "1..0 # SKIP nothing here",
        "1..1\n# a remark\nok 1 - a \\# in a name\n",
    ],
)
def test_good_output(output: str) -> None:
    assert tap.read(output).problems == []


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("", "no plan"),
        ("ok 1 - a", "no plan"),
        ("1..2\nok 1 - a", "planned 2 tests, ran 1"),
        ("1..1\nok 1 - a\nok 2 - b", "planned 1 tests, ran 2"),
        ("1..1\nnot ok 1 - a", "not ok 1 - a"),
        ("1..1\nnot ok 1 - a # SKIP", None),
        ("1..1\nnot ok 1 - the \\# TODO list", "not ok 1 - the \\# TODO list"),
        ("1..2\nok 1\nok 3", "out of order: ok 3"),
        ("1..1\nok 1\n1..1", "a second plan"),
        ("1..1\nBail out! no server\nok 1", "Bail out! no server"),
    ],
)
def test_bad_output(output: str, problem: str | None) -> None:
    problems = tap.read(output).problems
    assert problems
    assert problem is None or problem in problems
