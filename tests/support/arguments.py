"""Random arguments by type, for functions that PostgreSQL's catalogue describes; as text that the type accepts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import timezone

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from support.attack import Argument, array

Text = SearchStrategy[str]


def spread(edges: Iterable[int], low: int, high: int) -> Text:
    return st.one_of(st.sampled_from([*edges]), st.integers(low, high)).map(str)


INTS = spread((0, 1, 2, 3, 10, 100, 10_000, 10_001, 32_000, 32_001, -1), -(2**31), 2**31 - 1)
IDS = spread((*range(-1, 30), 2**63 - 1, -(2**63)), -(2**63), 2**63 - 1)
FLOATS = st.one_of(
    st.sampled_from(["0", "0.5", "1", "-0", "1.5", "NaN", "Infinity", "-Infinity", "1e-300"]),
    st.floats(0, 1).map(repr),
)
BOOLEANS = st.sampled_from(["true", "false"])

_INTERVALS = (
    *("0", "1 microsecond", "-1 microsecond", "1 second", "30 seconds", "1 hour", "-1 hour"),
    *("10 years", "10 years 1 microsecond", "100 years", "100 years 1 microsecond", "-100 years"),
    *("1 month -30 days", "-1 month 30 days", "12 months -360 days", "1 day -24 hours"),
    *(
        "178000000 years",
        "-178000000 years",
        "2147483647 days",
        "-2147483648 days",
        "2500000000 hours",
    ),
)
_TIMES = (
    *("epoch", "infinity", "-infinity", "now", "today", "tomorrow", "2100-01-01 00:00:00+00"),
    *("294276-12-31 23:59:59.999999+00", "4713-01-01 00:00:00+00 BC", "0001-01-01 00:00:00+15"),
)


def intervals(server_version: int) -> Text:
    unbounded = ("infinity", "-infinity") if server_version >= 170000 else ()
    return st.one_of(
        st.sampled_from([*_INTERVALS, *unbounded]),
        st.builds(
            "{} months {} days {} microseconds".format,
            st.integers(-3000, 3000),
            st.integers(-100_000, 100_000),
            st.integers(-(2**31), 2**31 - 1),
        ),
    )


TIMES = st.one_of(
    st.sampled_from(_TIMES),
    st.datetimes(timezones=st.just(timezone.utc)).map(lambda time: time.isoformat()),
)

# No NUL and no lone surrogates, which no client can send.
WORDS = st.text(
    st.sampled_from(
        "aqZ01 _.-'\"\\$%{}()[];:,\n\t\x01\x7f\u00e9\u0301\u202e\ufeff\uffff\U0001f980"
    ),
    max_size=60,
)

JSON = st.one_of(
    st.sampled_from(
        [
            "null",
            "{}",
            "[]",
            '""',
            "0",
            "-0",
            "1e400",
            '{"a": null}',
            "[" * 200 + "]" * 200,
            f'"{"x" * 9000}"',
        ]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | WORDS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
        max_leaves=6,
    ).map(json.dumps),
)


def arrays(elements: Text, odd: Sequence[str]) -> Text:
    """Array literals: also with nulls, more dimensions, and bounds where nobody expects them."""
    plain = st.lists(elements, max_size=8).map(array)
    return st.one_of(
        plain,
        st.builds(
            "[{0}:{0}]={1}".format,
            st.sampled_from([0, -5, 7, 2**31 - 2, -(2**31)]),
            elements.map(lambda x: array([x])),
        ),
        st.sampled_from(["{}", "{null}", "{{null},{null}}", *odd]),
    )


def by_type(server_version: int) -> dict[str, Text]:
    return {
        "integer": INTS,
        "bigint": IDS,
        "boolean": BOOLEANS,
        "text": WORDS,
        "double precision": FLOATS,
        "interval": intervals(server_version),
        "timestamp with time zone": TIMES,
        "jsonb": JSON,
        "jsonb[]": arrays(JSON, ["{1,null,2}", "{{1,2},{3,4}}", "{{{1}}}", "[-1:1]={1,2,null}"]),
        "text[]": arrays(
            WORDS.map(json.dumps), ['{"",null}', "{{a,b},{c,d}}", "[-1:1]={1,2,null}"]
        ),
        "interval[]": arrays(intervals(server_version), ["{1 second,null}", "{{1 s},{2 s}}"]),
        "bigint[]": arrays(IDS, ["{1,null,1}", "{{1,2},{3,4}}", "{{{1}}}", "[-1:1]={1,2,3}"]),
    }


# Not seconds, or the tests would take hours.
WAITS = st.sampled_from(
    ["0", "1 millisecond", "3 milliseconds", "-1 second", "21 seconds", "100 years"]
)

# What gets further than a random word or number would.
BY_NAME: dict[str, Text] = {
    "mode": st.sampled_from(["lease", "lease", "transaction", "LEASE", ""]),
    "notify": st.sampled_from(["auto", "always", "never", "AUTO", ""]),
    "subscription": st.sampled_from(["default", "default", "default", "other", ""]),
    "priority": st.integers(0, 9).map(str) | INTS,
    "retention": st.sampled_from(["0", "0", "1 second", "-1 second"]),
    "n": st.integers(1, 9).map(str) | INTS,
    "wait": WAITS,
    "timeout": WAITS,
    "retry_policy": st.sampled_from(["fixed", "linear", "exponential", "list", "LIST", ""]),
    "name": st.sampled_from(["s", "s", "t", "S", ""]) | WORDS,
    # Never due while the tests run.
    "cron": st.sampled_from(["@yearly", "every 900 weeks", "0 0 29 2 *", "61 * * * *", ""]),
    "timezone": st.sampled_from(["UTC", "Europe/Berlin", "Europe/Nowhere", "+02", ""]),
    "catch_up": st.sampled_from(["one", "all", "none", "ONE", ""]),
}

ALWAYS = {"timeout"}
"""Given in every call: the default takes too long."""

GOOD_INTERVALS = st.sampled_from(["1 microsecond", "1 millisecond", "1 second", "1 hour"])
"""For whatever takes an interval: most others are refused."""


def values(argument: Argument, types: dict[str, Text], names: dict[str, Text]) -> Text:
    """Values of one argument, by its name or else its type."""
    found = {argument.name: types[argument.type], **BY_NAME, **names}[argument.name]
    if argument.type == "interval" and argument.name not in BY_NAME:
        found = st.one_of(GOOD_INTERVALS, found)
    return found


def or_null(values: Text) -> SearchStrategy[str | None]:
    """One in thirty is null."""
    null: SearchStrategy[str | None] = st.none()
    return st.integers(0, 29).flatmap(lambda no: null if no == 17 else values)


def given(
    arguments: Sequence[Argument], types: dict[str, Text], names: dict[str, Text]
) -> SearchStrategy[dict[str, str | None]]:
    """Arguments of one call: what is required, and up to two others."""
    by_name = {a.name: or_null(values(a, types, names)) for a in arguments}
    required = {a.name: by_name[a.name] for a in arguments if not a.optional or a.name in ALWAYS}
    optional = [a.name for a in arguments if a.optional and a.name not in ALWAYS]
    if not optional:
        return st.fixed_dictionaries(required)
    chosen = st.lists(st.sampled_from(optional), max_size=2, unique=True)
    return chosen.flatmap(
        lambda names: st.fixed_dictionaries(required | {name: by_name[name] for name in names})
    )
