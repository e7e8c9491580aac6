"""Servers in the environments of `prepare`: ours, and the published one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import trio

from tangram.broker import EmbeddedBroker
from tangram.config import BrokerConfig
from tests.compat.guide import source_of
from tests.downstream.prepare import ROOT, python_of
from tests.e2e.harness import Home, Server, free_port, wait_until

__all__ = ["PUBLISHED", "Environment", "open_published", "restart"]

PUBLISHED = ("tangram_system", "tangram_weather", "tangram_globe", "tangram_airports")


@dataclass
class Environment(Home):
    """A user's machine with one of the environments."""

    name: str = "full"

    def __post_init__(self) -> None:
        self.site = self.folder / "site"
        self.site.mkdir(parents=True, exist_ok=True)
        # The server that is tested is the one that lies here, whatever was installed when.
        self._path = [self.site, ROOT / "src"]
        self.config = self.folder / "tangram.toml"

    def configure(self, plugins: object = (), extra: str = "", core: str = "") -> None:
        names = json.dumps(list(plugins))  # type: ignore[call-overload]
        shell = "" if self.name == "bare" else 'frontend = "tangram_core"'
        self.config.write_text(
            f'[core]\nplugins = {names}\n{core}\n[server]\nhost = "127.0.0.1"\nport = {self.port}\n'
            f"{shell}\n[broker]\nport = 0\n{extra}\n"
        )

    def command(self, *arguments: str) -> list[str]:
        serve = ("serve", "--config", str(self.config), "--log-format", "json")
        return [str(python_of(self.name)), "-m", "tangram", *(arguments or serve)]

    def install_guide(self, example: str) -> None:
        """The guide's project around one of its examples, as pip would have left it."""
        package = self.site / "my_plugin"
        package.mkdir()
        (package / "__init__.py").write_text(source_of(example))
        metadata = self.site / "my_tangram_plugin-0.1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tangram-plugin\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text("[tangram_core.plugins]\nmy_plugin = my_plugin:plugin\n")


@asynccontextmanager
async def open_published(
    folder: Path,
    plugins: Sequence[str] = PUBLISHED,
    *,
    name: str = "full",
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[str]:
    """The published server with published plugins, in a process of its own, on a Redis of its own: its URL.

    It is run, and asked over HTTP; nothing of it is imported here.
    """
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a test's own folder
    port, config = free_port(), folder / "tangram.toml"
    broker = EmbeddedBroker(BrokerConfig(port=0))
    async with trio.open_nursery() as nursery:
        redis_url = await nursery.start(broker.run)
        config.write_text(
            f'[core]\nredis_url = "{redis_url}"\nplugins = {json.dumps(list(plugins))}\n'
            f"[server]\nport = {port}\n[channel]\nport = {free_port()}\n"
        )
        process = await trio.lowlevel.open_process(
            [str(python_of(name)), "-m", "tangram_core", "serve", "--config", str(config)],
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **(environ or {})},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = f"http://127.0.0.1:{port}"

            async def answers() -> bool:
                async with httpx.AsyncClient() as client:
                    return (await client.get(f"{url}/manifest.json")).is_success

            await wait_until(answers, within=30)
            yield url
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            nursery.cancel_scope.cancel()


async def restart(server: Server, plugin: str) -> None:
    """Ask the server for a new incarnation of one plugin."""
    token = (server.home.folder / "xdg_state_home" / "tangram" / "operator-token").read_text().strip()
    answer = await server.request(
        "POST", f"/-/plugins/{plugin}/restart", headers={"authorization": f"Bearer {token}"}
    )
    assert answer.is_success, answer.text
