"""A common failure of such servers: after a crash browsers receive nothing more.

One page is loaded once in a real browser. A data source, the broker and a plugin crash in turn, and each time
the values in the page move again without a reload.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tests.e2e.browser import Browser
from tests.e2e.harness import Home, Server, free_port, open_server, wait_until, write_plugin
from tests.e2e.phoenix import Client, open_client

PLUGIN = """
import json
import trio
import tangram

plugin = tangram.Plugin()
PORT = {port}


async def dial():
    while True:
        try:
            return await trio.open_tcp_stream("127.0.0.1", PORT)
        except OSError:
            await trio.sleep(0.05)


@plugin.register_service()
async def read_source(state: tangram.BackendState) -> None:
    async with await dial() as stream:
        rest = b""
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\\n")
            for line in lines:
                value = int(line)  # what is no number is a crash
                await state.redis_client.publish("to:feed:value", json.dumps({{"value": value}}))
    raise ConnectionError("the data source has gone")
"""


@dataclass
class Source:
    """A sensor that sends each client a number every 20 ms, or a given line instead."""

    port: int = field(default_factory=free_port)
    says: bytes | None = None
    number: int = 0

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            while True:
                self.number += 1
                await stream.send_all((self.says or b"%d" % self.number) + b"\n")
                await trio.sleep(0.02)
        except trio.BrokenResourceError:
            pass

    async def run(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(trio.serve_tcp, self._serve, self.port)
                task_status.started(scope)


@asynccontextmanager
async def open_page(home: Home, browser: Browser, source: Source) -> AsyncIterator[tuple[Server, Client]]:
    """A server that reads the source, and a page in which its values are seen to move."""
    write_plugin(home.site, "feed", PLUGIN.format(port=source.port))
    async with open_server(home, "tangram_e2e", "feed") as server:
        client = await open_client(browser, server.url)
        await client.join("feed", "value")
        await client.page.run("window.loadedOnce = true")
        yield server, client
        assert await client.page.run("return window.loadedOnce")


async def test_values_move_again_after_each_crash(
    home: Home, browser: Browser, nursery: trio.Nursery
) -> None:
    """The page's values move again after source, broker or plugin crashed."""
    source = Source()
    running = await nursery.start(source.run)
    async with open_page(home, browser, source) as (server, client):
        await client.wait_more("value")

        running.cancel()  # the data source dies
        await server.wait_line("the data source has gone")
        before = await client.last("value")
        running = await nursery.start(source.run)
        await client.wait(f"last('value').value > {before['value'] + 5}")

        server.broker().send_signal(signal.SIGKILL)  # the broker dies
        await server.wait_line("tangram ready", times=3)
        await client.wait_more("value")
        await client.wait("channels.feed.state === 'joined'")

        source.says = b"garbage"  # the plugin crashes in a loop, until it is left stopped

        async def is_quarantined() -> bool:
            return bool((await server.child("incarnation", "plugin:feed"))["state"] == "quarantined")

        await wait_until(is_quarantined)
        alive = await server.get("/e2e/ping")
        source.says = None
        token = (home.folder / "xdg_state_home" / "tangram" / "operator-token").read_text().strip()
        restarted = await server.request(
            "POST", "/-/plugins/feed/restart", headers={"authorization": f"Bearer {token}"}
        )
        before = await client.last("value")
        await client.wait(f"last('value').value > {before['value'] + 5}")

        assert alive["pid"] == server.process.pid
        assert restarted.status_code == 200, restarted.text
        assert (await server.child("broker"))["restarts"] == 1
    running.cancel()
