"""Convert JSON values to structs of msgspec, with a place for every fault.

msgspec itself stops at the first fault. A value that it refuses is read here again, field by field, by the
converter of all other types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import msgspec

from tangram.routing.constraints import MAX_FAULTS, ValueFault, more_faults
from tangram.routing.scalars import show

if TYPE_CHECKING:
    from cattrs import Converter

__all__ = ["is_struct", "struct_hook"]

Fault = tuple[tuple[str | int, ...], Exception]


def is_struct(kind: object) -> bool:
    """Return whether a class, or the class of a generic annotation, is one of msgspec."""
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, msgspec.Struct)


def struct_hook(
    kind: Any, made: Converter, collected: Callable[[list[Fault]], Exception]
) -> Callable[[Any, Any], Any]:
    """Return the function that converts an object to a struct.

    Args:
        kind: the class, or a generic annotation of it.
        made: the converter of the fields.
        collected: makes one exception of all faults.
    """
    origin: Any = get_origin(kind) or kind
    config = origin.__struct_config__
    if config.array_like:
        return lambda value, _: _by_msgspec(value, kind)
    hints = get_type_hints(origin, include_extras=True)
    variables = dict(zip(getattr(origin, "__parameters__", ()), get_args(kind), strict=False))
    # The field of a tagged union's tag has no attribute.
    fields = [
        (one.encode_name, one.name, variables.get(hints[one.name], hints[one.name]), one.required)
        for one in msgspec.structs.fields(origin)
    ]
    known = {name for name, *_ in fields} | {config.tag_field}

    def structure(value: Any, _: Any) -> Any:
        if isinstance(value, origin):
            return value
        if not isinstance(value, dict):
            raise ValueFault(f"expected an object, not {show(value)}", "model_type")
        faults: list[Fault] = list(_tag_fault(value, config))
        if config.forbid_unknown_fields:
            faults += _unknown_faults([name for name in value if name not in known])
        arguments: dict[str, Any] = {}
        for encoded, name, hint, required in fields:
            try:
                if encoded in value or required:
                    # Looked up at each call, from cattrs' cache: the class may refer to itself.
                    arguments[name] = made.get_structure_hook(hint)(value[encoded], hint)
            except Exception as exc:  # noqa: BLE001 - every fault is reported with its place
                faults.append(((encoded,), exc))
        if faults:
            raise collected(faults)
        return origin(**arguments)

    return structure


def _unknown_faults(names: list[str]) -> Iterator[Fault]:
    for name in names[:MAX_FAULTS]:
        yield (name,), ValueFault("expected no field of this name", "extra_forbidden")
    if len(names) > MAX_FAULTS:
        yield (), more_faults()


def _tag_fault(value: dict[str, Any], config: Any) -> Iterator[Fault]:
    """Yield the fault of the tag that tells the classes of a union apart."""
    found = config.tag if config.tag_field is None else value.get(config.tag_field, config.tag)
    if found != config.tag:
        yield (config.tag_field,), ValueFault(f"expected {config.tag!r}, not {show(found)}", "tag")


def _by_msgspec(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueFault(str(error)[:1].lower() + str(error)[1:], "value_error") from None
