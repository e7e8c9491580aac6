"""WebSockets of the application's own on the native engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock as Clock
from websockets.frames import Opcode

from tangram.asgi import ASGIApp
from tests.http.harness import Server, hello, serving
from tests.http.native.sockets import Refusal, Socket, masked, open_socket


@asynccontextmanager
async def open_client(app: ASGIApp, **settings: Any) -> AsyncIterator[tuple[Server, Socket]]:
    """Serve an application, and open a WebSocket to it that is closed after the block."""
    async with serving("native", app, **settings) as server:
        client = await open_socket(server, "/ws")
        yield server, client
        await client.aclose()


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    chosen = scope["subprotocols"][0] if scope["subprotocols"] else None
    await send({"type": "websocket.accept", "subprotocol": chosen, "headers": [(b"x-extra", b"1")]})
    while (message := await receive())["type"] == "websocket.receive":
        if "text" in message:
            await send({"type": "websocket.send", "text": message["text"]})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})


async def test_echo(clock: Clock) -> None:
    """Text and bytes, empty ones too, reach the application and come back in order.

    A message in the same write as the handshake comes first.
    """
    async with serving("native", echo) as server:
        client = await open_socket(server, "/ws", behind=masked(b"first"), subprotocols=["chat"])
        got = [await client.receive()]
        for data in ("text \u00e9", b"\x00\xff", "", b""):
            await client.send(data)
            got.append(await client.receive())
        await client.aclose()

    assert got == [b"first", "text \u00e9".encode(), b"\x00\xff", b"", b""]
    assert client.protocol.subprotocol == "chat"


async def test_refused_with_403(clock: Clock) -> None:
    """An application that closes before it accepts refuses with 403."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close"})

    async with serving("native", app) as server:
        with pytest.raises(Refusal) as caught:
            await open_socket(server, "/ws")

    assert caught.value.status == 403


async def test_refused_with_a_response(clock: Clock) -> None:
    """An application may refuse with a response of its own."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        head = [(b"x-why", b"full")]
        await send({"type": "websocket.http.response.start", "status": 503, "headers": head})
        await send({"type": "websocket.http.response.body", "body": b"try ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"later"})

    async with serving("native", app) as server:
        with pytest.raises(Refusal) as caught:
            await open_socket(server, "/ws")

    assert (caught.value.status, caught.value.headers["x-why"]) == (503, "full")
    assert caught.value.body == b"try later"


@pytest.mark.parametrize("accepted", [False, True])
async def test_application_that_fails(accepted: bool, clock: Clock) -> None:
    """A crash is 500 before the handshake and 1011 after it, and the server goes on."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await hello(scope, receive, send)
            return
        await receive()
        if accepted:
            await send({"type": "websocket.accept"})
        raise RuntimeError("boom")

    async with serving("native", app) as server:
        if accepted:
            client = await open_socket(server, "/ws")
            assert await client.closed() == 1011
            await client.aclose()
        else:
            with pytest.raises(Refusal) as caught:
                await open_socket(server, "/ws")
            assert caught.value.status == 500
        async with await server.connect() as other:
            assert (await other.get("/")).status == 200

        assert server.engine.statistics().failed == 1


async def test_application_that_returns_without_a_close(clock: Clock) -> None:
    """A return without a close is 1011, after which clients come back."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    async with open_client(app) as (_, client):
        assert await client.closed() == 1011


async def test_application_closes(clock: Clock) -> None:
    """The application's close code and reason reach the client."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4001, "reason": "enough"})

    async with open_client(app) as (_, client):
        assert await client.closed() == 4001

    assert client.protocol.close_rcvd is not None
    assert client.protocol.close_rcvd.reason == "enough"


@pytest.mark.parametrize("how", ["close", "drop"])
async def test_receive_reports_the_disconnect(how: str, clock: Clock) -> None:
    """The application gets the client's close code, and its next send raises."""
    heard: list[Any] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        heard.append(await receive())
        try:
            await send({"type": "websocket.send", "text": "hello?"})
        except OSError as error:
            heard.append(type(error).__name__)

    async with open_client(app) as (server, client):
        if how == "close":
            client.protocol.send_close(4002, "going")
            await client.flush()
            await client.closed()
        await client.aclose()
        await server.wait_closed()

        assert heard[0]["type"] == "websocket.disconnect"
        assert heard[0]["code"] == (4002 if how == "close" else 1006)
        assert heard[1] == "ClientGone"
        assert server.engine.statistics().failed == 0


async def test_client_that_sends_faster_than_the_application_reads(clock: Clock) -> None:
    """Reading pauses while the application is behind.

    Memory stays bounded, and no message is lost.
    """
    go = trio.Event()
    got: list[int] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await go.wait()
        while len(got) < 300:
            got.append(len((await receive())["bytes"]))

    async with open_client(app) as (_, client):
        sent: list[int] = []

        async def push() -> None:
            for _ in range(300):
                await client.send(b"x" * 60_000)
                sent.append(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(push)
            await trio.testing.wait_all_tasks_blocked(0.02)
            stuck = len(sent)
            go.set()
        await client.closed()

    assert stuck < 300
    assert got == [60_000] * 300


async def test_text_that_is_not_utf8(clock: Clock) -> None:
    """A text message that is not UTF-8 is closed with 1007."""
    async with open_client(echo) as (_, client):
        await client.stream.send_all(masked(b"\xff\xfe"))

        assert await client.closed() == 1007


async def test_ping_is_answered_while_the_application_does_not_receive(clock: Clock) -> None:
    """A ping is answered while the application does not call receive."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await trio.sleep(10)

    async with open_client(app) as (_, client):
        client.protocol.send_ping(b"?")
        await client.flush()
        frame = await client.frame()

        assert (frame.opcode, bytes(frame.data)) == (Opcode.PONG, b"?")


async def test_client_that_answers_no_ping_is_given_up(clock: Clock) -> None:
    """A client that sends nothing for three ping intervals is closed."""
    async with open_client(echo, ping_interval=3.0) as (server, _):
        await trio.sleep(11)

        assert server.engine.statistics().connections == 0


async def test_client_is_kept_while_reading_pauses(clock: Clock) -> None:
    """A client whose pongs lie unread because reading pauses is kept.

    It is still pinged, and the application gets every message when it goes on.
    """
    go = trio.Event()
    got: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await go.wait()
        while len(got) < 40:
            got.append((await receive())["text"])
        await send({"type": "websocket.send", "text": "all of it"})
        await receive()

    async with open_client(app, ping_interval=3.0) as (_, client):
        for number in range(40):
            await client.send(str(number))
            await trio.testing.wait_all_tasks_blocked(0.001)
        for _ in range(10):  # each is answered by a pong that stays unread
            assert (await client.frame()).opcode is Opcode.PING
        go.set()

        assert await client.receive() == b"all of it"
        assert got == [str(number) for number in range(40)]


async def test_client_that_leaves_while_reading_pauses_is_noticed(clock: Clock) -> None:
    """A client that leaves while reading pauses is closed after three ping intervals.

    Until then the application can read its last messages.
    """

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:  # until send raises
            await trio.sleep(1)
            await send({"type": "websocket.send", "text": ""})

    async with open_client(app, ping_interval=3.0) as (server, client):
        for _ in range(40):
            await client.send("x")
            await trio.testing.wait_all_tasks_blocked(0.001)
        await client.stream.send_eof()
        await trio.sleep(8)
        assert server.engine.statistics().connections == 1
        await trio.sleep(4)

        assert server.engine.statistics().connections == 0
        assert server.engine.statistics().failed == 0


async def test_stop_sends_the_close_code(clock: Clock) -> None:
    """At a stop the client gets the stop's close code, and the application its disconnect."""
    heard: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        heard.append((await receive())["type"])

    async with open_client(app, close_code=lambda: 1001) as (server, client):
        codes: list[int | None] = []

        async def wait() -> None:
            codes.append(await client.closed())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            assert await server.stop() < 1

    assert codes == [1001]
    assert heard == ["websocket.disconnect"]


async def test_stop_does_not_wait_for_a_client_that_does_not_answer(clock: Clock) -> None:
    """A client that ignores the close frame has the time of the closing handshake."""
    async with open_client(echo, grace=10.0) as (server, _):
        assert await server.stop() < 3.5


class ClosesBetweenSteps(trio.abc.Instrument):
    """Closes every WebSocket after each step of another task, as a stop of the server may at any time."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.steps = 0
        self.errors: list[Exception] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        nursery = task.parent_nursery
        if task.coro.__name__ == "_close" and nursery is not None and nursery.child_tasks:
            return  # else each close would start several
        for connection in list(self.server.engine.connections):
            self.steps += 1
            try:
                connection.start_close(1001)
            except RuntimeError as error:
                self.errors.append(error)


async def test_stop_while_a_connection_ends(clock: Clock) -> None:
    """A stop may come at any moment of a connection's end."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.close", "code": 4000})
        trio.lowlevel.add_instrument(closes)

    async with open_client(app) as (server, client):
        closes = ClosesBetweenSteps(server)
        await client.send("end")
        assert await client.closed() == 4000
        await server.wait_closed()
        trio.lowlevel.remove_instrument(closes)

    assert closes.steps > 2
    assert closes.errors == []


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", 426),
        (b"Sec-WebSocket-Version: 13\r\n", 400),
        (b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n", 400),
        (b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\r\n", 400),
    ],
)
async def test_broken_handshakes(lines: bytes, status: int, clock: Clock) -> None:
    """A malformed handshake is answered with its status."""
    async with serving("native", echo) as server, await server.connect() as client:
        await client.send(
            b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            + lines
            + b"\r\n"
        )
        answer = await client.rest()

    assert answer.startswith(b"HTTP/1.1 %d" % status)


async def test_header_that_splits_the_response(clock: Clock) -> None:
    """A line break in an accept header fails the handshake, and is not sent."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept", "headers": [(b"x", b"y\r\nset-cookie: evil")]})

    async with serving("native", app) as server:
        with pytest.raises(Refusal) as caught:
            await open_socket(server, "/ws")

    assert caught.value.status == 500
    assert "set-cookie" not in caught.value.headers


async def test_client_closes_in_the_middle_of_a_message(clock: Clock) -> None:
    """A client that closes between two fragments gets its own code back."""
    async with serving("native", echo) as server:
        socket = await open_socket(server, "/ws")
        await socket.stream.send_all(masked(b"begin", fin=False) + masked(b"\x03\xe8", Opcode.CLOSE))

        assert await socket.closed() == 1000
        await socket.aclose()
