"""``types``: TypeScript declarations of the declared channels, or their AsyncAPI document."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tangram.app.server import answer_old_names
from tangram.cli.kit import keep_log
from tangram.config import current_folder, find_config_file, load_config
from tangram.declared.asyncapi import asyncapi
from tangram.declared.typescript import typescript
from tangram.plugins.registry import load_plugins
from tangram.version import VERSION

__all__ = ["print_types"]


def print_types(config_file: Path | None, *, plugins: tuple[str, ...], as_asyncapi: bool) -> int:
    """Print the declarations for the configured plugins.

    Args:
        config_file: as of ``serve``.
        plugins: plugins in place of ``[core] plugins``.
        as_asyncapi: print the AsyncAPI document instead.

    Returns:
        The exit status: 0, or 1 if a plugin cannot be loaded.

    Raises:
        ConfigError: the configuration has faults.
        PluginError: a class has the name of a type of the declarations.
    """
    config = load_config(find_config_file(config_file, os.environ, current_folder()), os.environ).config
    keep_log()
    loaded = load_plugins(
        plugins or config.core.plugins,
        on_foreign=answer_old_names,
        folder=config.source and config.source.parent,
    )
    for failure in loaded.failures:
        sys.stderr.write(f"plugin {failure.name!r} cannot be loaded: {failure.error}\n")
    channels = [(one.name, one.plugin.channels) for one in loaded.plugins]
    if as_asyncapi:
        sys.stdout.write(json.dumps(asyncapi(channels, version=VERSION), indent=2) + "\n")
    else:
        sys.stdout.write(typescript(channels))
    return 1 if loaded.failures else 0
