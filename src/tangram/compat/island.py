"""Islands: asyncio loops on top of Trio, and the plugins that reside on them.

1. All code of a resident runs in asyncio tasks that know their plugin: a task inherits it from the task that
   created it. So the end of a resident finds every task that it spawned, also on a shared loop.
2. Every wait for such a task on the Trio side has a deadline. A task that continues after its cancellation is
   logged with the line on which it waits; its coroutine is closed, and its loop runs it no more.
3. An exception of a task that is never awaited is logged with the plugin's name, and ends no other task.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import weakref
from asyncio.base_events import _run_until_complete_cb  # type: ignore[attr-defined]  # anyio looks for it
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from types import AsyncGeneratorType
from typing import Any, Final

import structlog
import trio
import trio_asyncio
from trio_asyncio import _base as trio_asyncio_base

from tangram.compat.guards import TaskFactory, close_opened, guard_loop, release_loop
from tangram.compat.loop import IslandLoop
from tangram.compat.patches import patch_asyncio, wait_for
from tangram.errors import PluginError, ServiceError
from tangram.plugin_exit import exit_as_crash, exits_are_crashes
from tangram.supervision import CURRENT_CHILD_TASK, run_sync_in_thread

__all__ = ["CLOSE_SECONDS", "Island", "IslandClosed", "Resident", "open_island"]

log = structlog.get_logger("tangram.compat")

STOP_SECONDS: Final = 2.0
"""Seconds for a cancelled task to end, unless the caller passes another value; meant for requests."""
CLOSE_SECONDS: Final = 1.0
"""Seconds for tasks that outlived their plugin to end, and the same again for its clients to close."""
LEAST_SECONDS: Final = 0.2
"""Seconds that each of these gets even when the plugin's stop time is used up."""
SECOND_CANCEL: Final = 1.0
"""Seconds after which a task is cancelled again, because it may have lost the first cancellation by mistake.

A shorter time would interrupt clean-ups.
"""
SHARE: Final = 0.8
"""Share of a child's stop time that its asyncio task gets: the child has to end within the whole of it."""
THREADS: Final = 40
"""Concurrent calls of ``run_in_executor`` on one island; the number that FastAPI allows, too."""
THREAD_SECONDS: Final = 1.0
"""Seconds for a thread of the executor to end when its island closes; it is abandoned after that."""


class Generators:
    """Async generators, each with the task that started it."""

    # Most requests start none.
    _started: weakref.WeakKeyDictionary[AsyncGeneratorType[Any, Any], asyncio.Task[Any] | None] | None = None

    def add(self, generator: AsyncGeneratorType[Any, Any], task: asyncio.Task[Any] | None) -> None:
        """Record a generator."""
        if self._started is None:
            self._started = weakref.WeakKeyDictionary()
        self._started[generator] = task

    def items(self) -> tuple[tuple[AsyncGeneratorType[Any, Any], asyncio.Task[Any] | None], ...]:
        """Return the generators that still exist, with their tasks."""
        return () if self._started is None else tuple(self._started.items())


class IslandClosed(PluginError):
    """Raised for a call to a plugin that is being stopped."""


class Island:
    """One asyncio loop with the plugins that reside on it. Made by `open_island`."""

    def __init__(self, name: str, loop: Any) -> None:
        self.name = name
        self.loop: IslandLoop = IslandLoop.adopt(loop)
        loop.set_exception_handler(self._log_unhandled)
        _record_generators(loop)
        guard_loop(loop, name, _owner.get, _owned)
        self.loop.know_plain_factory()
        # trio-asyncio's own executor waits for its threads without limit, and logs nothing.
        loop._default_executor = _Executor(trio.CapacityLimiter(THREADS))  # noqa: SLF001 - no public setter takes one
        self._root = _root_task(self.loop)

    async def close(self) -> None:
        """End the tasks that no resident owns, within a bound."""
        strays = {task for task in asyncio.all_tasks(self.loop) if not task.done()} - {self._root}
        await end_tasks(strays, CLOSE_SECONDS, owner=self.name)
        agens = getattr(self.loop, "_asyncgens", ())
        if len(agens):
            closing = self.loop.create_task(self.loop.shutdown_asyncgens())
            await _wait({closing}, CLOSE_SECONDS)
            # trio-asyncio would wait for the remaining generators without limit.
            getattr(self.loop, "_asyncgens", weakref.WeakSet()).clear()
            await end_tasks({closing}, LEAST_SECONDS, owner=self.name)
        await self._end_root()
        release_loop(self.loop)

    async def _end_root(self) -> None:
        self._root.remove_done_callback(_run_until_complete_cb)
        self._root.cancel()
        if not _is_dead(self.loop):
            await _wait({self._root}, LEAST_SECONDS)
        if not self._root.done():
            _forget(self._root)

    def _log_unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        task = context.get("task") or context.get("future")
        if isinstance(task, asyncio.Task) and task in _abandoned:
            return
        owner = _owner_of(task, context.get("handle"))
        error = context.get("exception")
        log.error(
            "asyncio task failed",
            plugin=self.name if owner is None else owner.plugin,
            message=context.get("message"),
            cause=repr(error) if error is not None else None,
            exc_info=error,
        )


def _root_task(loop: IslandLoop) -> asyncio.Task[Any]:
    """Start a task that looks as if the loop was run for it, and that ends with the island.

    anyio keeps its worker threads as long as that task. Without one, it ends each thread with the request for
    which it was started.
    """
    root: asyncio.Task[Any] = loop.create_task(_wait_for(loop.create_future()), name="root of the island")
    root.add_done_callback(_run_until_complete_cb)
    return root


@asynccontextmanager
async def open_island(name: str) -> AsyncIterator[Island]:
    """Open a loop for the length of the block; leaving the block ends every task on it."""
    patch_asyncio()
    crash: Exception | None = None
    # A SystemExit in a task that the plugin itself has created ends the loop, and then crashes the plugin.
    with exits_are_crashes():
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
    """A plugin's part of an island: its tasks, and the way to call it from Trio."""

    def __init__(self, island: Island, plugin: str) -> None:
        self.island = island
        self.plugin = plugin
        self.closed = False
        self.tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self.awaited: dict[asyncio.Task[Any], trio.Event] = {}
        """Tasks for which a Trio task waits, and the event that wakes it."""
        self.detached: set[asyncio.Task[Any]] = set()
        """Tasks that continue after their caller has its result; see `detach`."""
        self.opened: weakref.WeakSet[Any] = weakref.WeakSet()
        """Transports, servers and child processes that the plugin opened."""
        _residents.add(self)

    def spawn(
        self,
        function: Callable[..., Any],
        *args: Any,
        name: str,
        generators: Generators | None = None,
    ) -> asyncio.Task[Any]:
        """Start ``function(*args)`` as a task of this plugin; an awaitable result is awaited.

        Args:
            function: A function, synchronous or not.
            *args: Its arguments.
            name: The name of the task, for logs.
            generators: Gets the async generators that the task and its children start, for
                `close_generators`.

        Raises:
            IslandClosed: the plugin is being stopped.
        """
        if self.closed:
            raise IslandClosed(f"plugin {self.plugin!r} is being stopped", plugin=self.plugin)
        task: asyncio.Task[Any] = self.island.loop.create_task(
            _called(function, args), name=name, context=self._context(generators)
        )
        return task

    def start(
        self, function: Callable[..., Any], *args: Any, name: str, generators: Generators | None = None
    ) -> asyncio.Task[Any]:
        """Start a task as `spawn` does, and run it to its first wait before returning.

        A function that waits for nothing has ended then.
        """
        if self.closed:
            raise IslandClosed(f"plugin {self.plugin!r} is being stopped", plugin=self.plugin)
        task = self.island.loop.start_task(
            _called(function, args), name=name, context=self._context(generators)
        )
        if not task.done():
            self.tasks.add(task)
        return task

    def _context(self, generators: Generators | None) -> contextvars.Context:
        context = contextvars.copy_context()
        context.run(self._enter, generators)
        return context

    def _enter(self, generators: Generators | None) -> None:
        trio_asyncio.current_loop.set(self.island.loop)
        _owner.set(self)
        _generators.set(generators)

    def close_generators(self, started: Generators) -> None:
        """Close the async generators whose tasks have ended and that are still at a ``yield``."""
        for generator, task in started.items():
            left = generator.ag_frame is not None and not generator.ag_running
            if left and task is not None and task.done() and not self.closed:
                self.spawn(generator.aclose, name="close generator")

    async def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        name: str,
        stop_timeout: float = STOP_SECONDS,
        before_stop: Callable[[], None] = lambda: None,
    ) -> Any:
        """Await ``function(*args)`` on the island and return its result.

        Args:
            function: A function, synchronous or not, that runs in an asyncio task.
            *args: Its arguments.
            name: The name of the task, for logs.
            stop_timeout: Seconds for the task to end when the caller is cancelled.
            before_stop: Called before the task is cancelled.

        Raises:
            IslandClosed: the plugin was stopped meanwhile.
            ServiceError: the task was cancelled by the plugin's own code.
        """
        task = self.spawn(function, *args, name=name)
        return await self.wait(task, stop_timeout=stop_timeout, before_stop=before_stop)

    async def wait(
        self,
        task: asyncio.Task[Any],
        *,
        stop_timeout: float = STOP_SECONDS,
        before_stop: Callable[[], None] = lambda: None,
    ) -> Any:
        """Return the result of a spawned task; see `call`."""
        if task.done():
            return self._result(task)
        done = self.awaited[task] = trio.Event()
        task.add_done_callback(lambda _task: done.set())
        try:
            await done.wait()
        except trio.Cancelled:
            before_stop()
            await end_tasks({task}, _within_life(stop_timeout), owner=self.plugin)
            if not task.done() or task.cancelled():
                raise
        finally:
            self.awaited.pop(task, None)
        return self._result(task)

    def detach(self, task: asyncio.Task[Any], failed: Callable[[Exception], None]) -> None:
        """Let a task continue without a waiter until it ends, or until this plugin ends.

        Args:
            task: A task of `spawn`.
            failed: Called with the exception that the task raises.
        """

        def over(_task: asyncio.Task[Any]) -> None:
            self.detached.discard(task)
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Exception):
                failed(error)

        if task.done():
            over(task)
            return
        self.detached.add(task)
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
        """End the remaining tasks, then close the clients, both within a bound."""
        self.closed = True
        # Each step below is bounded: by the rest of the plugin's stop time, or by CLOSE_SECONDS.
        with trio.CancelScope(shield=True):
            left = {task for task in self.tasks if not task.done() and task not in _abandoned}
            leaked = [task.get_name() for task in left if task not in self.awaited]
            if leaked:
                log.info("leftover asyncio tasks cancelled", plugin=self.plugin, tasks=leaked)
            await end_tasks(left, _within_life(CLOSE_SECONDS), owner=self.plugin)
            for task in left:
                if task in self.awaited:
                    self.awaited[task].set()
            await self._end_all(_close(client) for client in clients())
            await self._end_all(_wait_for(ended) for ended in close_opened(self))

    async def _end_all(self, closing: Iterable[Coroutine[Any, Any, None]]) -> None:
        tasks = {self.island.loop.create_task(one) for one in closing}
        if tasks:
            await _wait(tasks, _within_life(CLOSE_SECONDS))
            await end_tasks(tasks, LEAST_SECONDS, owner=self.plugin)


_generators: contextvars.ContextVar[Generators | None] = contextvars.ContextVar(
    "tangram_generators", default=None
)


def _record_generators(loop: Any) -> None:
    """Record each async generator of a request with the task that started it."""
    first = loop._asyncgen_firstiter_hook  # noqa: SLF001 - there is no public way

    def started(generator: AsyncGeneratorType[Any, Any]) -> None:
        record = _generators.get()
        if record is not None:
            record.add(generator, asyncio.current_task(loop))
        first(generator)

    loop._asyncgen_firstiter_hook = started  # noqa: SLF001 - there is no public way


_owner: contextvars.ContextVar[Resident | None] = contextvars.ContextVar("tangram_resident", default=None)


def _owned(factory: TaskFactory) -> TaskFactory:
    """Return a task factory whose tasks remember their plugin."""

    def make(
        loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **settings: Any
    ) -> asyncio.Task[Any]:
        task = factory(loop, coro, **settings)
        context = settings.get("context")
        owner = _owner.get() if context is None else context.get(_owner)
        if owner is not None and not task.done():
            owner.tasks.add(task)
            if owner.closed:
                # A task that is spawned while its plugin stops is cancelled at once.
                loop.call_soon(task.cancel)
        return task

    return make


async def _called(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    # asyncio ends the whole loop at a SystemExit that leaves a task.
    try:
        result = function(*args)
        return await result if inspect.isawaitable(result) else result
    except (SystemExit, BaseExceptionGroup) as error:
        crash = exit_as_crash(error)
        if crash is error:
            raise
        raise crash from crash.__cause__


async def _close(client: Any) -> None:
    close: Callable[[], Awaitable[None]] = client.aclose
    try:
        await close()
    except Exception as error:  # noqa: BLE001 - a client that cannot be closed is given up
        log.info("client not closed", client=type(client).__name__, cause=repr(error))


async def _wait_for(ended: Awaitable[object]) -> None:
    await ended


def _within_life(seconds: float) -> float:
    """Return *seconds*, or less where the supervised child has less stop time left."""
    life = CURRENT_CHILD_TASK.get()
    if life is None:
        return seconds
    return max(LEAST_SECONDS, min(seconds, SHARE * (life.stop_due - trio.current_time())))


async def _wait(tasks: set[asyncio.Task[Any]], seconds: float) -> None:
    """Wait until all tasks are done, at most *seconds*; shielded from cancellation."""
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
    """Cancel *tasks*, wait *seconds* for them, then log and abandon the rest; shielded."""
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
    """Return whether an exception, for example SystemExit, has ended the loop for good."""
    return bool(loop._stopped.is_set())  # noqa: SLF001 - upstream has no other way to ask


_abandoned: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()


def _abandon(task: asyncio.Task[Any], seconds: float, owner: str) -> None:
    log.error(
        "asyncio task abandoned",
        plugin=owner,
        task=task.get_name(),
        after=round(seconds, 3),
        where=where_stands(task),
    )
    try:
        _forget(task)
    except Exception as error:  # noqa: BLE001 - an error of its clean-up changes nothing
        name = task.get_name()
        log.error("abandoned task failed", plugin=owner, task=name, cause=repr(error))  # noqa: TRY400 - the cause is enough


def _forget(task: asyncio.Task[Any]) -> None:
    """Close a task's coroutine, and let the end of its loop not wait for it."""
    _abandoned.add(task)
    # The end of its loop would wait for it without limit otherwise.
    asyncio.tasks._unregister_task(task)  # noqa: SLF001 - there is no public way
    untyped: Any = task
    untyped._log_destroy_pending = False  # noqa: SLF001 - there is no public way
    coroutine = task.get_coro()
    if coroutine is not None:
        coroutine.close()


def where_stands(task: asyncio.Task[Any]) -> str:
    """Return the innermost Python line on which a task waits, without the lines of asyncio."""
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
    """Return the resident of a task or of a callback's handle."""
    if isinstance(task, asyncio.Task):
        if hasattr(task, "get_context"):
            found: Resident | None = task.get_context().get(_owner)
            return found
        # Before Python 3.12 a task has no get_context().
        return next((one for one in tuple(_residents) if task in one.tasks), None)
    context: contextvars.Context | None = getattr(handle, "_context", None)
    return _owner.get() if context is None else context.get(_owner)


_residents: weakref.WeakSet[Resident] = weakref.WeakSet()


class _Executor(trio_asyncio_base.TrioExecutor):  # type: ignore[misc]  # upstream ships no types
    """The default executor: named threads, bounded in number, abandoned at the end."""

    async def submit(self, func: Callable[..., Any], *args: Any) -> Any:
        owner = _owner.get()
        name = "island" if owner is None else owner.plugin
        async with self._limiter:
            return await run_sync_in_thread(func, *args, name=f"{name}/executor", stop_timeout=THREAD_SECONDS)
