"""One call into the server's loop and back, from a thread, asyncio or another Trio loop.

On the server's loop the call is a task with a cancel scope of its own; the caller waits for its outcome
by its own means. A caller that is cancelled while it waits cancels the call too and waits for its end.
So no call outlives its test, and no thread is needed that could not be ended.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from typing import Any, Final

import attrs
import trio

__all__ = ["CANCEL_SECONDS", "LOOP_SECONDS", "RemoteCall", "ServerLoop", "ServerLoopEnded"]

LOOP_SECONDS: Final = 60.0
"""Seconds for the server's loop to begin a call.

It takes milliseconds. The longest block that a fault of the kit causes is a few seconds, and a slow
machine may take ten times that. A longer wait is taken for a hang.
"""

CANCEL_SECONDS: Final = 30.0
"""Seconds for a call to end when its caller was cancelled: a fault that it injected is healed within that.

After that the call is left to the server's end, which has a deadline of its own.
"""


class ServerLoopEnded(RuntimeError):
    """The server under test has ended with its loop, so that nothing can be called there."""

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
    """Nursery for the tasks of calls."""
    where: Callable[[], str]
    """Returns where the loop stands, for messages."""
    context: Context
    """Context of the calls, in which `tangram.client` reaches a web port in memory."""


class RemoteCall:
    """A call on its way to the server's loop."""

    def __init__(self, call: Callable[[], Awaitable[Any]], loop: ServerLoop) -> None:
        self._call = call
        self._loop = loop
        self._scope = trio.CancelScope()
        self._begun = threading.Event()
        self._outcome: Future[Any] = Future()

    def block(self) -> Any:
        """Block this thread until the call has ended; return its value.

        Raises:
            ServerLoopEnded: the server has ended.
            AssertionError: its loop does not take the call; the message says where it stands.
        """
        self._begin()
        if not self._begun.wait(LOOP_SECONDS):
            self.cancel()
            message = f"the server under test did not take a call within {LOOP_SECONDS:g} s; it stands at\n"
            raise AssertionError(message + self._loop.where())
        return self._outcome.result()

    async def wait(self) -> Any:
        """Wait on asyncio or on Trio, whichever runs here; return the value of the call.

        Raises:
            ServerLoopEnded: the server has ended.
        """
        return await (self._wait_on_asyncio() if _runs_on_asyncio() else self._wait_on_trio())

    def cancel(self) -> None:
        """Cancel the call on the server's loop; return at once."""
        with suppress(trio.RunFinishedError):
            self._loop.token.run_sync_soon(self._scope.cancel)

    async def _wait_on_asyncio(self) -> Any:
        import asyncio

        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def notify(_outcome: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop of the caller is closed
                loop.call_soon_threadsafe(ended.set)

        self._outcome.add_done_callback(notify)
        self._begin()
        try:
            await ended.wait()
        except asyncio.CancelledError:
            self.cancel()
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), CANCEL_SECONDS)
            self._raise_error()
            raise
        return self._outcome.result()

    async def _wait_on_trio(self) -> Any:
        token, ended = trio.lowlevel.current_trio_token(), trio.Event()

        def notify(_outcome: Future[Any]) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(ended.set)

        self._outcome.add_done_callback(notify)
        self._begin()
        try:
            await ended.wait()
        except trio.Cancelled:
            self.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CANCEL_SECONDS):
                await ended.wait()
            self._raise_error()
            raise
        return self._outcome.result()

    def _raise_error(self) -> None:
        """Raise the error of a cancelled call, if it has one.

        An error in its clean-up counts more than the cancellation.
        """
        if self._outcome.done() and not self._outcome.cancelled():
            self._outcome.result()

    def _begin(self) -> None:
        try:
            self._loop.token.run_sync_soon(self._start)
        except trio.RunFinishedError:
            raise ServerLoopEnded from None

    def _start(self) -> None:
        """Start the task of the call; runs on the server's loop."""
        self._begun.set()
        try:
            # A function called by a token runs outside of the server's context.
            self._loop.context.run(self._loop.nursery.start_soon, self._run)
        except RuntimeError:  # it is closed: the server ends
            self._outcome.set_exception(ServerLoopEnded())

    async def _run(self) -> None:
        """Run the call as a task of the server's loop, and set its outcome in every case."""
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
    """Return whether the caller is an asyncio task.

    A current Trio task proves nothing: with trio-asyncio an asyncio loop may run inside a Trio task.
    """
    import asyncio

    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False
