"""``serve``: read the configuration, run the server, and make sure that the process ends."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import structlog
import trio

from tangram.cli.exit_record import ExitRecord
from tangram.cli.force_exit import ForceExit
from tangram.cli.logs import LogFormat
from tangram.cli.plugin_output import tagged_output
from tangram.cli.process_setup import (
    find_state_dir,
    keep_freed_memory,
    note_import,
    note_last_exits,
    note_plugins,
    raise_limits,
    set_up_log,
)
from tangram.config import LoadedConfig, current_folder, find_config_file, load_config
from tangram.early_signals import deferred
from tangram.errors import ConfigError, Fault, OperatorError
from tangram.idle import IdleClock

if TYPE_CHECKING:
    from tangram.http.listeners import HeldSocket

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
    set_up_log(loaded.config, log_format)
    _log_warnings(loaded)
    state_dir = find_state_dir(loaded.config)
    note_last_exits(state_dir)
    if loaded.config.server.workers != 1 and not watch:
        from tangram.cli.parent import serve_with_workers

        return serve_with_workers(
            loaded,
            overrides or {},
            log_format=log_format,
            reload=lambda text: _reload(path, environ, log_format, text),
            on_first_ready=partial(_on_first_ready, open_page),
        )
    if loaded.config.server.workers != 1:
        log.warning("one process serves, because files are watched", workers=loaded.config.server.workers)
    return _serve_alone(
        loaded,
        state_dir,
        watch=watch,
        reload=lambda: _reload(path, environ, log_format),
        on_first_ready=partial(_on_first_ready, open_page),
    )


def _serve_alone(
    loaded: LoadedConfig,
    state_dir: Path | None,
    *,
    watch: bool,
    reload: Callable[[], LoadedConfig],
    on_first_ready: Callable[[str], None],
) -> int:
    # The parent of several workers does not need the server's code. A signal during this import ends the
    # process at once.
    from tangram.app import Boot, run_server

    with deferred():
        raise_limits(loaded.config.server.max_connections)
        keep_freed_memory()
        record = ExitRecord(state_dir)
        force_exit = ForceExit(exit_process=record.force_exit)
        kept: list[HeldSocket] = []
        boot = Boot(
            loaded=loaded,
            watch=watch,
            on_renewal=kept.extend,
            reload=reload,
            on_first_ready=on_first_ready,
            on_stopping=force_exit.arm,
            on_repeat=force_exit.force,
            on_import=partial(note_import, record),
            on_plugins=partial(note_plugins, record),
            on_broker=force_exit.watch_broker,
        )
        status = 1
        force_exit.watch()
        record.open()
        try:
            with tagged_output():
                status = trio.run(run_server, boot, clock=IdleClock())
        finally:
            force_exit.disarm()
            record.close()
            if kept:
                run_anew(kept)
            force_exit.leave(status)
        return status


def run_anew(kept: Sequence[HeldSocket]) -> NoReturn:
    """Replace the program of this process by a new run of its command, on the same sockets.

    Threads that a plugin has left end with the program.
    """
    from tangram.http.listeners import hand_over

    hand_over(kept, os.environ)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - the command of this very process


def _check_watching(watch: bool) -> None:
    if watch and find_spec("watchfiles") is None:
        raise OperatorError(
            "--reload needs watchfiles, which is not installed: pip install 'tangram-trio[dev]'"
        )


def _on_first_ready(open_page: bool, url: str) -> None:
    gc.freeze()  # the objects of the start stay, so the collector need not visit them
    if open_page:
        # In a thread: a browser of the terminal, such as w3m, returns only at its end.
        threading.Thread(target=_open_page, args=(url,), name="open browser", daemon=True).start()


def _open_page(url: str) -> None:
    import webbrowser

    if not webbrowser.open(url):
        log.warning("no browser to open", url=url)


def _load(path: Path | None, environ: Mapping[str, str], text: bytes | None = None) -> LoadedConfig:
    """Read the configuration; name options in its faults, not their variables.

    Raises:
        ConfigError: the configuration has faults.
    """
    try:
        return load_config(path, environ, text=text)
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


def _reload(
    path: Path | None, environ: Mapping[str, str], log_format: LogFormat, text: bytes | None = None
) -> LoadedConfig:
    loaded = _load(path, environ, text)
    set_up_log(loaded.config, log_format)
    _log_warnings(loaded)
    return loaded


def _log_warnings(loaded: LoadedConfig) -> None:
    for warning in loaded.warnings:
        log.warning(warning)
    if loaded.config.source is None:
        log.info("no configuration file: every setting has its default")
