"""Channels on the native engine: messages in both directions, and hostile clients."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock as Clock
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode

from tests.channels.fakes import Settings
from tests.http.harness import hello, serving
from tests.http.native.sockets import Refusal, masked, open_socket, serving_channels, token


class Backpressure:
    """A bus that is congested when the test asks for it."""

    def __init__(self) -> None:
        self.congested = False
        self.room = trio.Event()

    async def wait_uncongested(self) -> None:
        await self.room.wait()


async def test_join_event_and_push(clock: Clock) -> None:
    """A client joins, gets a broadcast, pushes, is answered, and its push is published."""
    async with serving_channels() as served:
        client = await served.open()
        await client.join("obs:a")
        served.publish("to:obs:a:news", b'{"n":1}')
        assert await client.event("news") == {"n": 1}
        await client.push("1", "2", "obs:a", "command", {"go": True})
        reply = await client.event("phx_reply")
        await client.aclose()

        assert reply["status"] == "ok"
        assert served.bus.payloads("from:obs:a:command") == [b'{"go": true}']


async def test_bytes_behind_the_handshake_are_read(clock: Clock) -> None:
    """A join in the same read as the upgrade request is answered."""
    join = json.dumps(["1", "1", "obs:a", "phx_join", {"token": token("obs:a")}]).encode()
    async with serving_channels() as served:
        client = await served.open(behind=masked(join))
        reply = await client.event("phx_reply")
        await client.aclose()

    assert reply["status"] == "ok"


async def test_messages_of_one_read_are_answered_in_order(clock: Clock) -> None:
    """Frames of one read are handled as a batch, and answered in their order."""
    async with serving_channels() as served:
        client = await served.open()
        await client.join("obs:a")
        batch = [json.dumps(["1", str(number), "obs:a", "x", {}]).encode() for number in range(10, 60)]
        await client.stream.send_all(b"".join(masked(data) for data in batch))
        refs: list[int] = []
        while len(refs) < 50:
            message = json.loads(await client.receive())
            if message[3] == "phx_reply":
                refs.append(int(message[1]))
        await client.aclose()

    assert refs == list(range(10, 60))


async def test_nothing_is_read_while_the_bus_is_congested(clock: Clock) -> None:
    """A congested bus pauses reading; then all waiting messages are published.

    No push is refused.
    """
    backpressure = Backpressure()
    async with serving_channels(backpressure=lambda: backpressure) as served:
        client = await served.open()
        await client.join("obs:a")
        backpressure.congested = True
        for number in range(10):
            await client.push("1", str(number + 2), "obs:a", "x", number)
        await trio.sleep(1)
        before = served.bus.payloads("from:obs:a:x")
        backpressure.congested = False
        backpressure.room.set()
        answers = [await client.event("phx_reply") for _ in range(10)]
        await client.aclose()

    assert before == []
    assert served.bus.payloads("from:obs:a:x") == [b"%d" % number for number in range(10)]
    assert {answer["status"] for answer in answers} == {"ok"}


async def test_fragments_are_put_together(clock: Clock) -> None:
    """A message in fragments with a ping between them is one message; the ping is answered."""
    join = json.dumps(["1", "1", "obs:a", "phx_join", {"token": token("obs:a")}]).encode()
    async with serving_channels() as served:
        client = await served.open()
        await client.stream.send_all(
            masked(join[:10], fin=False)
            + masked(b"?", Opcode.PING)
            + masked(join[10:20], Opcode.CONT, fin=False)
            + masked(join[20:], Opcode.CONT)
        )
        frames = [await client.frame(), await client.frame()]
        await client.aclose()

    assert sorted(int(frame.opcode) for frame in frames) == [Opcode.TEXT, Opcode.PONG]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/websocket?vsn=3.0.0", [], 403),
        ("/websocket", [("origin", "http://elsewhere.example")], 403),
        ("/websocket?userToken=a&userToken=b", [], 400),
    ],
)
async def test_refusals_are_answered_before_the_handshake(
    path: str, headers: list[tuple[str, str]], status: int, clock: Clock
) -> None:
    """A client that is not admitted gets a status instead of a close code."""
    async with serving_channels() as served:
        with pytest.raises(Refusal) as caught:
            await served.open(path, headers=headers)

    assert caught.value.status == status


async def test_no_incarnation_is_503(clock: Clock) -> None:
    """Without channels the answer is 503 with Retry-After."""
    async with serving("native", hello, channels=lambda: None) as server:
        with pytest.raises(Refusal) as caught:
            await open_socket(server)

    assert caught.value.status == 503
    assert caught.value.headers["retry-after"] == "1"


async def test_subprotocol_is_selected(clock: Clock) -> None:
    """A client that offers ``phoenix`` gets it."""
    async with serving_channels() as served:
        client = await served.open(subprotocols=["phoenix", "base64url.bearer.phx.eA"])
        await client.aclose()

    assert client.protocol.subprotocol == "phoenix"


@pytest.mark.parametrize("compression", [False, True])
async def test_compression_only_where_it_is_on(compression: bool, clock: Clock) -> None:
    """permessage-deflate works if it is switched on, without context takeover."""
    async with serving_channels(compression=compression) as served:
        client = await served.open(extensions=[ClientPerMessageDeflateFactory()])
        await client.join("obs:a")
        served.publish("to:obs:a:news", b'{"n":"' + b"x" * 1000 + b'"}')
        news = await client.event("news")
        await client.aclose()

    assert bool(client.protocol.extensions) is compression
    assert len(news["n"]) == 1000


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"\x81\x02hi", 1002),  # not masked
        (b"\xf1\x80\x00\x00\x00\x00", 1002),  # reserved bits
        (b"\x83\x80\x00\x00\x00\x00", 1002),  # reserved opcode
        (b"\x89\xfe\x00\x80\x00\x00\x00\x00" + b"x" * 128, 1002),  # a ping of 128 bytes
        (b"\x80\x80\x00\x00\x00\x00", 1002),  # a continuation of nothing
        (b"\x81\xff" + struct.pack("!Q", 1 << 40) + b"\x00" * 4, 1009),  # a terabyte announced
        (b"\x88\x81\x00\x00\x00\x00x", 1002),  # a close frame of one byte
    ],
)
async def test_broken_frames_are_closed_by_their_code(wire: bytes, code: int, clock: Clock) -> None:
    """A frame that breaks the protocol is closed with the protocol's code.

    Other clients do not notice.
    """
    async with serving_channels() as served:
        other = await served.open()
        await other.join("obs:a")
        client = await served.open()
        await client.stream.send_all(wire)

        assert await client.closed() == code
        served.publish("to:obs:a:news", b'{"n":1}')
        assert await other.event("news") == {"n": 1}
        await client.aclose()
        await other.aclose()


async def test_message_over_the_bound_in_fragments(clock: Clock) -> None:
    """Fragments that together outgrow max_message are closed with 1009."""
    async with serving_channels(Settings(max_message=10_000)) as served:
        client = await served.open()
        await client.stream.send_all(masked(b"x" * 6000, fin=False) + masked(b"x" * 6000, Opcode.CONT))

        assert await client.closed() == 1009
        await client.aclose()


async def test_bad_utf8_costs_one_frame(clock: Clock) -> None:
    """A text frame that is not UTF-8 is dropped and counted; the connection goes on."""
    async with serving_channels() as served:
        client = await served.open()
        await client.stream.send_all(masked(b'["1","7","obs:a","x","\xff\xfe"]'))
        assert (await client.reply("7"))["response"] == {"reason": "malformed frame"}
        await client.join("obs:a")

        assert served.channels.statistics().malformed == 1
        await client.aclose()


@pytest.mark.slow
async def test_half_a_frame_is_closed_as_idle(clock: Clock) -> None:
    """A client that sends half a frame and then nothing is closed as idle."""
    async with serving_channels(Settings(idle_timeout=20.0), ping_interval=1000.0) as served:
        client = await served.open()
        began = trio.current_time()
        await client.stream.send_all(masked(b"x" * 1000)[:500])

        assert await client.closed(200) == 1001
        assert 20 <= trio.current_time() - began <= 25
        await client.aclose()


@pytest.mark.slow
async def test_quiet_client_is_pinged(clock: Clock) -> None:
    """A silent client is pinged, and kept because it answers."""
    async with serving_channels(Settings(idle_timeout=9.0), ping_interval=3.0) as served:
        client = await served.open()
        await client.join("obs:a")
        with trio.move_on_after(30):
            while True:
                await client.frame(40)
        served.publish("to:obs:a:news", b'{"n":1}')

        assert await client.event("news") == {"n": 1}
        await client.aclose()


@pytest.mark.slow
async def test_ten_thousand_joins(clock: Clock) -> None:
    """Joins beyond the limit are refused one by one, and the connection lives on."""
    async with serving_channels(Settings(max_joins=100, join_burst=20_000)) as served:
        client = await served.open()
        frames = b"".join(
            masked(json.dumps(["1", str(n), f"t{n}", "phx_join", {"token": "x"}]).encode())
            for n in range(10_000)
        )
        refused = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.stream.send_all, frames)
            while refused < 10_000:
                message = json.loads(await client.receive())
                refused += message[3] == "phx_reply" and message[4]["status"] == "error"
        await client.join("obs:a")
        await client.aclose()

    assert refused == 10_000


@pytest.mark.slow
async def test_client_that_never_reads_is_dropped_and_others_go_on(clock: Clock) -> None:
    """A member that does not read is closed; the others get every message, in order."""
    async with serving_channels(Settings(max_backlog=262_144)) as served:
        slow = await served.open()
        await slow.join("obs:a", "slow")
        slow.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        good = await served.open()
        await good.join("obs:a", "good")
        got: list[int] = []

        async def read() -> None:
            while len(got) < 400:
                got.append((await good.event("news"))["n"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for number in range(400):
                served.publish("to:obs:a:news", b'{"n":%d,"x":"%s"}' % (number, b"x" * 50_000))
                await trio.testing.wait_all_tasks_blocked(0.0)
        await trio.sleep(11)

        assert got == list(range(400))
        assert served.channels.statistics().closed == {"too far behind": 1}
        assert served.server.engine.statistics().websockets == 1
        await slow.aclose()
        await good.aclose()


@pytest.mark.parametrize("stage", ["open", "half", "joined", "blocked"])
async def test_reset_at_any_stage(stage: str, clock: Clock) -> None:
    """A client that resets at any stage leaves no connection and no membership behind."""
    async with serving_channels() as served:
        client = await served.open()
        if stage == "half":
            await client.stream.send_all(b"\x81")
        elif stage in {"joined", "blocked"}:
            await client.join("obs:a")
        if stage == "blocked":
            served.publish("to:obs:a:big", b'"' + b"x" * 10_000_000 + b'"')
            await trio.testing.wait_all_tasks_blocked(0.01)
        client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await client.aclose()
        await served.server.wait_closed(15)

        assert served.channels.statistics().connections == 0
        assert served.server.engine.statistics().crashed == 0


@pytest.mark.parametrize("code", [1012, 1001])
async def test_stop_closes_websockets_in_batches(code: int, clock: Clock) -> None:
    """At a stop members get the close frame in batches."""
    async with serving_channels(close_code=lambda: code) as served:
        clients = [await served.open() for _ in range(120)]
        codes: list[int | None] = []
        times: set[float] = set()

        async def wait(client: Any) -> None:
            codes.append(await client.closed())
            times.add(trio.current_time())

        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(wait, client)
            took = await served.server.stop()

        assert codes == [code] * 120
        assert len(times) > 1
        assert took < 1
        assert served.server.engine.statistics().forced == 0
        for client in clients:
            await client.aclose()


async def test_stop_with_clients_that_do_not_read(clock: Clock) -> None:
    """A stop waits for the closing handshake of clients that do not read, and no longer."""
    async with serving_channels(grace=5.0) as served:
        slow = await served.open()
        await slow.join("obs:a")
        served.publish("to:obs:a:big", b'"' + b"x" * 10_000_000 + b'"')
        silent = await served.open()
        await trio.testing.wait_all_tasks_blocked(0.01)

        assert await served.server.stop() < 3.5
        await slow.aclose()
        await silent.aclose()


async def test_a_server_fault_closes_with_1011(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the server closes the connection with 1011, so that the client comes back."""
    async with serving_channels() as served:
        client = await served.open()
        other = await served.open()
        session = next(iter(served.channels._sessions.values()))
        monkeypatch.setattr(session.socket.__class__, "receive", lambda *_: 1 / 0)
        await client.push("1", "1", "obs:a", "x", {})
        code = await client.closed()
        monkeypatch.undo()
        await other.join("obs:a")

        assert code == 1011
        await client.aclose()
        await other.aclose()


async def test_session_that_cannot_be_set_up_is_500(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the server before the handshake is answered with 500.

    Nothing is left behind.
    """
    async with serving_channels() as served:
        monkeypatch.setattr(served.channels.__class__, "connect", lambda *_: 1 / 0)
        with pytest.raises(Refusal) as caught:
            await served.open()

    assert caught.value.status == 500


async def test_client_closes(clock: Clock) -> None:
    """A client's close frame is answered with its code, and its memberships end."""
    async with serving_channels() as served:
        client = await served.open()
        await client.join("obs:a")
        client.protocol.send_close(1000, "bye")
        await client.flush()

        assert await client.closed() == 1000
        await served.server.wait_closed()
        assert served.channels.statistics().hub.members == 0
        await client.aclose()


async def test_other_paths_are_the_applications(clock: Clock) -> None:
    """A WebSocket of another path reaches the application as a websocket scope."""
    seen: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.append(scope["type"] + scope["path"])
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    async with serving("native", app, channels=lambda: None) as server:
        client = await open_socket(server, "/plugin/socket")
        await client.aclose()
        await server.wait_closed()

    assert seen == ["websocket/plugin/socket"]
