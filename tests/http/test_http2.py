"""HTTP/2 in the hands of strangers, and at a stop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h2.errors
import h2.events
import h2.exceptions
import pytest
import trio
import trio.testing
from trio.testing import MockClock as Clock

from tests.http.harness import Server, hello, serving
from tests.http.test_hypercorn import CERT, KEY, H2Client, open_tls


async def slowly(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Stream ten pieces (``/slow``), stream for ever (``/endless``), or wait (``/wait``)."""
    if scope["path"] == "/wait":
        while (await receive())["type"] != "http.disconnect":
            pass
    elif scope["path"] in {"/slow", "/endless"}:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        count = 0
        while count < 10 or scope["path"] == "/endless":
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
            await trio.sleep(0.2)
            count += 1
        await send({"type": "http.response.body", "body": b"end"})
    else:
        await hello(scope, receive, send)


class Watcher(H2Client):
    """Notes everything that comes, by stream."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.bodies: dict[int, bytes] = {}
        self.statuses: dict[int, str] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway: h2.events.ConnectionTerminated | None = None
        self.closed = False
        self.turn = trio.Lock()

    async def flush(self) -> None:
        async with self.turn:
            await super().flush()

    async def watch(self) -> None:
        """Until the server has closed."""
        while True:
            try:
                data = bytes(await self.stream.receive_some(65536))
            except trio.BrokenResourceError:
                data = b""
            if not data:
                self.closed = True
                return
            for event in self.http.receive_data(data):
                self.note(event)
            if self.goaway is None:
                await self.flush()

    def note(self, event: Any) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.statuses[event.stream_id] = str(dict[Any, Any](event.headers or ())[":status"])
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + (event.data or b"")
            self.http.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.resets[event.stream_id] = int(event.error_code or 0)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = event

    async def post(self, path: str, pieces: int, size: int = 16384) -> int:
        """Send a request whose body never ends."""
        number = int(self.http.get_next_available_stream_id())
        head = [(":method", "POST"), (":path", path), (":scheme", "https"), (":authority", "localhost")]
        self.http.send_headers(number, head)
        for _ in range(pieces):
            with trio.fail_after(30):
                while self.http.local_flow_control_window(number) < size:
                    await self.flush()
                    await trio.sleep(0.01)
            self.http.send_data(number, b"x" * size)
            await self.flush()
        return number


@asynccontextmanager
async def open_watcher(server: Server) -> AsyncIterator[Watcher]:
    watcher = Watcher(await open_tls(server, "h2"))
    try:
        yield watcher
    finally:
        await trio.aclose_forcefully(watcher.stream)


def tls(**options: Any) -> dict[str, Any]:
    return {"certfile": CERT, "keyfile": KEY, **options}


async def test_a_response_in_flight_is_finished_at_a_stop(clock: Clock) -> None:
    """A response in flight at a stop is finished within the grace, then GOAWAY is sent."""
    async with serving("hypercorn", slowly, grace=5.0, **tls()) as server, open_watcher(server) as client:
        async with trio.open_nursery() as nursery:
            number = await client.request("/slow")
            nursery.start_soon(client.watch)
            await server.wait_requests()
            took = await server.stop()

    assert client.bodies[number] == b"x" * 10_000 + b"end"
    assert number in client.ended
    assert client.goaway is not None
    assert client.closed
    assert took < 3


async def test_a_request_during_a_stop_affects_no_other_stream(clock: Clock) -> None:
    """A request during a stop gets REFUSED_STREAM, and other responses are finished."""
    async with serving("hypercorn", slowly, grace=5.0, **tls()) as server, open_watcher(server) as client:
        async with trio.open_nursery() as nursery:
            number = await client.request("/slow")
            nursery.start_soon(client.watch)
            await server.wait_requests()
            nursery.start_soon(server.stop)
            await trio.sleep(0.02)
            early = await client.request("/hello")
            await trio.sleep(0.5)
            late = await client.request("/hello")

    assert number in client.ended
    assert client.bodies[number].endswith(b"end")
    assert early in client.ended
    assert client.resets == {late: int(h2.errors.ErrorCodes.REFUSED_STREAM)}


async def test_an_endless_response_is_reset_after_the_grace(clock: Clock) -> None:
    """After the grace an unfinished stream is reset, so that it does not look complete."""
    async with serving("hypercorn", slowly, grace=2.0, **tls()) as server, open_watcher(server) as client:
        async with trio.open_nursery() as nursery:
            number = await client.request("/endless")
            nursery.start_soon(client.watch)
            await server.wait_requests()
            took = await server.stop()

    assert 1.9 < took < 3
    assert client.closed
    assert client.bodies[number]
    assert number not in client.ended


async def test_an_endless_body_is_cut_after_the_grace(clock: Clock) -> None:
    """An endless request body does not delay a stop, and the client sees its request fail."""
    async with serving("hypercorn", slowly, grace=2.0, **tls()) as server, open_watcher(server) as client:
        async with trio.open_nursery() as nursery:
            number = await client.post("/hello", 1, 10)
            nursery.start_soon(client.watch)
            await server.wait_requests()
            took = await server.stop()

    assert took < 3
    assert client.closed
    assert number not in client.ended


async def test_an_idle_connection_gets_goaway(clock: Clock) -> None:
    """At a stop a connection without requests gets GOAWAY, not a bare end."""
    async with serving("hypercorn", slowly, grace=2.0, **tls()) as server, open_watcher(server) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.watch)
            await client.request("/hello")
            await server.wait_requests()
            took = await server.stop()

    assert client.goaway is not None
    assert took < 1


@pytest.mark.slow
async def test_a_body_after_its_response_affects_no_other_stream(clock: Clock) -> None:
    """A body that goes on after its response does not end the connection."""
    async with (
        serving("hypercorn", slowly, max_body=100_000, **tls()) as server,
        open_watcher(server) as client,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.watch)
            number = await client.request("/slow")
            refused = await client.post("/hello", 20)
            await trio.sleep(3)
            nursery.cancel_scope.cancel()

        assert client.statuses[refused] == "413"
        assert number in client.ended
        assert server.engine.statistics().crashed == 0


@pytest.mark.slow
async def test_streams_that_are_opened_and_reset_are_bounded(clock: Clock) -> None:
    """A client that opens and resets streams has a bound on requests, and is then closed."""
    running = most = 0

    async def stubborn(scope: dict[str, Any], receive: Any, send: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await trio.sleep(5)
        finally:
            running -= 1

    async with serving("hypercorn", stubborn, **tls()) as server, open_watcher(server) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.watch)
            for _ in range(2000):
                try:
                    number = await client.request("/wait")
                    client.http.reset_stream(number)
                    await client.flush()
                except (trio.BrokenResourceError, trio.ClosedResourceError, h2.exceptions.ProtocolError):
                    break  # it was cut
            nursery.cancel_scope.cancel()
        async with open_watcher(server):
            pass  # another is let in

        assert most <= 250
        assert server.engine.statistics().crashed == 0


async def test_an_oversized_head_is_refused(clock: Clock) -> None:
    """Headers beyond the bounds cost a stream or the connection; others are served."""
    async with serving("hypercorn", hello, **tls()) as server, open_watcher(server) as client:
        number = int(client.http.get_next_available_stream_id())
        head = [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "localhost")]
        client.http.send_headers(number, head + [(f"x-{n}", "y") for n in range(150)], end_stream=True)
        await client.flush()
        with trio.move_on_after(2):
            await client.watch()
        async with open_watcher(server) as other:
            answer, _ = await other.answer(await other.request("/"))

        assert client.statuses.get(number, "closed") in {"431", "closed"}
        assert answer[":status"] == "200"
        assert server.engine.statistics().crashed == 0


@pytest.mark.parametrize("path", ["/\u00e9", None])
async def test_a_request_that_cannot_be_read_ends_its_connection(path: str | None, clock: Clock) -> None:
    """A path that is missing or not ASCII ends the connection, and is no failure."""
    async with serving("hypercorn", hello, **tls()) as server, open_watcher(server) as client:
        number = int(client.http.get_next_available_stream_id())
        head: list[Any] = [
            (":method", "GET"),
            (":path", path),
            (":scheme", "https"),
            (":authority", "localhost"),
        ]
        if path is None:
            head = [(":method", "CONNECT"), (":authority", "localhost")]
        client.http.send_headers(number, head, end_stream=True)
        await client.flush()
        with trio.move_on_after(2):
            await client.watch()

        assert client.closed
        assert server.engine.statistics().crashed == 0
