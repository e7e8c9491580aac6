"""A server in a thread of its own, for tests that do not run on Trio: synchronous ones and those of asyncio.

What the server under test offers on Trio is called from outside through a `Bridge`: each call goes over to
the server's loop and back. In a synchronous test it blocks; in an asyncio test it is awaited.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import trio

from tangram.testing.server import open_tangram

__all__ = ["Bridge", "threaded_tangram"]

_REMOTE = ("tangram.client", "tangram.testing", "tangram.supervision", "tangram.app", "httpx")
"""Objects of these live on the server's loop, so they are handed out behind a bridge of their own."""


class Bridge:
    """An object of the server's loop, seen from another thread or loop.

    Plain values come as they are; methods, also coroutine methods, are called over there. With
    ``asynchronous`` every coroutine method is to be awaited on asyncio.
    """

    def __init__(self, target: Any, token: trio.lowlevel.TrioToken, *, asynchronous: bool) -> None:
        self._target = target
        self._token = token
        self._asynchronous = asynchronous

    def __repr__(self) -> str:
        return f"<Bridge to {self._target!r}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = self._sync(getattr, self._target, name)
        if not callable(value):
            return self._wrap(value)
        return partial(self._invoke, value)

    def _invoke(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call it over there; who is asynchronous awaits what is a coroutine there."""

        async def call() -> Any:
            result = function(*args, **kwargs)
            return self._wrap(await result if inspect.isawaitable(result) else result)

        if self._asynchronous and inspect.iscoroutinefunction(function):
            import asyncio

            return asyncio.to_thread(self._over_there, call)
        return self._over_there(call)

    def _over_there(self, call: Callable[[], Awaitable[Any]]) -> Any:
        return trio.from_thread.run(call, trio_token=self._token)

    def _sync(self, function: Callable[..., Any], *args: Any) -> Any:
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def _wrap(self, value: Any) -> Any:
        module = type(value).__module__
        remote = (
            module.startswith(_REMOTE) and not hasattr(value, "__attrs_attrs__") and not _is_answer(value)
        )
        return Bridge(value, self._token, asynchronous=self._asynchronous) if remote else value


def _is_answer(value: Any) -> bool:
    """What was read whole needs no loop any more."""
    return type(value).__name__ in {"Response", "Headers", "URL", "Event", "Token"}


@contextmanager
def threaded_tangram(
    settings: Mapping[str, Any], *, asynchronous: bool = False
) -> Iterator[tuple[Bridge, Callable[[], Any]]]:
    """A server in a thread; ``settings`` as for ``open_tangram``. Gives the bridge, and a function that opens
    a channel client which lives as long as the server.

    Raises:
        InvariantBroken: as ``open_tangram`` does.
    """
    ready = threading.Event()
    over: list[trio.Event] = []
    made: list[Any] = []
    errors: list[BaseException] = []

    async def live() -> None:
        async with open_tangram(**settings) as running:
            stop = trio.Event()
            async with trio.open_nursery() as nursery:
                made.extend((running, nursery, trio.lowlevel.current_trio_token()))
                over.append(stop)
                ready.set()
                await stop.wait()
                nursery.cancel_scope.cancel()

    def run() -> None:
        try:
            trio.run(live)
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="tangram under test")
    thread.start()
    ready.wait()
    try:
        if not errors:
            running, nursery, token = made
            bridge = Bridge(running, token, asynchronous=asynchronous)
            yield bridge, partial(_open_socket, running, nursery, bridge)
    finally:
        if over and thread.is_alive():
            trio.from_thread.run_sync(over[0].set, trio_token=made[2])
        thread.join()
    if errors:
        raise errors[0]


def _open_socket(running: Any, nursery: trio.Nursery, bridge: Bridge) -> Any:
    async def hold(*, task_status: trio.TaskStatus[Any]) -> None:
        async with running.open_socket() as client:
            task_status.started(client)
            await trio.sleep_forever()

    return bridge._wrap(trio.from_thread.run(nursery.start, hold, trio_token=bridge._token))  # noqa: SLF001
