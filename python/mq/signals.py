"""SIGTERM and SIGINT stop the consumers of this process; a second one acts as it did before."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["stops_on_signal"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_stops: list[Callable[[], None]] = []
_before: dict[signal.Signals, Any] = {}


@contextlib.contextmanager
def stops_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` when one of the signals comes. Does nothing but in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _stops:
        for number in _SIGNALS:
            _before[number] = signal.signal(number, _on_signal)
    _stops.append(stop)
    try:
        yield
    finally:
        _stops.remove(stop)
        if not _stops and threading.current_thread() is threading.main_thread():
            _restore()


def _on_signal(number: int, frame: FrameType | None) -> None:
    _restore()
    for stop in _stops:
        stop()


def _restore() -> None:
    for number in _SIGNALS:
        # pop, not look and take: a second signal may come in between, and its handler do the same.
        handler = _before.pop(number, _on_signal)
        if handler is not _on_signal:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
