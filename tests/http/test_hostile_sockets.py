"""Hostile clients on a WebSocket, over both engines: each costs only its own connection."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from math import isqrt
from typing import Any, Final

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from trio.testing import MockClock as Clock
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode

from tests.channels.fakes import Settings
from tests.http.harness import serving
from tests.http.hostile_clients import MIB, UPGRADE, bounded_memory, drain, flood, message, open_site
from tests.http.native.sockets import Socket, masked, open_socket, token

pytestmark = pytest.mark.slow

LONG = "x" * 300

# The bytes to send first, and the bytes to repeat.
OVERSIZED: dict[str, tuple[bytes, bytes]] = {
    "announced": (b"\x81\xff" + struct.pack("!Q", 1 << 40) + bytes(4), b"x" * 65536),
    "one frame": (b"", masked(b"x" * 200_000)),
    "one binary frame": (b"", masked(b"x" * 200_000, Opcode.BINARY)),
    "fragments": (masked(b"x" * 60_000, fin=False), masked(b"x" * 60_000, Opcode.CONT, fin=False)),
}


@pytest.mark.parametrize("what", OVERSIZED)
async def test_oversized_messages_end_their_connection(engine: str, what: str, clock: Clock) -> None:
    """A message larger than max_message is closed with 1009, and never buffered whole."""
    begin, piece = OVERSIZED[what]
    async with open_site(engine, Settings(max_message=100_000)) as site:
        client = await site.open()
        with bounded_memory(4 * MIB):
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    client.protocol.receive_data(await drain(client.stream))
                    nursery.cancel_scope.cancel()

                nursery.start_soon(listen)
                with suppress(trio.BrokenResourceError):
                    await client.stream.send_all(begin)
                await flood(client.stream, piece, 32 * MIB)
            await site.check_serves()
        await client.aclose()
        await site.wait_cleaned_up()

        assert client.protocol.close_rcvd is not None
        assert client.protocol.close_rcvd.code == 1009


# The message to send, and the reason in its reply.
FIELDS: dict[str, tuple[bytes, str]] = {
    "topic": (message("1", "1", LONG, "phx_join", {"token": token(LONG)}), "topic too long"),
    "topic of a push": (message("1", "1", LONG, "x", {}), "unmatched topic"),
    "event": (message("1", "1", "obs", LONG, {}), "event too long"),
    "event of another topic": (message("1", "1", "obs", "staff:delete", {}), "colon in event"),
    "join_ref": (message(LONG, "1", "new", "phx_join", {"token": token("new")}), "ref too long"),
    "ref of a join": (message(None, LONG, "new", "phx_join", {"token": token("new")}), "ref too long"),
    "token": (message("1", "1", "new", "phx_join", {"token": "x" * 100_000}), "unauthorized"),
    "payload of a join": (message("1", "1", "new", "phx_join", {"token": "x" * MIB}), "frame too large"),
    "id": (message("1", "1", "new", "phx_join", {"token": token("new", LONG)}), "id too long"),
}


@pytest.mark.parametrize("what", FIELDS)
async def test_oversized_fields_are_refused_by_name(engine: str, what: str, clock: Clock) -> None:
    """A field that is too long, or is no event, gets a reply with a reason.

    The connection goes on.
    """
    data, reason = FIELDS[what]
    async with open_site(engine) as site:
        client = await site.open()
        await client.join("obs")
        await client.send(data.decode())
        reply = await client.event("phx_reply")
        await client.push("1", "9", "obs", "wave", {})
        after = await client.event("phx_reply")
        await client.aclose()

        assert reply == {"status": "error", "response": {"reason": reason}}
        assert after["status"] == "ok"
        await site.check_serves()
        await site.wait_cleaned_up()


MALFORMED = {
    "lengths beyond the frame": bytes([0, 255, 255, 255, 255]) + b"x" * 20,
    "no lengths": b"\x00\x01",
    "a kind that only servers send": bytes([2, 1, 1]) + b"ab",
    "binary bad UTF-8": bytes([0, 1, 1, 1, 1]) + b"\xff\xff\xff\xff",
    "nothing": b"",
}
TEXTS = {
    "nesting": "[" * 100_000,
    "deep payload": '["1","1","obs","x",' + "[" * 50_000 + "]" * 50_000 + "]",
    "a number beyond a double": '["1","1","obs","x",1e999]',
    "no message": "{}",
    "fields that are no strings": "[1,2,3,4,5]",
}


@pytest.mark.parametrize("what", [*MALFORMED, *TEXTS])
async def test_malformed_messages_are_counted_and_dropped(engine: str, what: str, clock: Clock) -> None:
    """A malformed message is dropped and counted, and the connection goes on."""
    async with open_site(engine) as site:
        client = await site.open()
        await client.join("obs")
        await client.send(MALFORMED[what] if what in MALFORMED else TEXTS[what])
        await client.push("1", "9", "obs", "wave", {})
        after = await client.reply("9")

        assert after["status"] == "ok"
        assert site.channels.statistics().malformed == 1
        await client.aclose()
        await site.wait_cleaned_up()


async def test_bad_utf8_costs_a_message_or_its_connection(engine: str, clock: Clock) -> None:
    """Text that is not UTF-8 is dropped, or ends its connection.

    Other clients do not notice.
    """
    async with open_site(engine) as site:
        client = await site.open()
        await client.join("obs")
        await client.stream.send_all(masked(b'["1","1","obs","x","\xff\xfe"]'))
        await client.stream.send_all(masked(message("1", "9", "obs", "wave", {})))
        if engine == "native":
            assert (await client.reply("9"))["status"] == "ok"
            assert site.channels.statistics().malformed == 1
        else:
            await client.closed()
        await site.check_serves()
        await client.aclose()
        await site.wait_cleaned_up()


async def test_compression_is_not_agreed_on(engine: str, clock: Clock) -> None:
    """With compression off a client that offers it gets a handshake without it."""
    async with open_site(engine) as site:
        client = await site.open(extensions=[ClientPerMessageDeflateFactory()])

        assert not client.protocol.extensions
        await client.aclose()
        await site.wait_cleaned_up()


async def test_half_a_frame_is_closed_as_idle(engine: str, clock: Clock) -> None:
    """A client that stops in the middle of a frame is closed as idle."""
    async with open_site(engine, Settings(idle_timeout=20.0), **quiet(engine)) as site:
        client = await site.open()
        await client.join("obs")
        await client.stream.send_all(masked(message("1", "2", "obs", "x", {}))[:9])
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, site.good_client)
            code = await client.closed(100)
            nursery.cancel_scope.cancel()

        assert code == 1001
        assert 20 <= trio.current_time() - began < 25
        await site.check_serves()
        await client.aclose()
        await site.wait_cleaned_up()


def quiet(engine: str) -> dict[str, Any]:
    """Return options without pings: the answer to a ping is a sign of life."""
    return {"ping_interval": 1000.0} if engine == "native" else {}


async def beat(client: Socket) -> None:
    """Send phoenix.js's heartbeat, which keeps a silent client connected."""
    while True:
        await client.push(None, "beat", "phoenix", "heartbeat", {})
        await trio.sleep(5)


@pytest.mark.parametrize(
    "tail",
    [
        b"x",
        b"\x00" * 1000,
        masked(message("1", "1", "obs", "phx_join", {"token": token("obs")})),
        masked(b"x" * 1000)[:500],
        b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n",
        b"\x88\x80\x00\x00\x00\x00" * 100,
    ],
    ids=["byte", "zeros", "join", "half a frame", "request", "closes"],
)
async def test_trailing_bytes_after_an_upgrade(
    engine: str, tail: bytes, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes in one write with the upgrade cost at most that connection.

    They log nothing.
    """
    async with open_site(engine) as site:
        client = await site.server.connect()
        await client.send(UPGRADE + tail)
        await trio.sleep(0.2)
        await site.check_serves()
        await trio.aclose_forcefully(client.stream)
        await site.wait_cleaned_up()

        assert caplog.records == []


class Nothing(list[tuple[str, bytes]]):
    """A list of published messages that keeps none."""

    def append(self, _: tuple[str, bytes]) -> None:
        pass


@pytest.mark.parametrize("what", ["pushes", "heartbeats", "joins and leaves", "refused", "pings"])
async def test_client_that_sends_and_never_reads_is_dropped(engine: str, what: str, clock: Clock) -> None:
    """A client that pushes and reads no reply is closed once its backlog is full.

    Its backlog is bounded.
    """
    piece = {
        "pushes": masked(message("1", "r" * 4000, "obs", "x", {})),
        "heartbeats": masked(message(None, "r" * 4000, "phoenix", "heartbeat", {})),
        "joins and leaves": masked(message("1" * 255, "3" * 255, "two", "phx_join", {"token": token("two")}))
        + masked(message(None, "4" * 4000, "two", "phx_leave", {})),
        "refused": masked(message(None, "5" * 4000, "no", "phx_join", {"token": "no"})),
        "pings": masked(b"p" * 125, Opcode.PING),
    }[what]
    async with open_site(engine, Settings(max_backlog=65_536), write_timeout=5.0) as site:
        client = await site.open()
        await client.join("obs")
        most = 0
        site.bus.published = Nothing()
        with bounded_memory(8 * MIB):
            async with trio.open_nursery() as nursery:

                async def push() -> None:
                    await flood(client.stream, piece * 20, 64 * MIB)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(push)
                while True:
                    most = max(most, site.channels.statistics().pending)
                    await trio.sleep(0.01)
            await site.check_serves()

        assert most < 2 * 65_536
        await client.aclose()
        await site.wait_cleaned_up()


async def test_client_that_never_reads_a_broadcast_is_dropped(engine: str, clock: Clock) -> None:
    """A member that does not read is closed; the good client gets every message, in order."""
    async with open_site(engine, write_timeout=5.0) as site:
        slow = await site.open()
        await slow.join("town", "slow")
        got: list[int] = []

        async def read() -> None:
            while len(got) < 300:
                got.append((await site.good_client.event("flood"))["n"])

        with bounded_memory(32 * MIB):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                for number in range(300):
                    site.publish("to:town:flood", b'{"n":%d,"x":"%s"}' % (number, b"x" * 50_000))
                    await trio.testing.wait_all_tasks_blocked(0.0)
        assert got == list(range(300))
        assert site.channels.statistics().pending < 2 * 262_144 + 60_000
        await site.wait_cleaned_up()
        assert site.channels.statistics().closed == {"too far behind": 1}
        await slow.aclose()


async def test_conflation_keeps_a_slow_client(engine: str, clock: Clock) -> None:
    """A slow client gets the newest conflated event and is kept.

    The good client gets each of them.
    """
    async with open_site(engine, Settings(conflate=["town:state"]), write_timeout=1000.0) as site:
        slow = await site.open()
        await slow.join("town", "slow")
        got: list[int] = []

        async def read() -> None:
            while len(got) < 300:
                got.append((await site.good_client.event("state"))["n"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for number in range(300):
                site.publish("to:town:state", b'{"n":%d,"x":"%s"}' % (number, b"x" * 50_000))
                while len(got) <= number:  # noqa: ASYNC110 - there is no event to wait for
                    await trio.sleep(0.001)
        heard: list[int] = []
        while not heard or heard[-1] < 299:
            heard.append((await slow.event("state"))["n"])

        assert got == list(range(300))
        assert heard == sorted(heard)
        assert len(heard) < 300
        await slow.aclose()
        await site.wait_cleaned_up()


JOINS: Final = {"native": 10_000, "hypercorn": 2_500}
"""Joins of a test, by engine.

The limits are those of the gateway behind both. Hypercorn's own share of the memory shows in a quarter of the
joins, for which memory may be a quarter.
"""


async def test_thousands_of_joins_of_one_client(engine: str, clock: Clock) -> None:
    """Of thousands of valid joins one client gets its hundred topics.

    Each other join is answered, and the good client is served meanwhile.
    """
    joins = JOINS[engine]
    frames = [
        masked(message("1", str(n), f"t{n}", "phx_join", {"token": token(f"t{n}")})) for n in range(joins)
    ]
    async with open_site(engine) as site:
        client = await site.open()
        answers: dict[str, int] = {}

        async def listen() -> None:
            while sum(answers.values()) < joins:
                reply = json.loads(await client.receive())
                if reply[3] == "phx_reply":
                    response = reply[4]["response"]
                    answer = response.get("reason", reply[4]["status"])
                    answers[answer] = answers.get(answer, 0) + 1

        with bounded_memory(32 * MIB * joins // 10_000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                for start in range(0, joins, 500):
                    await client.stream.send_all(b"".join(frames[start : start + 500]))
                    await site.check_serves()
                    # A client that reads no reply would be closed.
                    while sum(answers.values()) < start + 400:  # noqa: ASYNC110 - there is no event to wait for
                        await trio.sleep(0.01)
                    site.bus.published.clear()

        assert answers == {"ok": 100, "too many channels": joins - 100}
        await client.aclose()
        await site.wait_cleaned_up()


async def test_thousands_of_joins_of_many_clients(engine: str, clock: Clock) -> None:
    """A hundred sockets of one address, or fifty, join as many topics each, and hit the limit.

    The burst is accepted and the rest is answered as limited. The good client on loopback may still join.
    """
    # Almost no rate: the test's clock goes on during the joins, and each second would allow more.
    count = isqrt(JOINS[engine])
    burst = count * count // 2
    settings = Settings(join_burst=burst, join_rate=0.001)
    tokens = {topic: token(topic) for topic in (f"t{n}" for n in range(count))}
    frames = b"".join(
        masked(message("1", topic, topic, "phx_join", {"token": given})) for topic, given in tokens.items()
    )
    async with open_site(engine, settings, address="203.0.113.9") as site:
        clients = [await site.open("/websocket?vsn=2.0.0&from=elsewhere") for _ in range(count)]
        answers: dict[str, int] = {}

        async def join_all(client: Socket) -> None:
            await client.stream.send_all(frames)
            mine = 0
            while mine < count:
                reply = json.loads(await client.receive())
                if reply[3] == "phx_reply":
                    answer = reply[4]["response"].get("reason", reply[4]["status"])
                    answers[answer] = answers.get(answer, 0) + 1
                    mine += 1

        with bounded_memory(96 * MIB * JOINS[engine] // 10_000):
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(join_all, client)
                await site.good_client.join("another", "good")
                await site.check_serves()

        assert answers == {"ok": burst, "rate limited": burst}
        assert site.channels.statistics().hub.members == burst + 2
        for client in clients:
            await client.aclose()
        await site.good_client.push("1", "l", "another", "phx_leave", {})
        await site.wait_cleaned_up(60)


async def test_large_messages_wait_in_bounded_memory(engine: str, clock: Clock) -> None:
    """Reading pauses when a plugin's WebSocket view does not take its messages."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await trio.sleep(5)
        while (await receive())["type"] != "websocket.disconnect":
            pass

    piece = masked(b"x" * (8 * MIB), Opcode.BINARY)
    async with serving(engine, app) as server:
        client = await open_socket(server, "/ws")
        with bounded_memory(48 * MIB), trio.move_on_after(4):
            await flood(client.stream, piece, 30 * len(piece))
        await client.aclose()
        await server.wait_closed(600)  # virtual seconds: the clock jumps while the kernel works


@pytest.mark.slow
async def test_a_message_that_fills_the_queue_is_followed_by_others(engine: str, clock: Clock) -> None:
    """Reading resumes when the application takes the one message that filled its queue.

    The two tasks may wake in either order.
    """
    counts: list[int] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        count = 0
        while (await receive())["type"] != "websocket.disconnect":
            count += 1
        counts.append(count)

    piece = masked(b"x" * MIB, Opcode.BINARY)
    async with serving(engine, app) as server:
        for _ in range(16):
            client = await open_socket(server, "/ws")
            for _ in range(3):
                await client.stream.send_all(piece)
            await client.aclose()
        await server.wait_closed(600)

    assert counts == [3] * 16


@pytest.mark.slow
@pytest.mark.parametrize("pings", [False, True], ids=["silent", "pings"])
async def test_unfinished_messages_of_many_clients_fill_no_memory(
    engine: str, pings: bool, clock: Clock
) -> None:
    """Twenty clients that never finish a message of 4 MiB hold the bound of all, and the good one is served.

    Their pings, which a client may send between fragments, do not keep them alive.
    """
    part = masked(b"x" * MIB, fin=False) + b"".join(masked(b"x" * MIB, 0, fin=False) for _ in range(3))
    async with open_site(engine, max_pending_bytes=16 * MIB) as site:
        clients = [await site.open() for _ in range(20)]
        for n, client in enumerate(clients):
            await client.join("obs", f"hostile{n}")

        async def send(client: Socket) -> None:
            with suppress(trio.BrokenResourceError):
                await client.stream.send_all(part)
                while pings:
                    await client.stream.send_all(masked(b"", Opcode.PING))
                    await trio.sleep(1)

        with bounded_memory(48 * MIB):
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(send, client)
                await trio.sleep(5)
                await site.check_serves()
                nursery.cancel_scope.cancel()
            statistics = site.server.engine.statistics()

        assert statistics.pending <= 16 * MIB
        assert statistics.dropped >= 15
        for client in clients:
            await client.aclose()
        await site.wait_cleaned_up(60)


@pytest.mark.parametrize(
    "piece", [masked(b"", Opcode.PING), masked(b"x", 0, fin=False)], ids=["pings", "fragments"]
)
async def test_a_flood_of_small_frames_is_cut_and_logged(engine: str, piece: bytes, clock: Clock) -> None:
    """Far more pings or tiny fragments than a client needs end in 1008, and in a log line."""
    with capture_logs() as lines:
        async with open_site(engine) as site:
            client = await site.open()
            await client.join("obs", "hostile")
            await client.stream.send_all(masked(b"[", fin=False) + piece * 2000)

            assert await client.closed() == 1008
            await client.aclose()
            await site.check_serves()
            await site.wait_cleaned_up()

    [line] = [line for line in lines if "too many small frames" in f"{line['event']} {line.get('reason')}"]
    assert line["address"] == "127.0.0.1"


async def test_before_a_join_an_unfinished_message_is_small(engine: str, clock: Clock) -> None:
    """A message above ``max_unjoined`` is closed with 1009 before it is whole, unless there was a join."""
    part = masked(b"[" * 40_000, fin=False) + masked(b"[" * 40_000, Opcode.CONT, fin=False)
    async with open_site(engine, Settings(max_unjoined=65_536)) as site:
        stranger, member = await site.open(), await site.open()
        await member.join("obs", "hostile")
        await stranger.stream.send_all(part)
        await member.stream.send_all(part + masked(b"", Opcode.PING))

        assert await stranger.closed() == 1009
        assert (await member.frame()).opcode is not Opcode.CLOSE
        await stranger.aclose()
        await member.aclose()
        await site.wait_cleaned_up()
