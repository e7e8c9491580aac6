"""The bridge to a server in a thread: calls that are cancelled, and servers and loops that do not answer."""

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

LONG = 5.0
"""Seconds of a call that nobody waits for: were it not cancelled, the test would take so long, and fail."""


class Probe:
    """Something on the server's loop."""

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
    """A server, something on its loop behind a bridge, and that without one."""
    probe = Probe()
    with threaded_tangram({"fakes": True, **settings}, asynchronous=asynchronous) as server:
        yield server, Bridge(probe, server._far), probe


def test_a_timeout_on_asyncio_ends_the_call_over_there() -> None:
    """Who gives up waiting gets its TimeoutError when the call has ended on the server's loop, and nothing
    keeps asyncio's own end.
    """
    with serving() as (server, far, probe):

        async def main() -> object:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(far.wait(), 0.05)
            assert probe.heard == ["cancelled"]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.wait_event("crashed", seconds=LONG), 0.05)
            steady: object = await server.wait_steady()
            return steady

        assert asyncio.run(main()) == "up"


async def test_a_timeout_on_another_trio_loop_ends_the_call_over_there() -> None:
    """The same from Trio, where the test has a loop that is not the server's."""
    with serving() as (server, far, probe):
        with trio.move_on_after(0.05) as waited:
            await far.wait()
        assert waited.cancelled_caught
        assert probe.heard == ["cancelled"]
        assert await server.wait_steady() == "up"


def test_what_fails_while_it_is_cancelled_is_told() -> None:
    """An error of the clean-up is raised instead of the cancellation, on asyncio as on Trio."""
    with serving() as (_, far, _):

        async def on_asyncio() -> None:
            await asyncio.wait_for(far.fail_when_cancelled(), 0.05)

        async def on_trio() -> None:
            with trio.move_on_after(0.05):
                await far.fail_when_cancelled()

        with pytest.raises(ValueError, match="the clean-up failed"):
            asyncio.run(on_asyncio())
        with pytest.raises(ValueError, match="the clean-up failed"):
            trio.run(on_trio)


def test_what_was_entered_for_somebody_who_is_cancelled_is_left_again() -> None:
    """A cancellation that comes when the server's loop has just entered leaves nothing entered behind."""
    with serving() as (server, _, probe):

        async def main() -> None:
            entering = asyncio.create_task(RemoteContext(probe, server._far).__aenter__())
            await asyncio.sleep(0)
            for _ in range(20):
                assert server.url  # there and back: over there it is entered, here nobody was told yet
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering

        asyncio.run(main())

        assert probe.left.wait(LONG)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_an_answer_that_streams_is_read_over_there(*, asynchronous: bool) -> None:
    """The body of a stream comes by ``async for``, or by ``for`` in a test without a loop."""
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
def test_a_web_port_in_memory_is_reached_from_outside(*, asynchronous: bool) -> None:
    """Channel clients and faults come to it from another thread, too, and dial nobody else."""
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


def test_what_is_set_is_set_over_there() -> None:
    """Nothing is kept on the bridge, where nobody would read it."""
    with serving(asynchronous=False) as (server, _, _):
        server.planned = True

        assert server.planned is True
        assert server._target.planned is True
        with pytest.raises(AttributeError):
            server.url = "http://elsewhere"


def end(server: Bridge) -> None:
    """The server's loop comes to its end by itself."""
    loop = server._far.loop
    loop.token.run_sync_soon(loop.nursery.cancel_scope.cancel)


def test_whoever_waits_for_a_server_that_ends_is_told() -> None:
    """A call that is on its way when the server's loop ends raises, and so does each one after that."""
    # It judges what is left while the test goes on: that is the test's own.
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


def test_a_call_to_a_loop_that_stands_still_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for ever."""
    monkeypatch.setattr(remote_call, "LOOP_SECONDS", 0.1)
    go_on = threading.Event()
    with serving(asynchronous=False) as (server, _, _):
        server._far.loop.token.run_sync_soon(go_on.wait)
        try:
            told = r"did not take a call within 0.1 s; it stands at\n(.*\n)*.*wait"
            with pytest.raises(AssertionError, match=told):
                _ = server.url
        finally:
            go_on.set()


def test_a_start_that_stands_still_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs its own test alone, and the message has the place."""
    monkeypatch.setattr(bridge, "START_SECONDS", 0.1)
    monkeypatch.setattr(bridge, "GIVE_UP_SECONDS", 0.1)
    go_on = threading.Event()
    settings = {"fakes": True, "on_server": lambda _running: go_on.wait()}
    with pytest.raises(AssertionError, match=r"did not start within 0.1 s; it stands at\n(.*\n)*.*wait"):
        with threaded_tangram(settings):
            pass
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "tangram under test":
            thread.join(LONG)
            assert not thread.is_alive()


def test_a_server_that_does_not_start_raises_as_itself() -> None:
    """Its own exception comes out, not one of the bridge."""
    with pytest.raises(ValueError, match="memory_port needs"):
        with threaded_tangram({"memory_port": True, "config": {"server": {"engine": "hypercorn"}}}):
            pass


@pytest.mark.slow
def test_asyncio_on_top_of_trio_is_asyncio() -> None:
    """Once trio-asyncio is imported, ``asyncio.run`` has a loop that stands on Trio: calls are awaited there
    all the same.
    """
    arguments = ["-q", "-p", "no:cacheprovider", __file__, "-k", "timeout_on_asyncio"]
    code = f"import sys, trio_asyncio, pytest; sys.exit(pytest.main({arguments!r}))"

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout
    assert "1 passed" in ended.stdout
