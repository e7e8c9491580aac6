"""A server in a thread, for tests that do not run in pytest-trio's loop.

These are synchronous tests, those of asyncio, and those of anyio on either backend. They use the server
through a `Bridge`: each call runs on the server's loop. In a synchronous test the call blocks, in an
asynchronous one it is awaited. Objects for ``async with`` and ``async for`` are used with ``with`` and
``for`` in a synchronous test.
"""

from __future__ import annotations

import inspect
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Final

import attrs
import trio

from tangram.groups import unwrap_single
from tangram.testing.faults.catalogue import Chaos
from tangram.testing.run.server import open_tangram
from tangram.testing.threaded.remote_call import RemoteCall, ServerLoop

__all__ = ["Bridge", "chaos_of", "threaded_tangram"]

_REMOTE: Final = ("tangram.client", "tangram.testing", "tangram.supervision", "tangram.app", "httpx")
"""Objects of these packages live on the server's loop, so tests get a bridge to them."""

_HERE: Final = frozenset({"Headers", "URL", "Event", "Token"})
"""Classes of these packages that hold plain values and need no loop."""

START_SECONDS: Final = 180.0
"""Seconds for the server's start.

A start that fails is tried four times, each within a ``start_timeout`` of 30 s; half of that is added
for a slow machine. A longer start is taken for a hang.
"""

END_SECONDS: Final = 90.0
"""Seconds for the server's end.

An active fault is healed within 30 s, and a stop takes 15 s; this is twice that, for a slow machine. A
longer end is taken for a hang.
"""

GIVE_UP_SECONDS: Final = 15.0
"""Seconds for the end of a server whose start was given up: as much as a stop may take."""

SHOWN_FRAMES: Final = 3
"""Frames of a place that are shown: the last one matters, the others say how it was reached."""


@attrs.frozen
class RemoteServer:
    """The server's side of a bridge: its loop, and the kind of the test."""

    loop: ServerLoop
    asynchronous: bool
    """Whether the test has a loop, so that coroutine methods are awaited."""

    def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Run a call on the server's loop and block the test's thread until it ends."""
        return RemoteCall(call, self.loop).block()

    def call_now(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a quick function on the server's loop; its value may come behind a bridge."""

        async def call() -> Any:
            result = function(*args, **kwargs)
            return self.wrap(await result if inspect.isawaitable(result) else result)

        return self.run(call)

    def call(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Run a call on the server's loop: at once, or as an awaitable where the test has a loop."""
        return RemoteCall(call, self.loop).wait() if self.asynchronous else self.run(call)

    def wrap(self, value: Any) -> Any:
        """Return a value behind a bridge, if it lives on the server's loop."""
        kind = type(value)
        if kind.__module__.startswith(_REMOTE):
            return value if _is_whole(value) else Bridge(value, self)
        if isinstance(value, AsyncGenerator):
            return Bridge(value, self)
        return RemoteContext(value, self) if hasattr(kind, "__aenter__") else value


def _is_whole(value: Any) -> bool:
    """Return whether a value needs the server's loop no more.

    A response does until its body was read.
    """
    name = type(value).__name__
    if name == "Response":
        return bool(value.is_closed)
    return hasattr(value, "__attrs_attrs__") or name in _HERE


class Bridge:
    """An object of the server's loop, used from another thread or loop.

    Plain values are returned as they are; functions and coroutine methods are called on the server's
    loop.
    """

    _target: Any
    _server: RemoteServer

    def __init__(self, target: Any, server: RemoteServer) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_server", server)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the attribute on the object itself, where it is read."""
        self._server.call_now(setattr, self._target, name, value)

    def __repr__(self) -> str:
        return f"<Bridge to {self._target!r}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = self._server.call_now(_attribute, self._target, name)
        return partial(self._invoke, value.function) if isinstance(value, _Callable) else value

    def _invoke(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method on the server's loop; an asynchronous test awaits a coroutine method."""
        if not inspect.iscoroutinefunction(function):
            return self._server.call_now(function, *args, **kwargs)

        async def call() -> Any:
            return self._server.wrap(await function(*args, **kwargs))

        return self._server.call(call)

    async def _next(self) -> Any:
        return self._server.wrap(await anext(self._target))

    def __iter__(self) -> Bridge:
        return self

    def __next__(self) -> Any:
        try:
            return self._server.run(self._next)
        except StopAsyncIteration:
            raise StopIteration from None

    def __aiter__(self) -> Bridge:
        return self

    def __anext__(self) -> Any:
        return self._server.call(self._next)


@attrs.frozen
class _Callable:
    """A method that is called on the server's loop; not handed out."""

    function: Callable[..., Any]


def _attribute(target: Any, name: str) -> Any:
    value = getattr(target, name)
    return _Callable(value) if callable(value) else value


def chaos_of(bridge: Bridge) -> Bridge:
    """Return a bridge to the `Chaos` of the server behind a bridge."""
    return Bridge(Chaos(bridge._target), bridge._server)  # noqa: SLF001 - of this file


class RemoteContext:
    """A context manager of the server's loop, entered by a task there for the test's block.

    An exception of the block stays in the test; on the server's loop the block ends normally.
    """

    def __init__(self, manager: Any, server: RemoteServer) -> None:
        self._manager = manager
        self._server = server
        self._over = trio.Event()
        self._ended = trio.Event()
        self._error: Exception | None = None

    async def _enter(self) -> Any:
        return self._server.wrap(await self._server.loop.nursery.start(self._hold))

    async def _hold(self, *, task_status: trio.TaskStatus[Any]) -> None:
        entered = False
        try:
            async with self._manager as value:
                entered = True
                task_status.started(value)
                await self._over.wait()
        except Exception as error:
            if not entered:
                raise
            self._error = error  # raised at the end of the test's block
        finally:
            self._ended.set()

    async def _exit(self) -> None:
        self._over.set()
        with trio.fail_after(END_SECONDS):
            await self._ended.wait()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Any:
        return self._server.run(self._enter)

    def __exit__(self, *_details: object) -> None:
        self._server.run(self._exit)

    async def __aenter__(self) -> Any:
        try:
            return await self._server.call(self._enter)
        except BaseException:
            # Cancelled just after the server's task had entered it: let that task leave it.
            with suppress(trio.RunFinishedError):
                self._server.loop.token.run_sync_soon(self._over.set)
            raise

    async def __aexit__(self, *_details: object) -> None:
        await self._server.call(self._exit)


class _ServerThread:
    """The server, and the thread in which it lives."""

    def __init__(self, settings: Mapping[str, Any], faults: Sequence[str], chaos: Mapping[str, Any]) -> None:
        self._settings = settings
        self._faults = faults
        self._chaos = chaos
        self._over = trio.Event()
        self._whole = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._ready = threading.Event()
        self.made: tuple[Any, ServerLoop] | None = None
        self.error: BaseException | None = None
        # A thread cannot be ended from outside; as a daemon it does not keep the process of the tests.
        self._thread = threading.Thread(target=self._run, name="tangram under test", daemon=True)

    def start(self) -> None:
        """Start the thread, and wait until the server is up or has failed.

        Raises:
            AssertionError: neither happens in time; the message says where the server stands.
        """
        self._thread.start()
        if self._ready.wait(START_SECONDS):
            return
        message = f"the server under test did not start within {START_SECONDS:g} s; it stands at\n"
        message += self._where()
        self._soon(self._whole.cancel)
        self._thread.join(GIVE_UP_SECONDS)
        raise AssertionError(message)

    def _run(self) -> None:
        try:
            trio.run(self._live)
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            self.error = error
        finally:
            self._ready.set()

    async def _live(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with AsyncExitStack() as stack:
            stack.enter_context(self._whole)
            running = await stack.enter_async_context(open_tangram(**self._settings))
            if self._faults:
                chaos = Chaos(running, **self._chaos)
                await stack.enter_async_context(chaos.striking(*self._faults))
            nursery = await stack.enter_async_context(trio.open_nursery())
            self.made = running, ServerLoop(self._token, nursery, self._where, copy_context())
            self._ready.set()
            await self._over.wait()
            nursery.cancel_scope.cancel()

    def end(self) -> None:
        """Ask for the end, and wait for it.

        Raises:
            AssertionError: it does not come in time; the message says where the server stands.
        """
        self._soon(self._over.set)
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            message = f"the server under test did not end within {END_SECONDS:g} s; it stands at\n"
            raise AssertionError(message + self._where())

    def _soon(self, function: Callable[[], object]) -> None:
        if self._token is not None:
            with suppress(trio.RunFinishedError):  # the loop has ended by itself
                self._token.run_sync_soon(function)

    def _where(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001 - the documented way to see other threads
        return "nowhere" if frame is None else "".join(traceback.format_stack(frame)[-SHOWN_FRAMES:])


@contextmanager
def threaded_tangram(
    settings: Mapping[str, Any],
    *,
    asynchronous: bool = False,
    faults: Sequence[str] = (),
    chaos: Mapping[str, Any] | None = None,
) -> Iterator[Bridge]:
    """Run a server in a thread for the block, and yield a bridge to it.

    Args:
        settings: as for ``open_tangram``.
        asynchronous: whether the test has a loop of its own, asyncio's or Trio's.
        faults: names of faults that strike meanwhile; all are over and healed at the end.
        chaos: settings as for ``Chaos``, where there are faults.

    Raises:
        InvariantBroken: as ``open_tangram`` does.
        AssertionError: the server does not start, or does not end.
    """
    thread = _ServerThread(settings, faults, chaos or {})
    thread.start()
    try:
        if thread.made is not None:
            running, loop = thread.made
            yield Bridge(running, RemoteServer(loop, asynchronous))
    finally:
        thread.end()
    if thread.error is not None:
        raise unwrap_single(thread.error)
