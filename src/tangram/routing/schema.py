"""Write the JSON Schema of annotations, for the settings page and the API documentation.

The title of a field is its name in title case. Constraints come from ``Annotated`` metadata and attrs
validators. Each class is defined once, under ``$defs`` or another ``ref_prefix``. Metadata with an attribute
``json_schema_extra``, a mapping or a function that returns one, adds its keys to the schema of the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from types import UnionType
from typing import (
    Annotated,
    Any,
    Final,
    ForwardRef,
    Literal,
    NamedTuple,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_type_hints,
)
from uuid import UUID

from tangram.routing.constraints import Constraint, from_metadata, from_validator
from tangram.routing.containers import COLLECTIONS, MAPPINGS
from tangram.routing.convert import is_class_like, origin_of, typeddict_fields
from tangram.routing.params import MISSING
from tangram.routing.structs import is_struct

__all__ = ["SchemaWriter", "json_schema", "title_of"]

Schema = dict[str, Any]

_PLAIN: Final[dict[Any, Schema]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    str: {"type": "string"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    bytes: {
        "type": "string",
        "contentEncoding": "base64",
        "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    },
    date: {"type": "string", "format": "date"},
    datetime: {"type": "string", "format": "date-time"},
    time: {"type": "string", "format": "time"},
    # Years and months have no fixed length, and a number of seconds has the bounds of timedelta.
    timedelta: {
        "anyOf": [
            {"type": "string", "format": "duration", "pattern": "^[^YM]*(?:T[^YM]*M?[^YM]*)?$"},
            {"type": "number", "minimum": -86_399_999_913_600, "maximum": 86_399_999_999_999},
        ]
    },
    UUID: {"type": "string", "format": "uuid"},
    Decimal: {
        "anyOf": [
            {"type": "number"},
            {"type": "string", "pattern": r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,9})?$"},
        ]
    },
    Any: {},
    object: {},
}
_NUMBER_KEYS: Final = {
    "gt": "exclusiveMinimum",
    "ge": "minimum",
    "lt": "exclusiveMaximum",
    "le": "maximum",
    "multiple_of": "multipleOf",
}
_LENGTH_KEYS: Final = {"string": "Length", "array": "Items", "object": "Properties"}


def title_of(name: str) -> str:
    """Return a name in title case: ``Topbar Order`` for ``topbar_order``."""
    return name.replace("_", " ").title().strip()


class Field(NamedTuple):
    """A field of an attrs class, a dataclass, a TypedDict or a struct."""

    name: str
    kind: Any
    required: bool
    default: object
    constraints: tuple[Constraint, ...]
    extra: Mapping[str, Any]


class SchemaWriter:
    """Writes schemas that share one set of definitions; ``finish`` returns the definitions."""

    def __init__(self, *, ref_prefix: str = "#/$defs/", unique_items: bool = True) -> None:
        """Begin without definitions.

        Args:
            ref_prefix: the place of the definitions.
            unique_items: write ``uniqueItems`` for sets. Routes accept repeated items, so their document does
                not.
        """
        self.ref_prefix = ref_prefix
        self._unique_items = unique_items
        self._definitions: dict[Any, Schema] = {}
        self._references: list[tuple[Schema, Any]] = []

    def write(self, kind: Any) -> Schema:  # noqa: PLR0911 - a line for each kind of annotation
        """Return the schema of an annotation, with references for classes."""
        if isinstance(kind, TypeVar):
            return self.write(kind.__bound__) if kind.__bound__ is not None else {}
        if _known(kind):
            return dict(_PLAIN[kind])
        origin, arguments = origin_of(kind), get_args(kind)
        if origin in (Required, NotRequired):
            return self.write(arguments[0])
        if origin is Annotated:
            schema = self.write(arguments[0])
            return decorate(schema, from_metadata(arguments[1:]), arguments[1:])
        if origin in (Union, UnionType):
            return self._union(arguments)
        if origin is Literal:
            return _literal(arguments)
        if is_class_like(kind) or (isinstance(kind, type) and issubclass(kind, Enum)):
            return self._reference(kind)
        return self._container(origin, arguments)

    def _container(self, origin: Any, arguments: tuple[Any, ...]) -> Schema:  # noqa: PLR0911 - a line for each kind of container
        if hasattr(origin, "__supertype__"):  # NewType
            return self.write(origin.__supertype__)
        if hasattr(origin, "__value__"):  # a type alias of Python 3.12
            return self.write(origin.__value__)
        if not isinstance(origin, type):
            return {}
        if origin in COLLECTIONS:
            return self._array(origin, arguments)
        if origin in MAPPINGS:
            return self._mapping(arguments)
        if issubclass(origin, PurePath):
            return {"type": "string", "format": "path"}
        for base in (bool, int, float, str):
            if issubclass(origin, base):
                return dict(_PLAIN[base])
        return {}

    def _mapping(self, arguments: tuple[Any, ...]) -> Schema:
        """Return the schema of an object, with one for its keys if they are not plain text."""
        key, value = arguments if len(arguments) == 2 else (Any, Any)
        schema: Schema = {"type": "object", "additionalProperties": self.write(value) or True}
        names = {"pattern": "^[-+]?[0-9]{1,400}$"} if key is int else self.write(key)
        if names.get("type", "string") == "string" and set(names) - {"type"}:
            schema["propertyNames"] = names
        return schema

    def _array(self, origin: Any, arguments: tuple[Any, ...]) -> Schema:
        if COLLECTIONS[origin] is tuple and arguments and arguments[-1] is not Ellipsis:
            items = [self.write(argument) for argument in arguments]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        schema: Schema = {"type": "array", "items": self.write(arguments[0]) if arguments else {}}
        if self._unique_items and COLLECTIONS[origin] in (set, frozenset):
            schema["uniqueItems"] = True
        return schema

    def _union(self, arguments: tuple[Any, ...]) -> Schema:
        schemas: list[Schema] = []
        for argument in arguments:
            schema = self.write(argument)
            if schema not in schemas or "$ref" in schema:
                schemas.append(schema)
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}

    def _reference(self, kind: Any) -> Schema:
        if kind not in self._definitions:
            definition = self._definitions[kind] = {}  # registered first: a class may refer to itself
            definition.update(self._enum(kind) if issubclass(origin_of(kind), Enum) else self._object(kind))
        reference: Schema = {"$ref": ""}
        self._references.append((reference, kind))
        return reference

    def _enum(self, kind: type[Enum]) -> Schema:
        values = [member.value for member in kind]
        return {"title": kind.__name__, **_literal(tuple(values))}

    def _object(self, kind: Any) -> Schema:
        fields = list(fields_of(kind))
        origin = origin_of(kind)
        schema: Schema = {"title": origin.__name__, "type": "object"}
        if text := _description(origin):
            schema["description"] = text
        schema["properties"] = {field.name: self.field(field) for field in fields}
        if required := [field.name for field in fields if field.required]:
            schema["required"] = required
        return schema

    def field(self, field: Field) -> Schema:
        """Return the schema of a field with its title, default, constraints and extra keys."""
        schema = decorate(self.write(field.kind), field.constraints, ())
        # A reference has no title of its own: the definition has the title of the class.
        if "$ref" not in schema:
            schema = {"title": title_of(field.name), **schema}
        if field.default is not MISSING:
            plain = plain_default(field.default)
            if plain is not MISSING:
                schema["default"] = plain
        schema.update(field.extra)
        return schema

    def finish(self) -> dict[str, Schema]:
        """Name the classes, complete the references, and return the definitions by name."""
        names = _names(list(self._definitions))
        for reference, kind in self._references:
            reference["$ref"] = self.ref_prefix + names[kind]
        return {names[kind]: schema for kind, schema in self._definitions.items()}


def json_schema(kind: Any, *, ref_prefix: str = "#/$defs/") -> Schema:
    """Return the schema of a class or annotation; classes in it are defined under ``$defs``.

    The class itself is the top of the schema, not a reference, unless it refers to itself.
    """
    writer = SchemaWriter(ref_prefix=ref_prefix)
    top = writer.write(kind)
    definitions = writer.finish()
    name = str(top.get("$ref", "")).removeprefix(ref_prefix)
    if len(top) == 1 and name in definitions:
        referred = any(ref is not top and ref["$ref"] == top["$ref"] for ref, _ in writer._references)  # noqa: SLF001 - this module's
        top = dict(definitions[name]) if referred else definitions.pop(name)
    return {**top, "$defs": definitions} if definitions else top


def _known(kind: Any) -> bool:
    try:
        return kind in _PLAIN
    except TypeError:
        return False


def _literal(values: tuple[Any, ...]) -> Schema:
    plain = [value.value if isinstance(value, Enum) else value for value in values]
    schema: Schema = {"const": plain[0]} if len(plain) == 1 else {"enum": plain}
    kinds = {type(value) for value in plain}
    if len(kinds) == 1 and (kind := kinds.pop()) in (str, int, float, bool):
        schema = {"type": _PLAIN[kind]["type"], **schema}
    return schema


def decorate(schema: Schema, constraints: Iterable[Constraint], metadata: Iterable[object]) -> Schema:
    """Add constraints, titles, descriptions and extra keys of metadata to a schema.

    The schema is changed in place, because ``finish`` completes the references in it later.
    """
    for constraint in constraints:
        _constrain(schema, constraint)
    for item in metadata:
        for key in ("title", "description", "examples"):
            value = getattr(item, key, None)
            if value and not callable(value) and not isinstance(item, (type, str)):
                schema[key] = value
        extra = getattr(item, "json_schema_extra", None)
        if extra is not None and not isinstance(item, type):
            schema.update(extra() if callable(extra) else extra)
    return schema


def _constrain(schema: Schema, constraint: Constraint) -> None:
    if "anyOf" in schema:  # a constraint of an optional value applies to the value
        for branch in schema["anyOf"]:
            if branch.get("type") != "null":
                _constrain(branch, constraint)
        return
    key, limit = constraint
    kind = schema.get("type")
    if key in _NUMBER_KEYS and kind in ("integer", "number"):
        schema[_NUMBER_KEYS[key]] = plain_default(limit)
    elif key in ("min_length", "max_length") and kind in _LENGTH_KEYS:
        schema[key[:3] + _LENGTH_KEYS[kind]] = limit
    elif key == "pattern" and kind == "string":
        schema["pattern"] = getattr(limit, "pattern", limit)
    elif key == "one_of":
        schema["enum"] = [plain_default(option) for option in limit]


def plain_default(value: object) -> Any:
    """Return a default as a JSON value, or MISSING if JSON cannot represent it."""
    import attrs
    import msgspec

    from tangram.routing.responses import encode_json

    if value is attrs.NOTHING:  # in the signature of an attrs class, for a factory
        return MISSING
    try:
        return msgspec.json.decode(encode_json(value))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        return MISSING


def _description(kind: type) -> str | None:
    """Return the docstring of a class, unless it is the signature that dataclasses generates."""
    text = kind.__dict__.get("__doc__")
    if not text or text.startswith(kind.__name__ + "("):
        return None
    from inspect import cleandoc

    return cleandoc(text)


def fields_of(kind: Any) -> Iterable[Field]:
    """Return the fields of a class, with type variables replaced by the arguments."""
    origin: Any = origin_of(kind)
    hints = get_type_hints(origin, include_extras=True)
    variables = dict(zip(getattr(origin, "__parameters__", ()), get_args(kind), strict=False))
    if hasattr(origin, "__attrs_attrs__"):
        found = _attrs_fields(origin, hints)
    elif hasattr(origin, "__dataclass_fields__"):
        found = _dataclass_fields(origin, hints)
    elif is_struct(origin):
        found = _struct_fields(origin, hints)
    else:
        pairs = typeddict_fields(origin).items()
        found = [Field(name, hint, required, MISSING, (), {}) for name, (hint, required) in pairs]
    return [field._replace(kind=_replaced(field.kind, variables)) for field in found]


def _replaced(kind: Any, variables: dict[Any, Any]) -> Any:
    if isinstance(kind, (str, ForwardRef)) or not variables:
        return kind
    if kind in variables:
        return variables[kind]
    own = getattr(kind, "__parameters__", ())
    return kind[tuple(variables.get(v, v) for v in own)] if own else kind


def _attrs_fields(kind: Any, hints: dict[str, Any]) -> list[Field]:
    import attrs

    found = []
    for a in kind.__attrs_attrs__:
        if not a.init:
            continue
        default: Any = MISSING if a.default is attrs.NOTHING else a.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # typed as a function
            default = MISSING if default.takes_self else default.factory()
        required = a.default is attrs.NOTHING
        constraints = from_validator(a.validator) if a.validator is not None else ()
        found.append(
            Field(a.name, hints.get(a.name, Any), required, default, constraints, _extra(a.metadata))
        )
    return found


def _dataclass_fields(kind: Any, hints: dict[str, Any]) -> list[Field]:
    import dataclasses

    found = []
    for f in dataclasses.fields(kind):
        if not f.init:
            continue
        default: object = MISSING if f.default is dataclasses.MISSING else f.default
        if f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        found.append(Field(f.name, hints.get(f.name, Any), required, default, (), _extra(f.metadata)))
    return found


def _struct_fields(kind: Any, hints: dict[str, Any]) -> list[Field]:
    import msgspec

    config = kind.__struct_config__
    found = []
    if config.tag_field is not None:
        found.append(Field(config.tag_field, Literal[config.tag], True, MISSING, (), {}))
    for one in msgspec.structs.fields(kind):
        default: object = MISSING if one.default is msgspec.NODEFAULT else one.default
        if one.default_factory is not msgspec.NODEFAULT:
            default = one.default_factory()
        found.append(Field(one.encode_name, hints[one.name], one.required, default, (), {}))
    return found


def _extra(metadata: Mapping[Any, Any]) -> Mapping[str, Any]:
    extra = metadata.get("json_schema_extra", {})
    return dict(extra() if callable(extra) else extra)


def _names(kinds: list[Any]) -> dict[Any, str]:
    """Return a name for each class, with its module if two classes have the same name."""
    short = {kind: _word(_own_name(kind)) for kind in kinds}
    names: dict[Any, str] = {}
    for kind in kinds:
        name = short[kind]
        if list(short.values()).count(name) > 1:
            origin = origin_of(kind)
            name = _word(
                f"{origin.__module__}.{origin.__qualname__}{_own_name(kind).removeprefix(origin.__name__)}"
            )
        base, number = name, 2
        while name in names.values():
            name, number = f"{base}_{number}", number + 1
        names[kind] = name
    return names


def _own_name(kind: Any) -> str:
    arguments = get_args(kind)
    name = origin_of(kind).__name__
    return str(name) + "".join(f"_{_own_name(a) if hasattr(a, '__name__') else a}" for a in arguments)


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")
