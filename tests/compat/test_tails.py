"""What an application of a plugin does behind its answer, as FastAPI's background tasks do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock

from tangram.compat.apps import HANDLER_SECONDS, MAX_TAILS, _Exchange
from tangram.compat.island import CLOSE_SECONDS, Island, Resident, open_island

App = Callable[[Any, Any, Any], Awaitable[None]]


@pytest.fixture
async def island(autojump_clock: MockClock) -> AsyncIterator[Island]:
    async with open_island("test") as island:
        yield island


class Asker:
    """An engine's side of requests to one application."""

    def __init__(self, resident: Resident, app: App) -> None:
        self.resident = resident
        self.sent: list[Any] = []
        self.failed: list[Exception] = []
        self._app = app

    async def ask(self) -> float:
        """One request; the seconds until the connection may have its next."""
        began = trio.current_time()
        exchange = _Exchange(self.resident, self._receive, self._send)
        await exchange.run(self._app, {"path": "/x"}, self.failed.append)
        return trio.current_time() - began

    async def _receive(self) -> Any:
        await trio.sleep_forever()

    async def _send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message["type"])


async def answer(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"yes"})


async def test_the_connection_does_not_wait_for_it(island: Island, autojump_clock: MockClock) -> None:
    """Once the answer is whole the next request is served; the tail goes on to its own end."""
    said: list[str] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await answer(send)
        await asyncio.sleep(30)
        said.append("done")

    asker = Asker(Resident(island, "demo"), app)
    assert await asker.ask() == 0
    assert await asker.ask() == 0
    assert asker.sent == ["http.response.start", "http.response.body"] * 2
    assert len(asker.resident.tails) == 2
    await trio.sleep(30.1)

    assert said == ["done", "done"]
    assert not asker.resident.tails


async def test_what_it_raises_is_told(island: Island, autojump_clock: MockClock) -> None:
    """To whoever logs the failures of handlers; and the next request is none the worse."""

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


async def test_an_endless_one_ends_with_its_plugin(island: Island, autojump_clock: MockClock) -> None:
    """It is cancelled and named, as what a plugin spawned is."""
    heard: list[str] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await answer(send)
        try:
            await asyncio.sleep(10_000)
        finally:
            heard.append("cancelled")

    asker = Asker(Resident(island, "demo"), app)
    await asker.ask()
    await trio.sleep(1)
    began = trio.current_time()
    with structlog.testing.capture_logs() as logs:
        await asker.resident.close(list)

    assert heard == ["cancelled"]
    assert not asker.resident.tails
    assert not asker.failed
    assert trio.current_time() - began <= CLOSE_SECONDS
    assert [record["tasks"] for record in logs] == [["request /x"]]


async def test_who_waits_for_the_client_hears_that_it_is_over(
    island: Island, autojump_clock: MockClock
) -> None:
    """A wait for the client's going ends with the answer, as does one that begins later; and what is sent
    then is refused by its reason."""
    heard: list[Any] = []

    async def listen(receive: Any) -> None:
        heard.append(await receive())

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        early = asyncio.create_task(listen(receive))
        await asyncio.sleep(1)
        await send({"type": "http.response.start", "status": 200})
        last = asyncio.create_task(send({"type": "http.response.body", "body": b"yes"}))
        beside = asyncio.create_task(listen(receive))
        await asyncio.gather(early, last, beside)
        heard.append(await receive())
        await send({"type": "http.response.body", "body": b"more"})

    asker = Asker(Resident(island, "demo"), app)
    assert await asker.ask() == 1
    await trio.sleep(0.1)

    assert heard == [{"type": "http.disconnect"}] * 3
    assert [str(error) for error in asker.failed] == ["the response is complete"]


async def test_there_is_a_bound(island: Island, autojump_clock: MockClock) -> None:
    """Who has so many already waits for the next as for a handler."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await answer(send)
        await asyncio.sleep(30)

    asker = Asker(Resident(island, "demo"), app)
    for _ in range(MAX_TAILS):
        assert await asker.ask() == 0

    assert await asker.ask() == 30


async def test_before_its_end_a_cancelled_request_ends_the_handler(
    island: Island, autojump_clock: MockClock
) -> None:
    """Whose answer is not whole goes when its connection does."""
    heard: list[str] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"y", "more_body": True})
        try:
            await asyncio.sleep(1000)
        finally:
            heard.append("cancelled")

    asker = Asker(Resident(island, "demo"), app)
    with trio.move_on_after(1):
        await asker.ask()

    assert heard == ["cancelled"]
    assert trio.current_time() <= 1 + HANDLER_SECONDS
    assert not asker.resident.tails
