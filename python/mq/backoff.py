"""Waiting times that double up to a cap."""

from __future__ import annotations

import random

__all__ = ["Backoff"]


class Backoff:
    """`first`, then twice as long with every `next()`, never more than `cap` seconds.

    A part of each, up to `jitter`, is taken off by chance, so that many who began together part
    ways.
    """

    def __init__(self, first: float, cap: float, *, jitter: float = 0.2) -> None:
        self._first = first
        self._cap = cap
        self._jitter = jitter
        self._step = first

    def next(self) -> float:
        """How long to wait this time, in seconds."""
        wait = min(self._step, self._cap)
        self._step = wait * 2
        return wait * (1 - self._jitter * random.random())

    def reset(self) -> None:
        """Begin at `first` again."""
        self._step = self._first
