"""A server in a thread of its own, for tests that do not run in pytest-trio's loop: synchronous ones, those
of asyncio, and those of anyio on either of its backends.

What the server under test offers on Trio is called from outside through a `Bridge`: each call goes over to
the server's loop and back. In a synchronous test it blocks; in an asynchronous one it is awaited. What is
entered on Trio with ``async with``, or read with ``async for``, is entered and read by ``with`` and ``for``
in a synchronous test.
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
from typing import Any

import attrs
import trio

from tangram.groups import unwrap_single
from tangram.testing.faults.catalogue import Chaos
from tangram.testing.run.server import open_tangram
from tangram.testing.threaded.remote_call import RemoteCall, ServerLoop

__all__ = ["Bridge", "chaos_of", "threaded_tangram"]

_REMOTE = ("tangram.client", "tangram.testing", "tangram.supervision", "tangram.app", "httpx")
"""Objects of these live on the server's loop, so they are handed out behind a bridge of their own."""

_HERE = frozenset({"Headers", "URL", "Event", "Token"})
"""But these were read whole, and need no loop any more."""

START_SECONDS = 180.0
"""For the server's start: one that fails is tried four times, each within a ``start_timeout`` of 30 s, and
half of that again for a slow machine. What takes longer stands still.
"""

END_SECONDS = 90.0
"""For the server's end: what strikes meanwhile is healed within 30 s, a stop takes 15 s; twice that, for a
slow machine. What takes longer stands still.
"""

GIVE_UP_SECONDS = 15.0
"""For the end of a server that was given up: as much as a stop may take."""

SHOWN_FRAMES = 3
"""Lines that are told of a place: the last is the one that matters, the others say how it came there."""


@attrs.frozen
class RemoteServer:
    """The server's side: where calls go, and who holds what is entered there."""

    loop: ServerLoop
    asynchronous: bool
    """The test has a loop: what is a coroutine over there is to be awaited."""

    def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Over there, from the test's thread, which blocks."""
        return RemoteCall(call, self.loop).block()

    def look(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what takes no time over there; its value is behind a bridge, if it lives there."""

        async def call() -> Any:
            result = function(*args, **kwargs)
            return self.wrap(await result if inspect.isawaitable(result) else result)

        return self.run(call)

    def answer(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Over there: at once, or to be awaited."""
        return RemoteCall(call, self.loop).wait() if self.asynchronous else self.run(call)

    def wrap(self, value: Any) -> Any:
        """Behind a bridge, if it lives over there."""
        kind = type(value)
        if kind.__module__.startswith(_REMOTE):
            return value if _is_whole(value) else Bridge(value, self)
        if isinstance(value, AsyncGenerator):
            return Bridge(value, self)
        return RemoteContext(value, self) if hasattr(kind, "__aenter__") else value


def _is_whole(value: Any) -> bool:
    """Whether it needs the server's loop no more: the answer to a request does until it was read."""
    name = type(value).__name__
    if name == "Response":
        return bool(value.is_closed)
    return hasattr(value, "__attrs_attrs__") or name in _HERE


class Bridge:
    """An object of the server's loop, seen from another thread or loop.

    Plain values come as they are; methods, also coroutine methods, are called over there.
    """

    _target: Any
    _far: RemoteServer

    def __init__(self, target: Any, far: RemoteServer) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_far", far)

    def __setattr__(self, name: str, value: Any) -> None:
        """Over there, as it is read: what the bridge kept to itself, nobody would see."""
        self._far.look(setattr, self._target, name, value)

    def __repr__(self) -> str:
        return f"<Bridge to {self._target!r}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = self._far.look(_attribute, self._target, name)
        return partial(self._invoke, value.function) if isinstance(value, _Callable) else value

    def _invoke(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call it over there; who is asynchronous awaits what is a coroutine there."""
        if not inspect.iscoroutinefunction(function):
            return self._far.look(function, *args, **kwargs)

        async def call() -> Any:
            return self._far.wrap(await function(*args, **kwargs))

        return self._far.answer(call)

    async def _next(self) -> Any:
        return self._far.wrap(await anext(self._target))

    def __iter__(self) -> Bridge:
        return self

    def __next__(self) -> Any:
        try:
            return self._far.run(self._next)
        except StopAsyncIteration:
            raise StopIteration from None

    def __aiter__(self) -> Bridge:
        return self

    def __anext__(self) -> Any:
        return self._far.answer(self._next)


@attrs.frozen
class _Callable:
    """What is called over there; not what is handed out."""

    function: Callable[..., Any]


def _attribute(target: Any, name: str) -> Any:
    value = getattr(target, name)
    return _Callable(value) if callable(value) else value


def chaos_of(bridge: Bridge) -> Bridge:
    """Faults for the server behind a bridge, behind one as well."""
    return Bridge(Chaos(bridge._target), bridge._far)  # noqa: SLF001 - of this file


class RemoteContext:
    """A context manager of the server's loop: a task over there is in it, for as long as the test's block.

    An exception of the block stays in the test; over there the block ends well.
    """

    def __init__(self, manager: Any, far: RemoteServer) -> None:
        self._manager = manager
        self._far = far
        self._over = trio.Event()
        self._ended = trio.Event()
        self._error: Exception | None = None

    async def _enter(self) -> Any:
        return self._far.wrap(await self._far.loop.nursery.start(self._hold))

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
            self._error = error  # of its end: raised where the test's block ends
        finally:
            self._ended.set()

    async def _exit(self) -> None:
        self._over.set()
        with trio.fail_after(END_SECONDS):
            await self._ended.wait()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Any:
        return self._far.run(self._enter)

    def __exit__(self, *_details: object) -> None:
        self._far.run(self._exit)

    async def __aenter__(self) -> Any:
        try:
            return await self._far.answer(self._enter)
        except BaseException:
            # Cancelled when it had just been entered over there: nobody will come to leave it.
            with suppress(trio.RunFinishedError):
                self._far.loop.token.run_sync_soon(self._over.set)
            raise

    async def __aexit__(self, *_details: object) -> None:
        await self._far.answer(self._exit)


class _ServerThread:
    """The server, and the thread that it lives in."""

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
        # No one can end a thread; one that stands still must not keep the whole run of tests.
        self._thread = threading.Thread(target=self._run, name="tangram under test", daemon=True)

    def start(self) -> None:
        """Start it, and wait until it serves or has failed.

        Raises:
            AssertionError: neither comes; the message says where the server stands.
        """
        self._thread.start()
        if self._ready.wait(START_SECONDS):
            return
        told = f"the server under test did not start within {START_SECONDS:g} s; it stands at\n"
        told += self._where()
        self._soon(self._whole.cancel)
        self._thread.join(GIVE_UP_SECONDS)
        raise AssertionError(told)

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
            AssertionError: it does not come; the message says where the server stands.
        """
        self._soon(self._over.set)
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            told = f"the server under test did not end within {END_SECONDS:g} s; it stands at\n"
            raise AssertionError(told + self._where())

    def _soon(self, function: Callable[[], object]) -> None:
        if self._token is not None:
            with suppress(trio.RunFinishedError):  # it has ended by an error of its own
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
    """A server in a thread; ``settings`` as for ``open_tangram``. Gives the bridge to it.

    Args:
        settings: as for ``open_tangram``.
        asynchronous: the test has a loop of its own, asyncio's or Trio's.
        faults: what strikes meanwhile; all have struck, and are healed, at the end.
        chaos: as for ``Chaos``, where there are faults.

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
