"""A server in a thread of its own: for programs that have another event loop in theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from tangram.app.server import Boot, Server
from tangram.config import LoadedConfig
from tangram.task_status import RelayedStatus

if TYPE_CHECKING:
    from tangram.plugins.state import BackendState as SharedState

__all__ = ["HostedServer"]

STOP_SECONDS = 5.0
"""What the thread gets beyond ``[supervisor] shutdown_timeout``."""


class HostedServer(threading.Thread):
    """The server in its thread."""

    def __init__(
        self,
        loaded: LoadedConfig,
        on_start: Callable[[None, BaseException | None], None],
        on_end: Callable[[int, BaseException | None], None],
    ) -> None:
        # A daemon: a program that ends without stopping it must not hang.
        super().__init__(name="tangram", daemon=True)
        self._boot = Boot(loaded=loaded, signals=False)
        self._on_start = on_start
        self._on_end = on_end
        self._server: Server | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self.stop_seconds = loaded.config.supervisor.shutdown_timeout + STOP_SECONDS

    def run(self) -> None:
        try:
            self._on_end(trio.run(self._serve), None)
        except BaseException as error:  # noqa: BLE001 - it is the program's, in its own thread
            self._on_end(1, error)

    async def _serve(self) -> int:
        self._token = trio.lowlevel.current_trio_token()
        self._server = Server(self._boot)
        status = RelayedStatus[Server](on_started=lambda _: self._on_start(None, None))
        return await self._server.run(task_status=status)

    def stop(self) -> None:
        """Ask for the end; returns at once."""
        if self._token is not None and self._server is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._server.stop)

    def shared(self) -> SharedState:
        """What the plugins of this incarnation share."""
        state = None if self._server is None or self._server.tree is None else self._server.tree.state
        if state is None:
            raise RuntimeError("the server is between two incarnations; try again")
        return state
