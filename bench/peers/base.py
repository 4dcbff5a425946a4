"""What a queue must offer to be measured."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from bench.tally import Tally
from support.server import Server


class Absent(Exception):
    """A peer, or something else that a measurement needs, is not on this machine; the reason."""


class Failed(Exception):
    """A contestant was there and did not work."""

    def __init__(self, contestant: str, said: str) -> None:
        super().__init__(f"{contestant} failed: {said.strip()[-2000:]}")
        self.contestant = contestant


@dataclass(frozen=True, slots=True)
class Load:
    """What is done with a queue.

    work: `enqueue` puts n messages in, `drain` takes n out of a backlog and acks them, `steady` puts n in and takes
    n out. payload: bytes of a message.
    """

    work: str
    n: int = 1
    payload: int = 200

    def text(self) -> str:
        """A JSON payload of that size, hexadecimal noise that hardly compresses."""
        noise = random.Random(self.payload).randbytes(self.payload // 2 - 4).hex()
        return f'{{"p": "{noise}"}}'

    def json(self) -> str:
        """SQL for it, a constant."""
        return f"'{self.text()}'::jsonb"


ASYNC = {"PGOPTIONS": "-c synchronous_commit=off"}
"""For consumers that accept to see again what they acked right before a crash."""

STAMPED = f"jsonb_build_object('t', extract(epoch from clock_timestamp()), 'p', '{'x' * 160}')"
"""SQL for a payload that says when it was made."""


@contextlib.contextmanager
def upkeep(server: Server, dbname: str, seconds: float, *statements: str) -> Iterator[None]:
    """For the length of a `with`, statements again and again in a thread, each a transaction, so many seconds apart."""
    over = threading.Event()

    def work() -> None:
        with server.connect(dbname, application_name="upkeep") as conn:
            while not over.wait(seconds):
                with contextlib.suppress(psycopg.errors.OperationalError):
                    for statement in statements:
                        conn.execute(statement.encode())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Peer(ABC):
    """A queue. It works in databases of its own, each with one queue that is called `b`."""

    name: str
    #: Ways to do a cycle; the first is the default.
    variants: tuple[str, ...] = ("",)
    #: Whether a claim can be of several messages.
    batches: bool = True
    #: More consumers than this it cannot have; it gets no more then.
    most_clients: int = 1_000_000

    def clients(self, load: Load, wanted: int) -> int:
        """How many it can have for that."""
        return wanted if load.work == "enqueue" else min(wanted, self.most_clients)

    @abstractmethod
    def version(self, server: Server) -> str:
        """Which one it is. Raises: Absent."""

    @abstractmethod
    def install(self, server: Server, dbname: str, variant: str) -> None:
        """Its objects, through its own code, and the queue `b`."""

    def prepare(self, server: Server, load: Load) -> None:  # noqa: B027
        """Whatever `script` needs to know beforehand; mostly nothing."""

    @abstractmethod
    def fill(self, conn: psycopg.Connection, load: Load, count: int) -> None:
        """`count` messages that wait to be taken."""

    @abstractmethod
    def script(self, load: Load, variant: str) -> str:
        """pgbench's script for one cycle. Raises: Absent where the peer cannot do that."""

    @abstractmethod
    def left(self, conn: psycopg.Connection) -> int:
        """How many messages wait to be claimed."""

    def define(self) -> dict[str, str]:
        """Variables of pgbench that a script begins with."""
        return {}

    def environment(self, variant: str) -> dict[str, str]:
        """More of it for pgbench."""
        return {}

    def files(self, load: Load, variant: str) -> dict[str, str]:
        """Files that a script reads in @folder@, where the server may read."""
        return {}

    def template(self, variant: str) -> str:
        """Variants that can share a filled database give the same name here."""
        return ""

    def stamped(self, variant: str) -> str:
        """pgbench's script that enqueues one message with the time in `t`. Raises: Absent."""
        raise Absent(f"{self.name} is not driven through its own consumer here")

    def consumer(self, dsn: str, variant: str, concurrency: int, n: int) -> list[str]:
        """The command of a process that consumes as bench/tally.py says; n: at most so many a claim."""
        return [
            sys.executable,
            "-m",
            "bench.tally",
            self.name,
            dsn,
            variant,
            str(concurrency),
            str(n),
        ]

    def consume(self, dsn: str, variant: str, concurrency: int, n: int, tally: Tally) -> None:
        """What that process does until it is told to stop."""
        raise NotImplementedError

    @contextlib.contextmanager
    def attended(self, server: Server, dbname: str, load: Load) -> Iterator[None]:
        """Whatever else must run while the queue is used, a ticker for instance."""
        yield
