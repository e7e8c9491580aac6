"""The channel client in Node, over two versions of npm's ``phoenix`` and over the socket of our own pages."""

from __future__ import annotations

import shutil
import signal
import subprocess
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from benchmarks.lib.pages import NodePages, open_pages

from tangram.testing import Home, RunningProcess, open_process
from tests.e2e.prepare import ROOT, find_node, npm_environ

pytestmark = pytest.mark.slow

SCRIPT: Final = Path(__file__).with_name("count.mjs")
SOCKETS: Final = ("phoenix-1.8.16", "phoenix-1.7.23", "pages")
PLUGIN: Final = """
import json
import tangram
import trio



def refuse(topic, id, request):
    return "members only"


plugin = tangram.Plugin(authorize={"secret": refuse})


@plugin.register_service()
async def count(state):
    page = await state.history("numbers:ours", limit=1)
    number = json.loads(page.events[-1][1])["n"] if page.events else 0
    while True:
        number += 1
        await state.publish("to:numbers:ours:n", {"n": number})
        await trio.sleep(0.02)
"""
SETTINGS: Final = """
[[channel.history]]
topics = "numbers:*"
size = 5000

[channel]
jwt_expiration_secs = 4
"""


def pack(folder: Path, version: str) -> str:
    """Install the npm package as a user does, beside a version of ``phoenix``, and return its module."""
    _, modules = find_node()
    package = folder / "node_modules" / "tangram-channels"
    source = folder / "source"
    shutil.copytree(
        ROOT / "js", source / "js", ignore=shutil.ignore_patterns("node_modules", "client.js", "pause.js")
    )
    pages = Path("src", "tangram", "web", "pages")
    shutil.copytree(ROOT / pages, source / pages)
    packed = subprocess.run(
        ["npm", "pack", "--silent", "--pack-destination", str(folder)],
        cwd=source / "js",
        env=npm_environ(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    package.mkdir(parents=True)
    shutil.unpack_archive(folder / packed.stdout.split()[-1], folder)
    shutil.copytree(folder / "package", package, dirs_exist_ok=True)
    (package.parent / "phoenix").symlink_to(modules / version)
    return str(package / "index.js")


def prepare(folder: Path, socket: str) -> tuple[str, Path]:
    """Return the module of the client, and the script beside the packages that it needs."""
    script = folder / SCRIPT.name
    shutil.copy(SCRIPT, script)
    module = (
        pack(folder, socket)
        if socket != "pages"
        else str(ROOT / "src" / "tangram" / "web" / "pages" / "tangram.js")
    )
    (folder / "node_modules").mkdir(exist_ok=True)
    (folder / "node_modules" / "ws").symlink_to(find_node()[1] / "ws")
    return module, script


class Page(NodePages):
    """One client in Node."""

    def __init__(self, process: trio.Process) -> None:
        super().__init__(process)
        self.said: list[dict[str, Any]] = []

    def take(self, said: dict[str, Any]) -> None:
        self.said.append(said)

    def all(self, key: str) -> list[Any]:
        return [line[key] for line in self.said if key in line]

    async def wait_more(self, count: int = 20) -> None:
        """Wait for further numbers."""
        wanted = len(self.all("n")) + count
        await self.wait(lambda: len(self.all("n")) >= wanted)

    async def ask(self, command: str, key: str) -> Any:
        """Send a command, and return its answer."""
        before = len(self.all(key))
        await self.say(command)
        await self.wait(lambda: len(self.all(key)) > before)
        return self.all(key)[-1]


def open_page(prepared: tuple[str, Path], url: str, id_: str = "") -> AbstractAsyncContextManager[Page]:
    module, script = prepared
    return open_pages(Page, str(script), module, url, id_)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.install("counter", PLUGIN)
    home.configure(["counter"], extra=SETTINGS)
    return home


async def run_until_killed(
    home: Home, page: Page, server: RunningProcess, prepared: tuple[str, Path]
) -> None:
    """Push, look at the members, renew the token and reload, with the first server."""
    await page.wait(lambda: page.all("recovered") != [])
    first = await page.ask("push", "pushed")
    binary = await page.ask("bytes", "pushed")
    refused = await page.ask("refused", "refused")
    async with open_page(prepared, home.url) as other:
        await other.wait(lambda: other.all("id") != [])
        await page.wait(lambda: len(page.all("members")[-1]) == 2)
    await page.wait(lambda: len(page.all("members")[-1]) == 1)
    tokens = await page.ask("tokens", "tokens")
    with trio.fail_after(40):
        while (
            await page.ask("tokens", "tokens") == tokens
        ):  # a token lives for 4 s, and is renewed after 3.2 s
            await page.wait_more(10)
    server.send(signal.SIGHUP)
    await server.wait_ready(times=2)
    await page.wait_more()
    server.process.kill()
    await server.wait_end()
    await page.wait(lambda: page.all("connection")[-1] == "reconnecting")

    assert first == {}
    assert binary == {}
    assert refused == "members only"


@pytest.mark.parametrize("socket", SOCKETS)
async def test_a_client_in_node_counts_through_restarts(home: Home, tmp_path: Path, socket: str) -> None:
    """The token is renewed, members are known, and no number is missed over a reload and a killed server."""
    prepared = await trio.to_thread.run_sync(prepare, tmp_path, socket)
    async with open_process(home) as server:
        await server.wait_ready()
        async with open_page(prepared, home.url, "ann") as page:
            await run_until_killed(home, page, server, prepared)
            async with open_process(home) as second:
                await second.wait_ready()
                await page.wait_more()
                left = await page.ask("leave", "left")
                await page.say("close")
                await page.wait(lambda: page.all("connection")[-1] == "closed")

            numbers = page.all("n")
            assert page.all("id") == ["ann"]
            assert left == "not joined"
            assert page.all("missed") == []
            assert sorted(set(numbers)) == list(range(numbers[0], max(numbers) + 1))
