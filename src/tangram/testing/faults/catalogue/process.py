"""Faults whose promise is the end of a process, or that would hurt the test too: each starts a server of its
own with ``python -m tangram serve``, strikes it, and ends it.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from tangram.testing.faults.catalogue.base import Chaos, fault
from tangram.testing.faults.catalogue.witness import get
from tangram.testing.run.server_process import ServerProcess, open_server_process

__all__: list[str] = []

STOP_TIMEOUT = 0.3
"""Seconds that a part of such a server may take to end."""

SHUTDOWN_TIMEOUT = 2.0
"""Seconds that its whole stop may take."""

SECONDS = 15.0
"""Within which a process tells, or does, what it must."""

EX_SOFTWARE = 70
"""The status of a server that cannot be kept running."""

DESCRIPTORS = 64
"""More than such a server has open when it is at rest, and soon used up."""

PATIENCE = 0.5
"""Seconds that everybody waits who came when no descriptor was left."""

STUBBORN = """
import tangram, trio

plugin = tangram.Plugin()


@plugin.register_service(stop_timeout=0.3)
async def deaf(state):
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()
"""

GHOST = """
import threading, tangram

plugin = tangram.Plugin()


@plugin.register_service(stop_timeout=0.3)
def endless(state):
    threading.Event().wait()
"""

SPITEFUL = """
import tangram, trio

plugin = tangram.Plugin()


@plugin.register_service()
async def spiteful(state):
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("raised although the stop was asked for")
"""

QUIET = """
import tangram

plugin = tangram.Plugin()
"""


@asynccontextmanager
async def _serving(source: str) -> AsyncIterator[ServerProcess]:
    limits = {"stop_timeout": STOP_TIMEOUT, "shutdown_timeout": SHUTDOWN_TIMEOUT}
    async with open_server_process(source, {"supervisor": limits, "server": {"drain_grace": 0.2}}) as server:
        yield server


async def _ends_with(server: ServerProcess, status: int, *, within: float) -> None:
    ended = await server.wait_end(within)
    assert ended == status, f"the process should end with {status}, it did with {ended}:\n{server.log}"
    assert not server.broker_is_alive(), "the process has ended, and its broker lives on"


@fault(on="process")
async def ignore_cancel(_chaos: Chaos) -> None:
    """A service ignores its cancellation for ever while everything restarts: nobody is started beside it, and
    after three stop times the process ends with status 70; the log names the service and its line.
    """
    async with _serving(STUBBORN) as server:
        server.send(signal.SIGHUP)
        await server.wait_line(
            "child goes on although it was cancelled.*deaf|deaf.*although it was cancelled"
        )
        await _ends_with(server, EX_SOFTWARE, within=SECONDS)


@fault(on="process")
async def ignore_stop(_chaos: Chaos) -> None:
    """A service ignores its cancellation for ever when the server is told to stop: the process ends within
    its bound all the same, with status 0, and tells who stood where.
    """
    async with _serving(STUBBORN) as server:
        began = trio.current_time()
        server.send(signal.SIGTERM)
        await _ends_with(server, 0, within=SECONDS)
        took = trio.current_time() - began
        # A second is promised; the end of a process is told a moment later.
        assert took < SHUTDOWN_TIMEOUT + 2.0, f"the stop took {took:.1f} s, its bound is {SHUTDOWN_TIMEOUT} s"
        assert "in deaf" in server.log, f"nobody told where the service stood:\n{server.log}"


@fault(on="process")
async def thread_without_end(_chaos: Chaos) -> None:
    """A synchronous service never returns: a restart leaves its thread behind, counts and names it, and goes
    on; a stop ends the process in time.
    """
    async with _serving(GHOST) as server:
        server.send(signal.SIGHUP)
        await server.wait_line("a thread that does not end was abandoned.*endless|endless.*was abandoned")
        await server.wait_line("tangram ready", times=2)
        threads = (await server.supervision())["threads"]
        assert len(threads["ghosts"]) == 1, f"one thread was left behind, status shows {threads['ghosts']!r}"
        server.send(signal.SIGTERM)
        await _ends_with(server, 0, within=SECONDS)


@fault(on="process")
async def crash_during_stop(_chaos: Chaos) -> None:
    """A service raises while the server is being stopped: that is no crash, and the process ends with 0."""
    async with _serving(SPITEFUL) as server:
        server.send(signal.SIGTERM)
        await _ends_with(server, 0, within=SECONDS)
        assert "child crashed" not in server.log, f"what is raised in a stop is no crash:\n{server.log}"
        assert "raised although the stop was asked for" in server.log, "and nobody tells it"


@fault(on="process")
async def broker_kill_during_stop(_chaos: Chaos) -> None:
    """The broker dies while the server is being stopped: the process ends with 0 all the same."""
    async with _serving(QUIET) as server:
        server.send(signal.SIGTERM)
        server.kill_broker()
        await _ends_with(server, 0, within=SECONDS)


@fault(on="process")
async def descriptors_exhausted(_chaos: Chaos) -> None:
    """The process has no descriptor left for another connection: who comes waits and is not refused, nothing
    crashes, and everybody is served once there are descriptors again.
    """
    async with _serving(QUIET) as server:
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
        async with AsyncExitStack() as stack:
            for _ in range(DESCRIPTORS):
                await stack.enter_async_context(await trio.open_tcp_stream(server.host, server.port))
            await server.wait_line("no file descriptor for another connection")
            waiting = await stack.enter_async_context(await trio.open_tcp_stream(server.host, server.port))
            await waiting.send_all(b"GET /-/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with trio.move_on_after(PATIENCE):
                answer = await waiting.receive_some(64)
                raise AssertionError(f"no descriptor was left, and somebody was answered {answer!r}")
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS * 4, hard))
            with trio.fail_after(SECONDS):
                answer = bytes(await waiting.receive_some(64))
            assert answer.startswith(b"HTTP/1.1 200"), f"who had waited was answered {answer!r}"
        answer = await get(server.host, server.port, "/-/readyz")
        assert answer.startswith(b"HTTP/1.1 200"), f"afterwards it is not ready: {answer!r}"
        assert "child crashed" not in server.log, f"somebody crashed:\n{server.log}"
        server.send(signal.SIGTERM)
        await _ends_with(server, 0, within=SECONDS)
