"""The published plugins on this server, compared with the published server beside it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tangram.client import fetch_token, open_socket
from tangram.errors import ChannelClosed, Refused
from tests.downstream.harness import PUBLISHED, Environment, open_published, restart
from tests.e2e.browser import Browser
from tests.e2e.harness import Server, open_server, wait_until

QUESTIONS: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/weather/", None),
    ("GET", "/weather/wind", None),
    ("GET", "/weather/wind?isobaric=high", None),
    ("POST", "/weather/", None),
    ("GET", "/nothing/of/the/kind", None),
    ("POST", "/settings/validate/tangram_system", {"topbar_order": 3}),
    ("POST", "/settings/validate/tangram_system", {"topbar_order": "3"}),
    ("POST", "/settings/validate/tangram_system", {"topbar_order": "third"}),
    ("POST", "/settings/validate/tangram_system", {}),
    ("POST", "/settings/validate/tangram_globe", {"enabled": "perhaps"}),
    ("POST", "/settings/validate/tangram_airports", {"any": "thing"}),
    ("POST", "/settings/validate/tangram_weather", {}),
)


@pytest.fixture
async def ours(full: Environment) -> AsyncIterator[Server]:
    async with open_server(full, *PUBLISHED) as server:
        yield server


async def ask(url: str) -> list[tuple[int, Any]]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        answers = [await client.request(method, path, json=body) for method, path, body in QUESTIONS]
        return [(answer.status_code, answer.json()) for answer in answers]


async def test_routes_answer_as_published(ours: Server, tmp_path: Path) -> None:
    """Routes, refusals and checked settings answer with the published server's JSON."""
    async with open_published(tmp_path / "published") as url:
        theirs = await ask(url)

    for question, our_answer, their_answer in zip(QUESTIONS, await ask(ours.url), theirs, strict=True):
        assert our_answer == their_answer, question


async def test_the_manifest_is_as_published(ours: Server, tmp_path: Path) -> None:
    """The manifest's plugins are those of the published server, schemas included."""
    async with open_published(tmp_path / "published") as url, httpx.AsyncClient() as client:
        theirs = (await client.get(f"{url}/manifest.json")).json()
    manifest = await ours.get("/manifest.json")

    assert manifest["plugins"] == theirs["plugins"]
    assert manifest["core"].keys() == theirs["core"].keys()
    assert manifest["core"]["config"].keys() == theirs["core"]["config"].keys()
    assert manifest["core"]["config"]["map"].keys() == theirs["core"]["config"]["map"].keys()
    assert manifest["core"]["config_json_schema"] == theirs["core"]["config_json_schema"]
    for one, other in zip(_styles(manifest), _styles(theirs), strict=True):
        # Built-in colours and layers are this server's own.
        assert isinstance(one, str) is isinstance(other, str)
        assert one == other or one.keys() >= other.keys() - {"metadata"}
    for one, other in zip(_themes(manifest), _themes(theirs), strict=True):
        assert (one.keys(), one["name"]) == (other.keys(), other["name"])


def _styles(manifest: Any) -> list[Any]:
    styles: list[Any] = manifest["core"]["config"]["map"]["styles"]
    return styles


def _themes(manifest: Any) -> list[Any]:
    themes: list[Any] = manifest["core"]["config"]["core"]["themes"]
    return themes


async def test_the_routes_are_documented_together(ours: Server, tmp_path: Path) -> None:
    """One OpenAPI document has the plugins' routes as the published server shows them."""
    from openapi_spec_validator import validate

    async with open_published(tmp_path / "published") as url, httpx.AsyncClient() as client:
        theirs = (await client.get(f"{url}/openapi.json")).json()
    document = await ours.get("/openapi.json")
    operations = [op["operationId"] for item in document["paths"].values() for op in item.values()]

    validate(document)
    assert len(set(operations)) == len(operations)
    for path in ("/weather/", "/weather/wind"):
        our_get, their_get = document["paths"][path]["get"], theirs["paths"][path]["get"]
        assert our_get["parameters" if "parameters" in their_get else "tags"] == their_get.get(
            "parameters", their_get["tags"]
        )
    assert "/-/readyz" in document["paths"]


async def test_files_of_front_ends_are_served(ours: Server) -> None:
    """The modules and style sheets that the manifest names are served, and the shell itself."""
    manifest = await ours.get("/manifest.json")
    async with httpx.AsyncClient(base_url=ours.url, timeout=60) as client:
        for name, entry in manifest["plugins"].items():
            for key in {"main", "style"} & entry.keys():
                answer = await client.get(f"/plugins/{name}/{entry[key]}")

                assert answer.status_code == 200, (name, key)
                assert answer.content
        page = await client.get("/")

        assert page.status_code == 200
        assert "importmap" in page.text


async def test_the_service_publishes(ours: Server) -> None:
    """The system plugin's values arrive over the WebSocket."""
    received = await receive_messages(ours, 12)

    assert {payload["el"] for payload in received} == {"uptime", "info_utc", "cpu_load", "ram_usage"}


async def receive_messages(server: Server, count: int) -> list[Any]:
    """Return the next messages of the system plugin for browsers."""
    token = await fetch_token(server.url, "system")
    async with open_socket(server.url) as socket:
        channel = await socket.join("system", token=token.token)
        received: list[Any] = []
        with trio.fail_after(60):
            while len(received) < count:
                event = await channel.receive()
                if event.name == "update-node":
                    received.append(event.payload)
        return received


async def test_the_shell_loads_and_its_clock_moves(ours: Server, browser: Browser) -> None:
    """The published shell loads in a browser without errors, and its clock moves."""
    page = await browser.open_page(ours.url)
    text = "document.body.innerText"
    clock = f"(({text}).match(/\\d\\d:\\d\\d:\\d\\d/) || [''])[0]"
    first = await page.wait(clock, within=60)
    await page.wait(f"{clock} !== {json.dumps(first)} && {clock}")

    assert [error for error in page.errors if not of_the_internet(error)] == []


def of_the_internet(error: str) -> bool:
    """Return whether an error comes from hosts that the test cannot reach."""
    return "cartocdn.com" in error or "fonts.g" in error or "ERR_NAME_NOT_RESOLVED" in error


async def test_crash_restart_and_outage(full: Environment) -> None:
    """Routes and services come back after restarts and after a loss of the broker.

    The process has no more threads and descriptors than before.
    """
    import psutil

    async with open_server(full, *PUBLISHED) as server:
        process = psutil.Process(server.process.pid)

        async def serves() -> bool:
            try:
                await receive_messages(server, 1)
            except (Refused, ChannelClosed):  # while Redis is away, which a client is logged
                return False
            return bool((await server.get("/weather/"))["message"])

        async def settled() -> tuple[int, int]:
            await server.get("/-/readyz")
            return process.num_fds(), process.num_threads()

        assert await wait_until(serves, within=60)
        await restart(server, "tangram_system")
        assert await wait_until(serves, within=60)
        before = await settled()
        for _ in range(3):
            await restart(server, "tangram_system")
            await restart(server, "tangram_weather")
        server.broker().kill()
        assert await wait_until(serves, within=60)
        for name in PUBLISHED:
            await server.child(f"plugin:{name}")

        async def no_more() -> bool:
            descriptors, threads = await settled()
            return descriptors <= before[0] + 2 and threads <= before[1] + 1

        assert await wait_until(no_more, within=60)
        assert await server.stop() == 0
