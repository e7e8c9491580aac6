"""Servers in the environments of `prepare`: this one, and the published one."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tangram.testing import open_broker
from tangram.testing.run import process
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
        process.Home.__post_init__(self)
        # The sources of this tree come first, in case the environment has an older installation.
        self.path = [self.site, ROOT / "src"]
        self.python = python_of(self.name)

    def configure(self, plugins: Sequence[str] = (), extra: str = "", core: str = "") -> None:
        shell = "" if self.name == "bare" else '[server]\nfrontend = "tangram_core"\n'
        process.Home.configure(self, plugins, extra, core)
        self.config.write_text(self.config.read_text().replace("[server]\n", shell or "[server]\n"))

    def install_guide(self, example: str) -> None:
        """Install the guide's project with one of its examples, as pip does."""
        package = self.site / "my_plugin"
        package.mkdir()
        (package / "__init__.py").write_text(source_of(example))
        metadata = self.site / "my_tangram_plugin-0.1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tangram-plugin\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text("[tangram_core.plugins]\nmy_plugin = my_plugin:plugin\n")


NOT_OURS = dict.fromkeys(process.ANY_PROCESS, "the published server promises none of it, and is killed")


@dataclass
class Published(process.Home):
    """A machine with the published server, without any of tangram's files on its path."""

    name: str = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.python, self.path = python_of(self.name), []

    @property
    def environ(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder)}

    def command(self, *arguments: str) -> list[str]:
        return [str(self.python), "-m", "tangram_core", "serve", "--config", str(self.config)]


@asynccontextmanager
async def open_published(
    folder: Path,
    plugins: Sequence[str] = PUBLISHED,
    *,
    name: str = "full",
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[str]:
    """Run the published server with published plugins on a Redis of its own; yield its URL.

    It is run in a process and asked over HTTP; none of its modules is imported here.
    """
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a test's own folder
    port, config = free_port(), folder / "tangram.toml"
    published = Published(folder, port, name=name)
    with open_broker() as broker:
        config.write_text(
            f'[core]\nredis_url = "{broker.url}"\nplugins = {json.dumps(list(plugins))}\n'
            f"[server]\nport = {port}\n[channel]\nport = {free_port()}\n"
        )
        async with process.open_process(published, environ=environ, but=NOT_OURS) as server:

            async def answers() -> bool:
                async with httpx.AsyncClient() as client:
                    return (await client.get(f"{server.url}/manifest.json")).is_success

            await wait_until(answers, within=60)
            yield server.url
            server.process.kill()


async def restart(server: Server, plugin: str) -> None:
    """Ask the server to restart one plugin."""
    token = (server.home.folder / "xdg_state_home" / "tangram" / "operator-token").read_text().strip()
    answer = await server.request(
        "POST", f"/-/plugins/{plugin}/restart", headers={"authorization": f"Bearer {token}"}
    )
    assert answer.is_success, answer.text
