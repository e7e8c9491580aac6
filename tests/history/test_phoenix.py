"""The unmodified phoenix.js counts through crashes of all parts, and misses no number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import trio
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


class Page:
    """A page that counts, by its Node process."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.numbers: list[int] = []
        self.replies: list[dict[str, Any]] = []
        self._changed = trio.Event()

    async def read(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        async for data in self.process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "n" in said:
                    self.numbers.append(said["n"])
                else:
                    self.replies.append(said)
            self._changed.set()

    async def wait_more(self, count: int = 30) -> None:
        """Return once that many further numbers have arrived."""
        wanted = max(self.numbers, default=0) + count
        with trio.fail_after(40):
            while max(self.numbers, default=0) < wanted:
                self._changed = trio.Event()
                await self._changed.wait()

    async def cut(self) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"cut\n")


@asynccontextmanager
async def open_page(version: str, url: str, topic: str) -> AsyncIterator[Page]:
    """Run the script of the documentation in Node."""
    async with trio.open_nursery() as nursery:

        async def start(task_status: trio.TaskStatus[trio.Process]) -> None:
            await trio.run_process(
                ["node", str(SCRIPT), str(find_node()[1]), f"phoenix-{version}", url, topic],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                check=False,
                task_status=task_status,
            )

        page = Page(await nursery.start(start))
        nursery.start_soon(page.read)
        yield page
        nursery.cancel_scope.cancel()


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
            await page.cut()
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
            await page.cut()
            await page.wait_more()
            server.send(signal.SIGHUP)
            await server.wait_ready(times=2)
            await page.wait_more()

            seen = page.numbers
            assert sorted(set(seen)) == list(range(min(seen), max(seen) + 1))
            assert all(reply["recovered"] for reply in page.replies[1:]), page.replies
            assert len(page.replies) >= 3
        nursery.cancel_scope.cancel()
