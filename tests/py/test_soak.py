"""The soak works: in small, with its crash and its count. And its verdict tells what is flat from what drifts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

pytest.importorskip("bench", reason="bench/ is not in this copy of the tree")

from bench.arena import arena
from bench.peers import Absent
from bench.results import Store
from bench.soak import cli, verdict
from bench.soak.ledger import Ledger
from bench.soak.run import SETTINGS, Plan, soak
from support.binaries import Unavailable
from support.server import Server

Windows = list[dict[str, Any]]
GOOD = dict.fromkeys(verdict.FACTS, 0) | {
    "rate": 100,
    "segments": 1,
    "empty_mb": 10,
    "database_mb": 11,
}


@pytest.mark.faults
def test_a_soak_in_small_settles_every_message_once(tmp_path: Path) -> None:
    path = tmp_path / "soak.jsonl"
    plan = Plan(10)
    try:
        with arena("debian", 0, SETTINGS) as place:
            Store(path).add({"revision": "here", "warm": plan.warm, "seconds": plan.seconds})
            soak(place, plan, 100, Store(path), Console(quiet=True))
    except (Absent, Unavailable) as reason:
        pytest.skip(str(reason))
    about, windows, end = cli.last_run(path)
    assert about["revision"] == "here"
    assert windows
    assert all(window["database_mb"] > 0 and window["rotations"] >= 0 for window in windows)
    assert any("dequeue_p99_ms" in window for window in windows)
    assert end["committed"] > 500
    assert {key: end[key] for key in verdict.FACTS} == dict.fromkeys(verdict.FACTS, 0), end
    assert end["segments"] == 1


def windows(**drifts: float) -> Windows:
    """Of a soak in which these figures grow to so many times what they were."""
    return [
        {key: 100.0 * (1 + (drifts.get(key, 1) - 1) * i / 29) for key in (*verdict.BOUNDS, "ready")}
        for i in range(30)
    ]


def failed(some: Windows, **end: int) -> list[str]:
    return [one.metric for one in verdict.verdict(some, GOOD | end) if not one.ok]


def test_what_is_flat_is_well() -> None:
    assert failed(windows()) == []


@pytest.mark.parametrize(
    ("drift", "metrics"),
    [
        ({"enqueue_p50_ms": 2.0}, ["enqueue p50 ms"]),
        ({"dequeue_p99_ms": 2.0}, ["dequeue p99 ms"]),
        ({"dequeue_p99_ms": 1.3}, []),
        ({"consumer_kb_max": 1.2}, ["consumer kB, max"]),
        ({"database_mb": 1.5}, ["database MB, least"]),
        ({"ready": 3.0}, ["ready"]),
        ({"messages_s": 0.8}, ["messages/s below the rate, %"]),
        ({"wal_mb": 9.0, "load": 5.0}, []),
    ],
)
def test_what_drifts_is_not(drift: dict[str, float], metrics: list[str]) -> None:
    some = windows(**{"ready": 0.0} | drift)
    assert failed(some) == metrics


def test_what_the_control_suffers_is_not_held_against_mq() -> None:
    slower = {"enqueue_p50_ms": 2.0, "control_p50_ms": 2.0}
    assert failed(windows(**slower)) == []
    assert failed(windows(**slower | {"enqueue_p50_ms": 4.0})) == ["enqueue p50 ms"]
    assert failed(windows(control_p50_ms=0.1, enqueue_p50_ms=1.2)) == []


def test_a_figure_that_is_missing_is_not_well() -> None:
    some = windows()
    for window in some:
        del window["producer_kb_max"]
    assert failed(some) == ["producer kB, max"]
    assert "enqueue p50 ms" in failed([])


@pytest.mark.parametrize("fact", verdict.FACTS)
def test_one_message_too_many_or_too_few_is_not_well(fact: str) -> None:
    assert failed(windows(), **{fact: 1}) == [verdict.FACTS[fact]]


def test_one_spike_is_no_drift() -> None:
    some = windows()
    some[-1]["enqueue_p50_ms"] = some[-2]["dequeue_p99_ms"] = 10_000.0
    assert failed(some) == []


def test_the_ledger_ticks_off_ids(server: Server) -> None:
    name = "ledger"
    server.create_database(name)
    try:
        ledger = Ledger(server, name)
        ledger.settle([3, 200_000, 3])
        assert (ledger.settled, ledger.twice) == (2, 1)
        assert ledger.among({3, 4, 10**9}) == 1
        with server.connect(name) as conn:
            conn.execute("insert into done values (1, 2, '{4,5}', 0.25, -1), (1, 2, '{6}', 0, 2)")
            ledger.collect(conn, 1)
            ledger.collect(conn, 1)
        assert (ledger.settled, ledger.torn, ledger.twice) == (5, 1, 1)
        assert ledger.take() == ([250, 0], [2000])
    finally:
        server.drop_database(name)


def test_only_the_last_run_of_a_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "soak.jsonl"
    lines: list[dict[str, Any]] = [
        {"warm": 5, "revision": "old"},
        {"window": {"at": 10}},
        {"end": {"rate": 1}},
        {"warm": 5, "revision": "new"},
        {"peak": 10, "rate": 8},
        {"window": {"at": 4}},
        {"window": {"at": 20}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="how it ended"):
        cli.last_run(path)
    Store(path).add({"end": {"rate": 8}})
    about, some, end = cli.last_run(path)
    assert (about["revision"], some, end) == ("new", [{"at": 20}], {"rate": 8})
