"""Features that are an option of enqueue, or a setting, and need no rules of their own; and how long a pause may last."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import strategies as st

from stateful.machine import Draws, Machine, step

# So that no sum of passes comes near.
TTLS = (90, 520)


class Prioritising(Machine):
    """What is most urgent comes first: Machine.check_turn."""

    options: ClassVar[Draws] = {**Machine.options, "priority": st.sampled_from((9, 0, 5, 4))}


class Expiring(Machine):
    """What was not delivered in time is dead, and never delivered: Model.shown."""

    options: ClassVar[Draws] = {**Machine.options, "ttl": st.sampled_from(TTLS)}

    def pass_more_time(self, minutes: int) -> None:
        super().pass_more_time(minutes)
        tables = self.conn.execute(
            "select oid::regclass::text from pg_class where relnamespace = 'mq'::regnamespace"
            " and relkind = 'r' and relname ~ '^(log|deferred|parked)_'"
        ).fetchall()
        for (table,) in tables:
            change = "extra || jsonb_build_object('e', (extra ->> 'e')::bigint - %s)"
            self.conn.execute(
                f"update {table} set extra = {change} where extra ? 'e'".encode(),
                (minutes * 60_000_000,),
            )


class Retrying(Machine):
    """How long what failed waits: Model.backoff."""

    settings: ClassVar[Draws] = {
        **Machine.settings,
        "max_attempts": st.sampled_from((5, 3, 2)),
        "retry_policy": st.sampled_from(("linear", "exponential", "list")),
        "retry_delays": st.sampled_from(([37, 200], [60])),
    }


class Pausing(Machine):
    """Nothing is delivered for a while, and all the rest goes on."""

    @step()
    def pause_or_resume(self) -> None:
        self.model.paused = not self.model.paused
        self.admin(f"select mq.{'pause' if self.model.paused else 'resume'}_queue('q')")


def merged(name: str, *bases: type[Machine]) -> dict[str, Any]:
    """The options, or settings, of all bases: one of Machine is what it is unless a base says otherwise."""
    ours: dict[str, Any] = dict(getattr(Machine, name))
    for base in bases:
        ours |= {
            k: v for k, v in getattr(base, name).items() if v is not getattr(Machine, name).get(k)
        }
    return ours
