"""``tangram new``: the written project is a plugin that works as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tangram.cli.main import cli


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def new(*words: str) -> str:
    """Run the command, and return its output; a refusal is its message."""
    result = CliRunner().invoke(cli, ["new", *words])
    return result.output if result.exit_code == 0 else f"exit {result.exit_code}: {result.output}"


def test_a_project_is_written(tmp_path: Path) -> None:
    """The package has the name with underscores, and the next two commands are printed."""
    home = tmp_path / "home"
    output = new("Tank-Watch", "--path", str(home))

    assert written(home) == {
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "src/tank_watch/__init__.py",
        "src/tank_watch/page.html",
        "src/tank_watch/page.js",
        "tangram.toml",
        "tests/test_plugin.py",
    }
    assert output.splitlines() == [
        f"cd {home} && python -m pip install --editable '.[test]'",
        "tangram serve",
    ]
    assert not [path for path in home.rglob("*.*") if "$package" in path.read_text()]


def test_without_a_page(tmp_path: Path) -> None:
    """``--no-front`` leaves out the page, its routes and its import."""
    home = tmp_path / "home"
    new("bare", "--no-front", "--path", str(home))

    assert not [name for name in written(home) if "page" in name]
    assert "page" not in (home / "src/bare/__init__.py").read_text()
    assert "page" not in (home / "README.md").read_text()


@pytest.mark.parametrize("name", ["class", "json", "9lives", "a b", "x/y", "."])
def test_names_that_no_package_can_have_are_refused(tmp_path: Path, name: str) -> None:
    """The message shows the name and an example, and nothing is written."""
    output = new(name, "--path", str(tmp_path / "home"))

    assert output.startswith("exit 2: ")
    assert "cannot be the name of a Python package" in output
    assert list(tmp_path.iterdir()) == []


def test_files_are_never_overwritten(tmp_path: Path) -> None:
    """A folder with files is refused; an empty one is used."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    (tmp_path / "empty").mkdir()

    assert "exists already" in new("mine", "--path", str(tmp_path / "full"))
    assert written(tmp_path / "full") == {"kept"}
    assert "tangram serve" in new("mine", "--path", str(tmp_path / "empty"))


@pytest.mark.slow
def test_the_project_passes_its_own_checks(tmp_path: Path) -> None:
    """ruff, mypy --strict and the project's own tests pass as generated."""
    new("tank-watch", "--path", str(tmp_path))

    for command in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"], ["pytest", "-q"]):
        run = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert run.returncode == 0, (command, run.stdout, run.stderr)
