"""cron_next: as croniter says, but where clocks are put forward or back."""

from __future__ import annotations

import datetime as dt
import random
import zoneinfo
from typing import Any

import psycopg
import pytest
from croniter import croniter

from support.race import value

UTC = dt.timezone.utc
NAMES = {
    "month": "jan feb mar apr may jun jul aug sep oct nov dec".split(),
    "weekday": "sun mon tue wed thu fri sat".split(),
}
FIELDS = [("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 6)]


def item(chance: random.Random, name: str, low: int, high: int) -> str:
    def number(i: int) -> str:
        return NAMES[name][i - low] if name in NAMES and chance.random() < 0.3 else str(i)

    first, last = sorted(chance.sample(range(low, high + 1), 2))
    step = chance.randint(1, max(2, (high - low) // 3))
    return chance.choice(
        [
            number(first),
            number(first),
            f"{number(first)}-{number(last)}",
            f"{first}-{last}/{step}",
            f"*/{step}",
            f"{first}/{step}",
        ]
    )


def field(chance: random.Random, name: str, low: int, high: int) -> str:
    if chance.random() < 0.4:
        return "*"
    return ",".join(item(chance, name, low, high) for _ in range(chance.choice([1, 1, 1, 2, 3])))


def expression(chance: random.Random) -> str:
    text = " ".join(field(chance, *one) for one in FIELDS)
    return field(chance, "second", 0, 59) + " " + text if chance.random() < 0.3 else text


def by_croniter(text: str, after: dt.datetime) -> dt.datetime | None:
    """In local time without a zone, so that no clock is put anywhere."""
    try:
        found = croniter(text, after, second_at_beginning=True, max_years_between_matches=12)
        got: dt.datetime = found.get_next(dt.datetime)
        return got
    except Exception:
        return None


@pytest.mark.parametrize("seed", range(4))
def test_it_is_as_croniter_says(conn: psycopg.Connection[Any], seed: int) -> None:
    chance = random.Random(seed)
    asked = []
    while len(asked) < 600:
        text = expression(chance)
        after = dt.datetime(2020, 1, 1) + dt.timedelta(seconds=chance.randrange(12 * 366 * 86400))
        if (wanted := by_croniter(text, after)) is not None:
            asked.append((text, after, wanted))
    wrong = [
        (text, after, wanted, got)
        for text, after, wanted in asked
        if (got := value(conn, "select mq.cron_next(%s, %s)", text, after.replace(tzinfo=UTC)))
        != wanted.replace(tzinfo=UTC)
    ]
    assert wrong == []
