"""Reads the output of a pgTAP file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PLAN = re.compile(r"1\.\.(\d+)(?:\s*#\s*skip\b.*)?\s*$", re.IGNORECASE)
RESULT = re.compile(
    r"(?P<not>not )?ok\b\s*(?P<number>\d+)?(?P<rest>(?:[^#\\]|\\.)*)"
    r"(?:#\s*(?P<directive>todo|skip)\b.*)?",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Report:
    """What one file said; `problems` is empty when all is well."""

    planned: int | None = None
    seen: int = 0
    problems: list[str] = field(default_factory=list)


def read(output: str) -> Report:
    """Checks the plan, the numbers and every result; a TODO may fail."""
    report = Report()
    for line in output.splitlines():
        if found := PLAN.match(line):
            if report.planned is not None:
                report.problems.append("a second plan")
            report.planned = int(found[1])
        elif line.startswith("Bail out!"):
            report.problems.append(line)
        elif line.startswith(("ok", "not ok")) and (found := RESULT.match(line)):
            report.seen += 1
            if found["number"] and int(found["number"]) != report.seen:
                report.problems.append(f"out of order: {line}")
            if found["not"] and (found["directive"] or "").lower() != "todo":
                report.problems.append(line)
    if report.planned is None:
        report.problems.append("no plan")
    elif report.planned != report.seen:
        report.problems.append(f"planned {report.planned} tests, ran {report.seen}")
    return report
