"""The queues that are measured, one a file; `ALL` is them by name."""

from __future__ import annotations

from bench.peers.base import Absent, Failed, Load, Peer
from bench.peers.graphile_worker import GraphileWorker
from bench.peers.mq import Before, Mq
from bench.peers.pg_boss import PgBoss
from bench.peers.pgq import PgQ
from bench.peers.pgqueuer import PgQueuer
from bench.peers.plain import Bare, Plain
from bench.peers.procrastinate import Procrastinate

ALL: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Mq(),
        Before(),
        Plain(),
        Bare(),
        PgQ(),
        Procrastinate(),
        PgQueuer(),
        GraphileWorker(),
        PgBoss(),
    )
}

__all__ = ["ALL", "Absent", "Failed", "Load", "Peer"]
