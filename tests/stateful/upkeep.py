"""Rules of time and of upkeep: leases run out, sweeps, rotations, segments that go, settings, dead letters, purges."""

from __future__ import annotations

import contextlib

import psycopg
from hypothesis import strategies as st

from stateful.machine import PASSES, PICK, SOME, WHO, Machine, interval, run_out, step
from stateful.model import Lease, Message


class Upkeep(Machine):
    # -- time -----------------------------------------------------------------------------------

    @step(
        2,
        when=lambda self: not any(tx.settled or tx.claimed or tx.rotated for tx in self.others()),
        minutes=st.sampled_from(PASSES),
    )
    def time_passes(self, minutes: int) -> None:
        self.pass_time(minutes)
        for tx in self.others():
            for m in tx.sent:
                m.due += minutes if m.due else 0  # nobody sees that row yet, so it was not edited
                m.born += minutes
                m.expires = m.expires and m.expires + minutes
            for e in tx.keys.values():
                if e is not None and e.until is not None:
                    e.until += minutes

    def running(self) -> list[Lease]:
        """Leases that others see, and whose deadline nobody is moving."""
        return [
            x
            for x in self.model.leases
            if x.left and x.committed and not any(x in tx.extended for tx in self.others())
        ]

    @step(3, when=lambda self: self.running(), which=PICK)
    def lease_runs_out(self, which: int) -> None:
        """One, also where somebody is settling it just now."""
        lease = self.pick(which, self.running())
        self.sound = False
        if run_out(self.conn, lease.receipt):
            lease.until = self.model.now - 1
            self.model.upkept = self.model.step

    # -- sweeps and segments --------------------------------------------------------------------

    def swept(self) -> int:
        """What ran out is taken back for certain, unless somebody else may have done so; how many messages that are."""
        self.model.upkept = self.model.step
        doubtful = self.doubtful()
        stale = [x for x in self.model.leases if self.model.ran_out(x) and x not in doubtful]
        count = sum(len(lease.left) for lease in stale)
        for lease in stale:
            self.model.take_back(lease)
        return count

    @step()
    def sweep_stale(self) -> None:
        ready = len(self.model.having("ready", "expired"))
        doubt = sum(len(lease.left) for lease in self.doubtful())
        got = self.admin("select mq.sweep_stale('q')")
        count = self.swept()
        assert count <= got <= count + ready + doubt, (got, count)  # and what rollbacks left behind

    @step(2, times=st.sampled_from((1, 2, 4)))
    def maintain(self, times: int) -> None:
        for _ in range(times):
            self.sound = False
            self.conn.execute("select mq.maintain('q')")
        if any(tx.rotated for tx in self.others()):
            self.model.upkept = self.model.step  # it had the lock of all upkeep
        else:
            self.swept()
        if not self.others():
            for m in self.model.messages.values():
                m.hole = False

    @step(2, when=lambda self: not any(tx.rotated for tx in self.others()), who=WHO)
    def rotate(self, who: int) -> None:
        """In a transaction that may roll back, too."""
        session = self.sessions[who]
        if session.tx is not None and session.tx.repeatable:
            return
        with (
            contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState),
            self.in_transaction(session) as tx,
        ):
            tx.rotated = tx.wrote = True
            self.model.upkept = self.model.step
            with session.conn.transaction():
                session.conn.execute("select mq.rotate_segment('q')")

    # -- settings -------------------------------------------------------------------------------

    @step(when=lambda self: self.able() and not any(tx.rotated for tx in self.others()), who=WHO)
    def pause(self, who: int) -> None:
        """For the time of one dequeue, which gets nothing."""
        self.admin("select mq.pause_queue('q')")
        self.model.paused = True
        self.dequeue(self.pick(who, self.able()), 5)
        self.is_as_the_model_says()
        self.admin("select mq.resume_queue('q')")
        self.model.paused = False

    @step(when=lambda self: not self.others(), max_attempts=st.integers(1, 5))
    def alter_queue(self, max_attempts: int) -> None:
        self.admin("select mq.alter_queue('q', max_attempts => %s)", max_attempts)
        self.model.settings["max_attempts"] = max_attempts

    # -- dead letters and purges ----------------------------------------------------------------

    def dead(self) -> list[Message]:
        return sorted(self.model.having("dead"), key=lambda m: m.died)

    @step(when=lambda self: self.dead(), some=SOME)
    def redrive(self, some: list[int] | None) -> None:
        dead = self.dead()
        chosen = dead if some is None else [dead[i] for i in set(some) if i < len(dead)]
        ids = None if some is None else [m.id for m in chosen]
        assert self.admin("select mq.redrive('q', %s)", ids) == len(chosen)
        self.model.redrive(chosen)

    @step(when=lambda self: self.dead(), most=st.integers(0, 3))
    def redrive_the_oldest(self, most: int) -> None:
        """Those that died first; among those that died in one step, any."""
        before = self.dead()
        assert self.admin("select mq.redrive('q', max_messages => %s)", most) == min(
            most, len(before)
        )
        left = {
            row[0] for row in self.conn.execute("select msg_id from mq.dead_letters('q', 10000)")
        }
        gone = [m for m in before if m.id not in left]
        assert [m.died for m in gone] == [m.died for m in before[: len(gone)]]
        self.model.redrive(gone)

    @step(when=lambda self: self.dead(), older_than=st.none() | st.sampled_from((60, 600)))
    def purge_dead_letters(self, older_than: int | None) -> None:
        gone = [m for m in self.dead() if self.model.now - m.died_at >= (older_than or 0)]
        query = "select mq.purge_dead_letters('q', older_than => %s)"
        got = self.admin(query, None if older_than is None else interval(older_than))
        assert got == self.model.purge(gone)

    @step(when=lambda self: not self.others())
    def purge_queue(self) -> None:
        self.model.upkept = self.model.step
        assert self.admin("select mq.purge_queue('q')") == self.model.purge_queue()
