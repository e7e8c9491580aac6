"""``plugin-test PATH``: run the conformance tests on each plugin of a project."""

from __future__ import annotations

import os
import sys
import threading
import time
import tomllib
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import trio

from tangram.cli.kit import Record, keep_log, require_httpx
from tangram.errors import OperatorError
from tangram.supervision.records import causes

if TYPE_CHECKING:
    from tangram.plugins import Plugin

__all__ = ["test_project"]

SHOWN_LINES: Final = 8
"""The last lines of a traceback that are shown."""


def test_project(path: Path) -> int:
    """Test every plugin of the project at ``path``, and print a line for each.

    Returns:
        The exit status: 0, or 1 if a plugin failed. If a plugin has left a thread that would keep the process
        from ending, the process ends here with that status.

    Raises:
        OperatorError: there is no plugin, one cannot be loaded, or httpx is not installed.
    """
    require_httpx()
    plugins = _load(path.resolve())
    records = keep_log()
    failed = [plugin.name for plugin in plugins if not _is_good(plugin, records)]
    if len(plugins) > 1 and not failed and not _are_good_together(plugins, records):
        failed = ["all of them together"]
    if failed:
        click.secho(f"{', '.join(map(str, failed))}: not good", fg="red", bold=True)
    else:
        click.secho("all is well", fg="green", bold=True)
    return _leave(1 if failed else 0)


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
    # As in an editable install: the usual folder of sources, and the project's own.
    sys.path[:0] = [str(path / "src"), str(path)]
    loaded = load_plugins([point.name for point in points], entry_points=points, on_foreign=answer_old_names)
    for failure in loaded.failures:
        raise OperatorError(str(failure.error))
    for one in loaded.plugins:
        click.echo(f"loaded   {one.name} ({one.entry_point})")
    return [one.plugin for one in loaded.plugins]


def _is_good(plugin: Plugin, records: list[Record]) -> bool:
    from tangram.chaos.conformance import check_plugin

    name = str(plugin.name)
    began = time.monotonic()
    records.clear()
    try:
        trio.run(check_plugin, plugin)
    except Exception as error:  # noqa: BLE001 - raised again if it is no fault of the plugin
        _print_failure(name, error, records)
        return False
    what = "starts, answers, restarts, comes back after crashes, stops and leaves nothing"
    click.echo(f"{click.style('good', fg='green')}     {name}: {what} ({time.monotonic() - began:.1f} s)")
    return True


def _are_good_together(plugins: Sequence[Plugin], records: list[Record]) -> bool:
    records.clear()
    try:
        trio.run(_run_together, plugins)
    except Exception as error:  # noqa: BLE001 - as above
        _print_failure("all together", error, records)
        return False
    click.echo(f"{click.style('good', fg='green')}     all together")
    return True


async def _run_together(plugins: Sequence[Plugin]) -> None:
    from tangram.testing import open_tangram

    async with open_tangram(plugins) as tangram:
        outcome = await tangram.wait_steady()
        assert outcome == "up", f"in one server they are not up, it is {outcome}"


def _print_failure(name: str, error: Exception, records: Sequence[Record]) -> None:
    """Print a failure in lines.

    Raises:
        Exception: the failure is a bug of tangram, whose traceback is needed.
    """
    from tangram.testing import InvariantBroken

    lines = [line for leaf in causes(error) for line in _lines(leaf)]
    click.echo(f"{click.style('bad', fg='red')}      {name}:")
    for line in lines:
        click.echo(f"           {line}")
    # The first record with a traceback, because the others follow from it; but none that the test caused
    # itself, and not the stall of a machine that stood still meanwhile.
    own = [record for record in records if not _is_injected(record)]
    if own and not isinstance(error, InvariantBroken):
        first = next(filter(_traceback, own), own[0])
        click.secho(f"           the log: {_summary(first)}", dim=True)
        for line in _traceback(first):
            click.secho(f"             {line}", dim=True)


def _is_injected(record: Record) -> bool:
    return "InjectedFault" in str(record.get("cause", ""))


def _lines(error: BaseException) -> list[str]:
    import httpx

    from tangram.testing import InvariantBroken, TangramEnded

    if isinstance(error, InvariantBroken):
        return [str(one) for one in error.broken]
    if isinstance(error, httpx.HTTPError):
        return [f"a request was not answered: {error!r}"]
    if isinstance(error, AssertionError | TangramEnded):
        return str(error).splitlines() or [repr(error)]
    raise error


def _summary(record: Record) -> str:
    known = ", ".join(f"{key}={record[key]}" for key in ("child", "cause", "error") if record.get(key))
    return f"{record['event']} {known}".strip()


def _traceback(record: Record) -> list[str]:
    """Return the end of a record's traceback, where the plugin's own lines are."""
    found = record.get("traceback") or record.get("exception") or ""
    return (found.splitlines() if isinstance(found, str) else [str(line) for line in found])[-SHOWN_LINES:]


def _leave(status: int) -> int:
    """End the process if a thread would keep it from ending; else return the status."""
    kept = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    if kept:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
