"""Islands: asyncio loops on top of Trio, and the plugins that reside on them.

1. Everything of a resident runs as an asyncio task that knows whose it is: tasks inherit the owner from the
   task that made them. So the end of a resident finds what it spawned, on a loop of its own or a shared one.
2. Whoever waits for such a task on the Trio side has a bound. A task that goes on although it was cancelled
   is named, with the line it stands on; its coroutine is closed, and its loop runs it no more.
3. What nobody awaits and fails is logged with its plugin's name, and ends nobody else.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio
import trio_asyncio
from trio_asyncio import _base as trio_asyncio_base

from tangram.compat.guards import TaskFactory, close_opened, guard_loop, release_loop
from tangram.compat.patches import mend_asyncio, wait_for
from tangram.errors import PluginError, ServiceError
from tangram.supervision import CURRENT_CHILD_TASK, run_sync_in_thread

__all__ = ["CLOSE_SECONDS", "Island", "IslandClosed", "Resident", "open_island"]

log = structlog.get_logger("tangram.compat")

STOP_SECONDS = 2.0
"""What a cancelled task gets to end, unless somebody says otherwise: for a request's handler."""
CLOSE_SECONDS = 1.0
"""What tasks that outlived their plugin get to end, and then its clients to close: twice this."""
LEAST_SECONDS = 0.2
"""What each gets in any case, although the plugin's stop time is used up."""
SECOND_CANCEL = 1.0
"""When a task is cancelled a second time, because it may have swallowed the first by mistake. Sooner would
cut clean-ups."""
SHARE = 0.8
"""The share of a child's stop time that its asyncio task gets: the child has to end within the whole of
it.
"""
THREADS = 40
"""Calls in ``run_in_executor`` at once, for each island: as many as FastAPI's users are used to."""
THREAD_SECONDS = 1.0
"""What a thread of the executor gets to end when its island closes; then it is left behind, and counted."""


class IslandClosed(PluginError):
    """The plugin is being stopped: what was asked of it is not carried out."""


class Island:
    """One loop, and who lives on it. Made by `open_island`."""

    def __init__(self, name: str, loop: Any) -> None:
        self.name = name
        self.loop: asyncio.AbstractEventLoop = loop
        loop.set_exception_handler(self._complain)
        guard_loop(loop, name, _owner.get, _owned)
        # Upstream waits for its threads without limit, and nobody learns of them.
        loop._default_executor = _Executor(trio.CapacityLimiter(THREADS))  # noqa: SLF001

    async def close(self) -> None:
        """End what nobody owns any more, within a bound."""
        strays = {task for task in asyncio.all_tasks(self.loop) if not task.done()}
        await end_tasks(strays, CLOSE_SECONDS, owner=self.name)
        agens = getattr(self.loop, "_asyncgens", ())
        if len(agens):
            closing = self.loop.create_task(self.loop.shutdown_asyncgens())
            await _wait({closing}, CLOSE_SECONDS)
            # Upstream would wait for these without limit.
            getattr(self.loop, "_asyncgens", weakref.WeakSet()).clear()
            await end_tasks({closing}, LEAST_SECONDS, owner=self.name)
        release_loop(self.loop)

    def _complain(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        task = context.get("task") or context.get("future")
        if isinstance(task, asyncio.Task) and task in _abandoned:
            return
        owner = _owner_of(task, context.get("handle"))
        error = context.get("exception")
        log.error(
            "an asyncio task failed, and nobody waited for it",
            plugin=self.name if owner is None else owner.plugin,
            told=context.get("message"),
            cause=repr(error) if error is not None else None,
            exc_info=error,
        )


@asynccontextmanager
async def open_island(name: str) -> AsyncIterator[Island]:
    """A loop for the length of the block; ending it ends every task that is still on it."""
    mend_asyncio()
    crash: Exception | None = None
    async with trio_asyncio.open_loop() as loop:
        island = Island(name, loop)
        try:
            yield island
        except Exception as error:  # noqa: BLE001 - kept from the nurseries of the loop, which would wrap it
            crash = error
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 4 * CLOSE_SECONDS):
                await island.close()
    if crash is not None:
        raise crash


class Resident:
    """A plugin's part of an island: its tasks, and the way to them from Trio."""

    def __init__(self, island: Island, plugin: str) -> None:
        self.island = island
        self.plugin = plugin
        self.closed = False
        self.tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self.gone: dict[asyncio.Task[Any], trio.Event] = {}
        """Tasks that somebody on the Trio side waits for."""
        self.tails: set[asyncio.Task[Any]] = set()
        """Tasks whose callers have got what they wanted: `let_go`."""
        self.opened: weakref.WeakSet[Any] = weakref.WeakSet()
        """Transports, servers and child processes."""
        _residents.add(self)

    def spawn(self, function: Callable[..., Any], *args: Any, name: str) -> asyncio.Task[Any]:
        """Begin ``function(*args)`` as a task of this plugin; what it returns is awaited if it can be."""
        if self.closed:
            raise IslandClosed(f"plugin {self.plugin!r} is being stopped", plugin=self.plugin)
        context = contextvars.copy_context()
        context.run(trio_asyncio.current_loop.set, self.island.loop)
        context.run(_owner.set, self)
        return self.island.loop.create_task(_called(function, args), name=name, context=context)

    async def call(
        self, function: Callable[..., Any], *args: Any, name: str, stop_timeout: float = STOP_SECONDS
    ) -> Any:
        """``await function(*args)`` on the island. Cancelled, the task has ``stop_timeout`` seconds to end.

        Raises:
            IslandClosed: the plugin is stopped meanwhile.
            ServiceError: the task was cancelled from inside, which asyncio does not tell from a wish.
        """
        task = self.spawn(function, *args, name=name)
        return await self.wait(task, stop_timeout=stop_timeout)

    async def wait(self, task: asyncio.Task[Any], *, stop_timeout: float = STOP_SECONDS) -> Any:
        """What a spawned task gives; see `call`."""
        done = self.gone[task] = trio.Event()
        task.add_done_callback(lambda _task: done.set())
        try:
            await done.wait()
        except trio.Cancelled:
            await end_tasks({task}, _within_life(stop_timeout), owner=self.plugin)
            if not task.done() or task.cancelled():
                raise
        finally:
            self.gone.pop(task, None)
        return self._result(task)

    def let_go(self, task: asyncio.Task[Any], failed: Callable[[Exception], None]) -> None:
        """Nobody waits for a spawned task any more: it ends by itself, or with this plugin at the latest.
        *failed* is told what it raises.
        """
        self.tails.add(task)

        def over(_task: asyncio.Task[Any]) -> None:
            self.tails.discard(task)
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Exception):
                failed(error)

        task.add_done_callback(over)

    def _result(self, task: asyncio.Task[Any]) -> Any:
        if not task.done() or (task.cancelled() and self.closed):
            raise IslandClosed(f"plugin {self.plugin!r} was stopped meanwhile", plugin=self.plugin)
        try:
            return task.result()
        except asyncio.CancelledError:
            raise ServiceError(
                f"the task {task.get_name()!r} was cancelled from inside", plugin=self.plugin
            ) from None

    async def close(self, clients: Callable[[], list[Any]]) -> None:
        """End the tasks that are left, then close the clients; bounded."""
        self.closed = True
        with trio.CancelScope(shield=True):
            left = {task for task in self.tasks if not task.done() and task not in _abandoned}
            leaked = [task.get_name() for task in left if task not in self.gone]
            if leaked:
                log.info(
                    "asyncio tasks outlived their plugin and are cancelled", plugin=self.plugin, tasks=leaked
                )
            await end_tasks(left, _within_life(CLOSE_SECONDS), owner=self.plugin)
            for task in left:
                if task in self.gone:
                    self.gone[task].set()
            await self._end_all(_close(client) for client in clients())
            await self._end_all(_wait_for(ended) for ended in close_opened(self))

    async def _end_all(self, closing: Iterable[Coroutine[Any, Any, None]]) -> None:
        tasks = {self.island.loop.create_task(one) for one in closing}
        if tasks:
            await _wait(tasks, _within_life(CLOSE_SECONDS))
            await end_tasks(tasks, LEAST_SECONDS, owner=self.plugin)


_owner: contextvars.ContextVar[Resident | None] = contextvars.ContextVar("tangram_resident", default=None)


def _owned(factory: TaskFactory) -> TaskFactory:
    """A task factory whose tasks know whose they are."""

    def make(
        loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **settings: Any
    ) -> asyncio.Task[Any]:
        task = factory(loop, coro, **settings)
        context = settings.get("context")
        owner = _owner.get() if context is None else context.get(_owner)
        if owner is not None and not task.done():
            owner.tasks.add(task)
            if owner.closed:
                # Whoever spawns while he is being stopped does not outlive it.
                loop.call_soon(task.cancel)
        return task

    return make


async def _called(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    result = function(*args)
    return await result if inspect.isawaitable(result) else result


async def _close(client: Any) -> None:
    close: Callable[[], Awaitable[None]] = client.aclose
    try:
        await close()
    except Exception as error:  # noqa: BLE001 - a client that cannot be closed is given up
        log.info("a client could not be closed", client=type(client).__name__, cause=repr(error))


async def _wait_for(ended: Awaitable[object]) -> None:
    await ended


def _within_life(seconds: float) -> float:
    """*seconds*, or what the supervised child in whose task this runs can spare of its stop time."""
    life = CURRENT_CHILD_TASK.get()
    if life is None:
        return seconds
    return max(LEAST_SECONDS, min(seconds, SHARE * (life.stop_due - trio.current_time())))


async def _wait(tasks: set[asyncio.Task[Any]], seconds: float) -> None:
    """Until all are done, or for so long; shielded."""
    done = trio.Event()
    left = {task for task in tasks if not task.done()}

    def one_less(task: asyncio.Task[Any]) -> None:
        left.discard(task)
        if not left:
            done.set()

    for task in tuple(left):
        task.add_done_callback(one_less)
    if left:
        with trio.move_on_after(seconds, shield=True):
            await done.wait()


async def end_tasks(tasks: set[asyncio.Task[Any]], seconds: float, *, owner: str) -> None:
    """Cancel *tasks* and wait so long for them; what is left then is named and abandoned. Shielded."""
    tasks = {task for task in tasks if not task.done()}
    if any(_is_dead(task.get_loop()) for task in tasks):
        seconds = 0.0
    first = min(SECOND_CANCEL, seconds / 2)
    for wait in (first, seconds - first):
        for task in tasks:
            task.cancel()
        await _wait(tasks, wait)
        tasks = {task for task in tasks if not task.done()}
    for task in tasks:
        _abandon(task, seconds, owner)


def _is_dead(loop: Any) -> bool:
    """Whether what was raised on it has ended it (SystemExit does): it runs no task any more."""
    return bool(loop._stopped.is_set())  # noqa: SLF001 - upstream has no other way to ask


_abandoned: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()


def _abandon(task: asyncio.Task[Any], seconds: float, owner: str) -> None:
    log.error(
        "an asyncio task does not end although it was cancelled, and is abandoned",
        plugin=owner,
        task=task.get_name(),
        after=round(seconds, 3),
        where=where_stands(task),
    )
    _abandoned.add(task)
    # Its loop's end would wait for it otherwise, and without limit. There is no public way to say so.
    asyncio.tasks._unregister_task(task)  # noqa: SLF001
    vars_of: Any = task
    vars_of._log_destroy_pending = False  # noqa: SLF001
    coroutine = task.get_coro()
    try:
        if coroutine is not None:
            coroutine.close()
    except Exception as error:  # noqa: BLE001 - whatever its clean-up says, it is over
        log.error("an abandoned task failed", plugin=owner, task=task.get_name(), cause=repr(error))  # noqa: TRY400


def where_stands(task: asyncio.Task[Any]) -> str:
    """The innermost line of Python that a task waits on, asyncio's own left out."""
    found = ""
    inner: Any = task.get_coro()
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "ag_frame", None)
        if frame is None:
            break
        code = frame.f_code
        if "/asyncio/" not in code.co_filename and code is not wait_for.__code__:
            found = f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"
        inner = getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)
    return found


def _owner_of(task: object, handle: object) -> Resident | None:
    """Whose task it is, or whose callback."""
    if isinstance(task, asyncio.Task):
        if hasattr(task, "get_context"):
            found: Resident | None = task.get_context().get(_owner)
            return found
        # Before Python 3.12 a task does not tell its context.
        return next((one for one in tuple(_residents) if task in one.tasks), None)
    context: contextvars.Context | None = getattr(handle, "_context", None)
    return _owner.get() if context is None else context.get(_owner)


_residents: weakref.WeakSet[Resident] = weakref.WeakSet()


class _Executor(trio_asyncio_base.TrioExecutor):  # type: ignore[misc]  # upstream ships no types
    """``loop.run_in_executor(None, ...)``: in threads that are named, bounded, and left behind in the end."""

    async def submit(self, func: Callable[..., Any], *args: Any) -> Any:
        owner = _owner.get()
        name = "island" if owner is None else owner.plugin
        async with self._limiter:
            return await run_sync_in_thread(func, *args, name=f"{name}/executor", stop_timeout=THREAD_SECONDS)
