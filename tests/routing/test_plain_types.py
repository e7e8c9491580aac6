"""Types that msgspec may convert in place of cattrs: only where both give the same values."""

from __future__ import annotations

import abc
import dataclasses
import json
from typing import Annotated, Any, Generic, TypeVar

import annotated_types as at
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.routing.convert import converter, structurer
from tangram.routing.plain_types import is_plain_type
from tangram.routing.request import decode_json

T = TypeVar("T")


@attrs.frozen
class Point:
    lat: float
    lon: float = 0.5


@attrs.define
class Track(Point):
    points: list[Point] = attrs.field(factory=list)
    name: str | None = None


@dataclasses.dataclass(frozen=True)
class Named:
    name: str
    counts: dict[str, int]
    track: Track | None = None
    on: bool = False


@attrs.define
class Checked:
    radius: float = attrs.field(validator=attrs.validators.gt(0))


@attrs.define
class Converted:
    name: str = attrs.field(converter=str)


@attrs.define
class Private:
    _name: str


@attrs.define
class Partial:
    name: str
    size: int = attrs.field(init=False, default=1)


@attrs.define
class Later:
    name: str

    def __attrs_post_init__(self) -> None:
        self.name += "!"


@attrs.define(init=False)
class ByHand:
    name: str

    def __init__(self, name: str) -> None:
        self.__attrs_init__(name + "!")


@attrs.frozen(cache_hash=True)
class Hashed:
    name: str


@attrs.define
class Node:
    children: list[Node]


@attrs.define
class Box(Generic[T]):
    value: T


@attrs.define
class FromSelf:
    name: str
    size: int = attrs.Factory(lambda self: len(self.name), takes_self=True)


@attrs.define(slots=False)
class Loud:
    name: str

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, f"{value}!")


@attrs.define
class Around:
    checked: list[Checked]


@dataclasses.dataclass
class Limited:
    size: Annotated[int, at.Gt(0)]


@dataclasses.dataclass
class WithInit:
    name: str
    start: dataclasses.InitVar[int] = 1

    def __post_init__(self, start: int) -> None:
        self.name *= start


class Abstract(abc.ABC):
    name: str


PLAIN: list[Any] = [Point, Track, Named, list[Point], dict[str, Track], Track | None, list[float | None]]
OTHERS: list[Any] = [
    *(Checked, Converted, Private, Partial, Later, ByHand, Hashed, Node, Box[int], FromSelf, Loud, Around),
    *(Limited, WithInit, Abstract, Any, bytes, object, tuple[int, int], set[int], int | str, dict[int, str]),
]


@pytest.mark.parametrize("kind", PLAIN, ids=str)
def test_types_without_a_step_of_their_own_are_plain(kind: Any) -> None:
    """Scalars, and classes whose construction sets their fields alone, are msgspec's."""
    assert is_plain_type(kind)


@pytest.mark.parametrize("kind", OTHERS, ids=str)
def test_a_type_with_a_step_of_its_own_is_not_plain(kind: Any) -> None:
    """Validators, converters, hooks, defaults from other fields and recursion are the other converter's."""
    assert not is_plain_type(kind)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, 2**64, -(2**70), 10**30, 1.0, -0.0, 1e300]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
    st.sampled_from(["3", "1.5", "true", "nan"]),
)
KEYS = ("lat", "lon", "points", "name", "counts", "track", "on", "more")
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
    ),
    max_leaves=14,
)


def outcome(convert: Any, value: object) -> str:
    try:
        return repr(convert(value))
    except Exception:
        return "refused"


@pytest.mark.slow
@given(kind=st.sampled_from(PLAIN), value=VALUES)
def test_both_converters_give_the_same_values(kind: Any, value: object) -> None:
    """The same JSON is accepted as the same value, types included, or refused, by both converters."""
    document = decode_json(json.dumps(value).encode())
    hook = converter().get_structure_hook(kind)

    assert outcome(structurer(kind), document) == outcome(lambda one: hook(one, kind), document)


POINT = st.fixed_dictionaries({"lat": LEAVES}, optional={"lon": LEAVES, "more": LEAVES})
NAMED = st.fixed_dictionaries(
    {"name": st.text(max_size=3), "counts": st.dictionaries(st.text(max_size=2), st.integers(), max_size=3)},
    optional={"track": st.one_of(st.none(), POINT), "on": LEAVES},
)


@pytest.mark.slow
@given(kind_and_value=st.one_of(st.tuples(st.just(Point), POINT), st.tuples(st.just(Named), NAMED)))
def test_values_that_nearly_fit_are_converted_alike(kind_and_value: tuple[Any, object]) -> None:
    """Values with the right keys, too, which random JSON rarely has."""
    kind, value = kind_and_value
    document = decode_json(json.dumps(value).encode())
    hook = converter().get_structure_hook(kind)

    assert outcome(structurer(kind), document) == outcome(lambda one: hook(one, kind), document)


def test_an_object_of_a_plain_type_is_complete() -> None:
    """Frozen, hashed and compared as one that the class itself has made."""
    made: Any = structurer(Named)({"name": "a", "counts": {"b": 1}, "track": {"lat": 1}})

    assert made == Named("a", {"b": 1}, Track(1.0))
    assert type(made.track.lat) is float
    assert hash(structurer(Point)({"lat": 1})) == hash(Point(1.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "b"
