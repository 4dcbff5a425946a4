"""The databases that tests get copies of."""

from __future__ import annotations

from support import pgtap
from support.server import Server

MQ = "mq_template"
MQ_TAP = "mq_tap_template"


def make(server: Server) -> str:
    """A database with mq installed, made once in a server; its name."""
    if not _exists(server, MQ):
        from mqctl import migrate

        server.create_database(MQ)
        with server.connect(MQ) as conn:
            migrate.install(conn)
    return MQ


def make_tap(server: Server) -> str:
    """A database with mq and pgTAP; its name."""
    make(server)
    server.create_database(MQ_TAP, MQ)
    with server.connect(MQ_TAP) as conn:
        pgtap.load(conn)
    return MQ_TAP


def _exists(server: Server, dbname: str) -> bool:
    with server.connect() as conn:
        found = conn.execute("select from pg_database where datname = %s", (dbname,))
        return found.rowcount == 1
