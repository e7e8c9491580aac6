"""The map: streets, crossings and a bay of a city that does not exist.

Places are whole metres from the north-west corner of a square.
"""

from __future__ import annotations

import math
import random
from typing import Final, NamedTuple

import attrs

__all__ = ["SIZE", "City", "Place", "Street", "build_city"]

SIZE: Final = 6000
"""Metres of a side of the map."""
RINGS: Final = (320, 700, 1120, 1580, 2080, 2650)
"""Radii of the ring streets in metres."""
SPOKES: Final = 18
"""Streets from the centre outwards."""
WIDE: Final = frozenset({2, 5})
"""The rings that are main streets; every third spoke is one as well."""
SEED: Final = 7
"""Always the same city."""

BAY: Final = (
    (6000, 3450), (5560, 3620), (5150, 3560), (4760, 3790), (4560, 4180), (4180, 4330),
    (3930, 4660), (3980, 5080), (3720, 5420), (3790, 6000), (6000, 6000),
)  # fmt: skip
"""The shore, as a polygon."""


class Place(NamedTuple):
    """A point of the map."""

    x: int
    y: int


@attrs.frozen
class Street:
    """A straight piece of a street between two crossings."""

    a: int
    b: int
    """The crossings at its ends."""
    wide: bool
    """A main street, on which vehicles are faster."""
    length: float
    """Metres."""


@attrs.frozen
class City:
    """Crossings, and the streets between them."""

    places: tuple[Place, ...]
    streets: tuple[Street, ...]
    exits: tuple[tuple[int, ...], ...]
    """The numbers of the streets at each crossing."""


def in_bay(x: float, y: float) -> bool:
    """Return whether a point lies in the water: a ray from it crosses the shore an odd number of times."""
    inside = False
    for (ax, ay), (bx, by) in zip(BAY, (*BAY[1:], BAY[0]), strict=True):
        if (ay > y) != (by > y) and x < (bx - ax) * (y - ay) / (by - ay) + ax:
            inside = not inside
    return inside


def build_city() -> City:
    """Return the city: ring streets and spokes around a centre, without those in the water."""
    drawn = random.Random(SEED)  # noqa: S311 - a map, no secret
    centre = SIZE / 2
    places = [Place(SIZE // 2, SIZE // 2)]
    numbers: dict[tuple[int, int], int] = {}
    for ring, radius in enumerate(RINGS):
        for spoke in range(SPOKES):
            angle = math.tau * spoke / SPOKES + drawn.uniform(-0.09, 0.09) + ring * 0.05
            far = radius * drawn.uniform(0.93, 1.07)
            x, y = centre + far * math.cos(angle), centre + far * math.sin(angle)
            if not in_bay(x, y):
                numbers[ring, spoke] = len(places)
                places.append(Place(round(x), round(y)))
    streets = []
    for (ring, spoke), number in numbers.items():
        inner = 0 if ring == 0 else numbers.get((ring - 1, spoke))
        # Every second spoke ends at the innermost ring: 18 streets do not meet at one crossing.
        if inner is not None and (ring > 0 or spoke % 2 == 0):
            streets.append(_street(places, inner, number, wide=spoke % 3 == 0))
        beside = numbers.get((ring, (spoke + 1) % SPOKES))
        if beside is not None:
            streets.append(_street(places, number, beside, wide=ring in WIDE))
    exits = tuple(
        tuple(index for index, street in enumerate(streets) if number in (street.a, street.b))
        for number in range(len(places))
    )
    return City(tuple(places), tuple(streets), exits)


def _street(places: list[Place], a: int, b: int, *, wide: bool) -> Street:
    return Street(a, b, wide, math.dist(places[a], places[b]))
