"""Plugin, broker, server and browser together, with npm's unmodified ``phoenix``."""

from __future__ import annotations

import pytest
import trio

from tests.e2e.browser import Browser
from tests.e2e.harness import Home, open_server, wait_until
from tests.e2e.phoenix import open_client
from tests.e2e.prepare import PHOENIX


@pytest.mark.parametrize("version", PHOENIX)
async def test_join_receive_push_leave(home: Home, browser: Browser, version: str) -> None:
    """A browser joins, receives messages of a plugin, pushes to its subscriber, and leaves."""
    async with open_server(home, "tangram_e2e") as server:
        client = await open_client(browser, server.url, version)

        joined = await client.join("e2e", "beat", "bytes", "heard")
        await client.wait_more("beat")
        await client.wait_more("bytes")
        pushed = await client.push("e2e", "wave", {"n": 7, "message": "höi"})
        await client.wait("last('heard')?.event === 'from:e2e:wave'")
        heard = await server.get("/e2e/heard")
        left = await client.leave("e2e")
        seen = await client.count("beat")
        await trio.sleep(0.3)

        assert joined["status"] == "ok"
        assert joined["response"]["id"].split(":")[1:2] == ["e2e"]
        assert await client.last("bytes") == {"bytes": [0, 1, 255]}
        assert pushed == {"status": "ok", "response": {}}
        assert [one["payload"] for one in heard if one["event"] == "from:e2e:wave"] == [
            '{"n":7,"message":"höi"}'
        ]
        assert left["status"] == "ok"
        assert await client.count("beat") == seen
        assert client.page.errors == []


async def test_a_token_never_reaches_the_plugins(home: Home, browser: Browser) -> None:
    """Plugins receive the event of a join, but not the token."""
    async with open_server(home, "tangram_e2e") as server:
        client = await open_client(browser, server.url)
        await client.join("e2e")
        await client.push("e2e", "after", {})

        async def after_is_heard() -> bool:
            return any(one["event"] == "from:e2e:after" for one in await server.get("/e2e/heard"))

        await wait_until(after_is_heard)
        heard = await server.get("/e2e/heard")

        assert "from:e2e:phx_join" in {one["event"] for one in heard}
        assert "token" not in str(heard)
        assert "eyJ" not in server.log


async def test_rejoins_after_the_server_was_restarted(home: Home, browser: Browser) -> None:
    """A browser whose server was stopped and started again is back in its topic by itself."""
    async with open_server(home, "tangram_e2e") as server:
        client = await open_client(browser, server.url)
        await client.join("e2e", "beat", "heard")
        await client.wait_more("beat")
        first = (await server.get("/e2e/ping"))["pid"]
        status = await server.stop()
        await client.wait("states.some((state) => state.startsWith('close'))")
    async with open_server(home, "tangram_e2e") as server:
        await client.wait("channels.e2e.state === 'joined'")
        await client.wait_more("beat")
        pushed = await client.push("e2e", "again", {})
        second = (await server.get("/e2e/ping"))["pid"]

        assert status == 0
        assert pushed["status"] == "ok"
        assert first != second
        assert "close 1001" in await client.page.run("return states")
