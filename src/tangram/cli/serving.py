"""``serve``: read the configuration, run the server, and see to it that the process ends."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import structlog
import trio

from tangram.app import Boot, run_server
from tangram.cli.force_exit import LastResort
from tangram.cli.logs import LogFormat, configure_logging
from tangram.config import LoadedConfig, current_folder, find_config_file, load_config

__all__ = ["serve_until_stopped"]

log = structlog.get_logger("tangram.cli")


def serve_until_stopped(config_file: Path | None, *, log_format: LogFormat = "console") -> int:
    """Serve until a signal asks for the end, or until the tree gives up.

    Returns:
        The exit status: 0 after a stop that was asked for, 70 after too many crashes.

    Raises:
        ConfigError: the configuration is wrong (every fault at once).
        OperatorError: an address or the broker is not to be had.
    """
    path = find_config_file(config_file, os.environ, current_folder())
    loaded = load_config(path, os.environ)
    configure_logging(loaded.config.core.log_level, log_format)
    _tell(loaded)
    resort = LastResort()
    boot = Boot(
        loaded=loaded,
        reload=lambda: _reload(path, log_format),
        on_first_ready=gc.freeze,  # what is there by then stays: the collector need not look at it again
        on_stopping=resort.arm,
        on_broker=resort.watch_broker,
    )
    status = 1
    resort.watch()
    try:
        status = trio.run(run_server, boot)
    finally:
        resort.disarm()
        resort.leave(status)
    return status


def _reload(path: Path | None, log_format: LogFormat) -> LoadedConfig:
    loaded = load_config(path, os.environ)
    configure_logging(loaded.config.core.log_level, log_format)
    _tell(loaded)
    return loaded


def _tell(loaded: LoadedConfig) -> None:
    for warning in loaded.warnings:
        log.warning(warning)
    if loaded.config.source is None:
        log.info("no configuration file: every setting has its default")
