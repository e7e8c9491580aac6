"""The types of the channel client accept the declarations of ``tangram types``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from tangram.declared.typescript import typescript
from tests.declared import radar
from tests.declared.test_documents import compile_page, compiled_mistakes
from tests.docs.blocks import ROOT, blocks

PAGE: Final = """
import { connect, type Channel } from "./tangram-channels";
import type { Channels } from "./tangram";
const client = connect<Channels>({ url: "https://example.org" });
const flights = client.channel("flights:eu", { recover: true });
const area: string = "us";
client.channel(`flights:${area}`).on("position", ({ lat }) => lat.toFixed());
flights.on("position", ({ icao, level }) => (level === "low" ? icao.trim() : level));
flights.on("picture", (bytes) => bytes.byteLength);
flights.push("select", { icao: "x", mode: "follow" }).then(({ near, count }) => near[0].lat + (count ?? 0));
flights.push("select", { icao: "x" }, { timeout: 5 });
flights.push("upload", new ArrayBuffer(3));
flights.members.subscribe((members) => members.size);
client.channel("clock").on("tick", (numbers) => numbers[0].toFixed());
const any: Channel = connect().channel("whatever");
any.on("anything", (payload) => payload.x.y);
any.push("anything").then((reply) => reply.z);
any.push("anything", { a: 1 });
"""

MISTAKES: Final = (
    'client.channel("flihgts:eu");',
    'flights.on("positoin", () => {});',
    'flights.on("position", ({ icoa }) => icoa);',
    'flights.push("selct", { icao: "x" });',
    'flights.push("select", { icoa: "x" });',
    'flights.push("select", { icao: 1 });',
    'flights.push("select");',
    'flights.push("select", { icao: "x" }).then(({ nere }) => nere);',
    'client.channel("clock").on("position", () => {});',
    'client.channel("clock").on("tick", (text) => text.trim());',
)
"""Lines that must not compile."""


def prepare(folder: Path, plugin: Any) -> None:
    """Write the types of the client and of a plugin."""
    shutil.copy(ROOT / "js" / "index.d.ts", folder / "tangram-channels.d.ts")
    (folder / "tangram.d.ts").write_text(typescript([("radar", plugin.channels)]))


@pytest.mark.slow
def test_the_client_knows_declared_channels(tmp_path: Path) -> None:
    """``tsc --strict`` accepts right names and types, and refuses each of ten mistakes."""
    prepare(tmp_path, radar.plugin)

    assert compile_page(tmp_path, PAGE) == []
    assert compiled_mistakes(tmp_path, PAGE, MISTAKES) == []


@pytest.mark.slow
def test_the_example_of_the_page_compiles(tmp_path: Path) -> None:
    """The typed example of docs/browser.md fits the plugin of docs/channels.md."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(next(block.text for block in blocks("python", "docs/channels.md")), names)
    prepare(tmp_path, names["plugin"])
    page = next(block.text for block in blocks("ts", "docs/browser.md"))

    assert compile_page(tmp_path, page.replace('"tangram-channels"', '"./tangram-channels"')) == []
