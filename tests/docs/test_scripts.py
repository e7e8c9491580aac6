"""The scripts of the pages for browsers, of channels and of history run as they are printed.

They run in Node with the unmodified npm package ``phoenix``; each page's "js" blocks are one script.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tangram.testing import Home, RunningProcess, open_process
from tests.docs.blocks import ROOT, blocks
from tests.e2e.prepare import find_node, find_phoenix

pytestmark = pytest.mark.slow

PLUGIN = """
import tangram
import trio

plugin = tangram.Plugin()


@plugin.register_service()
async def answer(state):
    async for message in state.subscribe("from:fleet:select"):
        await state.publish("to:fleet:position", {"lat": 48.5, "lon": message.json()["vehicle"]})


@plugin.register_service()
async def greet(state):
    async for message in state.subscribe("from:greetings:wave"):
        await state.publish("to:greetings:said", {"text": "hello " + message.json()["from"]})


@plugin.register_service()
async def count(state):
    number = 0
    while True:
        number += 1
        await state.publish("to:flights:eu:new", {"number": number})
        await trio.sleep(0.05)
"""

PRELUDE = """
import {{ createRequire }} from "node:module";
const require = createRequire({folder} + "/x.js");
globalThis.WebSocket = require("ws");
globalThis.location = {{ origin: {url} }};
globalThis.fetch = ((fetch) => (path, options) => fetch(new URL(path, {url}), options))(fetch);
"""


@asynccontextmanager
async def open_script(
    tmp_path: Path, server: RunningProcess, text: str, end: str = ""
) -> AsyncIterator[trio.Process]:
    """Run the blocks of a page as one module that can use globals of a browser."""
    node, folder = find_node()
    prelude = PRELUDE.format(folder=json.dumps(str(folder)), url=json.dumps(server.url))
    imports, rest = split_imports(text)
    script = tmp_path / "page.mjs"
    script.write_text(imports.replace('"phoenix"', json.dumps(str(find_phoenix()))) + prelude + rest + end)
    async with trio.open_nursery() as nursery:

        async def start(task_status: trio.TaskStatus[trio.Process]) -> None:
            await trio.run_process(
                [node, str(script)], stdout=subprocess.PIPE, check=False, task_status=task_status
            )

        yield await nursery.start(start)
        nursery.cancel_scope.cancel()


def split_imports(text: str) -> tuple[str, str]:
    """Return the import lines of a script, which must come first, and the others."""
    lines = text.splitlines(keepends=True)
    imports = [line for line in lines if line.startswith("import ")]
    return "".join(imports), "".join(line for line in lines if line not in imports)


async def read_lines(process: trio.Process, wanted: set[str]) -> set[str]:
    """Read what a script prints until every wanted line has come."""
    assert process.stdout is not None
    text = b""
    missing = set(wanted)
    with trio.move_on_after(60):
        async for data in process.stdout:
            text += data
            missing = wanted - set(text.decode().splitlines())
            if not missing:
                break
    assert not missing, f"the script printed {text.decode()!r}"
    return set(text.decode().splitlines())


@asynccontextmanager
async def open_page_server(
    tmp_path: Path, extra: str = "", plugin: str = PLUGIN
) -> AsyncIterator[RunningProcess]:
    home = Home(tmp_path)
    home.install("pages", plugin)
    home.configure(["pages"], extra=extra)
    async with open_process(home) as server:
        await server.wait_ready()
        yield server


def script_of(page: str, first: int = 0, last: int | None = None) -> str:
    """Return some "js" blocks of a page as one script."""
    return "\n".join(block.text for block in blocks("js", page)[first:last])


async def test_the_script_of_getting_started(tmp_path: Path) -> None:
    """It joins, pushes, and shows the plugin's message."""
    async with (
        open_page_server(tmp_path) as server,
        open_script(tmp_path, server, script_of("docs/getting-started.md")) as process,
    ):
        await read_lines(process, {"taken by the broker", "hello me"})


async def test_the_script_of_channels(tmp_path: Path) -> None:
    """It pushes to the plugin of the page, and shows the handler's reply, a message and a fault."""
    page = "docs/channels.md"
    plugin = next(block.text for block in blocks("python", page))
    async with (
        open_page_server(tmp_path, plugin=plugin) as server,
        open_script(tmp_path, server, script_of(page)) as process,
    ):
        await read_lines(process, {"3944ef 43.6", "1 selected it", "invalid payload payload.icao"})


async def test_the_script_for_browsers(tmp_path: Path) -> None:
    """It gets a token, joins, pushes, receives, and knows the members."""
    end = "presence.onSync(() => console.log('present', presence.list((id) => id).length));"
    async with (
        open_page_server(tmp_path) as server,
        open_script(tmp_path, server, script_of("docs/browser.md", 2), end) as process,
    ):
        lines = await read_lines(process, {"published", "48.5 7", "present 1"})

        assert any(line.startswith("joined as ") for line in lines)


REACT = """
const show = (value) => console.log("set", JSON.stringify(value));
export const useState = (first) => [typeof first === "function" ? first() : first, show];
export const useEffect = (effect) => effect();
export const useSyncExternalStore = (subscribe, read) => {
  subscribe(() => console.log("state", read().name));
  return read();
};
"""
"""Stands for React: a component is rendered once, and each change is printed."""


async def test_the_script_of_the_channel_client(tmp_path: Path) -> None:
    """It joins, receives, pushes, and knows the members; the hook for React joins and receives."""
    react = tmp_path / "react.mjs"
    react.write_text(REACT)
    names = {
        '"/static/tangram.js"': json.dumps(str(ROOT / "src" / "tangram" / "web" / "pages" / "tangram.js")),
        "connect();": "connect({ url: location.origin });",
        "export function": "function",
        '"react"': json.dumps(str(react)),
    }
    text = script_of("docs/browser.md", 0, 2)
    for printed, here in names.items():
        assert printed in text
        text = text.replace(printed, here)
    end = """
    const { push } = useChannel(client, "fleet", "position");
    await client.channel("fleet").join();
    console.log("replied", JSON.stringify(await push("select", { vehicle: 7 })));
    """
    async with (
        open_page_server(tmp_path) as server,
        open_script(tmp_path, server, text, end) as process,
    ):
        position = 'set {"lat":48.5,"lon":7}'
        await read_lines(process, {"connected ", "present: 1", "state joined", "replied {}", position})


async def test_the_program_in_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It pushes, and gets the plugin's message."""
    (block,) = blocks("python", "docs/browser.md")
    names: dict[str, Any] = {}
    exec(compile(block.text, block.place, "exec"), names)
    async with open_page_server(tmp_path) as server:
        with trio.fail_after(60):
            await names["greet"](server.url)

    assert capsys.readouterr().out == "said {'text': 'hello ann'} {}\n"


async def test_the_script_of_history(tmp_path: Path) -> None:
    """It counts through a cut of its connection, and misses no number."""
    begin = """
    import { Socket } from "phoenix";
    const { token } = await (await fetch("/token", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ channel: "flights:eu" }),
    })).json();
    const socket = new Socket(location.origin.replace(/^http/, "ws"));
    socket.connect();
    const seen = [];
    const show = ({ number }) => {
      seen.push(number);
      if (seen.length === 20) socket.conn.terminate();
      if (seen.length === 40) {
        const gaps = seen.filter((one, at) => at && one > seen[at - 1] + 1);
        console.log("gaps", gaps.length);
      }
    };
    const reload = () => console.log("reload");
    """
    begin = "\n".join(line.strip() for line in begin.splitlines())
    history = '[[channel.history]]\ntopics = "flights:*"\n'
    async with (
        open_page_server(tmp_path, history) as server,
        open_script(tmp_path, server, begin + script_of("docs/history.md")) as process,
    ):
        assert "reload" not in await read_lines(process, {"gaps 0"})
