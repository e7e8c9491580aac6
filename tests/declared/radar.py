"""A plugin with declared channels of all kinds of types."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import attrs
import msgspec

import tangram


class Level(Enum):
    LOW = "low"
    HIGH = "high"


class Position(msgspec.Struct):
    """A position of an aircraft."""

    icao: str
    lat: float
    lon: float
    level: Level = Level.LOW


@attrs.frozen
class Select:
    icao: str
    zoom: Annotated[int, msgspec.Meta(ge=0)] = 3
    mode: Literal["follow", "show"] = "show"


@dataclass
class Selected:
    near: list[Position]
    count: int | None = None
    names: dict[str, str] = field(default_factory=dict)


class Note(TypedDict):
    text: str
    by: NotRequired[str]


class Tree(msgspec.Struct):
    name: str
    below: list[Tree] = []


plugin = tangram.Plugin()
flights = plugin.channel("flights:{area}", description="Aircraft of an area */ <here>")
position = flights.sends("position", Position, description="once a second")
noted = flights.sends("note", Note)
picture = flights.sends("picture", bytes)
tree = flights.sends("tree", Tree)
clock = plugin.channel("clock")
tick = clock.sends("tick", list[int])


@flights.receives("select", Select)
async def select(message: Select, area: str) -> Selected:
    """Select an aircraft."""
    return Selected([Position(message.icao, 1.0, 2.0)], names={"area": area})


@flights.receives("place", Position)
async def place(message: Position) -> None:
    await position.publish(message, area="eu")


@flights.receives("note me/now", Note)
def note(message: Note) -> Note:
    return message


@flights.receives("upload", bytes)
async def upload(message: bytes) -> Any:
    return len(message)
