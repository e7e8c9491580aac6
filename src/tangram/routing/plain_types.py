"""Find the types whose values msgspec converts as ``convert`` does, only faster.

1. A conversion by msgspec is strict, and ours is lax where nothing is lost ("3" is an integer). So a value
   that msgspec refuses is given to the other converter, which finds the fault or accepts the value.
2. The struct of msgspec is its own: its fields may have constraints (``msgspec.Meta``) and texts of choices.
3. msgspec makes an object of a class without calling ``__init__``. Only classes whose ``__init__`` attrs or
   dataclasses generated are therefore plain, and of these only classes without validators, converters and
   further steps.
"""

from __future__ import annotations

from types import FunctionType, NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import attr
from msgspec import Meta

from tangram.routing.structs import is_struct

__all__ = ["is_plain_type"]

_SCALARS: Final = frozenset({int, float, bool, str, NoneType})
_HOOKS: Final = ("__attrs_pre_init__", "__attrs_post_init__", "__post_init__")
"""Methods that ``__init__`` calls beside setting fields."""

_ATTRS_FILE: Final = attr.s.__code__.co_filename
"""The file with the methods that attrs puts into classes as they are."""


def is_plain_type(kind: Any) -> bool:
    """Return whether each value that msgspec accepts for ``kind`` is converted as ours."""
    try:
        return _is_plain(kind, ())
    except Exception:  # noqa: BLE001 - an unusual class or hint: the other converter decides about it
        return False


def _is_plain(kind: Any, around: tuple[Any, ...]) -> bool:
    if kind in _SCALARS:
        return True
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list:
        return len(arguments) == 1 and _is_plain(arguments[0], around)
    if origin is dict:
        return arguments[0] is str and _is_plain(arguments[1], around)
    if origin in {Union, UnionType}:
        # With several members besides None the order of the trials matters.
        optional = len(arguments) == 2 and NoneType in arguments
        return optional and all(_is_plain(one, around) for one in arguments)
    if is_struct(kind):
        return origin is None and _is_plain_struct(kind, around)
    return origin is None and isinstance(kind, type) and _is_plain_class(kind, around)


def _is_plain_struct(kind: Any, around: tuple[Any, ...]) -> bool:
    if kind in around or getattr(kind, "__parameters__", None):
        return False
    hints = get_type_hints(kind, include_extras=True)
    return all(_is_plain_member(hints[name], (*around, kind)) for name in kind.__struct_fields__)


def _is_plain_member(kind: Any, around: tuple[Any, ...]) -> bool:
    """Return whether the field of a struct is plain, beside its own constraints."""
    if get_origin(kind) is Annotated:
        base, *metadata = get_args(kind)
        return all(isinstance(one, Meta) for one in metadata) and _is_plain_member(base, around)
    if get_origin(kind) is Literal:
        return all(type(one) is str for one in get_args(kind))
    return _is_plain(kind, around)


def _is_plain_class(kind: type, around: tuple[Any, ...]) -> bool:
    fields = _fields_of(kind)
    # msgspec converts values of recursive types that are deeper than Python code can follow.
    if kind in around or fields is None or not _is_made_by_its_fields(kind):
        return False
    hints = get_type_hints(kind, include_extras=True)
    return all(_is_plain(hints[name], (*around, kind)) for name in fields)


def _fields_of(kind: type) -> list[str] | None:
    """Return the names of a class' fields, or None if one of them needs a step of its own."""
    attributes: Any = getattr(kind, "__attrs_attrs__", None)
    if attributes is not None:
        plain = all(
            one.init
            and one.alias == one.name
            and one.converter is None
            and one.validator is None
            and not getattr(one.default, "takes_self", False)
            for one in attributes
        )
        return [one.name for one in attributes] if plain else None
    fields: Any = getattr(kind, "__dataclass_fields__", None)
    if fields is None:
        return None
    # InitVar and ClassVar are among them, with another kind of field.
    plain = all(one.init and one._field_type.name == "_FIELD" for one in fields.values())  # noqa: SLF001 - no public name
    return [*fields] if plain else None


def _is_made_by_its_fields(kind: type) -> bool:
    """Return whether setting the fields is all that a construction of the class does."""
    has: Any = kind
    if has.__new__ is not object.__new__ or type(kind) is not type or getattr(kind, "__parameters__", None):
        return False
    if any(hasattr(kind, hook) for hook in _HOOKS):
        return False
    if has.__setattr__ is not object.__setattr__ and not _is_generated(has.__setattr__):
        return False
    code = has.__init__.__code__
    return _is_generated(has.__init__) and "_attrs_cached_hash" not in str((code.co_names, code.co_consts))


def _is_generated(function: FunctionType) -> bool:
    """Return whether a method is of attrs or dataclasses, not of the class's author."""
    file = function.__code__.co_filename
    return file == "<string>" or file.startswith("<attrs generated") or file == _ATTRS_FILE
