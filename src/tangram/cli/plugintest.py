"""``plugin-test PATH``: does the plugin in this project load, start, restart and stop?"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from tangram.errors import OperatorError

if TYPE_CHECKING:
    from tangram.plugins import Plugin

__all__ = ["test_project"]

RESTARTS = 2
"""What leaks or does not come back shows at the second restart at the latest."""


def test_project(path: Path) -> None:
    """Try every plugin of the project at ``path``, each step told in a line.

    Raises:
        OperatorError: there is none, or a step failed.
    """
    plugins = _load(path.resolve())
    trio.run(_try, plugins)
    click.echo("all is well")


def _entry_points(path: Path) -> list[EntryPoint]:
    from tangram.plugins.discovery import GROUPS

    file = path / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text())["project"]
    except (OSError, ValueError, KeyError) as error:
        raise OperatorError(f"cannot read the project in {str(file)!r}: {error!r}") from None
    declared = project.get("entry-points", {})
    points = [
        EntryPoint(name, value, group) for group in GROUPS for name, value in declared.get(group, {}).items()
    ]
    if not points:
        raise OperatorError(f"{str(file)!r} has no entry point in {' or '.join(map(repr, GROUPS))}")
    return points


def _load(path: Path) -> list[Plugin]:
    from tangram.app.server import answer_old_names
    from tangram.plugins.registry import load_plugins

    points = _entry_points(path)
    # As an editable install has it: the usual place of sources, and the project itself.
    sys.path[:0] = [str(path / "src"), str(path)]
    loaded = load_plugins([point.name for point in points], entry_points=points, on_foreign=answer_old_names)
    for failure in loaded.failures:
        raise OperatorError(str(failure.error))
    for one in loaded.plugins:
        click.echo(f"loaded   {one.name} ({one.entry_point})")
    return [one.plugin for one in loaded.plugins]


async def _try(plugins: list[Plugin]) -> None:
    from tangram.testing import open_tangram

    async with open_tangram(plugins) as tangram:
        for plugin in plugins:
            await tangram.http.get("/openapi.json")
            for _ in range(RESTARTS):
                answer = await tangram.http.post(
                    f"/-/plugins/{plugin.name}/restart", headers=tangram.operator
                )
                if not answer.is_success:
                    raise OperatorError(f"{plugin.name} does not restart: {answer.text}")
            click.echo(f"started  {plugin.name}, and restarted {RESTARTS} times")
        listed = (await tangram.http.get("/-/plugins", headers=tangram.operator)).json()
        for one in listed:
            if one["state"] != "running" or "error" in one:
                raise OperatorError(
                    f"{one['name']} is {one['state']}: {one.get('error', one.get('last_crash'))}"
                )
    click.echo("stopped")
