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
    "month": ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    "weekday": ["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
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
    asked: list[tuple[str, dt.datetime, dt.datetime]] = []
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


# -- clocks that are put forward or back ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "zone", "after", "due"),
    [
        # Berlin: from 02:00 to 03:00 at 01:00 UTC, and from 03:00 to 02:00.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", "2026-03-29 01:00"),
        ("30 2 * * *", "Europe/Berlin", "2026-03-29 01:00", "2026-03-30 00:30"),
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", "2026-03-29 01:00"),
        ("*/30 * * * *", "Europe/Berlin", "2026-03-29 00:30", "2026-03-29 01:00"),
        ("*/30 * * * *", "Europe/Berlin", "2026-03-29 01:00", "2026-03-29 01:30"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", "2026-10-25 00:30"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 00:30", "2026-10-26 01:30"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 01:10", "2026-10-26 01:30"),
        ("*/30 * * * *", "Europe/Berlin", "2026-10-25 00:30", "2026-10-25 02:00"),
        ("every 30 minutes", "Europe/Berlin", "2026-10-25 00:30", "2026-10-25 01:00"),
        ("30 2 * * *", "America/New_York", "2026-03-07 12:00", "2026-03-08 07:00"),
        ("30 1 * * *", "America/New_York", "2026-10-31 12:00", "2026-11-01 05:30"),
        # Half an hour, and a day that never was.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 12:00", "2026-10-03 15:30"),
        ("0 12 30 12 *", "Pacific/Apia", "2011-12-29 00:00", "2011-12-30 10:00"),
        ("0 0 * * *", "America/Sao_Paulo", "2018-11-03 12:00", "2018-11-04 03:00"),
    ],
)
def test_where_clocks_are_put(
    conn: psycopg.Connection[Any], text: str, zone: str, after: str, due: str
) -> None:
    asked, wanted = (dt.datetime.fromisoformat(at).replace(tzinfo=UTC) for at in (after, due))
    assert value(conn, "select mq.cron_next(%s, %s, %s)", text, asked, zone) == wanted


def first_instant(local: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    """What is promised, said another way: the first instant at which a wall shows that time, or else a later one."""
    both = [local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
    shown = [at for at in both if at.astimezone(zone).replace(tzinfo=None) == local]
    if shown:
        return min(shown)
    at = min(both).replace(second=0)
    while at.astimezone(zone).replace(tzinfo=None) < local:
        at += dt.timedelta(minutes=1)
    return at


ZONES = (
    "Europe/Berlin America/New_York Australia/Lord_Howe America/Santiago Asia/Tehran Africa/Cairo"
)


@pytest.mark.parametrize("name", ZONES.split())
def test_around_every_transition(conn: psycopg.Connection[Any], name: str) -> None:
    chance, zone = random.Random(name), zoneinfo.ZoneInfo(name)
    hours = (dt.datetime(2012, 1, 1, tzinfo=UTC) + dt.timedelta(hours=i) for i in range(8 * 8766))
    pairs = ((at, at + dt.timedelta(hours=1)) for at in hours)
    puts = [a for a, b in pairs if a.astimezone(zone).utcoffset() != b.astimezone(zone).utcoffset()]
    assert len(puts) > 3
    for _ in range(60):
        text = f"{item(chance, *FIELDS[0])} {chance.choice(['*', '*/2', '0-3', '0', '1,2', '2'])} * * *"
        after = chance.choice(puts) + dt.timedelta(minutes=chance.randint(-300, 300))
        local = after.astimezone(zone).replace(tzinfo=None)
        while True:
            found = by_croniter(text, local)
            assert found is not None
            local = found
            if first_instant(local, zone) > after:
                break
        got = value(conn, "select mq.cron_next(%s, %s, %s)", text, after, name)
        assert got == first_instant(local, zone), (text, after)


# -- other forms, and what is wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("@yearly", "2027-01-01 00:00:00"),
        ("@annually", "2027-01-01 00:00:00"),
        ("@monthly", "2026-12-01 00:00:00"),
        ("@weekly", "2026-11-29 00:00:00"),
        ("@daily", "2026-11-29 00:00:00"),
        ("@midnight", "2026-11-29 00:00:00"),
        ("@hourly", "2026-11-28 13:00:00"),
        (" 0  13 *\t* SAT ", "2026-11-28 13:00:00"),
        ("0 9 * * sat-sun", "2026-11-29 09:00:00"),
        ("0 9 * * 7", "2026-11-29 09:00:00"),
        ("*/10 * * * * *", "2026-11-28 12:34:50"),
        ("every 90 seconds", "2026-11-28 12:36:00"),
        ("every minute", "2026-11-28 12:35:00"),
        ("EVERY 2 hours", "2026-11-28 14:00:00"),
        ("every day", "2026-11-29 00:00:00"),
        ("0 0 29 2 *", "2028-02-29 00:00:00"),
        ("0 0 31 * mon", "2026-11-30 00:00:00"),
    ],
)
def test_what_may_be_written(conn: psycopg.Connection[Any], text: str, due: str) -> None:
    after = dt.datetime(2026, 11, 28, 12, 34, 45, 500_000, tzinfo=UTC)
    wanted = dt.datetime.fromisoformat(due).replace(tzinfo=UTC)
    assert value(conn, "select mq.cron_next(%s, %s)", text, after) == wanted


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("61 * * * *", "minute: 61 is not between 0 and 59."),
        ("* 24 * * *", "hour: 24 is not between 0 and 23."),
        ("* * 0 * *", "day of month: 0 is not between 1 and 31."),
        ("* * * 13 *", "month: 13 is not between 1 and 12."),
        ("* * * * 8", "day of week: 8 is not between 0 and 6."),
        ("60 * * * * *", "second: 60 is not between 0 and 59."),
        ("5-70 * * * *", "minute: 70 is not between 0 and 59."),
        ("* 22-2 * * *", "hour: 22-2 runs backwards."),
        ("*/0 * * * *", "minute: the step of */0 is 0."),
        ("x * * * *", 'minute: "x" is not *, a number, a range or a step.'),
        (
            "* * * foo *",
            'month: "foo" is not *, a number, a name from jan to dec, a range or a step.',
        ),
        (
            "* * * * mon-",
            'day of week: "mon-" is not *, a number, a name from sun to sat, a range or a step.',
        ),
        ("1,,2 * * * *", 'minute: "" is not *, a number, a range or a step.'),
        ("* * * *", '"* * * *" has 4 fields, not 5 or 6.'),
        ("", '"" has 0 fields, not 5 or 6.'),
        ("@reboot", '"@reboot" has 1 fields, not 5 or 6.'),
        ("every 0 seconds", '"every 0 seconds" is not between 1 second and 100 years.'),
        (
            "every month",
            '"every month" is not every so many seconds, minutes, hours, days or weeks.',
        ),
        ("0 0 30 2 *", '"0 0 30 2 *" is never due: no such day in these months.'),
    ],
)
def test_what_is_wrong_is_said(conn: psycopg.Connection[Any], text: str, detail: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as error:
        conn.execute("select mq.cron_next(%s)", (text,))
    assert error.value.diag.message_detail == detail
    assert error.value.diag.message_primary == 'invalid value for argument "expression"'


def test_other_arguments(conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="timezone"):
        conn.execute("select mq.cron_next('* * * * *', now(), 'Europe/Berln')")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="after"):
        conn.execute("select mq.cron_next('* * * * *', 'infinity')")
    for arguments in "null", "'* * * * *', null", "'* * * * *', now(), null":
        with pytest.raises(psycopg.errors.NullValueNotAllowed):
            conn.execute(f"select mq.cron_next({arguments})")
