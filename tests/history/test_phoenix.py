"""The unmodified phoenix.js counts through crashes of all parts, and misses no number."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import trio
from benchmarks.lib.pages import NodePages, open_pages
from benchmarks.lib.processes import build

from tangram.testing import Home, RunningProcess, open_process
from tangram.testing.fakes.ports import free_port
from tests.e2e.prepare import PHOENIX, find_node

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("recover.cjs")
HISTORY = '[[channel.history]]\ntopics = "numbers:*"\nsize = 5000\n'

PLUGIN = """
import json
import tangram
import trio

plugin = tangram.Plugin()


@plugin.register_service()
async def count(state):
    # The last number is in the history itself, so that a new start goes on behind it.
    page = await state.history("numbers:ours", limit=1)
    number = json.loads(page.events[-1][1])["n"] if page.events else 0
    while True:
        number += 1
        try:
            await state.publish("to:numbers:ours:n", {"n": number})
        except tangram.BrokerUnavailable:
            number -= 1
        if await state.redis_client.getdel("crash"):
            raise RuntimeError("crash on request")
        await trio.sleep(0.01)
"""


class Page(NodePages):
    """A page that counts."""

    def __init__(self, process: trio.Process) -> None:
        super().__init__(process)
        self.numbers: list[int] = []
        self.replies: list[dict[str, Any]] = []

    def take(self, said: dict[str, Any]) -> None:
        if "n" in said:
            self.numbers.append(said["n"])
        else:
            self.replies.append(said)

    async def wait_more(self, count: int = 30) -> None:
        """Return once that many further numbers have arrived."""
        wanted = max(self.numbers, default=0) + count
        await self.wait(lambda: max(self.numbers, default=0) >= wanted)


def open_page(version: str, url: str, topic: str) -> AbstractAsyncContextManager[Page]:
    """Run the script of the documentation in Node."""
    return open_pages(Page, str(SCRIPT), str(find_node()[1]), f"phoenix-{version}", url, topic)


async def kill_server(server: RunningProcess) -> None:
    server.process.kill()
    await server.wait_end()


def configure(home: Home, *plugins: str, port: int = 0) -> None:
    home.configure(plugins, extra=HISTORY)
    home.config.write_text(home.config.read_text().replace("[broker]\nport = 0", f"[broker]\nport = {port}"))


def broker_pid(server: RunningProcess) -> int:
    ready = server.events("broker ready")
    return int(ready[-1]["pid"])


@pytest.mark.parametrize("version", PHOENIX)
async def test_a_page_misses_no_number_through_five_kinds_of_crash(tmp_path: Path, version: str) -> None:
    """Cut, reload, crash of plugin, broker and whole server, one after another."""
    home = Home(tmp_path)
    home.install("counter", PLUGIN)
    port = free_port()
    configure(home, "counter", port=port)
    async with open_process(home) as first:
        await first.wait_ready()
        async with open_page(version, home.url, "numbers:ours") as page:
            await page.wait_more()
            await page.say("cut")
            await page.wait_more()
            first.send(signal.SIGHUP)
            await first.wait_ready(times=2)
            await page.wait_more()
            redis.Redis(port=port).set("crash", "1")
            await first.wait_line("plugin restarted|crash on request")
            await page.wait_more()
            os.kill(broker_pid(first), signal.SIGKILL)
            await first.wait_ready(times=3)
            await page.wait_more()
            await kill_server(first)
            async with open_process(home) as second:
                await second.wait_ready()
                await page.wait_more()

            seen = page.numbers
            assert sorted(set(seen)) == list(range(min(seen), max(seen) + 1))
            assert all(reply["recovered"] for reply in page.replies[1:]), page.replies
            assert len(page.replies) >= 5
            ordered = [number for at, number in enumerate(seen) if number > max(seen[:at], default=0)]
            assert ordered == sorted(set(seen))


async def test_a_page_misses_no_number_of_a_program_that_only_knows_publish(tmp_path: Path) -> None:
    """``PUBLISH`` of a program in C, through a cut connection and a reload of the server."""
    home = Home(tmp_path)
    port = free_port()
    configure(home, port=port)
    async with open_process(home) as server, trio.open_nursery() as nursery:
        await server.wait_ready()
        # 100 numbers a second of 100 bytes, for more than any deadline of this test.
        program = [str(build("publish")), str(port), "to:numbers:theirs:n", "20000", "100", "100", "1"]
        async with open_page(PHOENIX[-1], home.url, "numbers:theirs") as page:
            nursery.start_soon(partial(trio.run_process, program, capture_stdout=True))
            await page.wait_more()
            await page.say("cut")
            await page.wait_more()
            server.send(signal.SIGHUP)
            await server.wait_ready(times=2)
            await page.wait_more()

            seen = page.numbers
            assert sorted(set(seen)) == list(range(min(seen), max(seen) + 1))
            assert all(reply["recovered"] for reply in page.replies[1:]), page.replies
            assert len(page.replies) >= 3
        nursery.cancel_scope.cancel()
