"""Applications that go on after their response, as FastAPI's background tasks do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock

from tangram.compat.exchange import HANDLER_SECONDS, MAX_BACKGROUND_TASKS, IslandExchange
from tangram.compat.island import CLOSE_SECONDS, Island, Resident, open_island

App = Callable[[Any, Any, Any], Awaitable[None]]


@pytest.fixture
async def island(autojump_clock: MockClock) -> AsyncIterator[Island]:
    async with open_island("test") as island:
        yield island


class Asker:
    """The engine's side of requests to one application."""

    def __init__(self, resident: Resident, app: App) -> None:
        self.resident = resident
        self.sent: list[Any] = []
        self.failed: list[Exception] = []
        self._app = app

    async def ask(self) -> float:
        """Send one request; return the seconds until the connection could read the next one."""
        began = trio.current_time()
        self.asked = False
        scope = {"type": "http", "path": "/x", "headers": []}
        exchange = IslandExchange(self.resident, scope, self._receive, self._send)
        await exchange.run(self._app, scope, self.failed.append)
        return trio.current_time() - began

    async def _receive(self) -> Any:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await trio.sleep_forever()
        return None

    async def _send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message["type"])


async def answer(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"yes"})


async def test_the_connection_does_not_wait_for_it(island: Island, autojump_clock: MockClock) -> None:
    """The next request is served once the response is complete; the task goes on to its end."""
    calls: list[str] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await answer(send)
        await asyncio.sleep(30)
        calls.append("done")

    asker = Asker(Resident(island, "demo"), app)
    assert await asker.ask() == 0
    assert await asker.ask() == 0
    assert asker.sent == ["http.response.start", "http.response.body"] * 2
    assert len(asker.resident.detached) == 2
    await trio.sleep(30.1)

    assert calls == ["done", "done"]
    assert not asker.resident.detached


async def test_an_exception_after_the_response_is_reported(island: Island, autojump_clock: MockClock) -> None:
    """An exception after the response is reported as failure, and the next request works."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await answer(send)
        await asyncio.sleep(1)
        raise LookupError("not there")

    asker = Asker(Resident(island, "demo"), app)
    with structlog.testing.capture_logs() as logs:
        await asker.ask()
        await trio.sleep(1.1)

    assert [str(error) for error in asker.failed] == ["not there"]
    assert logs == []
    assert await asker.ask() == 0


async def test_an_endless_background_task_ends_with_its_plugin(
    island: Island, autojump_clock: MockClock
) -> None:
    """A background task that never ends is cancelled and logged when its plugin ends."""
    received: list[str] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await answer(send)
        try:
            await asyncio.sleep(10_000)
        finally:
            received.append("cancelled")

    asker = Asker(Resident(island, "demo"), app)
    await asker.ask()
    await trio.sleep(1)
    began = trio.current_time()
    with structlog.testing.capture_logs() as logs:
        await asker.resident.close(list)

    assert received == ["cancelled"]
    assert not asker.resident.detached
    assert not asker.failed
    assert trio.current_time() - began <= CLOSE_SECONDS
    assert [record["tasks"] for record in logs] == [["request /x"]]


async def test_receive_returns_a_disconnect_after_the_response(
    island: Island, autojump_clock: MockClock
) -> None:
    """``receive`` returns a disconnect once the response is complete, and ``send`` raises."""
    received: list[Any] = []

    async def listen(receive: Any) -> None:
        received.append(await receive())

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        early = asyncio.create_task(listen(receive))
        await asyncio.sleep(1)
        await send({"type": "http.response.start", "status": 200})
        last = asyncio.create_task(send({"type": "http.response.body", "body": b"yes"}))
        beside = asyncio.create_task(listen(receive))
        await asyncio.gather(early, last, beside)
        received.append(await receive())
        await send({"type": "http.response.body", "body": b"more"})

    asker = Asker(Resident(island, "demo"), app)
    assert await asker.ask() == 1
    await trio.sleep(0.1)

    assert received == [{"type": "http.disconnect"}] * 3
    assert [str(error) for error in asker.failed] == ["the response is complete"]


async def test_the_number_of_background_tasks_is_bounded(island: Island, autojump_clock: MockClock) -> None:
    """With too many background tasks the connection waits for the handler."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await answer(send)
        await asyncio.sleep(30)

    asker = Asker(Resident(island, "demo"), app)
    for _ in range(MAX_BACKGROUND_TASKS):
        assert await asker.ask() == 0

    assert await asker.ask() == 30


async def test_a_request_cancelled_before_its_response_ends_the_handler(
    island: Island, autojump_clock: MockClock
) -> None:
    """A handler is cancelled if its client leaves before the response is complete."""
    received: list[str] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"y", "more_body": True})
        try:
            await asyncio.sleep(1000)
        finally:
            received.append("cancelled")

    asker = Asker(Resident(island, "demo"), app)
    with trio.move_on_after(1):
        await asker.ask()

    assert received == ["cancelled"]
    assert trio.current_time() <= 1 + HANDLER_SECONDS
    assert not asker.resident.detached
