"""A server in a thread of its own, for tests that do not run on Trio: synchronous ones and those of asyncio.

What the server under test offers on Trio is called from outside through a `Bridge`: each call goes over to
the server's loop and back. In a synchronous test it blocks; in an asyncio test it is awaited. What is entered
on Trio with ``async with``, or read with ``async for``, is entered and read by ``with`` and ``for`` in a
synchronous test.
"""

from __future__ import annotations

import inspect
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import attrs
import trio

from tangram.testing.catalogue import Chaos
from tangram.testing.server import open_tangram

__all__ = ["Bridge", "chaos_of", "threaded_tangram"]

_REMOTE = ("tangram.client", "tangram.testing", "tangram.supervision", "tangram.app", "httpx")
"""Objects of these live on the server's loop, so they are handed out behind a bridge of their own."""

_HERE = frozenset({"Response", "Headers", "URL", "Event", "Token"})
"""But these were read whole, and need no loop any more."""

END_SECONDS = 90.0
"""For the server's end: what strikes meanwhile is healed within 30 s, a stop takes 15 s; twice that, for a
slow machine. What takes longer stands still.
"""


@attrs.frozen
class Far:
    """The server's side: where calls go, and who holds what is entered there."""

    token: trio.lowlevel.TrioToken
    nursery: trio.Nursery
    asynchronous: bool
    """The test runs on asyncio: what is a coroutine over there is to be awaited."""

    def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Over there, from the test's thread."""
        return trio.from_thread.run(call, trio_token=self.token)

    def answer(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Over there: at once, or for asyncio to await."""
        if not self.asynchronous:
            return self.run(call)
        import asyncio

        return asyncio.to_thread(self.run, call)

    def wrap(self, value: Any) -> Any:
        """Behind a bridge, if it lives over there."""
        kind = type(value)
        if kind.__module__.startswith(_REMOTE):
            here = hasattr(value, "__attrs_attrs__") or kind.__name__ in _HERE
            return value if here else Bridge(value, self)
        return Entered(value, self) if hasattr(kind, "__aenter__") else value


class Bridge:
    """An object of the server's loop, seen from another thread or loop.

    Plain values come as they are; methods, also coroutine methods, are called over there.
    """

    def __init__(self, target: Any, far: Far) -> None:
        self._target = target
        self._far = far

    def __repr__(self) -> str:
        return f"<Bridge to {self._target!r}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = trio.from_thread.run_sync(getattr, self._target, name, trio_token=self._far.token)
        if not callable(value):
            return self._far.wrap(value)
        return partial(self._invoke, value)

    def _invoke(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call it over there; who is asynchronous awaits what is a coroutine there."""

        async def call() -> Any:
            result = function(*args, **kwargs)
            return self._far.wrap(await result if inspect.isawaitable(result) else result)

        return (self._far.answer if inspect.iscoroutinefunction(function) else self._far.run)(call)

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


def chaos_of(bridge: Bridge) -> Bridge:
    """Faults for the server behind a bridge, behind one as well."""
    return Bridge(Chaos(bridge._target), bridge._far)  # noqa: SLF001 - of this file


class Entered:
    """A context manager of the server's loop: a task over there is in it, for as long as the test's block.

    An exception of the block stays in the test; over there the block ends well.
    """

    def __init__(self, manager: Any, far: Far) -> None:
        self._manager = manager
        self._far = far
        self._over = trio.Event()
        self._ended = trio.Event()
        self._error: Exception | None = None

    async def _enter(self) -> Any:
        return self._far.wrap(await self._far.nursery.start(self._hold))

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

    def __aenter__(self) -> Any:
        return self._far.answer(self._enter)

    def __aexit__(self, *_details: object) -> Any:
        return self._far.answer(self._exit)


class _Thread:
    """The server, and the thread that it lives in."""

    def __init__(self, settings: Mapping[str, Any], faults: Sequence[str], chaos: Mapping[str, Any]) -> None:
        self._settings = settings
        self._faults = faults
        self._chaos = chaos
        self._over = trio.Event()
        self._ready = threading.Event()
        self.made: tuple[Any, trio.Nursery, trio.lowlevel.TrioToken] | None = None
        self.error: BaseException | None = None
        # No one can end a thread; one that stands still must not keep the whole run of tests.
        self._thread = threading.Thread(target=self._run, name="tangram under test", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()  # what it waits for itself has deadlines: the server's start_timeout

    def _run(self) -> None:
        try:
            trio.run(self._live)
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            self.error = error
        finally:
            self._ready.set()

    async def _live(self) -> None:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(open_tangram(**self._settings))
            if self._faults:
                chaos = Chaos(running, **self._chaos)
                await stack.enter_async_context(chaos.striking(*self._faults))
            nursery = await stack.enter_async_context(trio.open_nursery())
            self.made = running, nursery, trio.lowlevel.current_trio_token()
            self._ready.set()
            await self._over.wait()
            nursery.cancel_scope.cancel()

    def end(self) -> None:
        """Ask for the end, and wait for it.

        Raises:
            AssertionError: it does not come; the message says where the server stands.
        """
        if self.made is not None:
            with suppress(trio.RunFinishedError):  # it has ended by an error of its own
                trio.from_thread.run_sync(self._over.set, trio_token=self.made[2])
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001 - the documented way to see other threads
            where = "".join(traceback.format_stack(frame)[-3:]) if frame is not None else "nowhere"
            told = f"the server under test did not end within {END_SECONDS:g} s; it stands at\n{where}"
            raise AssertionError(told)


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
        asynchronous: the test runs on asyncio.
        faults: what strikes meanwhile; all have struck, and are healed, at the end.
        chaos: as for ``Chaos``, where there are faults.

    Raises:
        InvariantBroken: as ``open_tangram`` does.
        AssertionError: the server does not end.
    """
    thread = _Thread(settings, faults, chaos or {})
    thread.start()
    try:
        if thread.made is not None:
            running, nursery, token = thread.made
            yield Bridge(running, Far(token, nursery, asynchronous))
    finally:
        thread.end()
    if thread.error is not None:
        raise _alone(thread.error)


def _alone(error: BaseException) -> BaseException:
    """Out of groups of one, that a test may expect it by its name."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
