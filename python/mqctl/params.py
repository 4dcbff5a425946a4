"""Kinds of arguments of the command line."""

from __future__ import annotations

import json
import re

import click

_UNITS = {
    "ms": "milliseconds",
    "s": "seconds",
    "m": "minutes",
    "h": "hours",
    "d": "days",
    "w": "weeks",
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_LONGEST = 366 * 86400.0
_SHORT = re.compile(r"\s*(?P<number>[+-]?\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h|d|w)\s*")
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d+)?\s*")


class Duration(click.ParamType):  # type: ignore[type-arg]
    """``30s``, ``5m``, ``1.5h``, ``500ms``, ``2d``, ``1w``, else PostgreSQL interval text; becomes interval text."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        text = str(value)
        if short := _SHORT.fullmatch(text):
            return f"{short['number']} {_UNITS[short['unit']]}"
        if _NUMBER.fullmatch(text) and float(text) != 0:
            self.fail(
                f"{text!r} has no unit: write {text.strip()}s, {text.strip()}m, …", param, ctx
            )
        if not text.strip():
            self.fail("an empty duration; write 30s, 5m, or interval text", param, ctx)
        return text


class Json(click.ParamType):  # type: ignore[type-arg]
    """JSON text, checked and passed on as it is."""

    name = "json"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        try:
            return check_json(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def check_json(text: str) -> str:
    """``text`` if it may be JSON, else ValueError with a message for people.

    What is refused here, PostgreSQL would refuse as well; it has the last word on the rest.
    """
    try:
        json.loads(
            text, parse_constant=_no_constant, parse_int=_any_number, parse_float=_any_number
        )
    except json.JSONDecodeError as error:
        short = text if len(text) <= 40 else text[:37] + "..."
        raise ValueError(
            f"{short!r} is not JSON: {error.msg} at character {error.pos + 1}"
        ) from None
    except RecursionError:
        pass  # Python's limit is not the server's
    return text


def _any_number(digits: str) -> None:
    """However many digits: the server decides."""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


DURATION = Duration()
JSON = Json()


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """``2s``, ``5m``, ``500ms``: a positive time that mqctl itself keeps; becomes seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        short = _SHORT.fullmatch(str(value))
        if short is None:
            self.fail(f"{value!r} is no duration like 2s or 5m", param, ctx)
        seconds = float(short["number"]) * _SECONDS[short["unit"]]
        if seconds <= 0:
            self.fail(f"{value!r} is not positive", param, ctx)
        if seconds > _LONGEST:
            self.fail(f"{value!r} is longer than a year", param, ctx)
        return seconds


SECONDS = Seconds()
