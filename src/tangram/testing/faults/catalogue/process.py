"""Faults whose promise is the end of a process, or that would hurt the test process too.

Each starts a server of its own with ``python -m tangram serve``, strikes it, and ends it.
"""

from __future__ import annotations

import os
import resource
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from tangram.testing.checks.census import start_time
from tangram.testing.fakes.ports import HOST
from tangram.testing.faults.catalogue.base import Chaos, fault
from tangram.testing.faults.catalogue.witness import get
from tangram.testing.run.process import GONE_SECONDS, LOOK_EVERY, Home, RunningProcess, open_process

__all__: list[str] = []

STOP_TIMEOUT: Final = 0.3
"""Seconds that a part of such a server may take to end."""

SHUTDOWN_TIMEOUT: Final = 2.0
"""Seconds that its whole stop may take."""

SECONDS: Final = 60.0
"""Seconds within which a process logs a line, or ends."""

EX_SOFTWARE: Final = 70
"""Exit status of a server that cannot be kept running."""

DESCRIPTORS: Final = 64
"""Limit of descriptors: more than such a server has open at rest, and soon used up."""

PLUGIN: Final = "tangram_chaos_plugin"
"""Name of the plugin in such a server."""

STUBBORN: Final = """
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

ENDLESS_THREAD: Final = """
import threading, tangram

plugin = tangram.Plugin()


@plugin.register_service(stop_timeout=0.3)
def endless(state):
    threading.Event().wait()
"""

RAISES_IN_STOP: Final = """
import tangram, trio

plugin = tangram.Plugin()


@plugin.register_service()
async def spiteful(state):
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("raised although the stop was asked for")
"""

HARMLESS: Final = """
import tangram

plugin = tangram.Plugin()
"""


@asynccontextmanager
async def _serving(source: str) -> AsyncIterator[RunningProcess]:
    """Serve the plugin whose module is ``source``; the process is ready when the block begins."""
    limits = f"[supervisor]\nstop_timeout = {STOP_TIMEOUT}\nshutdown_timeout = {SHUTDOWN_TIMEOUT}\n"
    with tempfile.TemporaryDirectory(prefix="tangram-chaos-") as folder:
        home = Home(Path(folder))
        home.install(PLUGIN, source)
        home.configure([PLUGIN], extra=limits)
        async with open_process(home, environ={"TANGRAM_SERVER__DRAIN_GRACE": "0.2"}) as server:
            await server.wait_ready()
            yield server


def _broker_of(server: RunningProcess) -> int:
    """Return the process id of the broker that the server started."""
    return next(pid for pid, name in server.below.items() if "valkey" in name)


async def _ends_with(server: RunningProcess, status: int) -> None:
    ended = await server.wait_end(within=SECONDS)
    assert ended == status, f"the process should end with {status}, it did with {ended}:\n{server.log}"
    broker = _broker_of(server)
    with trio.move_on_after(GONE_SECONDS):
        while start_time(broker) is not None:  # noqa: ASYNC110 - no event for processes of others
            await trio.sleep(LOOK_EVERY)
    assert start_time(broker) is None, "the process has ended, but its broker is still alive"


@fault(on="process")
async def ignore_cancel(_chaos: Chaos) -> None:
    """A service ignores its cancellation in a restart: the process ends with status 70.

    That happens after three stop times. No second incarnation starts beside it, and the log names the
    service and its line.

    No second incarnation starts beside it, and the log names the service and its line.
    """
    async with _serving(STUBBORN) as server:
        server.send(signal.SIGHUP)
        await server.wait_line(
            "child goes on although it was cancelled.*deaf|deaf.*although it was cancelled"
        )
        await _ends_with(server, EX_SOFTWARE)


@fault(on="process")
async def ignore_stop(_chaos: Chaos) -> None:
    """A service ignores its cancellation in a stop: the process ends in time, with 0.

    The log says which service stood on which line.
    """
    async with _serving(STUBBORN) as server:
        began = trio.current_time()
        server.send(signal.SIGTERM)
        await _ends_with(server, 0)
        took = trio.current_time() - began
        # The promise is one second; a process needs a moment more to end.
        assert took < SHUTDOWN_TIMEOUT + 2.0, f"the stop took {took:.1f} s, its bound is {SHUTDOWN_TIMEOUT} s"
        assert "in deaf" in server.log, f"the log does not say where the service stood:\n{server.log}"


@fault(on="process")
async def thread_without_end(_chaos: Chaos) -> None:
    """A synchronous service never returns: a restart abandons its thread and counts it.

    The thread is named, the restart goes on, and a stop ends the process in time.

    A stop ends the process in time.
    """
    async with _serving(ENDLESS_THREAD) as server:
        server.send(signal.SIGHUP)
        await server.wait_line("a thread that does not end was abandoned.*endless|endless.*was abandoned")
        await server.wait_line("tangram ready", times=2)
        operator = {"authorization": f"Bearer {(server.home.state / 'operator-token').read_text().strip()}"}
        threads = (await server.get("/-/supervision", headers=operator))["threads"]
        assert len(threads["ghosts"]) == 1, f"one thread was left behind, status shows {threads['ghosts']!r}"
        server.send(signal.SIGTERM)
        await _ends_with(server, 0)


@fault(on="process")
async def crash_during_stop(_chaos: Chaos) -> None:
    """A service raises while the server stops: that is no crash, and the status is 0."""
    async with _serving(RAISES_IN_STOP) as server:
        server.send(signal.SIGTERM)
        await _ends_with(server, 0)
        assert "child crashed" not in server.log, f"an exception during a stop is no crash:\n{server.log}"
        assert "raised although the stop was asked for" in server.log, "the log does not have the error"


@fault(on="process")
async def broker_kill_during_stop(_chaos: Chaos) -> None:
    """The broker dies while the server is being stopped: the process ends with 0 all the same."""
    async with _serving(HARMLESS) as server:
        server.send(signal.SIGTERM)
        os.kill(_broker_of(server), signal.SIGKILL)
        await _ends_with(server, 0)


@fault(on="process")
async def descriptors_exhausted(_chaos: Chaos) -> None:
    """Idle connections take all descriptors: requests are answered, and nothing crashes."""
    async with _serving(HARMLESS) as server:
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
        async with AsyncExitStack() as stack:
            for _ in range(DESCRIPTORS):
                await stack.enter_async_context(await trio.open_tcp_stream(HOST, server.home.port))
            await server.wait_line("no file descriptor for another connection")
            client = await stack.enter_async_context(await trio.open_tcp_stream(HOST, server.home.port))
            await client.send_all(
                f"GET /-/healthz HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
            )
            with trio.fail_after(SECONDS):
                answer = bytes(await client.receive_some(64))
            assert answer.startswith(b"HTTP/1.1 200"), f"a client with a request was answered {answer!r}"
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS * 4, hard))
        answer = await get(HOST, server.home.port, "/-/readyz")
        assert answer.startswith(b"HTTP/1.1 200"), f"afterwards it is not ready: {answer!r}"
        assert "child crashed" not in server.log, f"a child crashed:\n{server.log}"
        server.send(signal.SIGTERM)
        await _ends_with(server, 0)
