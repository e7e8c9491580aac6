"""Hold the tables and lists of ``docs/architecture.md`` against the code."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import FrameType, ModuleType
from typing import Final

import pytest
import trio

import tangram
from tangram.client import Channel
from tangram.testing import RunningTangram, open_tangram

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tangram"
PAGE = (ROOT / "docs" / "architecture.md").read_text()

CHANGES_OF_A_STRANGER: Final = (
    "a Redis Cluster URL",
    "Server-Sent Events",
    "presence over several nodes",
    "a body limit of one route",
    "a new close code",
    "a plugin's own restart budget",
    "a metric",
    "a command",
    "a new fault",
    "a new setting",
)
"""Changes whose place a reader must find in the table without knowing the tree."""


def section(title: str) -> str:
    """Return the text below a heading, up to the next heading of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[2]


def rows(title: str) -> list[tuple[str, str]]:
    """Return the first two cells of each row of the table below a heading."""
    cells = [line.strip("| ").split(" | ") for line in section(title).splitlines() if line.startswith("| ")]
    return [(row[0], row[1]) for row in cells[1:]]


def places(cell: str) -> list[str]:
    """Return the files and folders that a cell names in backticks."""
    return re.findall(r"`([\w/.]+?(?:/|\.py|\.md|\.toml|\.json))`", cell)


def test_every_room_is_on_the_map_and_every_name_is_a_room() -> None:
    """The table of rooms has one row for each package and module directly below ``tangram``."""
    on_disk = {f"{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    on_disk |= {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    named = [name for cell, _ in rows("Rooms") for name in re.findall(r"`([\w/.]+)`", cell)]

    assert sorted(named) == sorted(on_disk)


def test_every_change_names_places_that_exist() -> None:
    """Each row of the table of changes names at least one place, and each place exists."""
    named = {change: places(cell) for change, cell in rows("The change is about, the room")}
    missing = [
        place
        for found in named.values()
        for place in found
        if not (PACKAGE / place).exists() and not (ROOT / place).exists()
    ]

    assert missing == []
    assert [change for change, found in named.items() if not found] == []


def test_every_room_is_the_place_of_some_change() -> None:
    """No room is left out of the table of changes."""
    named = [place for _, cell in rows("The change is about, the room") for place in places(cell)]
    rooms = [name for cell, _ in rows("Rooms") for name in re.findall(r"`([\w/.]+)`", cell)]

    assert [room for room in rooms if not any(place.startswith(room) for place in named)] == []


def test_a_stranger_finds_ten_changes() -> None:
    """The table answers the questions of a first reader word by word."""
    assert set(CHANGES_OF_A_STRANGER) <= {change for change, _ in rows("The change is about, the room")}


def steps(title: str) -> list[str]:
    """Return the functions of a way, in order, as ``module:Class.function``."""
    return re.findall(r"^\d+\. `([\w.]+:[\w.]+)`", section(title), re.MULTILINE)


def module_of(name: str) -> tuple[ModuleType, str]:
    """Import the module of a step; return it with the qualified name within it."""
    module, _, qualname = name.partition(":")
    return import_module(f"tangram.{module}"), qualname


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Record each call of a function of tangram in this thread, as the page writes it."""
    calls: list[str] = []

    def on_event(frame: FrameType, event: str, _argument: object) -> None:
        module = str(frame.f_globals.get("__name__", ""))
        if event == "call" and module.startswith("tangram."):
            calls.append(f"{module.removeprefix('tangram.')}:{frame.f_code.co_qualname}")

    sys.setprofile(on_event)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def unmet(way: list[str], calls: list[str]) -> list[str]:
    """Return the steps that did not come, in their order, among the calls."""
    rest = iter(calls)
    return [step for step in way if not any(call == step for call in rest)]


router = tangram.APIRouter()


@router.post("/move")
async def move(state: tangram.BackendState) -> None:
    await state.publish("to:map:moved", '{"x": 1}')


@router.get("/greet/{name}")
async def greet(name: str) -> dict[str, str]:
    return {"hello": name}


def a_plugin() -> tangram.Plugin:
    plugin = tangram.Plugin(routers=[router])

    @plugin.register_service()
    async def listen(state: tangram.BackendState) -> None:
        async with state.subscribe("from:map:*") as messages:
            async for _ in messages:
                pass

    @plugin.channel("{name}").receives("mark", dict)
    async def mark(message: dict[str, int]) -> dict[str, int]:
        return {"marked": message["id"]}

    return plugin


@asynccontextmanager
async def joined(running: RunningTangram) -> AsyncIterator[Channel]:
    token = await tangram.fetch_token(running.url, "map")
    async with running.open_socket() as socket:
        yield await socket.join("map", token=token.token)


async def message(running: RunningTangram, channel: Channel) -> None:
    await running.http.post("/move")
    while (await channel.receive()).name != "moved":
        pass


async def push(_running: RunningTangram, channel: Channel) -> None:
    assert await channel.push("select", {"id": 1}) is not None


async def declared_push(_running: RunningTangram, channel: Channel) -> None:
    assert await channel.push("mark", {"id": 1}) == {"marked": 1}


async def request(running: RunningTangram, _channel: Channel) -> None:
    assert (await running.http.get("/greet/you")).json() == {"hello": "you"}


async def crash(running: RunningTangram, _channel: Channel) -> None:
    running.crash("plugin:plugin")
    await running.wait_ready(2)


Scenario = Callable[[RunningTangram, Channel], Awaitable[None]]


@pytest.mark.parametrize("scenario", [message, push, declared_push, request, crash])
async def test_the_way_on_the_page_is_the_way_through_the_code(scenario: Scenario) -> None:
    """A real server calls the functions of the list in that order."""
    way = steps(f"The way of a {scenario.__name__.replace('_', ' ')}")

    async with open_tangram([a_plugin()], fakes=True) as running, joined(running) as channel:
        await trio.testing.wait_all_tasks_blocked(0.05)
        with recorded() as calls:
            await scenario(running, channel)
            await trio.testing.wait_all_tasks_blocked(0.05)

    assert len(way) >= 8
    assert unmet(way, calls) == []


async def test_the_way_of_a_setting_is_the_way_through_the_code() -> None:
    """From the table of a file to the part that obeys, in the order of the list."""
    way = steps("The way of a setting")

    with recorded() as calls:
        async with open_tangram([a_plugin()], {"channel": {"max_joins": 7}}, fakes=True):
            pass

    assert len(way) >= 5
    assert unmet(way, calls) == []


def test_every_step_is_a_function_that_exists() -> None:
    """A renamed function is missed by its name here, before a scenario misses it."""
    ways = ["message", "push", "declared push", "request", "crash", "setting"]
    named = [step for way in ways for step in steps(f"The way of a {way}")]

    for step in named:
        module, qualname = module_of(step)
        assert callable(attrgetter(qualname)(module)), step


def test_a_step_out_of_order_is_missed() -> None:
    """The comparison minds the order, not only the presence."""
    assert unmet(["a", "c", "b"], ["a", "b", "c"]) == ["b"]
