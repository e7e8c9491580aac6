"""The bridge to a server in a thread: cancelled calls, and servers that do not answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from tangram.testing.threaded import bridge, remote_call
from tangram.testing.threaded.bridge import Bridge, RemoteContext, chaos_of, threaded_tangram
from tangram.testing.threaded.remote_call import ServerLoopEnded

pytestmark = pytest.mark.slow

LONG = 60.0
"""Seconds of a call that must be cancelled; a test that waits for it fails."""


class Probe:
    """An object on the server's loop."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.heard: list[str] = []
        self.left = threading.Event()

    async def wait(self) -> None:
        self.begun.set()
        try:
            await trio.sleep(LONG)
        except trio.Cancelled:
            self.heard.append("cancelled")
            raise

    async def fail_when_cancelled(self) -> None:
        self.begun.set()
        try:
            await trio.sleep(LONG)
        finally:
            raise ValueError("the clean-up failed")

    async def __aenter__(self) -> str:
        await trio.lowlevel.checkpoint()
        return "inside"

    async def __aexit__(self, *_details: object) -> None:
        await trio.lowlevel.checkpoint()
        self.left.set()


@contextmanager
def serving(*, asynchronous: bool = True, **settings: Any) -> Iterator[tuple[Bridge, Any, Probe]]:
    """Run a server, and yield an object on its loop behind a bridge, and the object itself."""
    probe = Probe()
    with threaded_tangram({"fakes": True, **settings}, asynchronous=asynchronous) as server:
        yield server, Bridge(probe, server._server), probe


def test_a_timeout_on_asyncio_cancels_the_remote_call() -> None:
    """The caller gets TimeoutError when the call has ended on the server's loop."""
    with serving() as (server, far, probe):

        async def main() -> object:
            waiting = asyncio.ensure_future(far.wait())
            assert await asyncio.to_thread(probe.begun.wait, 60)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiting, 0.05)
            assert probe.heard == ["cancelled"]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.wait_event("crashed", seconds=LONG), 0.05)
            steady: object = await server.wait_steady()
            return steady

        assert asyncio.run(main()) == "up"


async def test_a_timeout_on_another_trio_loop_cancels_the_remote_call() -> None:
    """The same holds for a Trio test whose loop is not the server's."""
    with serving() as (server, far, probe):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.wait)
            assert await trio.to_thread.run_sync(probe.begun.wait, 60)
            nursery.cancel_scope.cancel()
        assert probe.heard == ["cancelled"]
        assert await server.wait_steady() == "up"


def test_an_error_during_the_cancellation_is_raised() -> None:
    """An error of the clean-up is raised instead of the cancellation, on asyncio and Trio."""
    with serving() as (_, far, probe):

        async def on_asyncio() -> None:
            waiting = asyncio.ensure_future(far.fail_when_cancelled())
            assert await asyncio.to_thread(probe.begun.wait, 60)
            await asyncio.wait_for(waiting, 0.05)

        async def on_trio() -> None:
            with trio.CancelScope() as scope:

                async def cancel() -> None:
                    assert await trio.to_thread.run_sync(probe.begun.wait, 60)
                    scope.cancel()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel)
                    await far.fail_when_cancelled()

        with pytest.raises(ValueError, match="the clean-up failed"):
            asyncio.run(on_asyncio())
        probe.begun.clear()
        with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="the clean-up failed")):
            trio.run(on_trio)


def test_a_context_of_a_cancelled_caller_is_left_again() -> None:
    """A cancellation just after the entry leaves no context entered on the server's loop."""
    with serving() as (server, _, probe):

        async def main() -> None:
            entering = asyncio.create_task(RemoteContext(probe, server._server).__aenter__())
            await asyncio.sleep(0)
            for _ in range(20):
                assert server.url  # a round trip: entered on the server's loop, not yet reported here
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering

        asyncio.run(main())

        assert probe.left.wait(LONG)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_streamed_response_is_read_through_the_bridge(*, asynchronous: bool) -> None:
    """Its body is read by ``async for``, or by ``for`` in a test without a loop."""
    with serving(asynchronous=asynchronous) as (server, _, _):

        async def main() -> bytes:
            async with server.http.stream("GET", "/-/healthz") as answer:
                assert answer.status_code == 200
                return b"".join([chunk async for chunk in answer.aiter_bytes()])

        if asynchronous:
            body = asyncio.run(main())
        else:
            with server.http.stream("GET", "/-/healthz") as answer:
                assert answer.status_code == 200
                body = b"".join(answer.aiter_bytes())

    assert b"ok" in body


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_web_port_in_memory_is_reached_from_another_thread(*, asynchronous: bool) -> None:
    """Channel clients and faults connect to it from another thread, and to no other port."""
    with serving(asynchronous=asynchronous, memory_port=True) as (server, _, _):
        chaos = chaos_of(server)

        async def main() -> object:
            told = await server.http.post("/token", json={"channel": "news"})
            async with server.open_socket() as client:
                channel = await client.join("news", token=told.json()["token"])
                await channel.push("wave", {})
            return await chaos.strike("browser_expired_token")

        if asynchronous:
            struck: Any = asyncio.run(main())
        else:
            told = server.http.post("/token", json={"channel": "news"})
            with server.open_socket() as client:
                client.join("news", token=told.json()["token"]).push("wave", {})
            struck = chaos.strike("browser_expired_token")

    assert struck.outcome == "up"


def test_an_attribute_is_set_on_the_remote_object() -> None:
    """The bridge itself keeps no attribute."""
    with serving(asynchronous=False) as (server, _, _):
        server.planned = True

        assert server.planned is True
        assert server._target.planned is True
        with pytest.raises(AttributeError):
            server.url = "http://elsewhere"


def end(server: Bridge) -> None:
    """End the server's loop."""
    loop = server._server.loop
    loop.token.run_sync_soon(loop.nursery.cancel_scope.cancel)


def test_a_call_raises_when_the_server_ends() -> None:
    """A call in progress raises when the server's loop ends, and so does every later call."""
    # No checks: the census would count the tasks of the test, which goes on.
    with serving(checks=()) as (server, far, probe):

        async def main() -> None:
            waiting = asyncio.create_task(far.wait())
            await asyncio.sleep(0)
            assert probe.begun.wait(LONG)
            end(server)
            with pytest.raises(ServerLoopEnded):
                await waiting
            with pytest.raises(ServerLoopEnded):
                await far.wait()

        asyncio.run(main())
        with pytest.raises(ServerLoopEnded, match="cannot be called any more"):
            _ = server.url

    with pytest.raises(ServerLoopEnded):
        _ = server.url


def test_a_call_to_a_blocked_loop_reports_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call fails after a bound, and the message has the place."""
    blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go_on.wait()

    with serving(asynchronous=False) as (server, _, _):
        server._server.loop.token.run_sync_soon(block)
        assert blocked.wait(LONG)
        try:
            told = r"did not take a call within 0.1 s; it stands at\n(.*\n)*.*wait"
            with monkeypatch.context() as patched:
                patched.setattr(remote_call, "LOOP_SECONDS", 0.1)
                with pytest.raises(AssertionError, match=told):
                    _ = server.url
        finally:
            go_on.set()


def test_a_blocked_start_reports_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its own test fails, and the message has the place."""
    monkeypatch.setattr(bridge, "START_SECONDS", 3.0)  # it stands there by then, on a slow machine as well
    monkeypatch.setattr(bridge, "GIVE_UP_SECONDS", 0.1)
    go_on = threading.Event()
    settings = {"fakes": True, "on_server": lambda _running: go_on.wait()}
    with pytest.raises(AssertionError, match=r"did not start within 3 s; it stands at\n(.*\n)*.*wait"):
        with threaded_tangram(settings):
            pass
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "tangram under test":
            thread.join(LONG)
            assert not thread.is_alive()


def test_a_failed_start_raises_its_own_exception() -> None:
    """The exception of the server is raised, not one of the bridge."""
    with pytest.raises(ValueError, match="memory_port needs"):
        with threaded_tangram({"memory_port": True, "config": {"server": {"engine": "hypercorn"}}}):
            pass


@pytest.mark.slow
def test_asyncio_on_top_of_trio_is_asyncio() -> None:
    """With trio-asyncio imported, a call from ``asyncio.run`` is awaited on asyncio."""
    arguments = ["-q", "-p", "no:cacheprovider", __file__, "-k", "timeout_on_asyncio"]
    code = f"import sys, trio_asyncio, pytest; sys.exit(pytest.main({arguments!r}))"

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout
    assert "1 passed" in ended.stdout
