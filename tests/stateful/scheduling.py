"""Rules of schedules: one message each time that one is due, whoever sees to it; what was missed, as catch_up says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hypothesis import strategies as st

from stateful.machine import PICK, Machine, Session, step
from stateful.model import Lease, Message, Transaction

WAITS = "select name, next_at from mq.schedules()"
TICKS = """
select msg_id, enqueued_at, extract(epoch from enqueued_at - clock_timestamp())::float8 / 60
from mq.peek('q', 1000000) where payload ->> 's' = %s
"""
# When it is due after the tick that was taken: each time until now, and the first one from now on.
DUE = """
with recursive due as (
    select mq.cron_next(%(cron)s, %(at)s) as at
    union all select mq.cron_next(%(cron)s, d.at) from due as d where d.at <= clock_timestamp())
select at, at <= clock_timestamp() from due order by at
"""


@dataclass(eq=False)
class Schedule:
    name: str
    cron: str
    catch_up: str
    tick: Message  # which waits, and when it is due
    at: datetime


class Scheduling(Machine):
    """When a schedule is due, cron_next says: tests/py/test_cron.py is about that."""

    def __init__(self) -> None:
        super().__init__()
        self.schedules: dict[str, Schedule] = {}
        self.ended: list[Message] = []  # ticks of schedules that are gone

    @step(
        when=lambda self: not self.others(),
        name=st.sampled_from(("s1", "s2")),
        hours=st.sampled_from((4, 6)),
        catch_up=st.sampled_from(("one", "all", "none")),
    )
    def schedule(self, name: str, hours: int, catch_up: str) -> None:
        """Never due just now: time passes by whole minutes, and an example takes less than one."""
        if name in self.schedules and name not in self.changeable():
            return
        second = int(self.admin("select extract(second from clock_timestamp())::int")) + 45
        cron = f"{second % 60} 7 */{hours} * * *"
        s = self.schedules.get(name)
        if s is not None and (s.cron, s.catch_up) == (cron, catch_up):
            return  # within the same second: it stays as it is
        self.ends_schedule(name)
        query = "select mq.schedule(%s, %s, 'q', jsonb_build_object('s', %s::text), catch_up => %s)"
        at = self.admin(query, name, cron, name, catch_up)
        (tick,) = self.new(name)
        self.schedules[name] = Schedule(name, cron, catch_up, tick, at)

    def new(self, name: str) -> list[Message]:
        """Messages of a schedule that came since the last look, oldest first."""
        found = []
        rows = self.conn.execute(TICKS, (name,)).fetchall()
        for msg_id, _, minutes in sorted(rows, key=lambda row: row[1]):
            if msg_id not in self.model.messages:
                due = self.model.now + minutes
                found.append(Message(msg_id, {"s": name}, due, born=due))
        self.model.enqueue(tx := Transaction(self.model.step), found, late=True)
        tx.commit()
        return found

    def ends_schedule(self, name: str) -> None:
        """What waits is not delivered any more; what was put into the queue stays."""
        s = self.schedules.pop(name, None)
        if s is not None:
            self.ended.append(s.tick)
            if s.tick.state == "ready":
                self.model.purge([s.tick])

    def changeable(self) -> list[str]:
        """queue_stats still subtracts a tick that was cancelled once its schedule is gone."""
        return [name for name, s in self.schedules.items() if s.tick.state != "cancelled"]

    @step(when=lambda self: self.changeable() and not self.others(), which=PICK)
    def unschedule(self, which: int) -> None:
        name = self.pick(which, self.changeable())
        assert self.admin("select mq.unschedule(%s)", name) is True
        self.ends_schedule(name)

    # -- what mq does by itself -----------------------------------------------------------------

    def learn(self, seen: dict[int, tuple[str, int]]) -> None:
        self.ticks()
        super().learn(seen)

    def ticks(self) -> None:
        """Whoever takes one puts the next one there, with those that were missed."""
        for name, at in self.conn.execute(WAITS).fetchall() if self.schedules else ():
            s = self.schedules[name]
            # What a purge took is not missed.
            purged = s.tick.state == "purged" or (
                s.tick.state == "cancelled" and s.tick.id <= self.model.purged[0]
            )
            since = self.conn.execute("select clock_timestamp()").fetchone() if purged else (s.at,)
            assert since is not None
            due = self.conn.execute(DUE, {"cron": s.cron, "at": since[0]}).fetchall()
            missed = [x for x, late in due if late]
            if at != s.at or purged:
                assert purged or s.tick.due <= self.model.now, "a tick was taken before it was due"
                assert at == due[-1][0]
                came = [row[1] for row in self.conn.execute(TICKS, (name,)).fetchall()]
                more = missed if s.catch_up == "all" else []
                assert set(more) <= set(came)
                new = self.new(name)
                assert len(new) == len(more) + 1
                if s.catch_up == "none" and missed and s.tick.state == "ready":
                    self.model.purge([s.tick])
                s.tick, s.at = new[-1], at
            else:
                # The next one is due as well.
                s.tick.skipped = s.catch_up == "none" and bool(missed)

    def dequeue(
        self, session: Session, n: int, minutes: int | None = None, ack: Lease | None = None
    ) -> list[Any]:
        """What an earlier one put there may be delivered, within one step."""
        self.ticks()
        return super().dequeue(session, n, minutes, ack)

    def pass_more_time(self, minutes: int) -> None:
        super().pass_more_time(minutes)
        waits: dict[str, datetime] = dict(self.conn.execute(WAITS).fetchall())
        for s in self.schedules.values():
            s.at = waits[s.name]

    def is_tick_due(self) -> bool:
        """Then who looks for messages gives out numbers."""
        return any(s.tick.due <= self.model.now for s in self.schedules.values())

    def ghosts(self) -> int:
        """Ticks of schedules that are gone use up room until they were due."""
        return super().ghosts() + len(self.ended)

    def read_ids(self) -> None:
        self.model.ids = self.admin("select enqueued_total from mq.queue_stats('q')")

    def figures(self) -> dict[str, Any]:
        self.read_ids()
        return super().figures()

    def stops(self) -> None:
        super().stops()
        while len(self.changeable()) < len(self.schedules):
            self.pass_time(1440)
            self.conn.execute("select mq.maintain('q')")
            self.is_as_the_model_says()
        for name in self.changeable():
            self.admin("select mq.unschedule(%s)", name)
            self.ends_schedule(name)
