"""``check``: the configuration, the plugins and their routes, without serving."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tangram.app.reload import check_tls
from tangram.app.server import answer_old_names
from tangram.channels.policy import ConnectInfo
from tangram.cli.kit import keep_log
from tangram.cli.output import is_terminal, print_json, print_table, write
from tangram.config import Config, current_folder, find_config_file, load_config
from tangram.declared.problems import declared_twice, signature_faults
from tangram.errors import ConfigError, Fault, PluginConfigError
from tangram.plugins.registry import LoadedPlugin, LoadedPlugins, load_plugins
from tangram.plugins.state import BackendState
from tangram.routing import Mount, RouteTable

__all__ = ["run_check"]


def run_check(config_file: Path | None, *, as_json: bool) -> int:
    """Load configuration and plugins, and print a line for each plugin and each warning.

    Returns:
        The exit status: 0, or 1 if a plugin cannot be loaded or one of its routes or pushes cannot be served.

    Raises:
        ConfigError: the configuration has faults, those of the plugins' tables included.
    """
    path = find_config_file(config_file, os.environ, current_folder())
    loaded = load_config(path, os.environ)
    config = loaded.config
    check_tls(config)
    keep_log()
    plugins = load_plugins(
        config.core.plugins, on_foreign=answer_old_names, folder=config.source and config.source.parent
    )
    faults = list(_config_faults(plugins, config))
    if faults:
        raise ConfigError(faults, about=f"configuration {path or 'of plugins'}")
    problems = _route_problems(plugins) | _channel_problems(plugins)
    records = [*_failures(plugins), *(_describe(one, problems) for one in plugins.plugins)]
    warnings = [*loaded.warnings, *plugins.config_warnings(config.plugins)]
    warnings += declared_twice((one.name, one.plugin.channels) for one in plugins.plugins)
    _print(path, records, warnings, as_json=as_json)
    return 1 if any(record["state"] != "ok" for record in records) else 0


def _config_faults(plugins: LoadedPlugins, config: Config) -> Iterator[Fault]:
    for one in plugins.plugins:
        try:
            one.plugin.structure_config(config.plugins.get(one.key, {}), key=one.key)
        except PluginConfigError as error:
            yield from error.faults


def _failures(plugins: LoadedPlugins) -> Iterator[dict[str, Any]]:
    for failure in plugins.failures:
        yield {
            "kind": "plugin",
            "name": failure.name,
            "state": "not loaded",
            "distribution": failure.dist_name or None,
            "services": None,
            "routes": None,
            "channels": None,
            "cause": str(failure.error),
        }


def _describe(loaded: LoadedPlugin, problems: Mapping[str, str]) -> dict[str, Any]:
    plugin = loaded.plugin
    cause = problems.get(loaded.name)
    return {
        "kind": "plugin",
        "name": loaded.name,
        "state": "failed" if cause else "ok",
        "distribution": loaded.dist_name,
        "services": len(plugin.services),
        # Routes of existing plugins belong to FastAPI, and are known when they run.
        "routes": None if plugin.island else sum(len(router.routes) for router in plugin.routers),
        "channels": len(plugin.channels),
        "cause": cause,
    }


def _route_problems(plugins: LoadedPlugins) -> dict[str, str]:
    """Return the first route of each plugin that cannot be served, with its cause."""
    mounts = [
        Mount(router, one.name)
        for one in plugins.plugins
        if not one.plugin.island
        for router in one.plugin.routers
    ]
    found: dict[str, str] = {}
    for problem in RouteTable(mounts, injectable=[BackendState]).problems:
        found.setdefault(problem.plugin, str(problem))
    return found


def _channel_problems(plugins: LoadedPlugins) -> dict[str, str]:
    """Return the faults in the declared channels of each plugin that has some."""
    found = {
        one.name: "; ".join(signature_faults(one.plugin.channels, BackendState, ConnectInfo))
        for one in plugins.plugins
    }
    return {name: faults for name, faults in found.items() if faults}


def _print(
    path: Path | None, records: Sequence[Mapping[str, Any]], warnings: Sequence[str], *, as_json: bool
) -> None:
    source = str(path) if path else None
    if not is_terminal(as_json=as_json):
        print_json(
            [
                {"kind": "configuration", "file": source},
                *records,
                *({"kind": "warning", "text": text} for text in warnings),
            ]
        )
        return
    write(f"configuration  {source or 'none, every setting has its default'}\n")
    for warning in warnings:
        write(f"warning        {warning}\n")
    if records:
        write("\n")
        counts = ("services", "routes", "channels")
        columns = {"plugin": "left", "state": "left", **dict.fromkeys(counts, "right"), "cause": "left"}
        rows = (
            [one["name"], one["state"], *(one[count] for count in counts), one["cause"]] for one in records
        )
        print_table(columns, rows)
