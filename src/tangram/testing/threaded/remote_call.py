"""One call into the server's loop and back: from a thread without a loop, from asyncio, or from a Trio loop
that is not the server's.

Over there the call is a task of a nursery with a cancel scope of its own; here its outcome is waited for by
the means of whoever waits. Who is cancelled while it waits cancels the call too, and waits for its end: like
that nothing goes on behind the back of a test, and no thread is needed that nobody could end.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from typing import Any

import attrs
import trio

__all__ = ["CANCEL_SECONDS", "LOOP_SECONDS", "RemoteCall", "ServerLoop", "ServerLoopEnded"]

LOOP_SECONDS = 60.0
"""For the server's loop to begin a call. It takes milliseconds; the longest block that a fault of the kit
puts in is a few seconds, and a slow machine may take ten times that. What takes longer stands still.
"""

CANCEL_SECONDS = 30.0
"""For a call to end when who waits for it was cancelled: the fault that it had put in is healed within that.
After that it is left to the server's end, which has a deadline of its own.
"""


class ServerLoopEnded(RuntimeError):
    """The server under test has ended with its loop; nothing can be called there any more."""

    def __init__(self) -> None:
        super().__init__(
            "the server under test has ended and cannot be called any more; if the test did not end it, the "
            "end of the fixture tells why"
        )


@attrs.frozen
class ServerLoop:
    """The server's loop, as seen from outside."""

    token: trio.lowlevel.TrioToken
    nursery: trio.Nursery
    """Calls are its tasks."""
    where: Callable[[], str]
    """Tells where the loop stands, for messages."""
    context: Context
    """In which calls are made: there `tangram.client` reaches a web port in memory."""


class RemoteCall:
    """A call on its way to a loop."""

    def __init__(self, call: Callable[[], Awaitable[Any]], loop: ServerLoop) -> None:
        self._call = call
        self._loop = loop
        self._scope = trio.CancelScope()
        self._begun = threading.Event()
        self._outcome: Future[Any] = Future()

    def block(self) -> Any:
        """Wait in this thread, which has no loop that others need.

        Raises:
            ServerLoopEnded: the server has ended.
            AssertionError: its loop stands still; the message says where.
        """
        self._begin()
        if not self._begun.wait(LOOP_SECONDS):
            self.cancel()
            told = f"the server under test did not take a call within {LOOP_SECONDS:g} s; it stands at\n"
            raise AssertionError(told + self._loop.where())
        return self._outcome.result()

    async def wait(self) -> Any:
        """Wait on asyncio or on Trio, whichever runs here.

        Raises:
            ServerLoopEnded: the server has ended.
        """
        return await (self._wait_on_asyncio() if _runs_on_asyncio() else self._wait_on_trio())

    def cancel(self) -> None:
        """Cancel the call over there; returns at once."""
        with suppress(trio.RunFinishedError):
            self._loop.token.run_sync_soon(self._scope.cancel)

    async def _wait_on_asyncio(self) -> Any:
        import asyncio

        loop, told = asyncio.get_running_loop(), asyncio.Event()

        def tell(_outcome: Future[Any]) -> None:
            with suppress(RuntimeError):  # nobody waits any more: that loop is closed
                loop.call_soon_threadsafe(told.set)

        self._outcome.add_done_callback(tell)
        self._begin()
        try:
            await told.wait()
        except asyncio.CancelledError:
            self.cancel()
            with suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), CANCEL_SECONDS)
            self._raise_error()
            raise
        return self._outcome.result()

    async def _wait_on_trio(self) -> Any:
        token, told = trio.lowlevel.current_trio_token(), trio.Event()

        def tell(_outcome: Future[Any]) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(told.set)

        self._outcome.add_done_callback(tell)
        self._begin()
        try:
            await told.wait()
        except trio.Cancelled:
            self.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CANCEL_SECONDS):
                await told.wait()
            self._raise_error()
            raise
        return self._outcome.result()

    def _raise_error(self) -> None:
        """What the cancelled call raised while it cleaned up counts more than that it was cancelled."""
        if self._outcome.done() and not self._outcome.cancelled():
            self._outcome.result()

    def _begin(self) -> None:
        try:
            self._loop.token.run_sync_soon(self._start)
        except trio.RunFinishedError:
            raise ServerLoopEnded from None

    def _start(self) -> None:
        """Over there."""
        self._begun.set()
        try:
            # Who has been called by a token is in no context of the server's.
            self._loop.context.run(self._loop.nursery.start_soon, self._run)
        except RuntimeError:  # it is closed: the server ends
            self._outcome.set_exception(ServerLoopEnded())

    async def _run(self) -> None:
        """Over there, as a task. Whatever happens, who waits is told."""
        try:
            with self._scope:
                self._outcome.set_result(await self._call())
            if not self._outcome.done():
                self._outcome.cancel()
        except trio.Cancelled:
            self._outcome.set_exception(ServerLoopEnded())
            raise
        except BaseException as error:  # noqa: BLE001 - raised where the call came from, pytest's own as well
            self._outcome.set_exception(error)


def _runs_on_asyncio() -> bool:
    """Whether who asks is a task of asyncio. That a Trio task runs as well says nothing: once trio-asyncio is
    imported, a loop of asyncio's may stand on one of Trio's.
    """
    import asyncio

    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False
