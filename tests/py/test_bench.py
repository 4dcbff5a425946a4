"""The benchmark's harness works: its smallest cells, a second each. No figure is looked at, only that there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.server import Server

pytest.importorskip("bench", reason="bench/ is not in this copy of the tree")

from bench import arena, matrix, peers, pgbench, tables, targets
from bench.arena import Arena, Contestant
from bench.cells import Race
from bench.peers import Absent, Load, node
from bench.peers.captured import inlined, literal
from bench.results import Store
from bench.solo import Latency, Wal


@pytest.fixture(scope="module")
def place(server: Server) -> Iterator[Arena]:
    try:
        made = Arena(server, 0.25)
    except Absent as absent:
        pytest.skip(str(absent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(arena.WARM_SECONDS, 1, 0.25)
        yield made
    made.close()


def contestants(names: str) -> list[Contestant]:
    return [Contestant.parse(name) for name in names.split()]


def tiny(load: Load) -> Race:
    backlog = 20_000 if load.work == "drain" else 1000
    return Race(name="tiny", contestants=(), load=load, clients=1, backlog=backlog)


def test_contestants_take_turns(place: Arena) -> None:
    names = "mq:next plain:tx@snapshot"
    found = tiny(Load("drain", 10)).run(place, contestants(names))
    assert list(found) == names.split()
    assert all(figures["all_calls"] > 0 and figures["calls_s"] >= 0 for figures in found.values())
    assert all(0 < figures["full"] <= 1 for figures in found.values())


@pytest.mark.parametrize(
    "name", [name for name in peers.ALL if name not in ("mq", "plain", "bare")]
)
def test_every_peer_that_is_here_goes_through_a_cycle(place: Arena, name: str) -> None:
    package = name if name in node.VERSIONS else None
    if package and not node.folder_of(package).exists():
        pytest.skip(f"{package} is not fetched yet (make bench does)")
    cell = tiny(Load("steady", 1))
    try:
        cell.check(place, Contestant.parse(name))
    except Absent as absent:
        pytest.skip(str(absent))
    (figures,) = cell.run(place, contestants(name)).values()
    assert figures["all_calls"] > 0


def test_wal_is_counted_per_message(place: Arena) -> None:
    cell = Wal(name="wal", contestants=(), n=10, messages=200, clients=1)
    found = cell.run(place, contestants("mq:next bare"))
    assert found["mq:next"]["wal_bytes"] > found["bare:unnest"]["wal_bytes"] > 200


def test_latency_is_measured_through_the_client(place: Arena) -> None:
    found = Latency(name="latency", contestants=(), rate=100).run(place, contestants("mq:auto"))
    assert found["mq:auto"].get("messages", 0) == 0 or found["mq:auto"]["p50_ms"] > 0


def test_results_go_on_where_they_ended_and_become_tables(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    line = {"cell": "c", "key": "calls_s", "round": 0, "contestant": "mq", "load": 1.0}
    Store(path).add(line | {"figures": {"calls_s": 30.0}})
    Store(path).add(line | {"contestant": "plain", "figures": {"calls_s": 10.0}})
    store = Store(path)
    assert store.has("c", 0, ["mq", "plain"])
    assert not store.has("c", 1, ["mq"])
    assert store.results["c"].ratio("plain") == 3
    assert "| plain | 3.00 |" in tables.markdown(store.results)


def test_only_what_ends_in_ones_own_turn_counts(tmp_path: Path) -> None:
    # client, number, us, script, second, us
    (tmp_path / "x.1").write_text(
        "0 1 1000 0 100 100000\n0 2 1000 0 101 100000\n0 3 900000 0 101 200000\n0 4 1000 0 102 0\n"
    )
    turns = [pgbench.Turn(100.0, 101.0), pgbench.Turn(101.0, 101.5)]
    done = pgbench.count(tmp_path, "x", turns, warm=1.0)
    assert (done.calls, done.seconds, done.all_calls, done.calls_until_end) == (2, 0.5, 4, 3)
    assert done.latencies == [1000]


def test_every_cell_has_a_name_of_its_own_and_contestants_that_exist() -> None:
    cells = matrix.full()
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.name for cell in matrix.quick()} <= {cell.name for cell in cells}
    for cell in cells:
        assert contestants(" ".join(cell.contestants))


def test_every_target_compares_contestants_of_its_cell() -> None:
    wanted = targets.targets()
    cells = {target.cell.name: target.cell for target in wanted}
    assert all(target.cell == cells[target.cell.name] for target in wanted)
    for target in wanted:
        assert {target.of, target.by or target.of} <= {*target.cell.contestants}


def test_what_a_library_sends_becomes_text() -> None:
    text = "select $2, $1 -- $1: why\n;"
    assert inlined(text, [literal(["a", None]), literal(7)]).split() == (
        ["select", "7,", "array['a',", "null]"]
    )
