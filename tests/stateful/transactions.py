"""Rules of transactions: begun, committed, rolled back as a whole or to a savepoint, and lost with their session."""

from __future__ import annotations

from hypothesis import strategies as st

from stateful.consuming import MANY, Consuming
from stateful.machine import PICK, WHO, Session, step
from stateful.model import Transaction
from support import wait


class Transactions(Consuming):
    def open(self) -> list[Session]:
        return [s for s in self.sessions if s.tx is not None]

    def closed(self) -> list[Session]:
        return [s for s in self.sessions if s.tx is None]

    def saved(self) -> list[Session]:
        return [s for s in self.sessions if s.tx is not None and s.tx.savepoints]

    @step(
        3,
        when=lambda self: self.closed(),
        who=WHO,
        repeatable=st.sampled_from((False, False, True)),
    )
    def begin(self, who: int, repeatable: bool) -> None:
        session = self.pick(who, self.closed())
        self.sound = False
        if repeatable:
            session.conn.execute("begin isolation level repeatable read")
            self.value(session, "select count(*) from mq.queues()")  # here is its snapshot
        else:
            session.conn.execute("begin")
        session.tx = Transaction(self.model.step, repeatable=repeatable)

    @step(
        3,
        when=lambda self: self.open(),
        which=PICK,
        end=st.sampled_from(("commit", "rollback", "lost", "killed")),
    )
    def end(self, which: int, end: str) -> None:
        session = self.pick(which, self.open())
        self.sound = False
        if end in ("commit", "rollback"):
            session.conn.execute(end)
        else:
            pid = wait.backend_pid(session.conn)
            if end == "killed":
                self.admin("select pg_terminate_backend(%s)", pid)
            session.conn.close()
            wait.until_gone(self.conn, pid)
            session.connect()
        tx, session.tx = session.tx, None
        if end == "commit":
            tx.commit()
        else:
            tx.rollback()

    @step(when=lambda self: self.open(), which=PICK)
    def savepoint(self, which: int) -> None:
        session = self.pick(which, self.open())
        session.conn.execute(f"savepoint s{len(session.tx.savepoints)}".encode())
        session.tx.savepoints.append(len(session.tx.steps))

    @step(when=lambda self: self.saved(), which=PICK, keep=PICK)
    def rollback_to_savepoint(self, which: int, keep: int) -> None:
        session = self.pick(which, self.saved())
        tx = session.tx
        self.sound = False
        no = keep % len(tx.savepoints)
        session.conn.execute(f"rollback to savepoint s{no}".encode())
        tx.rollback(tx.savepoints[no])
        del tx.savepoints[no + 1 :]

    @step(
        3,
        when=lambda self: self.closed(),
        who=WHO,
        n=MANY,
        acks=st.booleans(),
        late=st.sampled_from(("ack", None, "nack", "extend")),
    )
    def gives_up(self, who: int, n: int, acks: bool, late: str | None) -> None:
        """Dequeues and rolls back: a hole, or a block that never was. Who is next may get its place, not its receipt."""
        session = self.pick(who, self.closed())
        session.conn.execute("begin")
        session.tx = Transaction(self.model.step)
        lease = self.model.leases[-1] if self.dequeue(session, n) else None
        if lease is not None and acks:
            self.acks(session, lease, None)
        session.conn.execute("rollback")
        session.tx.rollback()
        session.tx = None
        if lease is not None and late is not None:
            self.dequeue(session, n)
            self.is_late(session, lease, late)
