"""The unmodified npm package ``phoenix``, current and previous minor version."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tangram.channels import disconnects
from tangram.client import fetch_token
from tests.channels.fakes import Settings
from tests.e2e.prepare import PHOENIX, find_node
from tests.http.serving import Server, open_server

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("phoenix_driver.cjs")


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Return the folder with the packages; without it the tests fail with advice."""
    return find_node()[1]


class Browser:
    """Node with phoenix.js.

    ``see`` waits for the next observation that fits, and keeps the others.
    """

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._seen: list[dict[str, Any]] = []
        self._rest = b""

    async def tell(self, command: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps({"command": command, **arguments}).encode() + b"\n")

    async def see(self, kind: str, **wanted: Any) -> dict[str, Any]:
        with trio.fail_after(30):
            while True:
                for index, seen in enumerate(self._seen):
                    if seen["kind"] == kind and all(
                        seen.get(name) == value for name, value in wanted.items()
                    ):
                        return self._seen.pop(index)
                await self._read()

    def seen(self, kind: str) -> list[dict[str, Any]]:
        return [seen for seen in self._seen if seen["kind"] == kind]

    async def _read(self) -> None:
        assert self._process.stdout is not None
        data = await self._process.stdout.receive_some()
        assert data, f"node ended; seen so far: {self._seen}"
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._seen += [json.loads(line) for line in lines]

    async def join(self, server: Server, topic: str, id_: str | None = None, **more: Any) -> str:
        token = await fetch_token(server.url, topic, id_)
        await self.tell("join", topic=topic, params={"token": token.token}, **more)
        return token.id


@asynccontextmanager
async def open_browser(
    version: str, node_modules: Path, url: str | None, **options: Any
) -> AsyncIterator[Browser]:
    async with trio.open_nursery() as nursery:

        async def start(task_status: trio.TaskStatus[trio.Process]) -> None:
            await trio.run_process(
                ["node", str(DRIVER), str(node_modules), f"phoenix-{version}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                check=False,
                task_status=task_status,
            )

        process = await nursery.start(start)
        browser = Browser(process)
        if url is not None:
            await browser.tell("connect", url=url.replace("http", "ws", 1), options=options)
            await browser.see("open")
        yield browser
        await process.stdin.aclose()
        await process.stdout.aclose()


@pytest.fixture(params=PHOENIX)
def browser(request: pytest.FixtureRequest, node_modules: Path) -> partial[Any]:
    return partial(open_browser, request.param, node_modules)


async def test_join_event_push_leave(browser: Callable[..., Any]) -> None:
    """Join, presence, events and pushes of both kinds with replies, heartbeat, leave."""
    async with open_server() as server, browser(server.url) as page:
        id_ = await page.join(server, "weather:wind")
        joined = await page.see("join", status="ok")
        assert joined["response"]["id"].endswith(
            "weather:wind:" + joined["response"]["id"].rpartition(":")[2]
        )
        await page.see("presence", ids=[id_])

        server.bus.publish_nowait("to:weather:wind:update", '{"temperature": 25.5, "é": "✓"}'.encode())
        server.bus.publish_nowait("to:weather:wind:raw", b"\x00\x01\xff")
        server.bus.publish_nowait("to:weather:wind:text", b"Hello from plugin")
        assert (await page.see("event", event="update"))["payload"] == {"temperature": 25.5, "é": "✓"}
        assert (await page.see("event", event="raw"))["payload"] == {"hex": "0001ff"}
        assert (await page.see("event", event="text"))["payload"] == {"hex": b"Hello from plugin".hex()}

        await page.tell("push", name="weather:wind", event="hello", payload={"message": "hi", "user": "bob"})
        assert (await page.see("push", event="hello"))["status"] == "ok"
        await page.tell("push", name="weather:wind", event="bin", hex="00ff")
        assert (await page.see("push", event="bin"))["status"] == "ok"
        await page.tell("push", name="weather:wind", event="empty", hex="")
        assert (await page.see("push", event="empty"))["status"] == "ok"
        assert server.bus.payloads("from:weather:wind:hello") == [b'{"message":"hi","user":"bob"}']
        assert server.bus.payloads("from:weather:wind:bin") == [b"\x00\xff"]
        assert server.bus.payloads("from:weather:wind:empty") == [b""]

        await page.tell("ping")
        await page.see("pong")
        await page.tell("leave", name="weather:wind")
        assert (await page.see("leave"))["status"] == "ok"
        await page.tell("ping")
        await page.see("pong")
        assert server.bus.payloads("from:phoenix:heartbeat")[1] == b"{}"
        assert server.bus.payloads("from:weather:wind:phx_leave") == [b"{}"]


async def test_a_refused_join_is_not_retried(browser: Callable[..., Any]) -> None:
    """A refused join calls the error hook with the reason, and is not retried.

    The other channels stay joined.
    """
    async with open_server() as server, browser(server.url) as page:
        await page.join(server, "obs")
        await page.see("join", status="ok")
        await page.tell("join", topic="other", params={"token": (await fetch_token(server.url, "obs")).token})
        refused = await page.see("join", name="other")
        assert (refused["status"], refused["response"]) == ("error", {"reason": "wrong channel"})
        await page.see("channel-closed", name="other")

        server.bus.publish_nowait("to:obs:e", b"{}")
        await page.see("event", name="obs")
        assert server.bus.payloads("from:other:phx_join") == []


async def test_the_user_token_is_good_for_its_own_channel(browser: partial[Any]) -> None:
    """A join without a token uses the connection's token.

    That is in the query or in the bearer subprotocol.
    """
    async with open_server() as server:
        token = (await fetch_token(server.url, "system")).token
        ways: list[dict[str, Any]] = [{"params": {"userToken": token}}]
        if not browser.args[0].startswith("1.7."):  # 1.7 offers no subprotocol
            ways.append({"authToken": token})
        for options in ways:
            async with browser(server.url, **options) as page:
                await page.tell("join", topic="system", params={})
                assert (await page.see("join", name="system"))["status"] == "ok"
                await page.tell("join", topic="obs", params={})
                assert (await page.see("join", name="obs"))["response"] == {"reason": "wrong channel"}


async def test_presence_of_three(browser: Callable[..., Any]) -> None:
    """Each list is right after joins, a second socket of an id, a leave and a lost connection."""
    async with open_server() as server, browser(server.url) as alice:
        await alice.join(server, "obs", "alice")
        await alice.see("presence", ids=["alice"])
        async with browser(server.url) as bob:
            await bob.join(server, "obs", "bob")
            await bob.see("presence", ids=["alice", "bob"])
            await alice.see("presence", ids=["alice", "bob"])
        await alice.see("presence", ids=["alice"])


async def test_clients_rejoin_after_a_restart(browser: Callable[..., Any]) -> None:
    """A client that is closed with 1012 connects and joins again by itself."""
    async with open_server() as server, browser(server.url) as page:
        await page.join(server, "obs")
        await page.see("join", status="ok")
        await server.channels.drain(disconnects.RESTART, within=2)
        server.channels._draining = False

        assert (await page.see("closed"))["code"] == 1012
        await page.see("open")
        await page.see("join", status="ok")


async def test_an_interrupted_feed_makes_members_rejoin(browser: Callable[..., Any]) -> None:
    """After an outage of Redis phx_error makes the channel join again within about a second."""
    async with open_server() as server, browser(server.url) as page:
        await page.join(server, "obs")
        await page.see("join", status="ok")
        server.channels.on_up(False)
        server.bus.up = False
        await page.tell("push", name="obs", event="hello", payload={})
        assert (await page.see("push"))["response"] == {"reason": "unavailable"}
        server.bus.up = True
        server.channels.on_up(True)

        await page.see("errored", name="obs")
        await page.see("join", status="ok")
        server.bus.publish_nowait("to:obs:e", b"{}")
        await page.see("event", name="obs")


async def test_joining_twice_ends_the_old_channel(browser: Callable[..., Any]) -> None:
    """A second channel object for the same topic replaces the first; events come once."""
    async with open_server() as server, browser(server.url) as page:
        await page.join(server, "obs", name="first")
        await page.see("join", name="first", status="ok")
        await page.join(server, "obs", name="second")
        await page.see("join", name="second", status="ok")
        server.bus.publish_nowait("to:obs:e", b"{}")
        await page.see("event", name="second")

        assert page.seen("event") == []
        assert server.channels.statistics().hub.members == 1


async def test_a_full_socket_refuses_the_next_join(browser: Callable[..., Any]) -> None:
    """One join more than max_joins is an error; after a leave the client may try again."""
    async with open_server(Settings(max_joins=2)) as server, browser(server.url) as page:
        for topic in ("a", "b"):
            await page.join(server, topic)
            await page.see("join", name=topic, status="ok")
        await page.join(server, "c")
        assert (await page.see("join", name="c"))["response"] == {"reason": "too many channels"}
        await page.tell("leave", name="a")

        await page.see("join", name="c", status="ok")


async def test_a_foreign_version_cannot_connect(browser: Callable[..., Any]) -> None:
    """An unknown version is refused at the handshake."""
    async with open_server() as server, browser(None) as page:
        await page.tell("connect", url=server.url.replace("http", "ws", 1), options={"vsn": "3.0.0"})

        assert (await page.see("closed"))["code"] == 1006
        assert server.channels.statistics().accepted == 0
