"""Classes for the routes under test, and a route that returns the repr of its value."""

from __future__ import annotations

import enum
import gc
import threading
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

import annotated_types as at
import attrs

from tangram.routing import APIRouter, Query, RouteTable
from tests.routing.calling import table_of


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@attrs.define
class Point:
    lat: float
    lon: float = 0.0


@dataclass
class Named:
    name: str
    points: list[Point]


class Options(TypedDict):
    size: int
    colour: NotRequired[Colour]


@attrs.define
class Circle:
    kind: Literal["circle"]
    radius: float = attrs.field(validator=attrs.validators.gt(0))


@attrs.define
class Square:
    kind: Literal["square"]
    side: Annotated[float, at.Gt(0)]


def note_thread(_instance: Any, _attribute: Any, _value: Any) -> None:
    Noting.threads.append(threading.current_thread())
    Noting.thresholds.append(gc.get_threshold()[2])


@attrs.frozen
class Noting:
    """A class that notes in which threads its values were made, and when full collections were due."""

    threads: ClassVar[list[threading.Thread]] = []
    thresholds: ClassVar[list[int]] = []
    text: str = attrs.field(validator=note_thread)


@attrs.define
class Node:
    value: int
    children: list[Node] = attrs.field(factory=list)


class State:
    name = "the state"


def paged(limit: Annotated[int, Query(ge=1)]) -> int:
    return limit


def echo(annotation: Any, default: Any = ..., method: str = "GET", path: str = "/") -> RouteTable:
    """Return a table with a route that answers with the repr of its parameter ``x``."""

    async def handler(x: Any) -> str:
        return repr(x)

    handler.__annotations__ = {"x": annotation, "return": str}
    if default is not ...:
        handler.__defaults__ = (default,)
    router = APIRouter()
    router.add_api_route(path, handler, methods=[method])
    return table_of(router)
