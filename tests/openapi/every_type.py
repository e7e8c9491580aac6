"""A plugin whose routes have parameters and bodies of every type that routes accept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict
from uuid import UUID

import attrs

import tangram
from tangram.routing import Body, Cookie, Depends, Header, HTTPException, PlainTextResponse, Query, Response

__all__ = ["plugin"]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@attrs.define
class Point:
    """A place in a plane."""

    x: float
    y: float = 0.0
    name: Annotated[str, attrs.field(validator=attrs.validators.max_len(10))] = ""
    size: int = attrs.field(default=1, validator=[attrs.validators.ge(1), attrs.validators.le(9)])
    code: str = attrs.field(default="a1", validator=attrs.validators.matches_re(r"[a-z][0-9]"))


@dataclass
class Page:
    number: Annotated[int, Query(ge=1, le=1000)] = 1
    words: list[str] = field(default_factory=list)


class Options(TypedDict):
    depth: int
    colour: NotRequired[Colour]


@attrs.define
class Tree:
    value: int
    children: list[Tree] = attrs.field(factory=list)


@attrs.define
class Circle:
    radius: float


@attrs.define
class Box:
    width: float
    height: float


PLAIN: Final[dict[str, Any]] = {
    "integer": int,
    "number": float,
    "boolean": bool,
    "string": str,
    "bytes": bytes,
    "date": date,
    "datetime": datetime,
    "time": time,
    "timedelta": timedelta,
    "uuid": UUID,
    "decimal": Decimal,
    "path": PurePosixPath,
    "enum": Colour,
    "int_enum": Level,
    "literal": Literal["a", "b", 3],
    "optional": int | None,
    "union": int | bool | str,
    "limited": Annotated[int, Query(ge=2, lt=20, multiple_of=2)],
    "sized": Annotated[str, Query(min_length=2, max_length=4)],
    "pattern": Annotated[str, Query(pattern="^[a-c]+$")],
}
"""Types of path and query parameters."""

REPEATED: Final[dict[str, Any]] = {
    "list": list[int],
    "set": set[int],
    "frozenset": frozenset[str],
    "tuple": tuple[int, ...],
    "pair": tuple[int, str],
    "sequence": Sequence[date],
    "dates": set[datetime],
    "colours": list[Colour],
    "few": Annotated[list[int], Query(min_length=1, max_length=3)],
}
"""Types of repeated query parameters."""

BODIES: Final[dict[str, Any]] = {
    **PLAIN,
    **REPEATED,
    "attrs": Point,
    "dataclass": Page,
    "typed_dict": Options,
    "recursive": Tree,
    "classes": Circle | Box,
    "mapping": Mapping[str, int],
    "dict": dict[UUID, Point],
    "points": list[Point],
    "anything": Any,
    "nested": dict[str, list[tuple[int, Point | None]]],
    "sets": set[tuple[int, int]],
    "times": list[timedelta],
}
"""Types of JSON bodies."""

router = tangram.APIRouter(prefix="/types", tags=["types"])


def _handler(kind: Any) -> Callable[..., Any]:
    async def take(value: Any) -> str:
        return type(value).__name__

    take.__annotations__ = {"value": kind, "return": str}
    return take


for _name, _kind in PLAIN.items():
    router.get(f"/path/{_name}/{{value}}", name=f"path_{_name}")(_handler(_kind))
for _name, _kind in {**PLAIN, **REPEATED}.items():
    router.get(f"/query/{_name}", name=f"query_{_name}")(_handler(_kind))
for _name, _kind in BODIES.items():
    router.post(f"/body/{_name}", name=f"body_{_name}")(_handler(Annotated[_kind, Body()]))


@router.get("/rest/{rest:path}")
async def rest(rest: str) -> str:
    return rest


@router.get("/tiles/{z}/{x}-{y}.png")
async def tile(z: int, x: int, y: int) -> list[int]:
    return [z, x, y]


@router.get("/headers")
async def headers(
    x_level: Annotated[int, Header(ge=0)],
    x_colour: Annotated[Colour, Header()] = Colour.RED,
    session: Annotated[str, Cookie(min_length=1)] = "none",
) -> Level:
    return Level.LOW if session and x_level and x_colour is Colour.RED else Level.HIGH


@router.put("/members/{place}")
async def members(
    place: str,
    point: Point,
    options: Options,
    page: Annotated[Page, Depends()],
    note: Annotated[str, Body()] = "",
) -> dict[str, object]:
    return {"place": place, "point": point, "options": options, "page": page, "note": note}


@router.patch("/embedded")
async def embedded(point: Annotated[Point, Body(embed=True)]) -> Point:
    return point


@router.post("/raw", max_body=1000)
async def raw(data: Annotated[bytes, Body()]) -> int:
    return len(data)


@router.delete("/gone/{number}", status_code=204, responses={404: {"description": "There is no such number"}})
async def gone(number: Annotated[int, Query(ge=0)]) -> None:
    if number > 10:
        raise HTTPException(404)


@router.get("/text", response_class=PlainTextResponse)
def text(word: str = "word") -> str:
    return word


@router.get("/head")
async def own_get() -> str:
    return "get"


@router.head("/head", status_code=204)
async def own_head() -> None: ...


@router.get("/response")
async def own_response() -> Response:
    return Response(b"bytes", media_type="text/csv")


def _words() -> Iterator[str]:
    yield "word"


@router.get("/dependent")
async def dependent(
    word: Annotated[str, Depends(_words)], page: Annotated[Page, Depends()]
) -> dict[str, object]:
    return {"word": word, "page": page}


plugin = tangram.Plugin(routers=[router])
