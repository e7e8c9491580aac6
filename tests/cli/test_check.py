"""``check`` reports each fault of configuration and plugins, without serving."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tangram.testing.run.process import Home

pytestmark = pytest.mark.slow

GOOD = """
import attrs, tangram

@attrs.frozen
class Settings:
    size: int = 1

router = tangram.APIRouter()

@router.get("/good")
async def good() -> int:
    return 1

plugin = tangram.Plugin(routers=[router], config_class=Settings)

@plugin.register_service()
async def serve(state: tangram.BackendState) -> None: ...

plugin.channel("good").sends("news", dict)
"""
TWICE = """
import tangram
router = tangram.APIRouter()

@router.get("/good")
async def good(x: object) -> int:
    return 1

plugin = tangram.Plugin(routers=[router])
"""


def run(home: Home, *words: str) -> tuple[int, list[dict[str, Any]], str]:
    command = home.command("check", "--config", str(home.config), *words)
    ended = subprocess.run(command, env=home.environ, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.install("good", GOOD)
    home.install("broken", "raise ValueError('no antenna')")
    home.install("twice", TWICE)
    return home


def test_a_good_configuration_is_status_0(home: Home) -> None:
    """Each plugin has a line with its services and routes."""
    home.configure(["good"])
    status, (configuration, plugin), _ = run(home)

    assert status == 0
    assert configuration["file"] == str(home.config)
    assert (plugin["name"], plugin["state"]) == ("good", "ok")
    assert [plugin[count] for count in ("services", "routes", "channels")] == [1, 1, 1]
    assert not home.state.exists()


def test_a_plugin_that_cannot_be_loaded_is_status_1(home: Home) -> None:
    """Its cause is shown; so is that of a route that cannot be served."""
    home.configure(["broken", "good", "twice"])
    status, (_, *plugins), _ = run(home)
    causes = {one["name"]: one["cause"] for one in plugins}

    assert status == 1
    assert "ValueError: no antenna" in causes["broken"]
    assert causes["good"] is None
    assert causes["twice"] is not None


def test_every_fault_of_the_configuration_is_listed(home: Home) -> None:
    """Status 2, with the faults of the plugins' tables as well."""
    home.configure(["good"], extra="[plugins.good]\nsize = 'large'\n")
    status, _, errors = run(home)
    home.configure(["good"], extra="[nothing]\n")
    warned, lines, _ = run(home)

    assert status == 2
    assert "@ plugins.good.size" in errors
    assert warned == 0
    assert [line["text"] for line in lines if line["kind"] == "warning"]


def test_the_shell_gets_a_completion(home: Home) -> None:
    """The program prints its own completion script for each shell that the page names."""
    for shell in ("bash", "zsh", "fish"):
        environ = {**home.environ, "_TANGRAM_COMPLETE": f"{shell}_source"}
        ended = subprocess.run(
            home.command("status"), env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert "_TANGRAM_COMPLETE" in ended.stdout, ended.stderr


def test_a_reader_that_ends_is_no_error(home: Home) -> None:
    """In a pipe to a program that has ended the status is 141, as a shell has it, without a traceback."""
    home.configure(["good"])
    shell = (
        f"{shlex.join(home.command('check', '--config', str(home.config)))} | true; echo ${{PIPESTATUS[0]}}"
    )
    ended = subprocess.run(
        ["bash", "-c", shell], env=home.environ, capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.stdout.strip() == "141"
    assert ended.stderr == ""
