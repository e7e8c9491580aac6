"""Constraints of a value, read by attribute name from ``annotated_types``, our markers and attrs validators
alike.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["Constraint", "ValueFault", "checker", "from_metadata", "from_validator"]


class ValueFault(ValueError):
    """One value is wrong: ``kind`` is the stable word, the message what was expected."""

    def __init__(self, msg: str, kind: str) -> None:
        self.kind = kind
        super().__init__(msg)


class Constraint(NamedTuple):
    """``key`` is ``ge``, ``max_length``, ``predicate`` ...; ``limit`` what it is measured by."""

    key: str
    limit: Any


_NUMBERS = ("gt", "ge", "lt", "le", "multiple_of")
_OTHERS = ("min_length", "max_length", "pattern")


def from_metadata(metadata: Iterable[object]) -> tuple[Constraint, ...]:
    """Constraints in the metadata of an ``Annotated``: whatever carries their names."""
    found: list[Constraint] = []
    for item in metadata:
        if isinstance(item, type):
            continue
        for key in (*_NUMBERS, *_OTHERS):
            limit = getattr(item, key, None)
            if limit is None or callable(limit) or (key == "min_length" and limit == 0):
                continue
            found.append(Constraint(key, limit))
        if type(item).__name__ == "Predicate" and callable(getattr(item, "func", None)):
            found.append(Constraint("predicate", item.func))  # type: ignore[attr-defined]
    return tuple(found)


_COMPARISONS = {">=": "ge", ">": "gt", "<=": "le", "<": "lt"}


def from_validator(validator: Any) -> tuple[Constraint, ...]:
    """Constraints behind an attrs validator; what we cannot read is left to attrs, which runs it anyway."""
    name = type(validator).__name__
    if name == "_AndValidator":
        return tuple(c for part in validator._validators for c in from_validator(part))  # noqa: SLF001
    if name == "_OptionalValidator":
        return from_validator(validator.validator)
    read = _READERS.get(name)
    return (read(validator),) if read is not None else ()


# By name, because attrs keeps the classes to itself.
_READERS: dict[str, Callable[[Any], Constraint]] = {
    "_NumberValidator": lambda v: Constraint(_COMPARISONS[v.compare_op], v.bound),
    "_MinLengthValidator": lambda v: Constraint("min_length", v.min_length),
    "_MaxLengthValidator": lambda v: Constraint("max_length", v.max_length),
    "_InValidator": lambda v: Constraint("one_of", tuple(v.options)),
    # attrs matches whole strings by default; the schema's pattern must say so.
    "_MatchesReValidator": lambda v: Constraint("pattern", f"^(?:{v.pattern.pattern})$"),
}


class _Rule(NamedTuple):
    holds: Callable[[Any, Any], bool]
    words: str
    kind: str


def _is_multiple(value: Any, step: Any) -> bool:
    rest = abs(value % step)
    # 0.3 % 0.1 is 0.0999...: what is within a rounding error of a multiple is one.
    return bool(
        rest == 0 or (isinstance(rest, float) and min(rest, abs(step) - rest) < 1e-9 * max(1.0, abs(value)))
    )


_RULES = {
    "gt": _Rule(operator.gt, "expected more than {0!r}", "greater_than"),
    "ge": _Rule(operator.ge, "expected at least {0!r}", "greater_than_equal"),
    "lt": _Rule(operator.lt, "expected less than {0!r}", "less_than"),
    "le": _Rule(operator.le, "expected at most {0!r}", "less_than_equal"),
    "multiple_of": _Rule(_is_multiple, "expected a multiple of {0!r}", "multiple_of"),
    "min_length": _Rule(lambda v, n: len(v) >= n, "expected a length of at least {0!r}", "too_short"),
    "max_length": _Rule(lambda v, n: len(v) <= n, "expected a length of at most {0!r}", "too_long"),
    "pattern": _Rule(
        lambda v, p: p.search(v) is not None, "expected a match of {0!r}", "string_pattern_mismatch"
    ),
    "predicate": _Rule(lambda v, f: bool(f(v)), "the value is not accepted", "predicate_failed"),
    "one_of": _Rule(lambda v, options: v in options, "expected one of {0!r}", "one_of"),
}


def checker(constraints: Sequence[Constraint]) -> Callable[[object], None] | None:
    """A function that raises :exc:`ValueFault` for the first constraint that a value breaks; None if there
    are none.
    """
    if not constraints:
        return None
    rules = []
    for key, limit in constraints:
        rule = _RULES[key]
        pattern = getattr(limit, "pattern", limit)
        measured = re.compile(pattern) if key == "pattern" else limit
        rules.append((rule.holds, measured, rule.words.format(pattern), rule.kind))

    def check(value: Any) -> None:
        if value is None:
            return  # a constraint on an optional value is about the value
        for holds, limit, words, kind in rules:
            try:
                good = holds(value, limit)
            except (TypeError, ArithmeticError, AttributeError):
                good = False  # not comparable with the limit at all, or too big for the sum
            if not good:
                raise ValueFault(words, kind)

    return check
