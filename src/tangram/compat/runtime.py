"""The class ``tangram_core.Runtime``: a whole server inside a program on asyncio.

The server runs Trio in a thread of its own, because importing trio-asyncio, which existing plugins need,
changes asyncio's functions in a thread that runs Trio. So the program's loop and the order of its imports do
not matter. ``runtime.state`` is for the program: its clients belong to the program's loop, and attributes
that plugins set on the state are shared.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import structlog

from tangram.compat.configuration import Config, IntoConfig, copy_of, tables_of
from tangram.compat.names import answer_imports
from tangram.compat.state import BackendState, open_http_client, open_redis_client
from tangram.config import LoadedConfig, current_folder, find_config_file, load_config, load_tables
from tangram.server_factory import make_server_in_thread

if TYPE_CHECKING:
    from tangram.plugins.state import BackendState as SharedState

__all__ = ["Runtime"]

log = structlog.get_logger("tangram.compat")

JOIN_SECONDS: Final = 5.0
"""Seconds for the server's thread to end after it has reported its end; it takes microseconds."""


class StartableServer(Protocol):
    """The part of ``tangram.app.in_thread.HostedServer`` that is used here."""

    stop_seconds: float

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def join(self, timeout: float) -> None: ...
    def shared(self) -> SharedState: ...


class Runtime:
    """A server for the length of an ``async with`` block, or from ``start`` to ``stop``.

    Signals stay the program's own.

    Args:
        config: A ``tangram_core.Config``, the path of a file, or ``None``: then the file is looked for
            in the same places as for ``serve``.

    Example:
        ::

            async with tangram_core.Runtime(config) as runtime:
                await runtime.state.redis_client.set("greeting", "hello")
    """

    def __init__(self, config: IntoConfig = None) -> None:
        self._config = config
        self._hosted: StartableServer | None = None
        self._ended: asyncio.Future[int] | None = None
        self._state: BackendState | None = None

    @property
    def state(self) -> BackendState:
        """Return the state for the program, with the same attributes as that of a service.

        Raises:
            RuntimeError: the runtime has not been started.
        """
        if self._state is None:
            raise RuntimeError("the runtime has not been started: use it in `async with`, or await start()")
        return self._state

    async def start(self) -> Self:
        """Start the server and return once it is ready.

        Raises:
            RuntimeError: the runtime was started before, or the server did not start.
            tangram.errors.OperatorError: the configuration, an address or the broker does not allow a start.
        """
        if self._hosted is not None:
            raise RuntimeError("the runtime was started before: make a new one")
        answer_imports()
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()
        ended = self._ended = loop.create_future()
        # A whole server consists of packages above this one, which the factory knows.
        self._hosted = make_server_in_thread(
            _loaded(self._config), _to_loop(loop, started), _to_loop(loop, ended)
        )
        self._hosted.start()
        try:
            await asyncio.wait({started, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not started.done():
                status = ended.result()  # raises the exception of the server, if there is one
                raise RuntimeError(f"the server did not start, status {status}: the log tells why")  # noqa: TRY301 - the caller in this function handles it
        except BaseException:
            await self.stop()
            raise
        _keep_asyncio()
        self._state = _view(self._hosted)
        return self

    async def wait(self) -> None:
        """Wait until the server ends.

        Raises:
            RuntimeError: the runtime was not started, or the server gave up.
        """
        if self._ended is None:
            raise RuntimeError("the runtime has not been started")
        status = await asyncio.shield(self._ended)
        if status:
            raise RuntimeError(f"the server gave up, status {status}: the log tells why")

    async def stop(self) -> None:
        """Stop the server and wait for its end. Safe to call again."""
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
            log.error("server thread abandoned", waited=hosted.stop_seconds)
        else:
            ended.exception()  # start() and wait() raise it; asyncio need not warn of it
            hosted.join(JOIN_SECONDS)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.stop()


def _view(hosted: StartableServer) -> BackendState:
    """Return the program's view of the state, which follows the server over its incarnations."""
    shared = hosted.shared()
    config, rules = shared.config, shared.history_rules
    url = shared.client_url
    return BackendState(
        hosted.shared,
        config=copy_of(config),
        make={"redis_client": lambda: open_redis_client(url, rules), "http_client": open_http_client},
    )


def _loaded(config: IntoConfig) -> LoadedConfig:
    import os

    if isinstance(config, Config):
        return load_tables(tables_of(config))
    named = None if config is None else Path(config)
    return load_config(find_config_file(named, os.environ, current_folder()), os.environ)


def _to_loop(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]
) -> Callable[[object, BaseException | None], None]:
    """Return a function that resolves a future of *loop* from another thread."""

    def resolve(value: object, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def notify(value: object, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the program's loop is closed
            loop.call_soon_threadsafe(resolve, value, error)

    return notify


def _keep_asyncio() -> None:
    """Give a later ``asyncio.run`` of this thread asyncio's own loop.

    trio-asyncio would answer it with a loop of its own as long as no event loop policy is set.
    """
    if "trio_asyncio" in sys.modules and sys.version_info < (3, 14):
        # A program that imported trio-asyncio before its loop started keeps such a loop as its policy's.
        with suppress(RuntimeError):
            asyncio.set_event_loop_policy(asyncio.get_event_loop_policy())
