"""Vehicles that drive through the city; one step moves all of them, without I/O."""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Final, Literal

import attrs

from tangram_example_fleet.city import City, Place, Street, build_city

__all__ = ["KEPT", "Kind", "Traffic", "Vehicle"]

Kind = Literal["bus", "van", "taxi"]

KINDS: Final[tuple[tuple[Kind, str, float, int], ...]] = (
    ("bus", "Bus", 9.0, 2),
    ("van", "Van", 11.0, 3),
    ("taxi", "Taxi", 13.0, 5),
)
"""Each kind with its name, its speed in metres a second, and its share."""
WIDE_FACTOR: Final = 1.6
"""Vehicles are so much faster on main streets."""
LANE: Final = 14
"""Metres to the right of the middle of the street: both directions are seen."""
KEPT: Final = 60
"""Steps whose positions are kept, for the trails of selected vehicles."""


@attrs.define(eq=False)
class Vehicle:
    """A vehicle on its way from one crossing to another."""

    id: int
    kind: Kind
    name: str
    pace: float
    """Metres a second on a narrow street."""
    street: Street
    start: int
    """The crossing that it comes from."""
    along: float = 0.0
    """Metres behind that crossing."""
    driven: float = 0.0
    """Metres since the start of the simulation."""

    @property
    def end(self) -> int:
        """The crossing that it drives to."""
        return self.street.b if self.start == self.street.a else self.street.a

    @property
    def speed(self) -> float:
        """Metres a second."""
        return self.pace * (WIDE_FACTOR if self.street.wide else 1.0)


class Traffic:
    """All vehicles, and their newest positions.

    Args:
        vehicles: the number of vehicles.
        seed: equal seeds give equal traffic.
    """

    def __init__(self, vehicles: int, seed: int = 1) -> None:
        self.city: City = build_city()
        self._drawn = random.Random(seed)  # noqa: S311 - traffic, no secret
        self.vehicles = [self._place(number) for number in range(vehicles)]
        self.steps: deque[list[int]] = deque([self._positions()], maxlen=KEPT)

    @property
    def positions(self) -> list[int]:
        """``x`` and ``y`` of each vehicle in turn, in metres."""
        return self.steps[-1]

    def step(self, seconds: float) -> None:
        """Move all vehicles."""
        for vehicle in self.vehicles:
            self._drive(vehicle, vehicle.speed * seconds)
        self.steps.append(self._positions())

    def trail(self, number: int) -> list[int]:
        """Return the kept positions of one vehicle, the oldest first, as ``x`` and ``y`` in turn."""
        return [value for step in self.steps for value in step[2 * number : 2 * number + 2]]

    def _place(self, number: int) -> Vehicle:
        drawn = self._drawn
        kind, name, pace, _share = drawn.choices(KINDS, [share for *_, share in KINDS])[0]
        street = drawn.choice(self.city.streets)
        start = drawn.choice((street.a, street.b))
        along = drawn.uniform(0, street.length)
        return Vehicle(
            number, kind, f"{name} {number + 1}", pace * drawn.uniform(0.8, 1.2), street, start, along
        )

    def _drive(self, vehicle: Vehicle, metres: float) -> None:
        vehicle.driven += metres
        vehicle.along += metres
        while vehicle.along >= vehicle.street.length:
            vehicle.along -= vehicle.street.length
            here = vehicle.end
            exits = self.city.exits[here]
            streets = [self.city.streets[index] for index in exits]
            onward = [street for street in streets if street is not vehicle.street]
            # A dead end is left the way that the vehicle came.
            vehicle.street = self._drawn.choice(onward) if onward else vehicle.street
            vehicle.start = here

    def _positions(self) -> list[int]:
        found: list[int] = []
        for vehicle in self.vehicles:
            found += _position(self.city.places, vehicle)
        return found


def _position(places: tuple[Place, ...], vehicle: Vehicle) -> tuple[int, int]:
    (ax, ay), (bx, by) = places[vehicle.start], places[vehicle.end]
    dx, dy = bx - ax, by - ay
    length = math.hypot(dx, dy)
    share = vehicle.along / length
    return round(ax + dx * share - dy / length * LANE), round(ay + dy * share + dx / length * LANE)
