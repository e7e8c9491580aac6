"""A virtual clock waits for threads that work for the loop, and goes on after them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
import trio
from trio.testing import MockClock

import tangram
from tangram.testing import open_tangram
from tangram.testing.run import virtual_clock

WORK_SECONDS = 0.1
"""Real seconds: long for a clock that jumps whenever the loop is idle."""


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """An event for threads of a test, set at its end at the latest."""
    event = threading.Event()
    yield event
    event.set()


def make_routes() -> tangram.Plugin:
    """Make a plugin with handlers that run in threads."""
    router = tangram.APIRouter(prefix="/threads")

    @router.get("/works")
    def works() -> dict[str, str]:
        time.sleep(WORK_SECONDS)
        return {"is": "done"}

    @router.get("/asks")
    def asks() -> dict[str, str]:
        trio.from_thread.run(trio.sleep, 1)
        return {"is": "done"}

    return tangram.Plugin(routers=[router])


async def test_a_virtual_clock_waits_for_a_synchronous_handler(autojump_clock: MockClock) -> None:
    """No timeout of the client passes while the handler works in its thread."""
    async with open_tangram([make_routes()], fakes=True, memory_port=True) as running:
        began = trio.current_time()
        answer = await running.http.get("/threads/works")

        assert answer.json() == {"is": "done"}
        assert trio.current_time() - began < 1


async def test_a_virtual_clock_waits_for_a_synchronous_authorize(autojump_clock: MockClock) -> None:
    """The timeout of authorizers does not pass while one works in a thread."""
    plugin = tangram.Plugin()
    asked: list[str] = []

    def authorize(topic: str, _id: str, _request: object) -> None:
        time.sleep(WORK_SECONDS)
        asked.append(topic)

    plugin.authorize = authorize
    async with open_tangram([plugin], fakes=True, memory_port=True) as running:
        began = trio.current_time()
        async with running.open_socket() as socket:
            answer = await running.http.post("/token", json={"channel": "probe"})
            await socket.join("probe", token=answer.json()["token"])

        assert asked == ["probe", "probe"]
        assert trio.current_time() - began < 1


async def test_a_virtual_clock_does_not_wait_for_a_synchronous_service(autojump_clock: MockClock) -> None:
    """Such a thread lives as long as its service."""
    plugin = tangram.Plugin()

    @plugin.register_service()
    def beats(_state: tangram.BackendState) -> None:
        while True:
            trio.from_thread.check_cancelled()
            time.sleep(0.001)

    async with open_tangram([plugin], fakes=True) as running:
        assert await running.wait_steady() == "up"
        began = trio.current_time()
        await trio.sleep(5)
        assert trio.current_time() - began >= 5


async def test_a_thread_that_waits_for_the_loop_does_not_stop_the_clock(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler's call into the loop may take virtual time, so the clock is not held for ever."""
    monkeypatch.setattr(virtual_clock, "THREAD_SECONDS", 0.05)

    async with open_tangram([make_routes()], fakes=True, memory_port=True) as running:
        answer = await running.http.get("/threads/asks")

    assert answer.json() == {"is": "done"}


async def test_the_clock_goes_on_after_a_service_that_leaves_its_thread(
    autojump_clock: MockClock, over: threading.Event
) -> None:
    """An abandoned thread does not hold the clock; the leak is reported elsewhere."""
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def careless(_state: tangram.BackendState) -> None:
        await trio.to_thread.run_sync(over.wait, abandon_on_cancel=True)

    async with open_tangram([plugin], fakes=True, checks=()):
        pass

    assert autojump_clock.autojump_threshold == 0
    await trio.sleep(60)


async def test_the_clock_goes_on_where_a_thread_outlives_the_server(
    autojump_clock: MockClock, over: threading.Event
) -> None:
    """A thread of the test that works after the server's end leaves the clock free."""
    async with trio.open_nursery() as nursery:
        async with open_tangram(fakes=True, checks=()):
            nursery.start_soon(partial(trio.to_thread.run_sync, over.wait, abandon_on_cancel=True))
            await trio.testing.wait_all_tasks_blocked()

        assert autojump_clock.autojump_threshold == 0
        over.set()
