"""``serve``: read the configuration, run the server, and make sure that the process ends."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import structlog
import trio

from tangram.app import Boot, run_server
from tangram.cli.exit_record import ExitRecord, last_exits
from tangram.cli.force_exit import ForceExit
from tangram.cli.logs import LogFormat, configure_logging
from tangram.cli.plugin_output import plugin_finder, tagged_output
from tangram.config import (
    Config,
    LoadedConfig,
    current_folder,
    find_config_file,
    load_config,
    open_state_dir,
)
from tangram.descriptors import connection_limit, raise_descriptor_limit
from tangram.errors import ConfigError, Fault, OperatorError
from tangram.plugins.registry import LoadedPlugins

__all__ = ["serve_until_stopped"]

log = structlog.get_logger("tangram.cli")

OPTIONS: Final = {
    "TANGRAM_SERVER__HOST": "--host",
    "TANGRAM_SERVER__PORT": "--port",
    "TANGRAM_CORE__LOG_LEVEL": "--log-level",
    "TANGRAM_LOG__LEVEL": "--log-level",
    "TANGRAM_CORE__PLUGINS": "--plugin",
}
"""The option of ``serve`` that replaces each of these variables."""

M_TRIM_THRESHOLD: Final = -1
"""The number of a parameter of glibc's ``mallopt``."""
M_MMAP_THRESHOLD: Final = -3
"""The number of a parameter of glibc's ``mallopt``."""
MAX_KEPT_BLOCK: Final = 4 * 1024 * 1024
"""Bytes of the largest block whose memory is kept: a message to browsers seldom has more."""
MAX_KEPT: Final = 4 * MAX_KEPT_BLOCK
"""Bytes of free memory that are kept at the end of the heap."""


def serve_until_stopped(
    config_file: Path | None,
    *,
    log_format: LogFormat = "console",
    overrides: Mapping[str, str] | None = None,
    open_page: bool = False,
    watch: bool = False,
) -> int:
    """Serve until a signal requests the stop, or until the tree gives up.

    Args:
        config_file: the file that the command line names, if any.
        log_format: lines for people, or JSON for programs.
        overrides: settings of the command line, by the names of environment variables. They replace those of
            the file and the environment, also when SIGHUP reads the file again.
        open_page: open the page at ``/`` in a browser when the server is up.
        watch: reload plugins and the configuration when their files change.

    Returns:
        The exit status: 0 after a requested stop, 70 after too many crashes.

    Raises:
        ConfigError: the configuration has faults (all of them are in the error).
        OperatorError: an address is in use, or the broker cannot be started.
    """
    _check_watching(watch)
    path = find_config_file(config_file, os.environ, current_folder())
    environ = {**os.environ, **(overrides or {})}
    loaded = _load(path, environ)
    _configure_logging(loaded.config, log_format)
    _log_warnings(loaded)
    _raise_descriptor_limit(loaded.config.server.max_connections)
    _keep_freed_memory()
    state_dir = _state_dir(loaded.config)
    _log_last_exits(state_dir)
    record = ExitRecord(state_dir)
    force_exit = ForceExit(exit_process=record.force_exit)
    boot = Boot(
        loaded=loaded,
        watch=watch,
        reload=lambda: _reload(path, environ, log_format),
        on_first_ready=partial(_on_first_ready, open_page),
        on_stopping=force_exit.arm,
        on_repeat=force_exit.force,
        on_import=partial(_note_import, record),
        on_plugins=partial(_note_plugins, record),
        on_broker=force_exit.watch_broker,
    )
    status = 1
    force_exit.watch()
    record.open()
    try:
        with tagged_output():
            status = trio.run(run_server, boot)
    finally:
        force_exit.disarm()
        record.close()
        force_exit.leave(status)
    return status


def _check_watching(watch: bool) -> None:
    if watch and find_spec("watchfiles") is None:
        raise OperatorError(
            "--reload needs watchfiles, which is not installed: pip install 'tangram-trio[dev]'"
        )


def _log_last_exits(state_dir: Path | None) -> None:
    for last in last_exits(state_dir) if state_dir is not None else ():
        (log.error if last.traced else log.warning)("last exit", **last.fields())


def _state_dir(config: Config) -> Path | None:
    """Return the state folder, or None if it cannot be used: the secrets may be configured."""
    try:
        return open_state_dir(config, os.environ)
    except ConfigError:
        return None


def _keep_freed_memory() -> None:
    """Let glibc keep the memory of a large message for the next one.

    By default it returns each large block to the kernel. The pages of the next block are then cleared and
    mapped anew, which is a third of the cost of a message of 500 KB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAX_KEPT_BLOCK)
        mallopt(M_TRIM_THRESHOLD, MAX_KEPT)


def _raise_descriptor_limit(max_connections: int) -> None:
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


def _configure_logging(config: Config, log_format: LogFormat) -> None:
    configure_logging(config.log_level, log_format, levels=config.log.levels, access=config.log.access_format)


def _note_import(record: ExitRecord, plugin: str) -> None:
    record.note_import(plugin)
    plugin_finder.note_import(plugin)


def _note_plugins(record: ExitRecord, plugins: LoadedPlugins) -> None:
    record.note_plugins({one.name: one.source for one in plugins.plugins})
    plugin_finder.use(plugins.owner_of)


def _on_first_ready(open_page: bool, url: str) -> None:
    gc.freeze()  # the objects of the start stay, so the collector need not visit them
    if open_page:
        # In a thread: a browser of the terminal, such as w3m, returns only at its end.
        threading.Thread(target=_open_page, args=(url,), name="open browser", daemon=True).start()


def _open_page(url: str) -> None:
    import webbrowser

    if not webbrowser.open(url):
        log.warning("no browser to open", url=url)


def _load(path: Path | None, environ: Mapping[str, str]) -> LoadedConfig:
    """Read the configuration; name options in its faults, not their variables.

    Raises:
        ConfigError: the configuration has faults.
    """
    try:
        return load_config(path, environ)
    except ConfigError as error:
        found: dict[str, Fault] = {}
        for fault in error.faults:
            what = fault.what
            for variable, option in OPTIONS.items():
                if environ.get(variable) != os.environ.get(variable):
                    what = what.replace(f"(from {variable})", f"(from {option})")
            # An option may stand for two settings.
            found.setdefault(what if "(from --" in what else str(fault), fault._replace(what=what))
        raise ConfigError(list(found.values()), about=error.about) from None


def _reload(path: Path | None, environ: Mapping[str, str], log_format: LogFormat) -> LoadedConfig:
    loaded = _load(path, environ)
    _configure_logging(loaded.config, log_format)
    _log_warnings(loaded)
    return loaded


def _log_warnings(loaded: LoadedConfig) -> None:
    for warning in loaded.warnings:
        log.warning(warning)
    if loaded.config.source is None:
        log.info("no configuration file: every setting has its default")
