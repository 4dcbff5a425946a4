"""The queues that are measured, one a file; `ALL` is them by name."""

from __future__ import annotations

from bench.peers.base import Absent, Load, Peer
from bench.peers.mq import Mq
from bench.peers.plain import Bare, Plain

ALL: dict[str, Peer] = {peer.name: peer for peer in (Mq(), Plain(), Bare())}

__all__ = ["ALL", "Absent", "Load", "Peer"]
