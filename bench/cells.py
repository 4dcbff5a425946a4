"""What a cell is, and the race: contestants that take turns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from bench.arena import Arena, Contestant, Figures, warm_up
from bench.peers import Load

# Messages that wait for the consumers, for each second: more than the fastest of them takes.
BACKLOG = {1: 20_000, 10: 120_000, 100: 600_000, 1000: 700_000}
MOST_BACKLOG = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell(ABC):
    """One measurement of several contestants. Ratios are those of the first one to each other."""

    name: str
    contestants: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict, hash=False)
    #: Rounds that are enough for it, where it takes long.
    most_pairs: int = 5
    #: Of each contestant, where it needs others than the arena's.
    seconds: float | None = None

    def check(self, arena: Arena, contestant: Contestant) -> None:
        """Whether it can take part. Raises: Absent."""
        contestant.peer.version(arena.server)

    @abstractmethod
    def measure(self, arena: Arena, contestants: list[Contestant]) -> dict[str, Figures]:
        """One round, figures by contestant."""

    def run(self, arena: Arena, contestants: list[Contestant]) -> dict[str, Figures]:
        """The same with this cell's settings."""
        with arena.set(self.settings):
            return self.measure(arena, contestants)

    @property
    def key(self) -> str:
        """The figure that ratios are made of; more is better, unless `less` says otherwise."""
        return "calls_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Race(Cell):
    """Contestants in turns of a quarter of a second."""

    load: Load
    clients: int
    backlog: int | None = None  # None: what the time needs
    aging: float = 0
    aging_rate: int = 2000
    series: bool = False
    in_place: bool = False

    def check(self, arena: Arena, contestant: Contestant) -> None:
        contestant.peer.version(arena.server)
        contestant.peer.prepare(arena.server, self.load)
        contestant.peer.script(self.load, contestant.variant)

    def measure(self, arena: Arena, contestants: list[Contestant]) -> dict[str, Figures]:
        backlog = self.backlog
        if backlog is None:
            backlog = waiting(self.load, self.clients, self.seconds or arena.seconds)
        return arena.race(
            contestants,
            self.load,
            self.clients,
            backlog,
            seconds=self.seconds,
            series=self.series,
            aging=self.aging,
            aging_rate=self.aging_rate,
            in_place=self.in_place,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicated(Race):
    """The same with a synchronous replica beside the server."""

    def run(self, arena: Arena, contestants: list[Contestant]) -> dict[str, Figures]:
        with arena.replica():
            return self.measure(arena, contestants)


def waiting(load: Load, clients: int, seconds: float) -> int:
    """How many messages must wait so that nobody runs dry."""
    if load.work == "enqueue":
        return 0
    if load.work == "steady":
        return 10_000
    rate = BACKLOG[min(n for n in BACKLOG if n >= load.n)]
    return min(MOST_BACKLOG, int(rate * (seconds + max(warm_up(64), warm_up(clients)))))


def race(
    name: str,
    load: Load,
    clients: int,
    contestants: str,
    kind: type[Race] = Race,
    **more: object,
) -> Race:
    """A Race from a list of contestants with spaces between them."""
    return kind(
        name=f"{name} clients={clients}",
        load=load,
        clients=clients,
        contestants=tuple(contestants.split()),
        **more,  # type: ignore[arg-type]
    )
