from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from quart import websocket
from trio.testing import MockClock
from trio_websocket import ConnectionClosed, ConnectionRejected
from websockets.frames import Frame, Opcode

from tangram.asgi import Receive, Scope, Send
from tangram.channels import disconnects
from tangram.channels.origins import OriginPolicy
from tangram.channels.policy import ConnectInfo
from tangram.client import fetch_token, open_socket
from tangram.errors import Refused
from tangram.gateway.channels import Channels
from tangram.http.hypercorn.channels import with_channels
from tangram.testing.run.transport import FakeBus
from tests.channels.fakes import Settings
from tests.http.harness import serving
from tests.http.serving import make_channels, open_raw, open_server

pytestmark = pytest.mark.slow


async def test_a_client_joins_pushes_and_leaves_behind_hypercorn() -> None:
    """A client gets a token, joins, pushes, receives events of both kinds, and leaves."""
    with trio.fail_after(10):
        async with open_server() as server:
            token = await fetch_token(server.url, "system")
            async with open_socket(server.url) as socket:
                channel = await socket.join("system", token=token.token)
                response = await channel.push("hello", {"n": 1})
                server.bus.publish_nowait("to:system:update", b'{"t": 1}')
                server.bus.publish_nowait("to:system:raw", b"\x00\xff")
                first, second = await channel.receive(), await channel.receive()
                await channel.wait_presence(lambda presence: token.id in presence)
                await channel.leave()

            assert response == {}
            assert (first.name, first.payload, first.binary) == ("update", {"t": 1}, False)
            assert (second.name, second.payload, second.binary) == ("raw", b"\x00\xff", True)
            assert server.bus.payloads("from:system:hello") == [b'{"n":1}']
            assert server.bus.payloads("from:system:phx_join") == [b"{}"]


@pytest.mark.parametrize(
    ("dial", "reason"),
    [
        ({"headers": [("origin", "http://evil.example")]}, disconnects.ORIGIN.reason),
        ({"headers": [("origin", "null")]}, disconnects.ORIGIN.reason),
    ],
)
async def test_refused_before_the_upgrade(dial: dict[str, Any], reason: str) -> None:
    """A foreign page is refused with 403 and a sentence, and no session is made."""
    with trio.fail_after(10):
        async with open_server(origins=OriginPolicy()) as server:
            with pytest.raises(Refused, match=reason):
                async with open_socket(server.url, **dial):
                    pass
            assert server.channels.statistics().accepted == 0


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("vsn=3.0.0", 403),
        ("vsn=1.0.0", 101),
        ("vsn=9", 403),
        ("userToken=a&userToken=b", 400),
        ("vsn=2.1", 101),
    ],
)
async def test_versions_and_tokens_are_checked_at_the_handshake(query: str, status: int) -> None:
    """Another version is 403, two user tokens 400, version 2 is let in."""
    with trio.fail_after(10):
        async with open_server() as server:
            url = server.url + "/websocket?" + query
            if status == 101:
                async with open_raw(url):
                    assert server.channels.statistics().accepted == 1
                return
            with pytest.raises(ConnectionRejected) as caught:
                async with open_raw(url):
                    pass
            assert caught.value.status_code == status


async def test_empty_frames_are_malformed_and_nothing_else() -> None:
    """An empty binary frame and an empty text frame are counted; the connection goes on."""
    with trio.fail_after(10):
        async with open_server() as server, open_socket(server.url) as socket:
            channel = await socket.join("obs", token=(await fetch_token(server.url, "obs")).token)
            await socket.send_raw(b"")
            await socket.send_raw("")
            await socket.send_raw('["1","2"]')
            assert await channel.push("hello") == {}

            assert server.channels.statistics().malformed == 3


def code_of(error: ConnectionClosed) -> int:
    assert error.reason is not None
    return error.reason.code


async def code_of_a_crash(crash: Callable[[Any], None]) -> tuple[int, bool]:
    """The close code that a client sees, and whether the server still serves."""
    async with open_server() as server:
        crash(server)
        url = server.url + "/websocket?vsn=2.0.0"
        async with open_raw(url) as connection:
            await connection.send_message('[null,"1","phoenix","heartbeat",{}]')
            with pytest.raises(ConnectionClosed) as caught:
                await connection.get_message()
        code = code_of(caught.value)
        serves = (await fetch_token(server.url, "obs")).channel == "obs"
        return code, serves


async def test_a_crash_of_the_channels_is_1011() -> None:
    """An exception of the channels closes that connection with 1011."""

    def crash(server: Any) -> None:
        server.channels.hub.reply = None

    with trio.fail_after(10):
        assert await code_of_a_crash(crash) == (1011, True)


async def test_a_crash_of_the_handler_is_1011(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quart would close with 1000, after which phoenix.js stays away."""

    def crash(self: Channels, *_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Channels, "connect", crash)
    with trio.fail_after(10):
        assert await code_of_a_crash(lambda server: None) == (1011, True)


async def test_a_plugins_own_websocket_keeps_its_codes() -> None:
    """A plugin's WebSocket keeps its own codes; an exception is 1011; empty bytes are bytes."""
    with trio.fail_after(10):
        async with open_server() as server:
            got: list[Any] = []

            @server.app.websocket("/own/<what>")
            async def own(what: str) -> None:
                got.append(await websocket.receive())
                if what == "crash":
                    raise RuntimeError("a bug")
                if what == "close":
                    await websocket.close(1000, "bye")

            codes = {}
            for what in ("return", "close", "crash"):
                async with open_raw(server.url + f"/own/{what}") as connection:
                    await connection.send_message(b"")
                    with pytest.raises(ConnectionClosed) as caught:
                        await connection.get_message()
                    codes[what] = code_of(caught.value)

            assert codes == {"return": 1000, "close": 1000, "crash": 1011}
            assert got == [b"", b"", b""]


async def test_a_message_over_the_bound_is_1009() -> None:
    """Closed with 1009."""
    with trio.fail_after(10):
        async with open_server(Settings(max_message=1024)) as server:
            url = server.url + "/websocket"
            async with open_raw(url) as connection:
                await connection.send_message("x" * 2000)
                with pytest.raises(ConnectionClosed) as caught:
                    await connection.get_message()

            assert code_of(caught.value) == 1009


async def test_no_incarnation_is_503() -> None:
    """Handshakes get 503 while no channels run, or while they drain."""
    with trio.fail_after(10):
        async with open_server() as server:
            await server.channels.drain()
            with pytest.raises(ConnectionRejected) as caught:
                async with open_raw(server.url + "/websocket"):
                    pass
            assert caught.value.status_code == 503
            assert dict(caught.value.headers or ())[b"retry-after"] == b"1"


async def test_the_bearer_subprotocol() -> None:
    """phoenix is selected, and the token in the bearer counts as the connection's own."""
    from base64 import b64encode

    with trio.fail_after(10):
        async with open_server() as server:
            token = (await fetch_token(server.url, "system")).token
            bearer = "base64url.bearer.phx." + b64encode(token.encode()).decode().rstrip("=")
            async with open_socket(server.url, subprotocols=["phoenix", bearer]) as socket:
                await socket.join("system")

                assert socket._connection is not None
                assert socket._connection.subprotocol == "phoenix"


async def test_a_restart_does_not_wait_for_a_member_that_does_not_read(clock: MockClock) -> None:
    """A WebSocket that takes no messages holds a crash restart for its grace of 50 ms only."""
    bus = FakeBus()
    channels = make_channels(bus, Settings(max_backlog=64 * 2**20))

    async def missing(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError(scope["path"])

    async with trio.open_nursery() as nursery:
        await nursery.start(channels.run)
        app = with_channels(missing, lambda: channels)
        async with serving("hypercorn", app, grace=0.05, write_timeout=10.0) as server:
            stream = await server.connect()
            await stream.send(
                b"GET /websocket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            await trio.sleep(0.5)
            minted = await channels.gate.mint("obs", None, ConnectInfo("127.0.0.1"))
            assert not isinstance(minted, disconnects.Refusal)
            join = json.dumps(["1", "1", "obs", "phx_join", {"token": minted.token}]).encode()
            await stream.send(Frame(Opcode.TEXT, join).serialize(mask=True))
            await trio.sleep(0.5)
            for _ in range(200):
                bus.publish_nowait("to:obs:raw", bytes(200_000))
            await trio.sleep(0.5)
            waiting = channels.statistics().pending
            took = await server.stop()
            await trio.aclose_forcefully(stream.stream)
        nursery.cancel_scope.cancel()

    assert waiting > 0
    assert took < 0.3
