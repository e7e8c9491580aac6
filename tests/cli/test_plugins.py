"""Commands of plugins, which are searched only when they are used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

MODULE = """
import click, sys
from {library} import Plugin
sys.stderr.write("{name} was imported\\n")

@click.group(name="{command}")
def group(): ...

@group.command()
@click.option("--number", default=1)
def hello(number):
    print("hello", number)
    sys.exit(3)

plugin = Plugin(get_typer=lambda: group)
"""


def install(folder: Path, name: str, *, group: str, library: str, command: str) -> None:
    (folder / f"{name}_module.py").write_text(MODULE.format(library=library, name=name, command=command))
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}_module:plugin\n")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{folder}",
    }
    command = [sys.executable, "-m", "tangram", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    install(tmp_path, "tangram_tides", group="tangram.plugins", library="tangram", command="tides")
    install(tmp_path, "tangram_past", group="tangram_core.plugins", library="tangram_core", command="history")
    return tmp_path


def test_a_plugins_commands_run(installed: Path) -> None:
    """They get their arguments unchanged and set the exit status; no other plugin is imported."""
    done = run(installed, "tides", "hello", "--number", "4")

    assert (done.returncode, done.stdout) == (3, "hello 4\n")
    assert "tangram_tides was imported" in done.stderr
    assert "tangram_past" not in done.stderr


def test_an_existing_plugins_commands_run_by_their_own_name(installed: Path) -> None:
    """A plugin for ``tangram_core`` whose commands have another name than itself is found."""
    done = run(installed, "history", "hello")

    assert (done.returncode, done.stdout) == (3, "hello 1\n"), done.stderr


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["--version"]])
def test_commands_of_tangram_import_no_plugin(installed: Path, words: list[str]) -> None:
    """Help and tangram's own commands import no plugin."""
    done = run(installed, *words)

    assert done.returncode == 0
    assert "was imported" not in done.stderr


def test_an_unknown_command_ends_with_status_2(installed: Path) -> None:
    """A command that no plugin has is a mistake on the command line."""
    done = run(installed, "nothing")

    assert done.returncode == 2
    assert "No such command 'nothing'" in done.stderr
