"""Messages between an engine and an application on an island, as ASGI specifies them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tangram.compat.exchange import HIGH_WATER, LEAVE_SECONDS, MAX_DROPPED, WATCH_SECONDS, IslandExchange
from tangram.compat.file_body import CHUNK
from tangram.compat.island import Resident, open_island

App = Callable[[Any, Any, Any], Awaitable[None]]
END = {"type": "http.response.body", "body": b""}
START = {"type": "http.response.start", "status": 200}


@pytest.fixture
async def resident() -> AsyncIterator[Resident]:
    async with open_island("test") as island:
        yield Resident(island, "demo")


class Client:
    """The engine's side: a queue of messages for the application, and its messages."""

    def __init__(self, resident: Resident, kind: str = "http", headers: Any = ()) -> None:
        self.resident = resident
        self.scope = {"type": kind, "path": "/x", "headers": list(headers), "extensions": {}}
        self.inlet, self._outlet = trio.open_memory_channel[Any](10)
        self.sent: list[Any] = []
        self.failed: list[Exception] = []
        self.reads = 0
        self.most_reads = 0
        self.gone = False
        self.writable = trio.Event()
        self.writable.set()

    def says(self, *messages: Any) -> Client:
        for message in messages:
            self.inlet.send_nowait(message)
        return self

    async def run(self, app: App) -> IslandExchange:
        exchange = IslandExchange(self.resident, self.scope, self._receive, self._send)
        await exchange.run(app, self.scope, self.failed.append)
        return exchange

    async def _receive(self) -> Any:
        self.reads += 1
        self.most_reads = max(self.reads, self.most_reads)
        try:
            return await self._outlet.receive()
        finally:
            self.reads -= 1

    async def _send(self, message: Any) -> None:
        await self.writable.wait()
        await trio.lowlevel.checkpoint()
        if self.gone:
            raise OSError("gone")
        self.sent.append(message)


def request(body: bytes = b"", *, more: bool = False) -> Any:
    return {"type": "http.request", "body": body, "more_body": more}


async def poll(receive: Any) -> Any:
    """Return a message only if it is at hand, as Starlette's ``is_disconnected`` does."""
    task = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    if not task.done():
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


async def test_pieces_that_are_sent_together_arrive_as_one(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """Start and body arrive in order, and the exchange ends with the last part."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == request()
        await send(START)
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send(END)

    client = Client(resident).says(request())
    exchange = await client.run(app)

    assert client.sent == [START, {"type": "http.response.body", "body": b"a", "more_body": False}]
    assert exchange.ended
    assert not exchange.gone


class WholeClient(Client):
    """An engine that takes whole responses, too."""

    def __init__(self, resident: Resident) -> None:
        super().__init__(resident)
        self.whole: list[Any] = []

    async def run(self, app: App) -> IslandExchange:
        exchange = IslandExchange(self.resident, self.scope, self._receive, self)
        await exchange.run(app, self.scope, self.failed.append)
        return exchange

    async def __call__(self, message: Any) -> None:
        await self._send(message)

    async def answer(self, status: int, fields: Any, body: bytes) -> None:
        await self.writable.wait()
        if self.gone:
            raise OSError("gone")
        self.whole.append((status, fields, body))


KIND = (b"content-type", b"application/json")


@pytest.mark.parametrize("swapped", [False, True])
async def test_a_plain_response_is_one_call_of_the_engine(
    autojump_clock: MockClock, resident: Resident, swapped: bool
) -> None:
    """Its length is left to the engine, whichever of the two fields comes first."""
    fields = [(b"content-length", b"2"), KIND]

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({**START, "status": 404, "headers": fields[::-1] if swapped else fields})
        await send({"type": "http.response.body", "body": b"{}"})

    client = WholeClient(resident)
    client.says(request())
    exchange = await client.run(app)

    assert client.whole == [(404, (KIND,), b"{}")]
    assert client.sent == []
    assert exchange.ended


@pytest.mark.parametrize(
    ("status", "fields", "body"),
    [
        (200, [(b"content-length", b"2"), KIND, (b"set-cookie", b"a=b")], b"{}"),
        (200, [(b"content-length", b"2"), (b"location", b"/")], b"{}"),
        (200, [(b"content-length", b"3"), KIND], b"{}"),
        (200, [KIND, KIND], b"{}"),
        (200, [KIND], b"{}"),
        (304, [(b"content-length", b"0"), KIND], b""),
        (204, [(b"content-length", b"0"), KIND], b""),
        (200, [(b"content-length", b"2"), KIND], memoryview(b"{}")),
    ],
    ids=["cookie", "location", "other length", "no length", "one field", "304", "204", "memoryview"],
)
async def test_other_responses_are_sent_as_the_application_sent_them(
    autojump_clock: MockClock, resident: Resident, status: int, fields: Any, body: bytes | memoryview
) -> None:
    """The engine checks their framing: a wrong length, for example, is an error there."""
    messages = [{**START, "status": status, "headers": fields}, {"type": "http.response.body", "body": body}]

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    client = WholeClient(resident)
    client.says(request())
    await client.run(app)

    assert client.sent == messages
    assert client.whole == []


async def test_a_plain_response_to_a_client_that_has_left_is_dropped(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """The application ends without an error."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({**START, "headers": [(b"content-length", b"2"), KIND]})
        await send({"type": "http.response.body", "body": b"{}"})

    client = WholeClient(resident)
    client.says(request())
    client.gone = True
    exchange = await client.run(app)

    assert exchange.gone
    assert client.failed == []


async def test_polls_for_the_client_do_not_end_the_request(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """Many cancelled calls of ``receive`` make one call on the engine's side."""
    polled: list[Any] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(30):
            polled.append(await poll(receive))
            await asyncio.sleep(0.01)
        await send(START)
        await send(END)

    client = Client(resident).says(request())
    exchange = await client.run(app)

    assert polled == [None] * 30
    assert client.most_reads == 1
    assert not exchange.gone


async def test_another_receive_takes_the_message_of_a_cancelled_one(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """A call that is cancelled as its message arrives leaves the message to the call that waits behind it."""
    taken: list[Any] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        first, second = asyncio.ensure_future(receive()), asyncio.ensure_future(receive())
        await asyncio.sleep(0.1)
        exchange._take(request(b"x"))
        first.cancel()
        taken.append(await asyncio.wait_for(second, 5))
        await send(START)
        await send(END)

    client = Client(resident, headers=[(b"transfer-encoding", b"chunked")])
    exchange = IslandExchange(resident, client.scope, client._receive, client._send)
    await exchange.run(app, client.scope, client.failed.append)

    assert (taken, client.failed) == ([request(b"x")], [])


async def test_a_message_after_a_cancelled_receive_is_kept(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """The next call of ``receive`` returns the part of the body that arrived meanwhile."""
    parts: list[Any] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        assert await poll(receive) is None
        await asyncio.sleep(1)
        parts.extend([await receive(), await receive()])
        await send(START)
        await send(END)

    client = Client(resident, headers=[(b"transfer-encoding", b"chunked")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run, app)
        await trio.sleep(0.5)
        client.says(request(b"one", more=True), request(b"two"))

    assert [part["body"] for part in parts] == [b"one", b"two"]


async def test_two_waiters_of_receive_share_one_message(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """A waiter that is cancelled after it was woken leaves the message to the other."""
    got: list[Any] = []

    async def wait(receive: Any) -> None:
        got.append(await receive())

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        first, second = asyncio.create_task(wait(receive)), asyncio.create_task(wait(receive))
        await asyncio.sleep(0.6)
        await asyncio.wait({first, second}, timeout=1, return_when=asyncio.FIRST_COMPLETED)
        assert len(got) == 1
        first.cancel()
        second.cancel()
        await send(START)
        await send(END)

    client = Client(resident, headers=[(b"transfer-encoding", b"chunked")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run, app)
        await trio.sleep(0.5)
        client.says(request(b"one"))

    assert got == [request(b"one")]


async def test_a_poll_after_the_client_has_left_returns_the_disconnect(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """Also the first one: a request that takes longer than 50 ms is watched."""
    polled: list[Any] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()
        await asyncio.sleep(WATCH_SECONDS + 1)
        polled.append(await poll(receive))
        polled.append(await poll(receive))

    client = Client(resident).says(request())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run, app)
        await trio.sleep(WATCH_SECONDS + 0.5)
        client.says({"type": "http.disconnect"})

    assert polled == [{"type": "http.disconnect"}] * 2


async def test_a_connection_does_not_wait_for_a_handler_whose_client_has_left(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """It goes on in the background after a second, and ends with its plugin at the latest."""

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()
        await asyncio.sleep(1000)

    client = Client(resident).says(request())
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run, app)
        await trio.sleep(1)
        client.says({"type": "http.disconnect"})

    assert trio.current_time() - began == pytest.approx(1 + LEAVE_SECONDS, abs=0.1)
    assert len(resident.detached) == 1
    await resident.close(list)
    assert not resident.detached


async def test_a_client_that_closed_its_sending_side_gets_its_response(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """A response within a second after the disconnect is still written."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.sleep(1)
        await send(START)
        await send(END)

    client = Client(resident).says(request())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run, app)
        await trio.sleep(0.5)
        client.says({"type": "http.disconnect"})

    assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]


async def test_a_large_response_waits_for_its_client(autojump_clock: MockClock, resident: Resident) -> None:
    """The application is not further ahead than the high-water mark and one part."""
    count = 0

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        nonlocal count
        await send(START)
        for _ in range(100):
            count += 1
            await send({"type": "http.response.body", "body": b"x" * (HIGH_WATER // 4), "more_body": True})
        await send(END)

    client = Client(resident).says(request())
    client.writable = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run, app)
        await trio.sleep(1)
        waiting = count
        client.writable.set()

    assert waiting <= 6
    assert sum(len(message.get("body", b"")) for message in client.sent) == 100 * (HIGH_WATER // 4)


async def test_a_large_body_is_passed_on_without_a_copy(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """Pieces above the high-water mark are not joined with others."""
    large = bytes(HIGH_WATER + 1)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(START)
        for body in (b"a", b"b", large):
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send(END)

    client = Client(resident).says(request())
    await client.run(app)

    assert [message.get("body") for message in client.sent] == [None, b"ab", large, b""]
    assert client.sent[2]["body"] is large
    assert [message.get("more_body", False) for message in client.sent[1:]] == [True, True, False]


async def test_a_response_that_waits_for_nothing_costs_no_switch(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """The loop's task does not run for it."""
    turns = 0
    loop: Any = resident.island.loop
    main_loop_one = loop._main_loop_one

    async def counted(*, no_wait: bool = False) -> None:
        nonlocal turns
        turns += 1
        await main_loop_one(no_wait=no_wait)

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        await send({"type": "http.response.body", "body": b"whole"})

    loop.call_soon(int)
    await trio.testing.wait_all_tasks_blocked()
    loop._main_loop_one = counted
    try:
        client = Client(resident).says(request())
        await client.run(app)
        await trio.testing.wait_all_tasks_blocked()
    finally:
        del loop._main_loop_one

    assert turns == 0
    assert client.sent == [START, {"type": "http.response.body", "body": b"whole"}]


def open_files() -> int:
    return len(tuple(Path("/proc/self/fd").iterdir()))


def pathsend(path: Path) -> Any:
    return {"type": "http.response.pathsend", "path": str(path)}


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK])
async def test_a_file_is_sent_by_the_server(
    autojump_clock: MockClock, resident: Resident, tmp_path: Path, size: int
) -> None:
    """The application goes on when the file is written, and may delete it then."""
    path, deleted = tmp_path / "file", trio.Event()
    path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    expected = path.read_bytes()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(START)
        await send(pathsend(path))
        path.unlink()
        deleted.set()

    client = Client(resident).says(request())
    exchange = await client.run(app)
    with trio.fail_after(30):
        await deleted.wait()

    bodies = client.sent[1:]
    assert b"".join(message["body"] for message in bodies) == expected
    assert [message["more_body"] for message in bodies] == [True] * (len(bodies) - 1) + [False]
    assert exchange.ended
    assert not client.failed


async def test_a_file_that_cannot_be_opened_is_the_applications_error(
    autojump_clock: MockClock, resident: Resident, tmp_path: Path
) -> None:
    """``send`` raises it, and nothing of the response has been sent but its start."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(START)
        await send(pathsend(tmp_path / "nothing"))

    client = Client(resident).says(request())
    with pytest.raises(FileNotFoundError):
        await client.run(app)

    assert client.sent == [START]


async def test_a_file_is_closed_when_its_client_leaves(
    autojump_clock: MockClock, resident: Resident, tmp_path: Path
) -> None:
    """The application's ``send`` returns then, and ``receive`` reports the disconnect."""
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * CHUNK))
    received: list[Any] = []
    over = trio.Event()

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        await send(pathsend(path))
        received.append(await receive())
        over.set()

    client = Client(resident).says(request())
    client.writable = trio.Event()
    opened = open_files()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run, app)
        await trio.sleep(0.5)
        client.gone = True
        client.writable.set()
    # The application goes on without the connection.
    await over.wait()

    assert received == [{"type": "http.disconnect"}]
    assert open_files() == opened


async def test_messages_to_a_client_that_has_left_are_dropped_and_then_refused(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """The application gets the disconnect by ``receive``; an endless sender gets an error."""
    received: list[Any] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        await send({"type": "http.response.body", "body": b"x" * HIGH_WATER * 2, "more_body": True})
        received.append(await receive())
        for _ in range(MAX_DROPPED):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    client = Client(resident).says(request())
    client.gone = True
    exchange = await client.run(app)
    await trio.sleep(1)

    assert exchange.gone
    assert received == [{"type": "http.disconnect"}]
    assert [str(error) for error in client.failed] == ["the client has left"]


async def test_a_generator_is_closed_when_its_client_leaves(
    autojump_clock: MockClock, resident: Resident
) -> None:
    """The application ends while its generator stands at a ``yield``; it is closed at once."""
    closed: list[float] = []
    kept: list[Any] = []

    async def numbers() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * HIGH_WATER * 2
        finally:
            closed.append(trio.current_time())

    async def stream(send: Any) -> None:
        generator = numbers()
        kept.append(generator)  # as a traceback or a cycle does
        async for part in generator:
            await send({"type": "http.response.body", "body": part, "more_body": True})

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        streaming = asyncio.create_task(stream(send))
        assert (await receive())["type"] == "http.disconnect"
        streaming.cancel()
        await asyncio.wait({streaming})

    client = Client(resident).says(request())
    client.writable = trio.Event()
    left = 0.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run, app)
        await trio.sleep(0.5)
        left = trio.current_time()
        client.gone = True
        client.says({"type": "http.disconnect"})
        await trio.sleep(0.05)
        client.writable.set()

    await trio.sleep(0.05)
    assert closed
    assert closed[0] - left <= 0.1


async def test_a_failed_write_of_the_engine_is_raised(autojump_clock: MockClock, resident: Resident) -> None:
    """An error about the application's messages is the application's failure."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"x" * HIGH_WATER * 2, "more_body": True})
        await asyncio.sleep(1000)

    client = Client(resident).says(request())

    async def refuse(_message: Any) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("not as long as its content-length")

    exchange = IslandExchange(resident, client.scope, client._receive, refuse)
    with pytest.raises(ValueError, match="content-length"):
        await exchange.run(app, client.scope, client.failed.append)


async def test_a_websocket_echoes(autojump_clock: MockClock, resident: Resident) -> None:
    """Messages cross in both directions; after the disconnect ``send`` raises."""
    refused: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        try:
            for _ in range(100):
                await send({"type": "websocket.send", "text": "late"})
                await asyncio.sleep(0)
        except OSError as error:
            refused.append(str(error))

    client = Client(resident, "websocket")
    client.says({"type": "websocket.connect"}, {"type": "websocket.receive", "text": "a"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run, app)
        await trio.sleep(0.5)
        client.gone = True
        client.says({"type": "websocket.disconnect", "code": 1001})

    assert client.sent == [{"type": "websocket.accept"}, {"type": "websocket.send", "text": "a"}]
    assert refused == ["the client has left"]
    assert not client.failed


async def test_a_websocket_that_is_left_open_is_closed(autojump_clock: MockClock, resident: Resident) -> None:
    """A handler's return closes with 1000; without an accept the answer is 500 or 1011."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    async def silent(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()

    for application, last in (
        (app, {"type": "websocket.close", "code": 1000}),
        (silent, {"type": "websocket.close", "code": 1011}),
    ):
        client = Client(resident, "websocket").says({"type": "websocket.connect"})
        exchange = await client.run(application)
        await exchange.close_websocket(1000)

        assert client.sent[-1] == last
