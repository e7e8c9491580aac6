"""Guards around a plugin's asyncio loop, and a record of the resources opened on it.

1. The loop belongs to the server. ``loop.stop()`` raises, and handlers for the server's signals are ignored;
   both log the plugin's name.
2. Everything else works as on asyncio's own loop, task factories and executors included.
3. Transports, servers and child processes are recorded with the plugin that opened them, and closed when it
   ends. asyncio leaves them to the garbage collector, which may run late or never.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Final, Protocol

import structlog

__all__ = ["Owner", "close_opened", "guard_loop", "release_loop"]

log = structlog.get_logger("tangram.compat")

SERVER_SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""Signals that the server itself handles."""

_MAKERS: Final = (
    "_make_socket_transport",
    "_make_ssl_transport",
    "_make_datagram_transport",
    "_make_read_pipe_transport",
    "_make_write_pipe_transport",
    "_make_subprocess_transport",
    "create_server",
    "create_unix_server",
)
"""Methods of a loop whose result has to be closed."""


class Owner(Protocol):
    """A plugin on its island, as the opener of resources."""

    plugin: str
    opened: weakref.WeakSet[Any]


TaskFactory = Callable[..., asyncio.Task[Any]]


def guard_loop(
    loop: Any, name: str, owner: Callable[[], Owner | None], adopt: Callable[[TaskFactory], TaskFactory]
) -> None:
    """Put the guards around a new loop.

    Args:
        loop: The loop of trio-asyncio.
        name: The name of the island, for messages where no plugin is known.
        owner: Returns the plugin whose code runs now.
        adopt: Wraps a task factory so that its tasks remember their plugin.
    """

    def plugin_name() -> str:
        found = owner()
        return name if found is None else found.plugin

    def stop(_waiter: object = None) -> None:
        raise RuntimeError(
            f"plugin {plugin_name()!r} may not stop the loop, which is the server's; "
            "end the task instead, or raise"
        )

    def add_signal_handler(sig: int, callback: Callable[..., object], *args: Any) -> None:
        if sig in SERVER_SIGNALS:
            signal_name = signal.Signals(sig).name
            log.warning("signal handler of a plugin ignored", plugin=plugin_name(), signal=signal_name)
            return
        added(sig, callback, *args)

    def remove_signal_handler(sig: int) -> bool:
        return sig not in SERVER_SIGNALS and bool(removed(sig))

    def run_in_executor(executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        if isinstance(executor, Executor):
            return asyncio.wrap_future(executor.submit(func, *args), loop=loop)
        future: asyncio.Future[Any] = in_executor(executor, func, *args)
        return future

    def set_task_factory(factory: TaskFactory | None) -> None:
        set_factory(adopt(_plain_task if factory is None else factory))

    added, removed = loop.add_signal_handler, loop.remove_signal_handler
    in_executor, set_factory = loop.run_in_executor, loop.set_task_factory
    loop.stop = stop
    loop.add_signal_handler, loop.remove_signal_handler = add_signal_handler, remove_signal_handler
    loop.run_in_executor, loop.set_task_factory = run_in_executor, set_task_factory
    for maker in _MAKERS:
        setattr(loop, maker, _remembering(getattr(loop, maker), owner))
    set_task_factory(None)


def release_loop(loop: Any) -> None:
    """Allow the code that opened the loop to stop it."""
    vars(loop).pop("stop", None)


def _plain_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **settings: Any
) -> asyncio.Task[Any]:
    return asyncio.Task(coro, loop=loop, **settings)


def _remembering(make: Callable[..., Any], owner: Callable[[], Owner | None]) -> Callable[..., Any]:
    def note(made: Any) -> Any:
        found = owner()
        if found is not None:
            found.opened.add(made)
        return made

    if inspect.iscoroutinefunction(make):

        async def make_and_note(*args: Any, **settings: Any) -> Any:
            return note(await make(*args, **settings))

        return make_and_note
    return lambda *args, **settings: note(make(*args, **settings))


def close_opened(owner: Owner) -> list[Awaitable[object]]:
    """Close the resources that a plugin left open, without waiting.

    Child processes are killed.

    Returns:
        One awaitable for each child process; it is done when the process has ended.
    """
    left = [one for one in tuple(owner.opened) if not _is_closed(one)]
    owner.opened.clear()
    if left:
        log.info(
            "leftover resources closed",
            plugin=owner.plugin,
            left=sorted(_describe(one) for one in left),
        )
    for one in left:
        # close() waits until a transport's buffer is written, which may take for ever.
        (getattr(one, "abort", None) or one.close)()
    processes: list[Any] = [one for one in left if isinstance(one, asyncio.SubprocessTransport)]
    return [one._wait() for one in processes]  # noqa: SLF001 - there is no public way


def _is_closed(one: Any) -> bool:
    if isinstance(one, asyncio.AbstractServer):
        return not one.is_serving() and not getattr(one, "sockets", ())
    return bool(one.is_closing())


def _describe(one: Any) -> str:
    if isinstance(one, asyncio.AbstractServer):
        return f"server on {[sock.getsockname() for sock in getattr(one, 'sockets', ())]}"
    if isinstance(one, asyncio.SubprocessTransport):
        return f"process {one.get_pid()}"
    peer = one.get_extra_info("peername") or one.get_extra_info("sockname")
    return f"connection to {peer}" if peer else type(one).__name__
