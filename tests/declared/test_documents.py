"""The documents of declared channels: AsyncAPI, its page, and TypeScript."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from trio.testing import MockClock

from tangram.cli.main import cli
from tangram.declared.asyncapi import asyncapi
from tangram.declared.typescript import typescript
from tangram.errors import PluginError
from tangram.testing import open_tangram
from tests.declared import radar
from tests.docs.blocks import blocks
from tests.e2e.prepare import find_node

DECLARED = [("radar", radar.plugin.channels)]

PAGE = """
import type { TypedSocket } from "./tangram";
declare const socket: TypedSocket;
const channel = socket.channel("flights:eu", { token: "t" });
channel.join().receive("ok", ({ id }) => id.toUpperCase())
  .receive("error", ({ reason, detail }) => detail?.[0].loc);
channel.on("position", (message) => {
  const { icao, lat, level }: { icao: string; lat: number; level: "low" | "high" } = message;
});
channel.on("picture", (message) => message.byteLength);
channel.on("note", ({ text, by }) => (by ?? text).trim());
channel.on("tree", ({ below }) => below[0].below[0].name);
channel.push("select", { icao: "3944ef", mode: "follow" }).receive("ok", ({ near, count, names }) => {
  const first: { lat: number } = near[0];
  const text: string = names["area"];
  const number: number = count ?? 0;
});
channel.push("place", { icao: "x", lat: 1, lon: 2 });
channel.push("upload", new ArrayBuffer(3));
channel.push("note me/now", { text: "x" }).receive("ok", ({ text }) => text);
socket.channel("clock").on("tick", (numbers) => numbers[0].toFixed());
socket.channel("other").push("anything", { a: 1 }).receive("ok", (reply) => reply.whatever);
"""

MISTAKES = (
    'channel.on("position", ({ icoa }) => icoa);',
    'channel.on("positoin", () => {});',
    'channel.push("select", { icoa: "x" });',
    'channel.push("select", { icao: 1 });',
    'channel.push("select", {});',
    'channel.push("select", { icao: "x", mode: "hide" });',
    'channel.push("selct", { icao: "x" });',
    'channel.push("select", { icao: "x" }).receive("ok", ({ nere }) => nere);',
    'channel.push("upload", { a: 1 });',
    'socket.channel("clock").on("tick", (text) => text.trim());',
)
"""Lines that must not compile."""


def test_the_document_describes_both_directions() -> None:
    """Messages to browsers are sent, pushes are received with their replies."""
    document = asyncapi(DECLARED, host="x:1", pathname="/t/websocket")

    assert document["servers"]["tangram"]["pathname"] == "/t/websocket"
    flights = document["channels"]["flights"]
    assert (flights["address"], list(flights["parameters"])) == ("flights:{area}", ["area"])
    assert flights["messages"]["position.message"]["payload"] == {"$ref": "#/components/schemas/Position"}
    assert flights["messages"]["picture.message"]["contentType"] == "application/octet-stream"
    operation = document["operations"]["flights.select.receive"]
    assert operation["description"] == "Select an aircraft."
    assert operation["reply"]["messages"] == [
        {"$ref": "#/channels/flights/messages/select.reply"},
        {"$ref": "#/channels/flights/messages/error"},
    ]
    assert document["components"]["schemas"]["Select"]["required"] == ["icao"]
    assert document["components"]["schemas"]["Position"]["description"] == "A position of an aircraft."


async def test_a_server_shows_its_channels(autojump_clock: MockClock) -> None:
    """The document names the server as the client reached it, and the page escapes texts of plugins."""
    async with open_tangram([radar.plugin], fakes=True) as server:
        document = (await server.http.get("/asyncapi.json")).json()
        page = await server.http.get("/docs/channels")

        assert document["servers"]["tangram"]["host"] == server.url.removeprefix("http://")
        assert set(document["channels"]) == {"flights", "clock"}
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "<code>flights:{area}</code>" in page.text
        assert "&lt;here&gt;" in page.text


def test_the_command_prints_both_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``tangram types`` needs no running server."""
    monkeypatch.chdir(tmp_path)
    runner, plugin = CliRunner(), f"{radar.__file__}:plugin"

    types = runner.invoke(cli, ["types", "--plugin", plugin])
    document = runner.invoke(cli, ["types", "--plugin", plugin, "--asyncapi"])
    missing = runner.invoke(cli, ["types", "--plugin", "./missing.py"])

    assert types.exit_code == document.exit_code == 0
    assert "export interface FlightsPushes {" in types.stdout
    assert json.loads(document.stdout)["asyncapi"] == "3.0.0"
    assert missing.exit_code == 1


def test_a_class_with_the_name_of_a_helper_is_refused() -> None:
    """A class cannot take the place of a type of the declarations."""
    import tangram

    plugin = tangram.Plugin()
    plugin.channel("t").sends("e", type("PushError", (radar.Position,), {}))

    with pytest.raises(PluginError, match="'PushError'"):
        typescript([("x", plugin.channels)])


@pytest.mark.slow
def test_the_official_parser_finds_the_document_valid(tmp_path: Path) -> None:
    """npm's ``@asyncapi/parser`` reports no error, and one for a document that is broken."""
    good = asyncapi(DECLARED)
    broken: dict[str, Any] = {**good, "operations": {"x": {"action": "neither"}}}

    assert parse(tmp_path, good) == []
    assert parse(tmp_path, broken) != []


def parse(folder: Path, document: dict[str, Any]) -> list[str]:
    """Return the errors that the parser finds."""
    node, packages = find_node()
    script = folder / "parse.cjs"
    script.write_text(
        f"const {{ Parser }} = require({str(packages / '@asyncapi' / 'parser')!r});"
        "const text = require('fs').readFileSync(0, 'utf8');"
        "new Parser().parse(text).then(({ diagnostics }) => console.log(JSON.stringify("
        "diagnostics.filter((one) => one.severity === 0).map((one) => one.message + one.path))));"
    )
    done = subprocess.run(
        [node, str(script)],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found: list[str] = json.loads(done.stdout)
    return found


OPTIONS: Final = {
    "strict": True,
    "noEmit": True,
    "target": "es2022",
    "lib": ["es2022", "dom"],
    "module": "esnext",
    "moduleResolution": "bundler",
    "types": [],
}


def compile_page(folder: Path, text: str) -> list[str]:
    """Return the errors of ``tsc`` for a page beside the declarations."""
    node, packages = find_node()
    (folder / "page.ts").write_text(text)
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS, "files": ["page.ts"]}))
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(packages)
    command = [node, str(packages / "typescript" / "bin" / "tsc"), "--pretty", "false"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    return done.stdout.splitlines()


def compiled_mistakes(folder: Path, page: str, mistakes: Sequence[str]) -> list[str]:
    """Return the mistakes behind a page in which the compiler finds no fault; the page itself has none."""
    start = page.count("\n") + 1
    said = compile_page(folder, "\n".join([page.rstrip("\n"), *mistakes]))
    lines = {int(line.partition("(")[2].partition(",")[0]) for line in said if line.startswith("page.ts(")}
    assert min(lines) >= start, said
    return [mistake for number, mistake in enumerate(mistakes, start) if number not in lines]


@pytest.mark.slow
def test_a_page_compiles_and_each_mistake_does_not(tmp_path: Path) -> None:
    """``tsc --strict`` accepts a page that is right, and refuses each of ten lines that are wrong."""
    (tmp_path / "tangram.d.ts").write_text(typescript(DECLARED))

    assert compile_page(tmp_path, PAGE) == []
    assert compiled_mistakes(tmp_path, PAGE, MISTAKES) == []


@pytest.mark.slow
def test_the_example_of_the_page_compiles(tmp_path: Path) -> None:
    """The example of docs/channels.md compiles with the real types of phoenix.js."""
    page = "docs/channels.md"
    names: dict[str, Any] = {"__name__": "example"}
    exec(next(block.text for block in blocks("python", page)), names)
    (tmp_path / "tangram.d.ts").write_text(typescript([("radar", names["plugin"].channels)]))

    assert compile_page(tmp_path, next(block.text for block in blocks("ts", page))) == []
