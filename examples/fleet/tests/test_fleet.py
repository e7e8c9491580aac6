"""The plugin in a whole server, with a virtual clock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import pytest
import trio

import tangram
from tangram.testing import RunningTangram, open_tangram
from tangram_example_fleet import FORGET, plugin
from tangram_example_fleet.city import SIZE, build_city, in_bay
from tangram_example_fleet.traffic import KEPT, Traffic


@pytest.fixture
async def server() -> AsyncIterator[RunningTangram]:
    async with open_tangram([plugin], {"plugins": {"plugin": {"vehicles": 20}}}, fakes=True) as running:
        yield running


def test_vehicles_stay_on_land_and_keep_their_pace() -> None:
    """Each step is at most as long as the vehicle's speed allows, and a trail ends at the position."""
    traffic = Traffic(100)
    for _ in range(2 * KEPT):
        before = traffic.positions
        traffic.step(1.0)
        for vehicle in traffic.vehicles:
            old, new = (places[2 * vehicle.id : 2 * vehicle.id + 2] for places in (before, traffic.positions))
            # At a crossing the vehicle changes its lane, 28 m at most; places are whole metres.
            assert math.dist(old, new) <= 13 * 1.2 * 1.6 + 30
            assert all(0 <= value <= SIZE for value in new)
    assert not any(in_bay(*place) for place in traffic.city.places)
    assert len(traffic.trail(7)) == 2 * KEPT
    assert traffic.trail(7)[-2:] == traffic.positions[14:16]


def test_every_crossing_can_be_reached() -> None:
    """No vehicle is caught in a part of the city."""
    city = build_city()
    seen, wait = {0}, [0]
    while wait:
        for index in city.exits[wait.pop()]:
            ends = {city.streets[index].a, city.streets[index].b} - seen
            seen |= ends
            wait += ends

    assert seen == set(range(len(city.places)))


async def test_one_message_moves_all_vehicles(autojump_clock: object, server: RunningTangram) -> None:
    """Positions come once a second, and the vehicles drive on."""
    async with server.join("fleet") as channel:
        first, second = [await channel.receive() for _ in range(2)]

    assert {first.name, second.name} == {"positions"}
    assert len(first.payload["places"]) == 40
    assert first.payload["places"] != second.payload["places"]


async def test_a_selection_is_answered_and_marked(autojump_clock: object, server: RunningTangram) -> None:
    """The reply has the vehicle and its trail; the mark ends with the selection."""
    async with server.join("fleet", id="ann") as ann, server.join("fleet", id="bob") as bob:
        reply = await ann.push("select", {"vehicle": 7})
        again = await bob.push("select", {"vehicle": 7})
        with trio.fail_after(10):
            while (message := await bob.receive()).name != "followed":
                pass
        await ann.push("release", {})
        await bob.push("release", {})
        with trio.fail_after(10):
            while (last := await bob.receive()).payload != {"vehicles": []}:
                pass

    assert (reply["vehicle"], reply["followers"], again["followers"]) == (7, 1, 2)
    assert reply["name"].endswith(" 8")
    assert len(reply["trail"]) >= 2
    assert message.payload == {"vehicles": [7]}
    assert last.name == "followed"


async def test_a_page_that_has_left_is_forgotten(autojump_clock: object, server: RunningTangram) -> None:
    """Its selection ends when it is not renewed."""
    async with server.join("fleet", id="bob") as bob:
        async with server.join("fleet", id="ann") as ann:
            await ann.push("select", {"vehicle": 3})
        positions = 0
        with trio.fail_after(4 * FORGET):
            while (message := await bob.receive()).payload != {"vehicles": []}:
                positions += message.name == "positions"

    assert FORGET - 1 <= positions <= FORGET + 2


@pytest.mark.parametrize(
    ("payload", "status"), [({"vehicle": 20}, 404), ({"vehicle": "bus"}, None), ({}, None)]
)
async def test_a_bad_selection_is_refused(
    autojump_clock: object, server: RunningTangram, payload: dict[str, object], status: int | None
) -> None:
    """An unknown number and a payload that does not fit get an error reply."""
    async with server.join("fleet") as channel:
        with pytest.raises(tangram.Refused) as refused:
            await channel.push("select", payload)

    assert refused.value.response.get("status") == status
    assert status is not None or refused.value.response["detail"][0]["loc"] == ["payload", "vehicle"]


async def test_a_new_page_has_the_map_at_once(autojump_clock: object) -> None:
    """The newest positions come with the join, long before the next message."""
    async with open_tangram([plugin], {"plugins": {"plugin": {"period": 60.0}}}, fakes=True) as server:
        token = await tangram.fetch_token(server.url, "fleet")
        async with server.open_socket() as socket:
            channel = await socket.join("fleet", token=token.token, recover=True)
            with trio.fail_after(10):
                message = await channel.receive()

    assert message.name == "positions"
    assert len(message.payload["places"]) == 1000


async def test_routes(autojump_clock: object, server: RunningTangram) -> None:
    """Programs get the same data, and the page has its files."""
    listed = (await server.http.get("/fleet/vehicles")).json()
    one = (await server.http.get("/fleet/vehicles/3")).json()
    city = (await server.http.get("/fleet/map")).json()

    assert (len(listed), one["name"]) == (20, listed[3]["name"])
    assert city["size"] == SIZE
    assert all(len(road["line"]) == 4 for road in city["roads"])
    assert (await server.http.get("/fleet/vehicles/20")).status_code == 404
    for path, kind in (("", "text/html"), ("page.js", "text/javascript"), ("page.css", "text/css")):
        answer = await server.http.get(f"/fleet/{path}")
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)
