from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import attrs
import msgspec
import pytest

from tangram.declared.payload import encode_message, payload_reader
from tangram.routing.exceptions import InvalidRequest


class Point(msgspec.Struct):
    x: int
    y: float = 0.0


class StructSelect(msgspec.Struct, rename="camel"):
    flight_id: Annotated[str, msgspec.Meta(max_length=3)]
    at: list[Point]
    zoom: Annotated[int, msgspec.Meta(ge=0)] = 3


@attrs.frozen
class AttrsSelect:
    name: str
    zoom: int = attrs.field(default=3, validator=attrs.validators.ge(0))


@dataclass
class DataSelect:
    name: str
    zoom: int = 3


class DictSelect(TypedDict):
    name: str
    zoom: int


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog", forbid_unknown_fields=True):
    name: str


class Checked(msgspec.Struct):
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise LookupError("low is above high")


def faults(kind: Any, payload: bytes) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as raised:
        payload_reader(kind).read(payload)
    return {problem.path: problem.type for problem in raised.value.problems}


@pytest.mark.parametrize(
    ("kind", "payload", "value"),
    [
        (
            StructSelect,
            b'{"flightId":"abc","at":[{"x":1}],"more":1}',
            StructSelect("abc", [Point(1)]),
        ),
        (AttrsSelect, b'{"name":"a"}', AttrsSelect("a")),
        (DataSelect, b'{"name":"a","zoom":4}', DataSelect("a", 4)),
        (DataSelect, b'{"name":"a","zoom":"4"}', DataSelect("a", 4)),
        (DictSelect, b'{"name":"a","zoom":4,"more":1}', {"name": "a", "zoom": 4}),
        (list[int], b"[1,2]", [1, 2]),
        (Cat | Dog, b'{"type":"dog","name":"rex"}', Dog("rex")),
        (Literal["up", "down"], b'"up"', "up"),
        (dict, b'{"a":[1]}', {"a": [1]}),
    ],
)
def test_payloads_are_read_into_their_type(kind: Any, payload: bytes, value: object) -> None:
    """Structs, attrs classes, dataclasses, TypedDicts and plain types are read."""
    assert payload_reader(kind).read(payload) == value


@pytest.mark.parametrize(
    ("kind", "payload", "expected"),
    [
        (
            StructSelect,
            b'{"flightId":"abcd","at":[{"x":1},{"x":"y","y":null}],"zoom":-1}',
            {
                "payload.flightId": "too_long",
                "payload.at[1].x": "int_parsing",
                "payload.at[1].y": "float_type",
                "payload.zoom": "greater_than_equal",
            },
        ),
        (StructSelect, b"{}", {"payload.flightId": "missing", "payload.at": "missing"}),
        (AttrsSelect, b'{"zoom":-1}', {"payload.name": "missing", "payload.zoom": "greater_than_equal"}),
        (DataSelect, b'{"name":1,"zoom":[]}', {"payload.name": "string_type", "payload.zoom": "int_type"}),
        (DictSelect, b'{"zoom":"x"}', {"payload.name": "missing", "payload.zoom": "int_parsing"}),
        (
            Dog,
            b'{"type":"cat","name":1,"x":1}',
            {"payload.type": "tag", "payload.x": "extra_forbidden", "payload.name": "string_type"},
        ),
        (Checked, b'{"low":2,"high":1}', {"payload": "value_error"}),
        (Point, b"[]", {"payload": "model_type"}),
        (bytes, b'"AAAA"', {"payload": "binary_type"}),
    ],
)
def test_every_fault_has_its_place(kind: Any, payload: bytes, expected: dict[str, str]) -> None:
    """A payload that does not fit raises one exception with all faults by place."""
    assert faults(kind, payload) == expected


def test_messages_are_json_and_bytes_stay_bytes() -> None:
    """Objects of all supported classes are encoded; bytes are sent unchanged."""
    assert encode_message(Point(1)) == b'{"x":1,"y":0.0}'
    assert encode_message(AttrsSelect("a")) == b'{"name":"a","zoom":3}'
    assert encode_message("text") == b'"text"'
    assert encode_message(bytearray(b"\0raw")) == b"\0raw"
