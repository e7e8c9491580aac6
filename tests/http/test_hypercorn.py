"""Behaviour that only Hypercorn provides (TLS, HTTP/2), and the guards around it."""

from __future__ import annotations

import itertools
import json
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trio.testing
from hypercorn.events import Event
from trio.testing import MockClock as Clock
from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.uri import parse_uri

from tangram.errors import ConfigError
from tangram.http.hypercorn.connection import HypercornConnection
from tangram.http.hypercorn.exchange import RequestEvents
from tangram.http.hypercorn.server import make_ssl_context
from tests.http.harness import Client, Server, hello, serving
from tests.http.test_http import UPGRADE

CERT = str(Path(__file__).parent / "tls" / "cert.pem")
KEY = str(Path(__file__).parent / "tls" / "key.pem")


async def open_tls(server: Server, *alpn: str) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.create_default_context(cafile=CERT)
    context.set_alpn_protocols(list(alpn))
    plain = await trio.open_tcp_stream("127.0.0.1", server.port)
    stream = trio.SSLStream(plain, context, server_hostname="localhost", https_compatible=True)
    await stream.do_handshake()
    return stream


class H2Client:
    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self.stream = stream
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.http.initiate_connection()
        self.events: list[Any] = []

    async def request(self, path: str) -> int:
        number = int(self.http.get_next_available_stream_id())
        head = [(":method", "GET"), (":path", path), (":scheme", "https"), (":authority", "localhost")]
        self.http.send_headers(number, head, end_stream=True)
        await self.flush()
        return number

    async def flush(self) -> None:
        await self.stream.send_all(self.http.data_to_send())

    async def answer(self, number: int) -> tuple[dict[str, str], bytes]:
        head: dict[str, str] = {}
        body = b""
        while True:
            data = await self.stream.receive_some(65536)
            assert data, "the server closed"
            for event in self.http.receive_data(bytes(data)):
                if getattr(event, "stream_id", None) != number:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    head = {str(name): str(value) for name, value in event.headers or ()}
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data or b""
                elif isinstance(event, h2.events.StreamEnded):
                    return head, body
            await self.flush()


async def test_tls_with_http1(clock: Clock) -> None:
    """A client that offers only HTTP/1.1 is answered over TLS, with the scheme https."""
    async with serving("hypercorn", hello, certfile=CERT, keyfile=KEY) as server:
        stream = await open_tls(server, "http/1.1")
        async with Client(stream) as client:
            answer = await client.get("/x")

        assert answer.json()["scheme"] == "https"
        assert stream.selected_alpn_protocol() == "http/1.1"


async def test_http2(clock: Clock) -> None:
    """A client that offers HTTP/2 gets it, with two requests over one connection."""
    async with serving("hypercorn", hello, certfile=CERT, keyfile=KEY) as server:
        stream = await open_tls(server, "h2", "http/1.1")
        client = H2Client(stream)
        head, body = await client.answer(await client.request("/one"))
        _, second = await client.answer(await client.request("/two"))
        await trio.aclose_forcefully(stream)

        assert head[":status"] == "200"
        assert json.loads(body)["version"] == "2"
        assert json.loads(second)["path"] == "/two"
        assert server.engine.statistics().accepted == 1


async def test_http2_client_that_gives_no_window_is_closed(clock: Clock) -> None:
    """A client that never opens its window is closed after the write timeout."""

    async def large(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 1_000_000})

    async with serving("hypercorn", large, certfile=CERT, keyfile=KEY, write_timeout=10.0) as server:
        stream = await open_tls(server, "h2")
        client = H2Client(stream)
        await client.request("/")
        await trio.sleep(10.5)

        assert server.engine.statistics().stalled == 1
        await trio.aclose_forcefully(stream)


async def test_plain_bytes_to_a_tls_port(clock: Clock) -> None:
    """A client that speaks no TLS ends its own connection."""
    async with serving("hypercorn", hello, certfile=CERT, keyfile=KEY) as server:
        async with await server.connect() as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            await client.rest()
        stream = await open_tls(server, "http/1.1")
        async with Client(stream) as good:
            assert (await good.get("/")).status == 200

        assert server.engine.statistics().crashed == 0


async def test_tls_handshake_has_a_deadline(clock: Clock) -> None:
    """A client that connects and says nothing is closed after the header timeout."""
    async with serving("hypercorn", hello, certfile=CERT, keyfile=KEY, header_timeout=10.0) as server:
        async with await server.connect() as client:
            began = trio.current_time()
            await client.rest()

        assert trio.current_time() - began < 12


async def test_stop_ends_within_grace_with_tls_clients_that_do_not_read(clock: Clock) -> None:
    """A stop takes the grace and no longer, also where TLS wants to say good-bye."""

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

    async with serving(
        "hypercorn", endless, certfile=CERT, keyfile=KEY, grace=2.0, write_timeout=1000.0
    ) as server:
        stream = await open_tls(server, "http/1.1")
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await server.wait_requests()

        assert await server.stop() < 3.5
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("tls", [False, True])
async def test_websockets_are_pinged(tls: bool, clock: Clock) -> None:
    """Each WebSocket is pinged once in each interval; a closed one leaves no task behind."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    files: dict[str, Any] = {"certfile": CERT, "keyfile": KEY} if tls else {}
    async with serving("hypercorn", app, ping_interval=3.0, idle_timeout=2.0, **files) as server:
        if tls:
            stream: Any = await open_tls(server, "http/1.1")
        else:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        protocol = ClientProtocol(parse_uri("ws://localhost/"))
        protocol.send_request(protocol.connect())
        pings: list[float] = []
        with trio.move_on_after(10.0):
            while True:
                await stream.send_all(b"".join(protocol.data_to_send()))
                protocol.receive_data(bytes(await stream.receive_some(65536)))
                frames = [getattr(event, "opcode", None) for event in protocol.events_received()]
                pings += [trio.current_time()] * frames.count(Opcode.PING)
        await trio.aclose_forcefully(stream)
        await server.wait_closed()

    assert len(pings) == 3
    assert all(2.9 <= later - earlier <= 3.6 for earlier, later in itertools.pairwise(pings))


def test_certificate_that_is_not_there() -> None:
    """A certificate that cannot be read is a fault of the configuration, with its name."""
    with pytest.raises(ConfigError, match=r"nowhere\.pem.*@ server\.tls_cert"):
        make_ssl_context("nowhere.pem", None)


async def test_application_that_cancels_its_own_tail_keeps_the_connection(clock: Clock) -> None:
    """A response is finished also when the application cancels itself on http.disconnect."""

    async def impatient(scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            await hello_head(send)
            await send({"type": "http.response.body", "body": b"ok"})
            nursery.cancel_scope.cancel()

    async def hello_head(send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})

    async with serving("hypercorn", impatient) as server, await server.connect() as client:
        for _ in range(3):
            answer = await client.get("/")

            assert (answer.body, answer.keep) == (b"ok", True)
        assert await server.stop() < 0.5


async def test_application_that_does_not_read_its_body(clock: Clock) -> None:
    """A large body that the application never reads hangs neither the connection nor the stop."""

    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with serving("hypercorn", deaf) as server, await server.connect() as client:
        async with trio.open_nursery() as nursery:

            async def push() -> None:
                head = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2000000\r\n\r\n"
                with suppress(trio.BrokenResourceError):
                    await client.send(head + b"x" * 2_000_000)

            nursery.start_soon(push)
            await client.rest()

        await server.wait_closed()


async def test_a_disconnect_never_waits_in_the_queue() -> None:
    """A disconnect is queued although the queue is full, and comes after queued events."""
    inbox = RequestEvents(limit=1)
    await inbox.put({"type": "http.request", "body": b"1"})
    with trio.fail_after(30):
        await inbox.put({"type": "http.disconnect"})

    assert (await inbox.get())["type"] == "http.request"
    assert (await inbox.get())["type"] == "http.disconnect"
    assert (await inbox.get())["type"] == "http.disconnect"


async def test_the_event_queue_is_bounded_in_bytes(autojump_clock: Clock) -> None:
    """A few large events fill the queue as many small ones do; each that is taken makes room."""
    inbox = RequestEvents()
    await inbox.put({"type": "websocket.receive", "bytes": b"x" * 300_000})
    with trio.move_on_after(1) as limit:
        await inbox.put({"type": "websocket.receive", "text": "x"})
    assert limit.cancelled_caught
    await inbox.get()
    with trio.fail_after(1):
        await inbox.put({"type": "websocket.receive", "text": "x"})


async def echo_socket(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def open_websocket(server: Server) -> tuple[trio.SocketStream, ClientProtocol]:
    protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{server.port}/socket"))
    protocol.send_request(protocol.connect())
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    for data in protocol.data_to_send():
        await stream.send_all(data)
    while not protocol.events_received():
        protocol.receive_data(bytes(await stream.receive_some(65536)))
    return stream, protocol


async def test_a_stop_closes_websockets_with_its_code(clock: Clock) -> None:
    """At a stop a WebSocket gets a close frame, and the stop waits for the answer."""
    async with serving("hypercorn", echo_socket, close_code=lambda: 1001) as server:
        stream, protocol = await open_websocket(server)
        seconds: list[float] = []

        async def stop() -> None:
            seconds.append(await server.stop())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            protocol.receive_data(bytes(await stream.receive_some(65536)))
            for data in protocol.data_to_send():
                await stream.send_all(data)

        frames = [
            frame for frame in protocol.events_received() if getattr(frame, "opcode", None) is Opcode.CLOSE
        ]
        assert protocol.close_rcvd is not None
        assert protocol.close_rcvd.code == 1001
        assert len(frames) == 1
        assert seconds[0] < 1
        await trio.aclose_forcefully(stream)


@pytest.mark.slow
async def test_stop_does_not_wait_for_a_websocket_that_does_not_answer(clock: Clock) -> None:
    """A WebSocket client that ignores the close frame is cut at the end of the grace."""
    async with serving("hypercorn", echo_socket, grace=3.0) as server:
        stream, _ = await open_websocket(server)

        assert await server.stop() < 3.5
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("name", [b"Sec-WebSocket-Protocol", b"Sec-WebSocket-Extensions"])
async def test_handshake_that_is_not_ascii_is_refused(name: bytes, clock: Clock) -> None:
    """It is answered 400, and is no failure of the server's."""
    async with serving("hypercorn", echo_socket) as server, await server.connect() as client:
        await client.send(UPGRADE[:-2] + name + b": \xff\r\n\r\n")
        answer = await client.rest()

        assert answer.startswith(b"HTTP/1.1 400")
        assert server.engine.statistics().crashed == 0


async def test_answer_to_a_connection_that_is_being_closed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has gone, and no application has failed."""

    async def busy(_data: Any) -> None:
        raise trio.BusyResourceError("another task is currently sending data")

    async with serving("hypercorn", hello) as server, await server.connect() as client:
        await client.get("/")
        connection: Any = next(iter(server.engine.connections))
        monkeypatch.setattr(connection.stream, "send_all", busy)
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await client.rest()

        assert server.engine.statistics().failed == 0
        assert server.engine.statistics().crashed == 0


async def test_a_frame_during_a_refused_handshake_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A frame during the handshake ends its connection and counts as no failure.

    Hypercorn refuses the handshake while the application answers it, and only one response can be sent.
    """
    send = HypercornConnection.protocol_send
    held: list[Event] = []

    async def slow(self: HypercornConnection, event: Event) -> None:
        await send(self, event)
        if not held:  # the head is out, and the body waits until the frame has come
            held.append(event)
            await trio.sleep(0.1)

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"no"})

    monkeypatch.setattr(HypercornConnection, "protocol_send", slow)
    async with serving("hypercorn", refuse) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            await stream.send_all(UPGRADE)
            assert b" 403 " in await stream.receive_some(4096)
            await stream.send_all(b"\x81\x80\0\0\0\0")
            with trio.fail_after(30), suppress(trio.BrokenResourceError):
                while await stream.receive_some(4096):
                    pass
        await server.wait_closed()
        statistics = server.engine.statistics()

        assert held
        assert (statistics.crashed, statistics.failed) == (0, 0)
