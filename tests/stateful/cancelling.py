"""Rules of cancel: a message that waits is taken back, and never delivered."""

from __future__ import annotations

from stateful.machine import PICK, Machine, step


class Cancelling(Machine):
    @step(
        3,
        when=lambda self: (
            self.model.messages and not any(tx.claimed or tx.rotated for tx in self.others())
        ),
        which=PICK,
    )
    def cancel(self, which: int) -> None:
        """Committed at once; what is under a lease is its consumer's, also when that ran out, until it is taken back."""
        m = self.pick(which, list(self.model.messages.values()))
        waits = self.model.shown(m) in ("ready", "deferred")
        assert self.admin("select mq.cancel('q', %s)", m.id) is waits
        if waits:
            self.model.cancel(m)
