"""Commands of plugins: ``python -m tangram NAME ...``, imported only when they are used.

A plugin whose own name matches (entry point, distribution or module, with or without ``tangram_`` in front)
is imported first. The Typer application of a plugin may have another name, so the other installed plugins are
imported after it, one by one, until a command is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import click

from tangram.cli.streams import complain
from tangram.config.names import normalise
from tangram.errors import PluginError

__all__ = ["PluginGroup"]


class PluginGroup(click.Group):
    """The command line's group: the commands of tangram and of installed plugins."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command of tangram, or else of a plugin, which cannot replace one of tangram."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name.startswith("-"):
            return own
        return _command_of_plugin(cmd_name)


def _command_of_plugin(name: str) -> click.Command | None:
    for made in _commands(name):
        if made.name is not None and normalise(made.name) == normalise(name):
            return made
    return None


def _commands(name: str) -> Iterator[click.Command]:
    """Yield the commands of installed plugins, those with a matching name first."""
    from tangram.plugins.discovery import Candidate, scan
    from tangram.plugins.registry import load_plugins

    wanted = {normalise(name), f"tangram_{normalise(name)}"}

    def unlikely(one: Candidate) -> bool:
        return not wanted & {normalise(it) for it in (one.name, one.dist_name, one.module)}

    for candidate in sorted(scan(), key=unlikely):
        loaded = load_plugins(
            [candidate.name], entry_points=[candidate.entry_point], on_foreign=_answer_old_names
        )
        for failure in loaded.failures:
            complain(str(failure.error))
        for one in loaded.plugins:
            if one.plugin.get_typer is None:
                continue
            try:
                yield _command(one.plugin.get_typer(), one.name)
            # A plugin author's function: an error in it costs only the commands of that plugin.
            except Exception as error:  # noqa: BLE001 - reported
                complain(f"the commands of plugin {one.name!r} cannot be made: {error!r}")


def _command(app: Any, plugin: str) -> click.Command:
    """Wrap a Typer application, or a click command, as a command under its own name."""
    if isinstance(app, click.Command):
        return _Foreign(str(app.name), app)
    # A plugin with a Typer application has Typer installed; tangram does not depend on it.
    group: Any = import_module("typer.main").get_group(app)
    name = app.info.name if isinstance(app.info.name, str) else group.name
    if not name:
        raise PluginError(
            f"its Typer application has no name: write typer.Typer(name={plugin!r})", plugin=plugin
        )
    return _Foreign(name, group)


class _Foreign(click.Command):
    """A command that hands its arguments over unchanged.

    Typer may contain a click of its own, which does not know the commands of this one.
    """

    def __init__(self, name: str, command: Any) -> None:
        words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)
        super().__init__(
            name,
            params=[words],
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
        )
        self._command = command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, which ends the process."""
        self._command.main(args=list(ctx.params["words"]), prog_name=f"tangram {self.name}")


def _answer_old_names() -> None:
    from tangram.compat.names import answer_imports

    answer_imports()
