"""What is measured where."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.arena import SETTINGS, Arena, Contestant
from bench.peers import Absent
from bench.revision import revision


def header(place: Arena, names: Iterable[str], seconds: float) -> dict[str, Any]:
    """What was measured where: kept in the file, and printed."""
    versions = {}
    for name in sorted({Contestant.parse(n).peer.name for n in names}):
        try:
            versions[name] = Contestant.parse(name).peer.version(place.server)
        except Absent as absent:
            versions[name] = f"absent: {absent}"
    with place.server.connect() as conn:
        row = conn.execute("select version()").fetchone()
        shown = {name: conn.execute(f"show {name}".encode()).fetchone() for name in SETTINGS}
    model = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "at": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "revision": revision(),
        "server": str(row[0]).partition(" on ")[0] if row else "",
        "settings": {name: value[0] for name, value in shown.items() if value},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores {model[0] if model else ''}".strip(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "seconds": seconds,
        "versions": versions,
    }


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
