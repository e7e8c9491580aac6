"""Convert plain values, text and JSON values alike, with one function for each type.

Conversions are lax where nothing is lost, as the settings of front ends need it: "3" is a valid integer. They
are strict otherwise: 1.5 is not a valid integer, 5 is not a valid string, NaN is not a valid number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Final
from uuid import UUID

import msgspec

from tangram.routing.constraints import ValueFault

__all__ = ["SCALARS", "scalar"]

_INTEGER: Final = re.compile(r"[+-]?[0-9]+", re.ASCII)
_MAX_DIGITS: Final = 400
"""Digits of an integer in text. Python refuses more than 4,300, and requests need far fewer."""

_TRUE: Final = frozenset(("true", "1", "on", "yes", "t", "y"))
_FALSE: Final = frozenset(("false", "0", "off", "no", "f", "n"))


def show(value: object) -> str:
    """Return the value's repr for an error message, at most 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def to_int(value: object) -> int:
    if type(value) is int:
        return value
    if isinstance(value, str):
        if len(value) <= _MAX_DIGITS and _INTEGER.fullmatch(value):
            return int(value)
        raise ValueFault(f"expected an integer, not {show(value)}", "int_parsing")
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        raise ValueFault(f"expected an integer, not {value!r}", "int_from_float")
    raise ValueFault(f"expected an integer, not {show(value)}", "int_type")


def to_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueFault(f"expected a number, not {show(value)}", "float_type")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueFault(f"expected a number, not {show(value)}", "float_parsing") from None
    if number - number != 0 or (isinstance(value, str) and "_" in value):
        raise ValueFault(f"expected a finite number, not {show(value)}", "finite_number")
    return number


def to_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    kind = "bool_parsing" if isinstance(value, str) else "bool_type"
    raise ValueFault(f"expected true or false, not {show(value)}", kind)


def to_str(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueFault(f"expected a string, not {show(value)}", "string_type")


def to_none(value: object) -> None:
    if value is not None:
        raise ValueFault(f"expected null, not {show(value)}", "none_required")


def to_decimal(value: object) -> Decimal:
    number = (
        value if isinstance(value, Decimal) else _by_msgspec(Decimal, "decimal", "a decimal number")(value)
    )
    assert isinstance(number, Decimal)
    if not number.is_finite():
        raise ValueFault(f"expected a finite number, not {show(value)}", "finite_number")
    return number


def _to_path(kind: type[PurePath]) -> Callable[[object], PurePath]:
    def to_path(value: object) -> PurePath:
        text = to_str(value) if not isinstance(value, PurePath) else str(value)
        if "\0" in text:
            raise ValueFault("expected a path without null bytes", "path_type")
        return kind(text)

    return to_path


def to_datetime(value: object) -> datetime:
    """Convert text of RFC 3339; numbers, which may count seconds or milliseconds, are refused."""
    if isinstance(value, datetime):
        return value
    words = "a date and time such as 2026-02-28T12:00:00Z"
    if not isinstance(value, str):
        raise ValueFault(f"expected {words}, not {show(value)}", "datetime_type")
    try:
        return msgspec.convert(value, datetime)
    except msgspec.ValidationError:
        raise ValueFault(f"expected {words}, not {show(value)}", "datetime_parsing") from None


_WEEKS: Final = re.compile(r"([+-]?)P([0-9]{1,9})W", re.ASCII)
"""A duration in weeks, which msgspec does not read (ISO 8601-2: 4.4.1.3)."""


def to_timedelta(value: object) -> timedelta:
    """Convert an ISO 8601 duration of weeks, or of days and times, or a number of seconds."""
    weeks = _WEEKS.fullmatch(value) if isinstance(value, str) else None
    if weeks is not None:
        value = f"{weeks[1]}P{7 * int(weeks[2])}D"
    made = _by_msgspec(timedelta, "time_delta", "a duration such as PT1H30M, or seconds")(value)
    assert isinstance(made, timedelta)
    return made


def _by_msgspec(kind: type, word: str, words: str) -> Callable[[object], object]:
    def convert(value: object) -> object:
        if type(value) is kind:
            return value
        if isinstance(value, bool):
            raise ValueFault(f"expected {words}, not {show(value)}", f"{word}_type")
        try:
            return msgspec.convert(value, kind, strict=False)
        except (msgspec.ValidationError, ValueError, ArithmeticError, TypeError):
            raise ValueFault(f"expected {words}, not {show(value)}", f"{word}_parsing") from None

    return convert


SCALARS: Final[dict[Any, Callable[[object], object]]] = {
    int: to_int,
    float: to_float,
    bool: to_bool,
    str: to_str,
    None: to_none,
    type(None): to_none,
    Any: lambda value: value,
    object: lambda value: value,
    bytes: _by_msgspec(bytes, "bytes", "base64 text"),
    date: _by_msgspec(date, "date", "a date such as 2026-02-28"),
    datetime: to_datetime,
    time: _by_msgspec(time, "time", "a time such as 12:00:00"),
    timedelta: to_timedelta,
    UUID: _by_msgspec(UUID, "uuid", "a UUID"),
    Decimal: to_decimal,
    Path: _to_path(Path),
    PurePath: _to_path(PurePath),
    PurePosixPath: _to_path(PurePosixPath),
}


def scalar(kind: object) -> Callable[[object], object] | None:
    """Return the converter of a plain type, or None for other types."""
    try:
        return SCALARS.get(kind)
    except TypeError:  # an unhashable annotation
        return None
