"""500 simulated vehicles on a map, and the selections of browsers.

Topic ``fleet``: the server sends ``positions`` once a second, one message for all vehicles, and
``followed`` when the selections change. Browsers push ``select`` and ``release``. The newest message of each
event is kept, so that a page shows the map as soon as it has joined.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs
import trio
from attrs import validators as v

import tangram
from tangram_example_fleet.city import BAY, SIZE
from tangram_example_fleet.traffic import Kind, Traffic, Vehicle

HERE: Final = Path(__file__).parent
MOST: Final = 5000
"""Vehicles that one message may hold."""
FORGET: Final = 15.0
"""Seconds after which a selection ends that its page has not renewed; pages renew it every three seconds."""


@attrs.frozen
class Config:
    """``[plugins.tangram_example_fleet]`` in ``tangram.toml``."""

    vehicles: int = attrs.field(default=500, validator=[v.ge(1), v.le(MOST)])
    period: float = attrs.field(default=1.0, validator=[v.ge(0.1), v.le(60)])
    """Seconds between two messages."""


@attrs.frozen
class Positions:
    """The places of all vehicles."""

    period: float
    """Seconds until the next message."""
    places: list[int]
    """``x`` and ``y`` of each vehicle in turn, in metres from the north-west corner."""


@attrs.frozen
class Followed:
    """The vehicles that browsers have selected."""

    vehicles: list[int]


@attrs.frozen
class Select:
    """The choice of a vehicle; it is renewed by the same message."""

    vehicle: int


@attrs.frozen
class Release:
    """The end of a choice."""


@attrs.frozen
class Details:
    """One vehicle, as the reply to its selection."""

    vehicle: int
    name: str
    kind: Kind
    speed: float
    """Kilometres an hour."""
    driven: float
    """Kilometres since the start of the plugin."""
    followers: int
    """Pages that have selected it."""
    trail: list[int]
    """Its last positions, the oldest first, as ``x`` and ``y`` in turn."""


@attrs.frozen
class Named:
    """A vehicle of the list; its index is its number."""

    name: str
    kind: Kind


@attrs.frozen
class Road:
    """A straight piece of a street."""

    wide: bool
    line: tuple[int, int, int, int]


@attrs.frozen
class Map:
    """The part of the picture that does not move."""

    size: int
    water: list[tuple[int, int]]
    roads: list[Road]


@attrs.define
class Depot:
    """The data of a running plugin."""

    traffic: Traffic = attrs.Factory(lambda: Traffic(0))
    selections: dict[str, tuple[int, float]] = attrs.field(factory=dict)
    """The vehicle of each connection, and the time of its last message."""

    def select(self, connection: str, number: int) -> Details:
        """Remember a selection, and describe the vehicle."""
        vehicle = self.find(number)
        self.selections[connection] = (number, trio.current_time())
        return self.describe(vehicle)

    def find(self, number: int) -> Vehicle:
        """Return a vehicle, or refuse the number."""
        if not 0 <= number < len(self.traffic.vehicles):
            raise tangram.HTTPException(404, f"no vehicle {number!r}")
        return self.traffic.vehicles[number]

    def describe(self, vehicle: Vehicle) -> Details:
        return Details(
            vehicle=vehicle.id,
            name=vehicle.name,
            kind=vehicle.kind,
            speed=round(vehicle.speed * 3.6, 1),
            driven=round(vehicle.driven / 1000, 2),
            followers=sum(number == vehicle.id for number, _seen in self.selections.values()),
            trail=self.traffic.trail(vehicle.id),
        )

    def followed(self) -> list[int]:
        """Forget pages that have left, and list the selected vehicles."""
        oldest = trio.current_time() - FORGET
        self.selections = {page: one for page, one in self.selections.items() if one[1] >= oldest}
        return sorted({number for number, _seen in self.selections.values()})


router = tangram.APIRouter(prefix="/fleet", tags=["fleet"])
plugin = tangram.Plugin(
    routers=[router],
    config_class=Config,
    history={"fleet": tangram.History(mode="latest", ttl=60)},
)
depot = Depot()

fleet = plugin.channel("fleet", description="Vehicles of a city, once a second")
positions = fleet.sends("positions", Positions)
followed = fleet.sends("followed", Followed)


@fleet.receives("select", Select)
async def select(message: Select, sender: tangram.Sender) -> Details:
    """Follow a vehicle: the reply describes it, and all maps mark it."""
    details = depot.select(sender.connection, message.vehicle)
    await followed.publish(Followed(depot.followed()))
    return details


@fleet.receives("release", Release)
async def release(_message: Release, sender: tangram.Sender) -> None:
    """Follow no vehicle any more."""
    depot.selections.pop(sender.connection, None)
    await followed.publish(Followed(depot.followed()))


@plugin.register_service()
async def drive(state: tangram.BackendState) -> None:
    """Move all vehicles, and publish their positions in one message."""
    config = state.plugin_config(Config)
    depot.traffic, depot.selections = Traffic(config.vehicles), {}
    marked: list[int] = []
    due = trio.current_time()
    while True:
        # Without Redis these positions are lost; the next ones replace them, so the plugin need not crash.
        with suppress(tangram.BrokerUnavailable):
            await positions.publish(Positions(config.period, depot.traffic.positions))
            if (now := depot.followed()) != marked:
                await followed.publish(Followed(now))
                marked = now
        # Measured from the last due time, so that pauses do not add up; missed steps are skipped.
        due = max(due + config.period, trio.current_time())
        await trio.sleep_until(due)
        depot.traffic.step(config.period)


@router.get("/map")
async def city_map() -> Map:
    """Return streets and water."""
    city = depot.traffic.city
    roads = [Road(it.wide, (*city.places[it.a], *city.places[it.b])) for it in city.streets]
    return Map(SIZE, list(BAY), roads)


@router.get("/vehicles")
async def vehicles() -> list[Named]:
    """List the vehicles."""
    return [Named(vehicle.name, vehicle.kind) for vehicle in depot.traffic.vehicles]


@router.get("/vehicles/{number}")
async def vehicle_details(number: int) -> Details:
    """Describe one vehicle."""
    return depot.describe(depot.find(number))


@router.get("/", response_class=tangram.HTMLResponse)
async def page() -> tangram.FileResponse:
    """Return the page."""
    return tangram.FileResponse(HERE / "page.html", media_type="text/html")


@router.get("/page.js")
async def script() -> tangram.FileResponse:
    """Return the page's script."""
    return tangram.FileResponse(HERE / "page.js", media_type="text/javascript")


@router.get("/page.css")
async def styles() -> tangram.FileResponse:
    """Return the page's styles."""
    return tangram.FileResponse(HERE / "page.css", media_type="text/css")
