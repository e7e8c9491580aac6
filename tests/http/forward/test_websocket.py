"""WebSockets that another node serves, over both engines."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection

from tangram.asgi import Receive, Scope, Send
from tangram.http.engine import ClientGone
from tests.http.forward.two_nodes import two_nodes
from tests.http.serving import open_raw

ENGINES = pytest.mark.parametrize("engine", ["native", "hypercorn"])


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", "headers": [(b"x-node", b"holder")]})
    while (message := await receive())["type"] != "websocket.disconnect":
        if message.get("text") == "close":
            await send({"type": "websocket.close", "code": 4001, "reason": "as asked"})
            return
        await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})


@ENGINES
async def test_messages_cross_in_both_directions(engine: str) -> None:
    """Texts and bytes, small and large, come back as they were."""
    async with two_nodes(echo, engine=engine) as nodes, open_raw(nodes.front.running.url + "/ws") as client:
        for message in ("hello", b"\0\xff", "x" * 100_000, "", b""):
            await client.send_message(message)
            assert await client.get_message() == message


@ENGINES
async def test_the_close_of_the_application_reaches_the_client(engine: str) -> None:
    """Code and reason are those of the application."""
    async with two_nodes(echo, engine=engine) as nodes, open_raw(nodes.front.running.url + "/ws") as client:
        await client.send_message("close")
        with pytest.raises(ConnectionClosed) as closed:
            await client.get_message()
        reason = closed.value.reason
        assert reason is not None
        assert (reason.code, reason.reason) == (4001, "as asked")


@ENGINES
async def test_the_close_of_the_client_reaches_the_application(engine: str) -> None:
    """The application learns the client's code and reason."""
    closes: list[tuple[int, str]] = []
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        closes.append((message["code"], message["reason"]))
        ended.set()

    async with two_nodes(app, engine=engine) as nodes:
        async with open_raw(nodes.front.running.url + "/ws") as client:
            await client.aclose(code=3999, reason="done")
        with trio.fail_after(10):
            await ended.wait()

    assert closes == [(3999, "done")]


@ENGINES
async def test_a_refused_handshake_keeps_its_answer(engine: str) -> None:
    """Status, fields and body of the application's refusal are those that the client gets."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        start = {"type": "websocket.http.response.start", "status": 409, "headers": [(b"x-why", b"busy")]}
        await send(start)
        await send({"type": "websocket.http.response.body", "body": b"full"})

    async with two_nodes(app, engine=engine) as nodes:
        with pytest.raises(ConnectionRejected) as rejected:
            async with open_raw(nodes.front.running.url + "/ws"):
                pass

    assert rejected.value.status_code == 409
    assert rejected.value.body == b"full"


async def test_the_handshake_of_the_client_is_seen_by_the_application() -> None:
    """Path, query, client, subprotocols and fields are those of the client."""
    seen: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(scope)
        await receive()
        await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][1]})
        await receive()

    request = (
        b"GET /ws/a?b=c HTTP/1.1\r\nhost: test\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"sec-websocket-protocol: one, two\r\ncookie: k=v\r\n\r\n"
    )
    async with two_nodes(app) as nodes, await nodes.connect() as client:
        address = client.stream.socket.getsockname()
        await client.send(request)
        head = b""
        while b"\r\n\r\n" not in head:
            head += bytes(await client.stream.receive_some(65536))

        assert head.startswith(b"HTTP/1.1 101")
        assert b"sec-websocket-protocol: two\r\n" in head
        assert b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
        assert b'server-timing: node;desc="holder"\r\n' in head
        assert (seen["path"], seen["query_string"], seen["scheme"]) == ("/ws/a", b"b=c", "ws")
        assert tuple(seen["client"]) == address[:2]
        assert seen["subprotocols"] == ["one", "two"]
        assert (b"cookie", b"k=v") in seen["headers"]


@ENGINES
async def test_a_client_that_vanishes_ends_the_application(engine: str) -> None:
    """Without a close frame the application gets 1006, or fails to send."""
    codes: list[object] = []
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        codes.append((await receive())["code"])
        ended.set()

    async with two_nodes(app, engine=engine) as nodes:
        async with open_raw(nodes.front.running.url + "/ws") as client:
            assert isinstance(client, WebSocketConnection)
            await trio.aclose_forcefully(client._stream)
        with trio.fail_after(10):
            await ended.wait()

    assert codes == [1006]


@ENGINES
async def test_a_holder_that_dies_asks_the_client_to_come_back(engine: str) -> None:
    """The close code is that of a restart: phoenix.js and others reconnect."""
    async with two_nodes(echo, engine=engine) as nodes, open_raw(nodes.front.running.url + "/ws") as client:
        await client.send_message("a")
        assert await client.get_message() == "a"
        for connection in list(nodes.holder.engine.connections):
            connection.abort()
        with pytest.raises(ConnectionClosed) as closed:
            await client.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1012


@pytest.mark.slow
async def test_a_slow_client_slows_the_application_down() -> None:
    """The application waits in ``send`` once the buffers on the way are full."""
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await receive()
        await send({"type": "websocket.accept"})
        try:
            for _ in range(2000):
                await send({"type": "websocket.send", "bytes": b"x" * 65536})
                sent += 1
        except ClientGone:
            return

    request = (
        b"GET / HTTP/1.1\r\nhost: test\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with two_nodes(app) as nodes:
        async with await nodes.connect() as client:
            await client.send(request)
            before = -1
            with trio.fail_after(20):
                while before != sent or not sent:
                    before = sent
                    await trio.sleep(0.2)
            assert sent < 1000
        await nodes.front.wait_closed()
