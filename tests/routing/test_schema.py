from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NewType, NotRequired, TypedDict, TypeVar
from uuid import UUID

import annotated_types as at
import attrs
import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.routing import json_schema
from tangram.routing.schema import SchemaWriter, title_of

T = TypeVar("T")
Kilos = NewType("Kilos", float)


class Mutable:
    """A marker of a front end: any object with keys to add to the schema."""

    def __init__(self, **keys: object) -> None:
        self.keys = keys

    def json_schema_extra(self) -> dict[str, object]:
        return {"tangram_mutable": True, **self.keys}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.define
class Adaptive:
    light: str
    dark: str


@attrs.define
class Frontend:
    topbar_order: Annotated[int, Mutable()]
    theme: Annotated[str | Adaptive, Mutable(tangram_widget="theme-settings")] = "light"
    zoom: Annotated[float, at.Interval(ge=0, le=24), Mutable()] = 4
    pitch: float = attrs.field(
        default=0,
        validator=[attrs.validators.ge(0), attrs.validators.lt(85)],
        metadata={"json_schema_extra": {"k": 1}},
    )
    styles: list[Adaptive] = attrs.field(factory=list)
    background: Annotated[str, Mutable(tangram_kind="color")] = "#fff"
    colour: Colour = Colour.RED
    mode: str = attrs.field(default="a", validator=attrs.validators.in_(["a", "b"]))


def test_front_end_configuration() -> None:
    """The schema of a settings page has titles, defaults, limits, choices and extra keys."""
    schema = json_schema(Frontend)
    properties = schema["properties"]

    assert (schema["title"], schema["type"], schema["required"]) == ("Frontend", "object", ["topbar_order"])
    assert properties["topbar_order"] == {"title": "Topbar Order", "type": "integer", "tangram_mutable": True}
    assert properties["theme"] == {
        "title": "Theme",
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/Adaptive"}],
        "default": "light",
        "tangram_mutable": True,
        "tangram_widget": "theme-settings",
    }
    assert properties["zoom"] == {
        "title": "Zoom",
        "type": "number",
        "minimum": 0,
        "maximum": 24,
        "default": 4,
        "tangram_mutable": True,
    }
    assert properties["pitch"] == {
        "title": "Pitch",
        "type": "number",
        "minimum": 0,
        "exclusiveMaximum": 85,
        "default": 0,
        "k": 1,
    }
    assert properties["styles"] == {
        "title": "Styles",
        "type": "array",
        "items": {"$ref": "#/$defs/Adaptive"},
        "default": [],
    }
    assert properties["background"]["tangram_kind"] == "color"
    assert properties["colour"] == {"$ref": "#/$defs/Colour", "default": "red"}
    assert properties["mode"]["enum"] == ["a", "b"]
    assert schema["$defs"]["Colour"] == {"title": "Colour", "type": "string", "enum": ["red", "blue"]}
    assert schema["$defs"]["Adaptive"]["required"] == ["light", "dark"]


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (int, {"type": "integer"}),
        (str | None, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        (
            Annotated[int, at.Gt(1)] | None,
            {"anyOf": [{"type": "integer", "exclusiveMinimum": 1}, {"type": "null"}]},
        ),
        (
            Annotated[str | None, at.Len(1, 3)],
            {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 3}, {"type": "null"}]},
        ),
        (Annotated[list[int], at.MinLen(1)], {"type": "array", "items": {"type": "integer"}, "minItems": 1}),
        (
            Annotated[dict[str, int], at.MaxLen(3)],
            {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3},
        ),
        (dict, {"type": "object", "additionalProperties": True}),
        (set[str], {"type": "array", "items": {"type": "string"}, "uniqueItems": True}),
        (
            tuple[int, str],
            {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string"}],
                "minItems": 2,
                "maxItems": 2,
            },
        ),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (Literal["a"], {"type": "string", "const": "a"}),
        (Literal["a", 1], {"enum": ["a", 1]}),
        (datetime, {"type": "string", "format": "date-time"}),
        (date, {"type": "string", "format": "date"}),
        (
            timedelta,
            {
                "anyOf": [
                    {"type": "string", "format": "duration", "pattern": "^[^YM]*(?:T[^YM]*M?[^YM]*)?$"},
                    {"type": "number", "minimum": -86_399_999_913_600, "maximum": 86_399_999_999_999},
                ]
            },
        ),
        (
            Decimal,
            {
                "anyOf": [
                    {"type": "number"},
                    {
                        "type": "string",
                        "pattern": r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,9})?$",
                    },
                ]
            },
        ),
        (
            dict[UUID, int],
            {
                "type": "object",
                "additionalProperties": {"type": "integer"},
                "propertyNames": {"type": "string", "format": "uuid"},
            },
        ),
        (
            dict[int, str],
            {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "propertyNames": {"pattern": "^[-+]?[0-9]{1,400}$"},
            },
        ),
        (UUID, {"type": "string", "format": "uuid"}),
        (Path, {"type": "string", "format": "path"}),
        (Kilos, {"type": "number"}),
        (Any, {}),
    ],
    ids=str,
)
def test_annotations(kind: Any, schema: dict[str, Any]) -> None:
    """Each annotation has its schema; constraints are at the value that they apply to."""
    assert json_schema(kind) == schema


@attrs.define
class Tree:
    """A tree of trees."""

    name: str
    below: list[Tree] = attrs.field(factory=list)


def test_recursive_classes() -> None:
    """A recursive class refers to itself under $defs; its docstring is its description."""
    schema = json_schema(Tree)

    assert schema["properties"]["below"]["items"] == {"$ref": "#/$defs/Tree"}
    assert schema["description"] == "A tree of trees."
    assert set(schema["$defs"]) == {"Tree"}


class Typed(TypedDict):
    a: int
    b: NotRequired[str]


@dataclass
class Data:
    when: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    items: list[Typed] = field(default_factory=list)
    hidden: int = field(default=0, init=False)


@attrs.define
class Box(Generic[T]):
    content: T
    several: list[T] = attrs.field(factory=list)


def test_other_classes() -> None:
    """Dataclasses, TypedDicts and generic classes are objects like attrs classes."""
    data, box = json_schema(Data), json_schema(Box[int])

    assert set(data["properties"]) == {"when", "items"}
    assert data["properties"]["when"]["default"] == "2026-01-01T00:00:00Z"
    assert data["$defs"]["Typed"]["required"] == ["a"]
    assert "description" not in data
    assert box["properties"]["content"] == {"title": "Content", "type": "integer"}
    assert box["properties"]["several"]["items"] == {"type": "integer"}


def test_two_classes_with_one_name() -> None:
    """Classes with the same name get their modules and qualified names."""

    def make() -> type:
        @attrs.define
        class Adaptive:
            other: int

        return Adaptive

    writer = SchemaWriter(ref_prefix="#/components/schemas/")
    mine, theirs = writer.write(Adaptive), writer.write(make())
    definitions = writer.finish()

    assert len(definitions) == 2
    assert mine["$ref"] != theirs["$ref"]
    assert definitions[theirs["$ref"].removeprefix("#/components/schemas/")]["required"] == ["other"]
    assert definitions[mine["$ref"].removeprefix("#/components/schemas/")]["required"] == ["light", "dark"]


def test_defaults_that_json_cannot_represent() -> None:
    """A default that JSON cannot represent is left out."""

    @attrs.define
    class Odd:
        a: Any = attrs.field(default=object())
        b: int = attrs.field(default=attrs.Factory(lambda self: 1, takes_self=True))

    assert all("default" not in schema for schema in json_schema(Odd)["properties"].values())


@pytest.mark.slow
@given(st.from_regex(r"[a-z]{1,5}(_[a-z0-9]{1,5}){0,3}", fullmatch=True))
def test_titles(name: str) -> None:
    """Titles are the words of the name, each with a capital, as in pydantic."""
    assert title_of(name) == name.replace("_", " ").title()


@attrs.define
class Everything:
    a: int | None
    b: Annotated[float, at.Interval(ge=0, le=10)]
    c: Colour
    d: list[Typed]
    e: dict[str, date]
    f: Literal["x", "y"]
    g: UUID
    h: Decimal | None = None


@pytest.mark.slow
@given(
    st.fixed_dictionaries(
        {
            "a": st.none() | st.integers(),
            "b": st.floats(-2, 12),
            "c": st.sampled_from(["red", "blue", "green"]),
            "d": st.lists(
                st.fixed_dictionaries({"a": st.integers()}, optional={"b": st.text(max_size=3)}), max_size=2
            ),
            "e": st.dictionaries(st.text(max_size=2), st.dates().map(str), max_size=2),
            "f": st.sampled_from(["x", "y", "z"]),
            "g": st.uuids().map(str),
        }
    )
)
def test_schema_and_binding_agree(value: dict[str, Any]) -> None:
    """The schema and the converter accept the same values, by an independent validator."""
    from tangram.routing.convert import structurer

    accepted = jsonschema.Draft202012Validator(json_schema(Everything)).is_valid(value)
    try:
        structurer(Everything)(value)
        bound = True
    except Exception:
        bound = False

    assert accepted == bound
