"""A proxy in front of a server's socket that cuts a connection at a chosen point."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType

from support.server import Server

PORT = 5432


class Proxy:
    """Passes messages of PostgreSQL's protocol on. The first connection after `cut` is cut at that point.

    `passed` counts what the cut connection has passed on, in its two directions.
    """

    def __init__(self, server: Server) -> None:
        self._target = str(server.folder / "s" / f".s.PGSQL.{server.port}")
        self._folder = tempfile.TemporaryDirectory(prefix="mq-proxy-", dir="/tmp")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(Path(self._folder.name) / f".s.PGSQL.{PORT}"))
        self._listener.listen(64)
        self._user = server.user
        self._cut: tuple[str, int, bool] | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        self.fired = False

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(10)
        for one in list(self._open):
            _shut(one)
        for thread in self._threads:
            thread.join(10)
        self._folder.cleanup()

    def dsn(self, dbname: str) -> str:
        return f"host={self._folder.name} port={PORT} user={self._user} dbname={dbname} gssencmode=disable"

    def cut(self, direction: str, after: int, *, count_bytes: bool = False) -> None:
        """Cuts the next connection after so many messages, or bytes, of "requests" or of "answers"."""
        self.fired = False
        self._cut = (direction, after, count_bytes)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            cut, self._cut = self._cut, None
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:
                client.close()
                server.close()
                continue
            self._open |= {client, server}
            for direction, source, target in (
                ("requests", client, server),
                ("answers", server, client),
            ):
                limit = cut if cut and cut[0] == direction else None
                thread = threading.Thread(
                    target=self._pump, args=(source, target, direction, limit), daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _pump(
        self,
        source: socket.socket,
        target: socket.socket,
        direction: str,
        limit: tuple[str, int, bool] | None,
    ) -> None:
        buffer = b""
        passed = 0
        first = direction == "requests"  # the first one has no type
        with contextlib.suppress(OSError):
            while limit is None or passed < limit[1]:
                if not (got := source.recv(65536)):
                    break
                if limit is None:
                    target.sendall(got)
                    continue
                if limit[2]:
                    target.sendall(got[: limit[1] - passed])
                    passed += len(got)
                    continue
                buffer += got
                while passed < limit[1] and (length := _message(buffer, first)):
                    target.sendall(buffer[:length])
                    buffer = buffer[length:]
                    passed += 1
                    first = False
        if limit is not None and passed >= limit[1]:
            self.fired = True
        for one in (source, target):
            _shut(one)
        self._open.discard(source)
        source.close()


def _message(buffer: bytes, first: bool) -> int:
    """The length of the message that the buffer begins with; 0: it is not complete."""
    at = 0 if first else 1
    if len(buffer) < at + 4:
        return 0
    length = at + int.from_bytes(buffer[at : at + 4], "big")
    return length if len(buffer) >= length else 0


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
