"""HTTP/2 in the hands of strangers, and at a stop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import pytest
import trio
import trio.lowlevel
import trio.testing
from hyperframe.frame import (
    ContinuationFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from structlog.testing import capture_logs
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
                with suppress(trio.BrokenResourceError):  # the next read shows how the connection ended
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


async def large(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer ``/large`` with a megabyte, and other paths with a few bytes."""
    if scope["path"] != "/large":
        await hello(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(16):
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def shut_windows(client: Watcher, streams: int) -> list[int]:
    """Open streams on which the server may not send any data."""
    client.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    return [await client.request("/large") for _ in range(streams)]


async def test_a_restart_does_not_wait_for_clients_with_shut_windows(clock: Clock) -> None:
    """Streams with a window of 0 hold a stop for its grace only: 50 ms after a crash."""
    async with (
        serving("hypercorn", large, grace=0.05, write_timeout=10.0, **tls()) as server,
        open_watcher(server) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.watch)
        await shut_windows(client, 10)
        await server.wait_requests(10)
        await trio.sleep(0.5)
        took = await server.stop()
        nursery.cancel_scope.cancel()

    assert took < 0.3


async def test_a_shut_window_holds_the_application(clock: Clock) -> None:
    """A stream with a window of 0 buffers two frames, not the whole response."""
    sent = 0

    async def counting(scope: dict[str, Any], receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):
            await send({"type": "http.response.body", "body": b"x" * 16384, "more_body": True})
            sent += 16384
        await send({"type": "http.response.body", "body": b""})

    async with (
        serving("hypercorn", counting, **tls()) as server,
        open_watcher(server) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.watch)
        await shut_windows(client, 20)
        await server.wait_requests(20)
        await trio.sleep(2)
        held = sent
        nursery.cancel_scope.cancel()

    assert held <= 20 * 2 * 16384


async def test_a_stream_with_a_shut_window_is_reset_while_others_go_on(clock: Clock) -> None:
    """Reading one stream is no progress of another: a shut one is reset after the write timeout."""
    async with (
        serving("hypercorn", slowly_and_large, write_timeout=1.0, **tls()) as server,
        open_watcher(server) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.watch)
        endless = await client.request("/endless")
        await server.wait_requests()
        shut = await shut_windows(client, 3)
        client.http.increment_flow_control_window(2**20, endless)
        await client.flush()
        await trio.sleep(3)
        alive, received = not client.closed, len(client.bodies[endless])
        statistics = server.engine.statistics()
        nursery.cancel_scope.cancel()

    assert alive
    assert received > 5000
    assert client.resets == dict.fromkeys(shut, int(h2.errors.ErrorCodes.CANCEL))
    assert (statistics.stalled, statistics.crashed) == (3, 0)


async def slowly_and_large(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await (large if scope["path"] == "/large" else slowly)(scope, receive, send)


ROUND = 2000
"""Frames that a flood sends before the clock may move: twice the budget of a connection."""


def flood(kind: str, client: Watcher) -> bytes:
    """Return the frames of one round of a flood."""
    if kind == "reset":
        number = int(client.http.get_next_available_stream_id())
        head = [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "localhost")]
        client.http.send_headers(number, head, end_stream=True)
        client.http.reset_stream(number)
        return bytes(client.http.data_to_send())
    frames: dict[str, Callable[[], Frame]] = {
        "priority": lambda: PriorityFrame(99, depends_on=0, stream_weight=3),
        "window": lambda: WindowUpdateFrame(0, window_increment=1),
        "ping": lambda: PingFrame(0, opaque_data=b"12345678"),
        "settings": lambda: SettingsFrame(0, settings={4: 65535}),
    }
    return bytes(frames[kind]().serialize())


@pytest.mark.parametrize("kind", ["reset", "priority", "window", "ping", "settings"])
async def test_floods_of_control_frames_are_cut(kind: str, clock: Clock) -> None:
    """Each kind of flood ends its connection with ENHANCE_YOUR_CALM, a log line, and nothing else."""
    with capture_logs() as lines:
        async with serving("hypercorn", hello, **tls()) as server, open_watcher(server) as client:
            async with trio.open_nursery() as nursery:
                await client.flush()
                nursery.start_soon(client.watch)
                sent = 0
                while not client.closed and sent < 20 * ROUND:
                    try:
                        data = b"".join(flood(kind, client) for _ in range(ROUND))
                        async with client.turn:
                            await client.stream.send_all(data)
                    except (trio.BrokenResourceError, trio.ClosedResourceError, h2.exceptions.ProtocolError):
                        break
                    sent += ROUND
                    await trio.testing.wait_all_tasks_blocked()  # the server handles a round in many turns
                with trio.move_on_after(5):
                    while not client.closed:  # noqa: ASYNC110 - its watcher has no event
                        await trio.sleep(0.1)
                nursery.cancel_scope.cancel()
            async with open_watcher(server) as other:
                answer, _ = await other.answer(await other.request("/"))
            statistics = server.engine.statistics()

    assert sent <= 4 * ROUND
    assert answer[":status"] == "200"
    assert (statistics.crashed, statistics.failed) == (0, 0)
    events = [line["event"] for line in lines if line["event"] != "client slowed down"]
    assert events == ["connection closed: too many HTTP/2 control frames"]
    assert {line["address"] for line in lines} == {"127.0.0.1"}


async def test_a_header_block_without_an_end_is_bounded(clock: Clock) -> None:
    """Its frames may have the bytes of a whole header block (CVE-2024-27316)."""
    more = ContinuationFrame(1, b"\x00\x01a\x01b" * 2000).serialize()
    async with (
        serving("hypercorn", hello, max_header_bytes=65536, **tls()) as server,
        open_watcher(server) as client,
        trio.open_nursery() as nursery,
    ):
        await client.flush()
        nursery.start_soon(client.watch)
        await trio.sleep(0.5)  # no acknowledgement of SETTINGS may come between
        await client.stream.send_all(HeadersFrame(1, b"\x82").serialize() + more * 6)
        await trio.sleep(0.5)
        alive = not client.closed
        await client.stream.send_all(more)
        with trio.move_on_after(5):
            while not client.closed:  # noqa: ASYNC110 - its watcher has no event
                await trio.sleep(0.1)
        closed = client.closed
        nursery.cancel_scope.cancel()

    assert alive
    assert closed


async def test_a_large_download_may_update_its_windows(clock: Clock) -> None:
    """Window updates in proportion to the received data never exhaust the budget."""
    async with serving("hypercorn", large, **tls()) as server, open_watcher(server) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.watch)
            number = 0
            for _ in range(12):
                number = await client.request("/large")
                with trio.fail_after(30):
                    while number not in client.ended and not client.closed:  # noqa: ASYNC110 - the same
                        await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

        assert not client.closed
        assert len(client.bodies[number]) == 2**20
