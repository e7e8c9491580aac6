"""The channel client in Chromium, over npm's ``phoenix`` and over the socket of the server's pages."""

from __future__ import annotations

import signal

import pytest

from tests.e2e.browser import Browser
from tests.e2e.harness import Home, open_server

PLUGIN = """
import tangram
import trio

plugin = tangram.Plugin()


@plugin.register_service()
async def count(state):
    number = int(await state.redis_client.get("number") or 0)
    while True:
        number += 1
        await state.publish("to:numbers:n", {"n": number})
        await state.redis_client.set("number", number)  # last: a reload between repeats the number
        await trio.sleep(0.02)
"""

SCRIPT = """
const { Client } = await import("/static/client.js");
const { Socket } = await import("%s");
window.client = new Client({ Socket, url: location.origin }).connect();
window.numbers = client.channel("numbers", { recover: true });
window.seen = [];
window.joins = 0;
numbers.on("n", ({ n }) => seen.push(n));
numbers.state.subscribe(({ name }) => { joins += name === "joined"; });
await numbers.join();
return client.id;
"""


@pytest.mark.parametrize("socket", ["/e2e/phoenix/1.8.16", "/e2e/phoenix/1.7.23", "/static/socket.js"])
async def test_a_page_misses_nothing_over_a_reload(home: Home, browser: Browser, socket: str) -> None:
    """It joins, knows its members, pushes, and gets every number over a reload of the server."""
    home.install("counter", PLUGIN)
    history = '[[channel.history]]\ntopics = "numbers"\nsize = 5000\n'
    async with open_server(home, "tangram_e2e", "counter", extra=history) as server:
        page = await browser.open_page(f"{server.url}/docs")
        id_ = await page.run(SCRIPT % socket)
        await page.wait("seen.length > 20 && numbers.members.value.size === 1")
        member = await page.run("return [...numbers.members.value.keys()][0]")
        reply = await page.run('return await numbers.push("wave", { from: client.id })')
        server.send(signal.SIGHUP)
        await page.wait("joins === 2")
        before = await page.run("return seen.length")
        await page.wait(f"seen.length > {before + 20}")
        numbers = await page.run("return seen")

        assert reply == {}
        assert member.startswith(id_) or id_ in member
        assert sorted(set(numbers)) == list(range(numbers[0], max(numbers) + 1))
        assert page.errors == []
