"""LongPoll: its answers, and the real client that falls back to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx
import pytest
import trio
import trio.lowlevel

from tangram.gateway.channels import Channels
from tangram.gateway.longpoll import longpoll_router
from tangram.routing import Mount, RouteTable
from tangram.testing.run.transport import open_engine
from tests.channels.fakes import FakeBus, Settings
from tests.e2e.prepare import PHOENIX, find_node, find_phoenix
from tests.gateway.test_other_clients import DRIVERS, start, token
from tests.http.serving import make_channels

pytestmark = pytest.mark.slow


@attrs.define
class Site:
    url: str
    channels: Channels
    bus: FakeBus
    client: httpx.AsyncClient

    async def poll(self, session: str = "", **more: str) -> dict[str, Any]:
        """Poll once."""
        answer = await self.client.get("/longpoll", params={"vsn": "2.0.0", "token": session, **more})
        assert answer.status_code == 200
        return dict(answer.json())

    async def push(self, session: str, *frames: object) -> int:
        """Push frames, and return the status."""
        body = "\n".join(frame if isinstance(frame, str) else json.dumps(frame) for frame in frames)
        answer = await self.client.post("/longpoll", params={"token": session}, content=body)
        return int(answer.json()["status"])


@asynccontextmanager
async def open_site(settings: Settings | None = None) -> AsyncIterator[Site]:
    bus = FakeBus()
    channels = make_channels(bus, settings)
    app: Any = RouteTable([Mount(longpoll_router(lambda: channels), "tangram", lambda _: None)])
    async with trio.open_nursery() as nursery:
        await nursery.start(channels.run)
        async with open_engine("native", app) as engine:
            async with httpx.AsyncClient(base_url=engine.url, timeout=20) as client:
                with trio.fail_after(20):
                    yield Site(engine.url, channels, bus, client)
                await channels.drain(within=1)
        nursery.cancel_scope.cancel()


async def join(site: Site) -> str:
    """Open a session that has joined ``room``, and return its token."""
    session = (await site.poll(userToken=token("room")))["token"]
    assert await site.push(session, ["1", "1", "room", "phx_join", {}]) == 200
    (reply, *_) = [json.loads(text) for text in (await site.poll(session))["messages"]]
    assert reply[4]["status"] == "ok"
    return str(session)


async def test_a_session_exchanges_messages() -> None:
    """It is opened with 410; frames are answered, and events come with the next poll."""
    async with open_site(Settings(presence=False)) as site:
        opened = await site.poll()
        assert (opened["status"], bool(opened["token"])) == (410, True)
        session = await join(site)
        site.channels.deliver([(b"to:room:e", b"[1]"), (b"to:room:e", b"text"), (b"to:room:e", b"\xff")])
        polled = await site.poll(session)
        assert await site.push(session, ["1", "2", "room", "x", {"a": 1}], "AAEBBAEzMnJvb214/w==") == 200

        assert [json.loads(text)[4] for text in polled["messages"]] == [[1], "text"]
        assert [json.loads(payload) for payload in site.bus.payloads("from:room:x")] == [{"a": 1}]


async def test_a_poll_waits_for_messages() -> None:
    """A message that comes during a poll ends it at once."""
    async with open_site(Settings(presence=False)) as site, trio.open_nursery() as nursery:
        session = await join(site)

        async def publish_later() -> None:
            await trio.sleep(0.2)
            site.channels.deliver([(b"to:room:e", b"[1]")])

        nursery.start_soon(publish_later)
        with trio.fail_after(30):
            assert (await site.poll(session))["status"] == 200


async def test_a_session_that_was_closed_is_gone() -> None:
    """After an overflow the client gets 410, and no member is left."""
    async with open_site(Settings(presence=False, max_backlog=1000)) as site:
        session = await join(site)
        for _ in range(20):
            site.channels.deliver([(b"to:room:e", b'["%b"]' % (b"x" * 200))])
        while site.channels.statistics().connections:  # noqa: ASYNC110 - the channels have no event for it
            await trio.sleep(0.01)

        assert site.channels.statistics().hub.members == 0
        assert await site.push(session, ["1", "2", "room", "x", {}]) == 410
        assert (await site.poll(session))["status"] == 410


async def test_very_many_frames_of_one_request_are_handled_in_steps() -> None:
    """Twenty thousand pushes are published in order, and other tasks run meanwhile."""
    turns = 0
    async with (
        open_site(Settings(presence=False, push_replies=False)) as site,
        trio.open_nursery() as nursery,
    ):
        session = await join(site)

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        frames = [f'["1",null,"room","x",{number}]' for number in range(20_000)]
        nursery.start_soon(count)
        assert await site.push(session, *frames) == 200
        nursery.cancel_scope.cancel()

    assert [int(payload) for payload in site.bus.payloads("from:room:x")] == list(range(20_000))
    assert turns >= 100


async def test_a_refused_client_gets_403() -> None:
    """Another version or another origin is refused as for WebSockets."""
    async with open_site() as site:
        assert (await site.client.get("/longpoll?vsn=9")).json() == {"status": 403}
        answer = await site.client.get("/longpoll", headers={"origin": "http://evil.example"})
        assert answer.json() == {"status": 403}


@pytest.mark.parametrize("version", PHOENIX[:2])
async def test_the_real_client_falls_back_and_works(version: str) -> None:
    """phoenix.js whose WebSocket fails joins over LongPoll, pushes and receives."""
    node, _ = find_node()
    seen: list[dict[str, Any]] = []
    async with open_site() as site, trio.open_nursery() as nursery:
        driver = str(DRIVERS / "longpoll.mjs")
        url = site.url.replace("http", "ws", 1)
        program = await start(nursery, node, driver, str(find_phoenix(version)), url, token("room"))
        while "pushed" not in {one["kind"] for one in seen} or "raw" not in {one["kind"] for one in seen}:
            seen.append(json.loads(await program.line()))
        site.channels.deliver([(b"to:room:shout", b'{"n":2}')])
        while seen[-1]["kind"] != "shout":
            seen.append(json.loads(await program.line()))
        nursery.cancel_scope.cancel()

    assert {"kind": "joined"} in seen
    assert seen[-1]["payload"] == {"n": 2}
    assert site.bus.payloads("from:room:raw") == [b"\x00\xff"]
