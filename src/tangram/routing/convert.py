"""Convert JSON values and text to the types of annotations, with a place for every fault.

There is one cattrs converter, created on first use. cattrs structures classes (attrs, dataclass, TypedDict).
The hooks for the other types are ours, because those of cattrs convert ``"abc"`` to a list of three strings
and 1.5 to the integer 1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from tangram.routing.constraints import (
    MAX_FAULTS,
    ValueFault,
    checker,
    from_metadata,
    from_validator,
    more_faults,
)
from tangram.routing.containers import COLLECTIONS, MAPPINGS
from tangram.routing.exceptions import Loc, Problem
from tangram.routing.plain_types import is_plain_type
from tangram.routing.scalars import scalar, show
from tangram.routing.structs import is_struct, struct_hook

if TYPE_CHECKING:
    from cattrs import Converter

__all__ = ["NestedFaults", "converter", "is_class_like", "problems_of", "structurer"]

Structure = Callable[[object], object]

_OF_JSON: Final = frozenset({dict, list})

MAX_UNION_TRIALS: Final = 5_000
"""Trials of union members for one value: nested unions multiply them, usual bodies need a few hundred."""


class NestedFaults(ValueError):
    """Faults inside a value, each with its place relative to the value."""

    def __init__(self, faults: list[tuple[Loc, Exception]], *, counted: bool = False) -> None:
        self.faults = faults
        self.counted = counted
        """Whether each of them is counted against ``MAX_FAULTS`` already."""
        super().__init__(f"{len(faults)} faults")


class _Budget(threading.local):
    """The work that is left for the value being converted."""

    trials = 0
    """Trials of union members."""
    faults = 0
    """Faulty items that are looked for."""


_budget = _Budget()


def origin_of(kind: Any) -> Any:
    """Return the class of a generic annotation, for example ``list`` for ``list[int]``."""
    return get_origin(kind) or kind


def is_typeddict(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__total__")


def is_class_like(kind: object) -> bool:
    """Return whether this is an attrs class, a dataclass, a TypedDict or a struct."""
    origin = origin_of(kind)
    if not isinstance(origin, type):
        return False
    return (
        hasattr(origin, "__attrs_attrs__")
        or hasattr(origin, "__dataclass_fields__")
        or is_typeddict(origin)
        or is_struct(origin)
    )


def structurer(kind: Any) -> Structure:
    """Return the function that converts a plain value to ``kind``.

    ``problems_of`` reads the exceptions that the function raises.
    """
    plain = scalar(kind)
    if plain is not None:
        return plain
    hook = converter().get_structure_hook(kind)

    def structure(value: object) -> object:
        _budget.trials = MAX_UNION_TRIALS
        _budget.faults = MAX_FAULTS
        try:
            return hook(value, kind)
        except Exception as exc:
            if _budget.faults > 0:
                raise
            raise NestedFaults([((), exc), ((), more_faults())]) from None

    return _by_msgspec_first(kind, structure) if is_plain_type(kind) else structure


def _by_msgspec_first(kind: Any, structure: Structure) -> Structure:
    """Convert by msgspec, and the values that it refuses by ``structure``."""

    def convert(value: object) -> object:
        if type(value) in _OF_JSON:
            try:
                return msgspec.convert(value, kind)
            except (msgspec.ValidationError, ArithmeticError, RecursionError):
                pass
        return structure(value)

    return convert


@cache
def converter() -> Converter:
    """Return the converter of all routes.

    cattrs tries its hooks in reverse order of registration.
    """
    from cattrs import Converter

    made = Converter(detailed_validation=True)

    def when(fits: Callable[[Any], bool], hook: Any) -> None:
        made.register_structure_hook_factory(fits, hook)

    when(is_class_like, _class_hook)
    when(lambda t: origin_of(t) in COLLECTIONS, _collection_hook)
    when(lambda t: origin_of(t) in MAPPINGS, _mapping_hook)
    when(lambda t: origin_of(t) in (Union, UnionType), _union_hook)
    when(lambda t: origin_of(t) is Literal, _literal_hook)
    when(lambda t: isinstance(t, type) and issubclass(t, Enum), _enum_hook)
    when(lambda t: origin_of(t) is Annotated, _annotated_hook)
    when(lambda t: scalar(t) is not None, _scalar_hook)
    for kind in (str, bytes, int, float, Path):
        # cattrs looks these up by class, subclasses included, before it calls any predicate.
        made.register_structure_hook(kind, _primitive)
    return made


def _scalar_hook(kind: Any) -> Callable[[Any, Any], Any]:
    plain = scalar(kind)
    assert plain is not None
    return lambda value, _: plain(value)


def _primitive(value: Any, kind: Any) -> Any:
    plain = scalar(kind)
    if plain is not None:
        return plain(value)
    if issubclass(kind, Enum):
        return _enum_hook(kind)(value, kind)
    base = next(base for base in kind.__mro__ if scalar(base) is not None)
    return kind(scalar(base)(value))  # type: ignore[misc]  # base has one: see above


def _annotated_hook(kind: Any, made: Converter) -> Callable[[Any, Any], Any]:
    base, *metadata = get_args(kind)
    hook = made.get_structure_hook(base)
    check = checker(from_metadata(metadata))
    if check is None:
        return lambda value, _: hook(value, base)

    def checked(value: Any, _: Any) -> Any:
        made_of = hook(value, base)
        check(made_of)
        return made_of

    return checked


def _class_hook(kind: Any, made: Converter) -> Callable[[Any, Any], Any]:
    from cattrs.gen import make_dict_structure_fn

    origin = origin_of(kind)
    if is_typeddict(origin):
        return _typeddict_hook(origin, made)
    if is_struct(origin):
        return struct_hook(kind, made, NestedFaults)
    overrides = _validator_overrides(origin, made) | _annotated_overrides(origin, made)
    inner = make_dict_structure_fn(kind, made, **overrides)

    def structure(value: Any, _: Any) -> Any:
        if isinstance(value, dict):
            return inner(value, kind)
        if isinstance(value, origin):
            return value
        raise ValueFault(f"expected an object, not {show(value)}", "model_type")

    return structure


def typeddict_fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Return the annotation of each key of a TypedDict, and whether the key is required.

    ``__required_keys__`` ignores ``Required`` and ``NotRequired`` in postponed annotations, so they are read
    here.
    """
    fields = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        marked = get_origin(hint) in (Required, NotRequired)
        required = get_origin(hint) is Required if marked else name in kind.__required_keys__
        fields[name] = (get_args(hint)[0] if marked else hint, required)
    return fields


def _typeddict_hook(kind: Any, made: Converter) -> Callable[[Any, Any], Any]:
    fields = typeddict_fields(kind)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueFault(f"expected an object, not {show(value)}", "model_type")
        result: dict[str, Any] = {}
        faults: list[tuple[Loc, Exception]] = []
        for name, (hint, required) in fields.items():
            try:
                if name in value or required:
                    # Looked up at each call, from cattrs' cache: the type may refer to itself.
                    result[name] = made.get_structure_hook(hint)(value[name], hint)
            except Exception as exc:  # noqa: BLE001 - every fault is reported with its place
                faults.append(((name,), exc))
        if faults:
            raise NestedFaults(faults)
        return result

    return structure


def _validator_overrides(kind: Any, made: Converter) -> dict[str, Any]:
    """Check attrs validators for each field, so that a fault has the place of the field."""
    from cattrs import override

    overrides = {}
    for attribute in getattr(kind, "__attrs_attrs__", ()):
        check = checker(from_validator(attribute.validator)) if attribute.validator is not None else None
        if check is not None and attribute.init:
            overrides[attribute.name] = override(struct_hook=_checked_later(check, made))
    return overrides


def _annotated_overrides(kind: Any, made: Converter) -> dict[str, Any]:
    """Keep the constraints in the annotations of a dataclass, which cattrs drops."""
    from cattrs import override

    if not hasattr(kind, "__dataclass_fields__"):
        return {}
    bare = get_type_hints(kind)
    hints = get_type_hints(kind, include_extras=True)
    constrained = {
        name: hint
        for name, hint in hints.items()
        if name in kind.__dataclass_fields__
        and hint != bare[name]
        and not getattr(hint, "__parameters__", ())
    }
    return {name: override(struct_hook=_as(hint, made)) for name, hint in constrained.items()}


def _as(hint: Any, made: Converter) -> Callable[[Any, Any], Any]:
    # Looked up at each call, from cattrs' cache: the class may refer to itself.
    return lambda value, _: made.get_structure_hook(hint)(value, hint)


def _checked_later(check: Callable[[object], None], made: Converter) -> Callable[[Any, Any], Any]:
    def structure(value: Any, kind: Any) -> Any:
        # Looked up at each call, from cattrs' cache: the class may refer to itself.
        made_of = made.get_structure_hook(kind)(value, kind) if kind is not None else value
        check(made_of)
        return made_of

    return structure


def _each(items: Iterator[tuple[Loc, Any]], hook: Callable[[Any, Any], Any], kind: Any) -> list[Any]:
    made, faults = [], []
    for loc, item in items:
        try:
            made.append(hook(item, kind))
        except Exception as exc:  # noqa: BLE001 - every fault is reported with its place
            faults.append((loc, exc))
            _budget.faults -= _uncounted(exc)
            if _budget.faults <= 0:
                break
    if faults:
        raise NestedFaults(faults, counted=True)
    return made


def _uncounted(exc: Exception) -> int:
    """Return the faults of an item that are not counted against ``MAX_FAULTS`` yet."""
    if isinstance(exc, NestedFaults):
        return 0 if exc.counted else len(exc.faults)
    return len(exc.exceptions) if isinstance(exc, ExceptionGroup) else 1


def _collection_hook(kind: Any, made: Converter) -> Callable[[Any, Any], Any]:
    origin, arguments = origin_of(kind), get_args(kind)
    build: Any = COLLECTIONS[origin]
    word = build.__name__
    if build is tuple and arguments and arguments[-1] is not Ellipsis:
        return _fixed_tuple_hook([] if arguments == ((),) else list(arguments), made)
    of: Any = arguments[0] if arguments else Any
    hook = made.get_structure_hook(of)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, (list, tuple, set, frozenset)):
            raise ValueFault(f"expected a list, not {show(value)}", f"{word}_type")
        items = _each((((index,), item) for index, item in enumerate(value)), hook, of)
        try:
            return build(items)
        except TypeError:
            raise ValueFault("expected items of a plain type, not lists or objects", "set_item") from None

    return structure


def _fixed_tuple_hook(kinds: list[Any], made: Converter) -> Callable[[Any, Any], Any]:
    hooks = [(made.get_structure_hook(kind), kind) for kind in kinds]

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise ValueFault(f"expected a list, not {show(value)}", "tuple_type")
        if len(value) != len(hooks):
            raise ValueFault(f"expected {len(hooks)} items, not {len(value)}", "tuple_length")
        pairs = zip(value, hooks, strict=True)
        return tuple(
            _each((((i,), pair) for i, pair in enumerate(pairs)), lambda p, _: p[1][0](p[0], p[1][1]), None)
        )

    return structure


def _mapping_hook(kind: Any, made: Converter) -> Callable[[Any, Any], Any]:
    key_kind, value_kind = get_args(kind) or (Any, Any)
    key_hook, value_hook = made.get_structure_hook(key_kind), made.get_structure_hook(value_kind)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueFault(f"expected an object, not {show(value)}", "dict_type")
        keys = _each((((str(key), "[key]"), key) for key in value), key_hook, key_kind)
        values = _each((((str(key),), item) for key, item in value.items()), value_hook, value_kind)
        return dict(zip(keys, values, strict=True))

    return structure


def _literal_hook(kind: Any) -> Callable[[Any, Any], Any]:
    options = get_args(kind)

    def structure(value: Any, _: Any) -> Any:
        for option in options:
            plain = option.value if isinstance(option, Enum) else option
            # Types are compared too: True equals 1, but Literal[1] does not contain True.
            same = type(value) is type(plain) and value == plain
            if same or (isinstance(value, str) and type(plain) is int and value == str(plain)):
                return option
        raise ValueFault(
            f"expected one of {', '.join(map(repr, options))}, not {show(value)}", "literal_error"
        )

    return structure


@cache
def _enum_hook(kind: Any) -> Callable[[Any, Any], Any]:
    by_value = [(member.value, member) for member in kind]
    words = ", ".join(repr(value) for value, _ in by_value)

    def structure(value: Any, _: Any) -> Any:
        if isinstance(value, kind):
            return value
        for plain, member in by_value:
            same = type(value) is type(plain) and value == plain
            if same or (isinstance(value, str) and type(plain) in (int, float) and value == str(plain)):
                return member
        raise ValueFault(f"expected one of {words}, not {show(value)}", "enum")

    return structure


class _Member(NamedTuple):
    kind: Any
    hook: Callable[[Any, Any], Any]
    exact: type | None
    fields: frozenset[str]
    name: str


def _member(kind: Any, made: Converter) -> _Member:
    base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    fields: frozenset[str] = frozenset()
    if is_class_like(base):
        origin: Any = origin_of(base)
        names = [a.name for a in origin.__attrs_attrs__] if hasattr(origin, "__attrs_attrs__") else None
        if is_struct(origin):
            names = list(origin.__struct_encode_fields__)
        fields = frozenset(names or getattr(origin, "__dataclass_fields__", None) or typeddict_fields(origin))
    exact = base if isinstance(base, type) and scalar(base) is not None else None
    return _Member(kind, made.get_structure_hook(kind), exact, fields, getattr(base, "__name__", str(base)))


def _union_hook(kind: Any, made: Converter) -> Callable[[Any, Any], Any]:
    """Try the member with the value's type first, then those with most of the object's keys."""
    members = [_member(argument, made) for argument in get_args(kind)]
    optional = any(member.exact is type(None) for member in members)
    real = [member for member in members if member.exact is not type(None)]

    def structure(value: Any, _: Any) -> Any:
        if value is None and optional:
            return None
        if len(real) == 1:
            return real[0].hook(value, real[0].kind)
        ordered = sorted(real, key=lambda member: _rank(member, value))
        return _first_fit(ordered, value)

    return structure


def _rank(member: _Member, value: Any) -> int:
    if member.exact is type(value) or (member.exact is float and type(value) is int):
        return -1_000_000 + (member.exact is not type(value))
    return -len(member.fields.intersection(value)) if member.fields and isinstance(value, dict) else 0


def _first_fit(members: list[_Member], value: Any) -> Any:
    faults: list[tuple[Loc, Exception]] = []
    for member in members:
        _budget.trials -= 1
        if _budget.trials < 0:
            raise ValueFault(
                "the value has too many nested unions to try all their members", "union_too_deep"
            )
        try:
            return member.hook(value, member.kind)
        except Exception as exc:  # noqa: BLE001 - the next member may fit
            faults.append(((member.name,), exc))
    raise NestedFaults(faults)


def problems_of(error: Exception, loc: Loc) -> list[Problem]:
    """Return every fault in ``error`` with its place below ``loc``, in order.

    It uses a list instead of recursion, because faults may be nested as deeply as JSON.
    """
    found: list[Problem] = []
    waiting: list[tuple[Loc, Exception]] = [(loc, error)]
    while waiting:
        place, exc = waiting.pop()
        below = _below(exc)
        if below is None:
            found.append(_problem(place, exc))
        else:
            waiting.extend((place + step, inner) for step, inner in reversed(below))
    return found


def _below(exc: Exception) -> list[tuple[Loc, Exception]] | None:
    if isinstance(exc, NestedFaults):
        return exc.faults
    if isinstance(exc, ExceptionGroup):
        return [(_step(inner), inner) for inner in exc.exceptions]
    return None


def _step(exc: Exception) -> Loc:
    """Return the attribute's name or the index that cattrs noted on an exception."""
    for note in reversed(getattr(exc, "__notes__", ())):
        name = getattr(note, "name", getattr(note, "index", None))
        if name is not None:
            return (name,)
    return ()


def _problem(loc: Loc, exc: Exception) -> Problem:
    match exc:
        case ValueFault():
            return Problem(loc, str(exc), exc.kind)
        case KeyError():
            return Problem(loc, "a value is required", "missing")
        case RecursionError():
            return Problem(loc, "the value is nested too deeply", "recursion_loop")
        case _:
            # The exception of an author's validator: its message is shown.
            text = str(exc.args[0]) if exc.args else type(exc).__name__
            return Problem(loc, text, "value_error")
