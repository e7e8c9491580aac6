"""A server in a thread of its own, for programs that run another event loop in theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tangram.app.server import Boot, Server
from tangram.config import LoadedConfig
from tangram.task_status import RelayedStatus

if TYPE_CHECKING:
    from tangram.plugins.state import BackendState as SharedState

__all__ = ["HostedServer"]

STOP_SECONDS: Final = 5.0
"""Seconds that the thread gets for its stop after ``[supervisor] shutdown_timeout``."""


class HostedServer(threading.Thread):
    """A server and its thread.

    Args:
        loaded: the configuration.
        on_start: called in the thread with ``(None, None)`` when the server is up.
        on_end: called in the thread with the exit status, and with the exception if there was one.
    """

    def __init__(
        self,
        loaded: LoadedConfig,
        on_start: Callable[[None, BaseException | None], None],
        on_end: Callable[[int, BaseException | None], None],
    ) -> None:
        # A daemon: a program that ends without stopping the server must not hang.
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
        except BaseException as error:  # noqa: BLE001 - handed to the program, which runs in its own thread
            self._on_end(1, error)

    async def _serve(self) -> int:
        self._token = trio.lowlevel.current_trio_token()
        self._server = Server(self._boot)
        status = RelayedStatus[Server](on_started=lambda _: self._on_start(None, None))
        return await self._server.run(task_status=status)

    def stop(self) -> None:
        """Request the stop and return at once."""
        if self._token is not None and self._server is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._server.stop)

    def shared(self) -> SharedState:
        """Return the state that the plugins of the present incarnation share.

        Raises:
            RuntimeError: the server is between two incarnations.
        """
        tree = None if self._server is None else self._server.tree
        state = None if tree is None else tree.incarnation.state
        if state is None:
            raise RuntimeError("the server is between two incarnations; try again")
        return state
