"""Read and check constraints: those of ``annotated_types``, markers and attrs validators."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

__all__ = [
    "MAX_FAULTS",
    "Constraint",
    "ValueFault",
    "checker",
    "from_metadata",
    "from_validator",
    "more_faults",
]

MAX_FAULTS: Final = 100
"""Faulty items of one value that are looked for and told.

A client could ask for a million otherwise: each takes 7 microseconds and 100 bytes of the answer.
"""


class ValueFault(ValueError):
    """A value breaks a rule.

    The message says which value was expected, ``kind`` is a stable word for programs.
    """

    def __init__(self, msg: str, kind: str) -> None:
        self.kind = kind
        super().__init__(msg)


def more_faults() -> ValueFault:
    """Return the fault that stands for those beyond ``MAX_FAULTS``."""
    return ValueFault(f"more than {MAX_FAULTS} faults: the others are not listed", "too_many_faults")


class Constraint(NamedTuple):
    """A rule that a value has to keep."""

    key: str
    """A key of ``_RULES``, for example ``ge``, ``max_length`` or ``predicate``."""
    limit: Any
    """The second operand of the rule: a number, a length, a pattern, a function or a list of choices."""


_NUMBERS: Final = ("gt", "ge", "lt", "le", "multiple_of")
_OTHERS: Final = ("min_length", "max_length", "pattern")


def from_metadata(metadata: Iterable[object]) -> tuple[Constraint, ...]:
    """Return the constraints in the metadata of an ``Annotated``.

    A constraint is an attribute with the name of a rule, such as ``ge``.
    """
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
            found.append(Constraint("predicate", item.func))  # type: ignore[attr-defined]  # has func: see above
    return tuple(found)


_COMPARISONS: Final = {">=": "ge", ">": "gt", "<=": "le", "<": "lt"}


def from_validator(validator: Any) -> tuple[Constraint, ...]:
    """Return the constraints of an attrs validator.

    Unknown validators have none here. attrs runs every validator in any case.
    """
    name = type(validator).__name__
    if name == "_AndValidator":
        return tuple(c for part in validator._validators for c in from_validator(part))  # noqa: SLF001 - no public name
    if name == "_OptionalValidator":
        return from_validator(validator.validator)
    read = _READERS.get(name)
    return (read(validator),) if read is not None else ()


_READERS: Final[dict[str, Callable[[Any], Constraint]]] = {
    "_NumberValidator": lambda v: Constraint(_COMPARISONS[v.compare_op], v.bound),
    "_MinLengthValidator": lambda v: Constraint("min_length", v.min_length),
    "_MaxLengthValidator": lambda v: Constraint("max_length", v.max_length),
    "_InValidator": lambda v: Constraint("one_of", tuple(v.options)),
    # attrs matches whole strings by default, a JSON Schema pattern matches anywhere.
    "_MatchesReValidator": lambda v: Constraint("pattern", f"^(?:{v.pattern.pattern})$"),
}
"""Readers of attrs validators by the name of the class, because attrs has no public names for the classes."""


class _Rule(NamedTuple):
    holds: Callable[[Any, Any], bool]
    words: str
    kind: str


def _is_multiple(value: Any, step: Any) -> bool:
    rest = abs(value % step)
    # 0.3 % 0.1 is 0.0999...: a value within the rounding error of a multiple counts as one.
    return bool(
        rest == 0 or (isinstance(rest, float) and min(rest, abs(step) - rest) < 1e-9 * max(1.0, abs(value)))
    )


_RULES: Final = {
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
    """Return a function that raises `ValueFault` for the first broken constraint.

    Without constraints, return None.
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
            return  # a constraint of an optional value does not apply to None
        for holds, limit, words, kind in rules:
            try:
                good = holds(value, limit)
            except (TypeError, ArithmeticError, AttributeError):
                good = False  # not comparable with the limit, or too large to compute with
            if not good:
                raise ValueFault(words, kind)

    return check
