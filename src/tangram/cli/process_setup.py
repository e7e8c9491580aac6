"""The set-up of each process that serves: log, memory, descriptors, records."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from tangram.cli.exit_record import ExitRecord, last_exits
from tangram.cli.logs import LogFormat, configure_logging
from tangram.cli.plugin_output import plugin_finder
from tangram.config import Config, open_state_dir
from tangram.descriptors import connection_limit, raise_descriptor_limit
from tangram.errors import ConfigError

if TYPE_CHECKING:
    from tangram.plugins.registry import LoadedPlugins

__all__ = [
    "find_state_dir",
    "keep_freed_memory",
    "note_import",
    "note_last_exits",
    "note_plugins",
    "raise_limits",
    "set_up_log",
]

log = structlog.get_logger("tangram.cli")

M_TRIM_THRESHOLD: Final = -1
"""The number of a parameter of glibc's ``mallopt``."""
M_MMAP_THRESHOLD: Final = -3
"""The number of a parameter of glibc's ``mallopt``."""
MAX_KEPT_BLOCK: Final = 4 * 1024 * 1024
"""Bytes of the largest block whose memory is kept: a message to browsers seldom has more."""
MAX_KEPT: Final = 4 * MAX_KEPT_BLOCK
"""Bytes of free memory that are kept at the end of the heap."""


def keep_freed_memory() -> None:
    """Let glibc keep the memory of a large message for the next one.

    By default it returns each large block to the kernel. The pages of the next block are then cleared and
    mapped anew, which is a third of the cost of a message of 500 KB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAX_KEPT_BLOCK)
        mallopt(M_TRIM_THRESHOLD, MAX_KEPT)


def raise_limits(max_connections: int) -> None:
    """Raise the soft limit on open files, and log if ``max_connections`` does not fit it."""
    limit = raise_descriptor_limit()
    fitting = connection_limit(max_connections)
    if fitting < max_connections:
        log.warning(
            "max_connections does not fit the limit on open files",
            max_connections=max_connections,
            limit=limit,
            effective=fitting,
            hint="raise ulimit -n, or LimitNOFILE of the systemd unit",
        )


def set_up_log(config: Config, log_format: LogFormat, **more: Any) -> None:
    """Log as configured; ``more`` are arguments of `configure_logging`."""
    log = config.log
    configure_logging(config.log_level, log_format, levels=log.levels, access=log.access_format, **more)


def note_last_exits(state_dir: Path | None) -> None:
    """Log how earlier processes ended that left a record."""
    for last in last_exits(state_dir) if state_dir is not None else ():
        (log.error if last.traced else log.warning)("last exit", **last.fields())


def note_import(record: ExitRecord, plugin: str) -> None:
    """Note that a plugin is imported now."""
    record.note_import(plugin)
    plugin_finder.note_import(plugin)


def note_plugins(record: ExitRecord, plugins: LoadedPlugins) -> None:
    """Note the sources of the loaded plugins."""
    record.note_plugins({one.name: one.source for one in plugins.plugins})
    plugin_finder.use(plugins.owner_of)


def find_state_dir(config: Config) -> Path | None:
    """Return the state folder, or None if it cannot be used: the secrets may be configured."""
    try:
        return open_state_dir(config, os.environ)
    except ConfigError:
        return None
