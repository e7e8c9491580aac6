"""``async with tangram_core.Runtime(config) as runtime:`` - the server inside a program that runs on asyncio.

The server has a thread of its own, with Trio in it, so that it does not matter what the program's loop is, or what
was imported first: importing trio-asyncio, which existing plugins need, changes what asyncio gives to a thread
that runs Trio. ``runtime.state`` is for the program: its clients belong to the program's loop; what plugins hang on
the state is shared.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import structlog
import trio

from tangram.app.server import Boot, Server
from tangram.compat.core.config import Config, IntoConfig, copy_of, tables_of
from tangram.compat.names import answer_imports
from tangram.compat.state import BackendState, open_http_client, open_redis_client
from tangram.config import Loaded, find_config_file, load_config, load_tables

if TYPE_CHECKING:
    from tangram.plugins.state import BackendState as SharedState

__all__ = ["Runtime"]

log = structlog.get_logger("tangram.app")

STOP_SECONDS = 5.0
"""What the server's thread gets beyond ``[supervisor] shutdown_timeout``."""


class Runtime:
    """A server for the length of a block, or from ``start`` to ``stop``.

    ``config`` is a ``tangram_core.Config``, the path of a file, or ``None``: then the file is looked for where
    ``serve`` looks. Signals stay the program's own.
    """

    def __init__(self, config: IntoConfig = None) -> None:
        self._config = config
        self._hosted: _Hosted | None = None
        self._ended: asyncio.Future[int] | None = None
        self._state: BackendState | None = None

    @property
    def state(self) -> BackendState:
        """What a service gets, for the program.

        Raises:
            RuntimeError: it has not been started.
        """
        if self._state is None:
            raise RuntimeError("the runtime has not been started: use it in `async with`, or await start()")
        return self._state

    async def start(self) -> Self:
        """Start the server; returns once it answers.

        Raises:
            RuntimeError: it was started before.
            tangram.errors.OperatorError: the configuration, an address or the broker does not allow a start.
        """
        if self._hosted is not None:
            raise RuntimeError("the runtime was started before: make a new one")
        answer_imports()
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()
        ended = self._ended = loop.create_future()
        self._hosted = _Hosted(_loaded(self._config), _to_loop(loop, started), _to_loop(loop, ended))
        self._hosted.start()
        try:
            await asyncio.wait({started, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not started.done():
                status = ended.result()  # or what the server raised
                raise RuntimeError(f"the server did not start, status {status}: the log tells why")  # noqa: TRY301
        except BaseException:
            await self.stop()
            raise
        _keep_asyncio()
        self._state = self._hosted.view()
        return self

    async def wait(self) -> None:
        """Until the server ends.

        Raises:
            RuntimeError: it was not started, or it gave up.
        """
        if self._ended is None:
            raise RuntimeError("the runtime has not been started")
        status = await asyncio.shield(self._ended)
        if status:
            raise RuntimeError(f"the server gave up, status {status}: the log tells why")

    async def stop(self) -> None:
        """Stop everything, and wait for it. Safe to call again."""
        state, self._state = self._state, None
        if state is not None:
            for client in state.opened_clients():
                await client.aclose()
        hosted, ended = self._hosted, self._ended
        if hosted is None or ended is None:
            return
        hosted.stop()
        done, _ = await asyncio.wait({ended}, timeout=hosted.stop_seconds)
        if not done:
            log.error("the server does not stop: its thread is left behind", waited=hosted.stop_seconds)
        else:
            ended.exception()  # told by start() and wait(), not by a warning of asyncio's
            hosted.join(STOP_SECONDS)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.stop()


class _Hosted(threading.Thread):
    """The server in its thread."""

    def __init__(
        self,
        loaded: Loaded,
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
        return await self._server.run(task_status=self)

    def started(self, _value: object = None) -> None:
        """The server's ``task_status``."""
        self._on_start(None, None)

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

    def view(self) -> BackendState:
        """The program's own view of the state; follows the server over its incarnations."""
        config = self.shared().config
        url = str(config.core.redis_url)
        return BackendState(
            self.shared,
            config=copy_of(config),
            make={"redis_client": lambda: open_redis_client(url), "http_client": open_http_client},
        )


def _loaded(config: IntoConfig) -> Loaded:
    import os

    if isinstance(config, Config):
        return load_tables(tables_of(config))
    named = None if config is None else Path(config)
    return load_config(find_config_file(named, os.environ, Path.cwd()), os.environ)


def _to_loop(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[object] | asyncio.Future[None] | asyncio.Future[int]
) -> Callable[[object, BaseException | None], None]:
    """Resolves a future of *loop* from another thread."""

    def resolve(value: object, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def tell(value: object, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the program's loop is closed: nobody listens
            loop.call_soon_threadsafe(resolve, value, error)

    return tell


def _keep_asyncio() -> None:
    """Let a later ``asyncio.run`` of this thread be what it was: trio-asyncio answers it with a loop of its own
    unless a policy is set.
    """
    if "trio_asyncio" in sys.modules and sys.version_info < (3, 14):
        asyncio.set_event_loop_policy(asyncio.get_event_loop_policy())
