"""``serve`` with several workers: the parent process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import partial

import trio

from tangram.cli.force_exit import ForceExit
from tangram.cli.logs import LogFormat
from tangram.cli.process_setup import find_state_dir, note_last_exits, raise_limits
from tangram.config import LoadedConfig
from tangram.early_signals import deferred
from tangram.workers.handover import Snapshot
from tangram.workers.parent import ParentBoot, run_parent

__all__ = ["serve_with_workers"]


def serve_with_workers(
    loaded: LoadedConfig,
    overrides: Mapping[str, str],
    *,
    log_format: LogFormat,
    reload: Callable[[bytes | None], LoadedConfig],
    on_first_ready: Callable[[str], None],
) -> int:
    """Serve with the configured number of workers until a signal requests the stop.

    Args:
        loaded: the configuration.
        overrides: settings of the command line, by the names of environment variables.
        log_format: lines for people, or JSON for programs.
        reload: returns the configuration of a file with this content.
        on_first_ready: called with the URL when every worker is ready.

    Returns:
        The exit status.

    Raises:
        OperatorError: an address is in use, or a worker or the broker cannot be started.
    """
    path = loaded.config.source

    def read() -> Snapshot:
        text = None
        if path is not None and path.is_file():
            text = path.read_bytes()
        return Snapshot(path, text, overrides)

    def read_again() -> tuple[LoadedConfig, Snapshot]:
        snapshot = read()
        return reload(snapshot.text), snapshot

    raise_limits(loaded.config.server.max_connections)
    force_exit = ForceExit()
    boot = ParentBoot(
        loaded=loaded,
        snapshot=read(),
        reload=read_again,
        log_format=log_format,
        on_first_ready=on_first_ready,
        on_stopping=force_exit.arm,
        on_broker=force_exit.watch_broker,
        on_worker_ended=partial(note_last_exits, find_state_dir(loaded.config)),
    )
    gc.freeze()
    with deferred():
        force_exit.watch()
        try:
            return trio.run(run_parent, boot)
        finally:
            force_exit.disarm()
