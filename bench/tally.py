"""What a consumer process counts, and the process itself: `python -m bench.tally PEER DSN VARIANT CONCURRENCY N`.

It takes messages as the peer's own library does until SIGTERM or SIGINT, then prints one line of JSON.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Tally:
    """Messages of which it is known when they were enqueued."""

    warm: float = 1.0  # seconds from the first message on that do not count
    begun: float = math.inf
    latencies: list[float] = field(default_factory=list)
    last: float = 0.0

    def add(self, payload: dict[str, object]) -> None:
        """One arrived; `t` in its payload is when it was sent, seconds of the epoch."""
        now = time.time()
        if self.begun == math.inf:
            self.begun = now + self.warm
        if now >= self.begun:
            sent = payload.get("t")
            self.latencies.append(now - float(sent) if isinstance(sent, (int, float)) else 0.0)
            self.last = now

    def report(self) -> dict[str, float]:
        """Messages a second, and milliseconds from enqueue to arrival."""
        found = sorted(self.latencies)
        if not found:
            return {"messages": 0, "messages_s": 0}
        at = {p: found[min(len(found) - 1, len(found) * p // 100)] * 1000 for p in (50, 95, 99)}
        return {
            "messages": len(found),
            "messages_s": round(len(found) / max(self.last - self.begun, 0.001), 1),
            **{f"p{p}_ms": round(value, 3) for p, value in at.items()},
            "max_ms": round(found[-1] * 1000, 3),
        }


def main() -> int:
    repo = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(repo / "python"), str(repo / "tests")]
    from bench import peers

    name, dsn, variant, concurrency, n = sys.argv[1:]
    tally = Tally()
    peers.ALL[name].consume(dsn, variant, int(concurrency), int(n), tally)
    print(json.dumps(tally.report()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
