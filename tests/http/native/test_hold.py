"""No bytes of a client hold the event loop for long."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from itertools import pairwise

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock as Clock
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tangram.http.native.message_assembly import COMPRESSED_READ, MAX_INFLATED, MessageAssembler
from tangram.http.native.stream import READ_SIZE
from tests.channels.fakes import Settings
from tests.http.native.sockets import masked, open_socket, serving_channels

MIB = 1 << 20
LIMIT = 0.02
"""Seconds of this thread's processor time that one step may take."""


def slowest_step(assembler: MessageAssembler, data: bytes, size: int) -> float:
    """Feed bytes in pieces; return the processor time of the slowest step."""
    slowest = 0.0
    for start in range(0, len(data), size):
        piece = data[start : start + size]
        while True:
            began = time.thread_time()
            assembler.feed(piece)
            slowest = max(slowest, time.thread_time() - began)
            piece = b""
            if not assembler.more:
                break
    return slowest


def frames_of(size: int) -> Iterator[bytes]:
    """Return a message of ``size`` bytes, whole and in two fragments."""
    yield masked(b"x" * size)
    yield masked(b"x" * (size // 2), fin=False) + masked(b"x" * (size // 2), Opcode.CONT)


@pytest.mark.slow
@pytest.mark.parametrize("fragments", [1, 2])
def test_a_large_message_is_assembled_in_short_steps(fragments: int) -> None:
    """16 MiB are unmasked as they come: no step takes 20 ms."""
    data = [*frames_of(16 * MIB)][fragments - 1]
    steps = []
    for _ in range(3):
        protocol = ServerProtocol(state=OPEN, max_size=16 * MIB)
        steps.append(slowest_step(MessageAssembler(protocol, 16 * MIB), data, READ_SIZE))
        assert protocol.parser_exc is None

    assert min(steps) < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize(
    "frame", [masked(b"", Opcode.PING), masked(b"", Opcode.CONT, fin=False)], ids=["ping", "fragment"]
)
def test_very_small_frames_are_handled_in_short_steps(frame: bytes) -> None:
    """A read of 10,000 empty pings or fragments is handled in several steps, and none is lost."""
    steps = []
    for _ in range(3):
        protocol = ServerProtocol(state=OPEN, max_size=16 * MIB)
        assembler = MessageAssembler(protocol, 16 * MIB)
        assembler.feed(masked(b"begin", fin=False))
        steps.append(slowest_step(assembler, frame * (READ_SIZE // len(frame)), READ_SIZE))
        assert assembler.pending == len(b"begin")

    assert min(steps) < LIMIT


def deflated(data: bytes) -> bytes:
    """Return a client's compressed frame."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    payload = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
    frame = masked(payload[:-4])
    return bytes([frame[0] | 0x40]) + frame[1:]  # RSV1: compressed


def compressed_protocol() -> ServerProtocol:
    protocol = ServerProtocol(state=OPEN, max_size=16 * MIB)
    protocol.extensions = [PerMessageDeflate(True, True, 15, 12)]
    return protocol


@pytest.mark.slow
def test_compressed_frames_inflate_in_short_steps() -> None:
    """Many frames that inflate to 1 MiB each are handled in steps of less than 20 ms."""
    data = deflated(b"[]," * (MAX_INFLATED // 3)) * 40
    steps = [
        slowest_step(MessageAssembler(compressed_protocol(), 16 * MIB), data, COMPRESSED_READ)
        for _ in range(3)
    ]

    assert min(steps) < LIMIT


async def test_a_compression_bomb_is_closed_with_1009(clock: Clock) -> None:
    """16 KiB that would inflate to 16 MiB end their connection, and are not inflated."""
    async with serving_channels(Settings(), compression=True) as served:
        client = await open_socket(
            served.server, extensions=[ClientPerMessageDeflateFactory(compress_settings={"level": 9})]
        )
        await client.join("obs")
        await client.stream.send_all(deflated(b"[]," * (16 * MIB // 3)))

        assert await client.closed() == 1009
        await client.aclose()


async def test_a_large_frame_before_a_join_is_1009(clock: Clock) -> None:
    """Before the first join a frame over max_unjoined is refused; after it, it is not."""
    async with serving_channels(Settings()) as served:
        early, member = await open_socket(served.server), await open_socket(served.server)
        await early.stream.send_all(masked(b"x" * 100_000)[:100])
        assert await early.closed() == 1009

        await member.join("obs")
        await member.push("1", "2", "obs", "wave", {"x": "y" * 100_000})
        assert (await member.event("phx_reply"))["status"] == "ok"
        assert json.loads(served.bus.published[-1][1])["x"] == "y" * 100_000
        for client in (early, member):
            await client.aclose()


async def test_large_frames_arrive_whole_however_they_are_cut(clock: Clock) -> None:
    """A large message arrives the same in one frame and in fragments with pings between."""
    payload = json.dumps({"x": "abcdefg" * 40_000})
    text = f'["1","2","obs","wave",{payload}]'.encode()
    async with serving_channels(Settings()) as served:
        client = await served.open()
        await client.join("obs")
        cuts = [0, 1, 65_537, 65_540, 200_001, len(text)]
        parts = [text[a:b] for a, b in pairwise(cuts)]
        fragments = [
            masked(part, Opcode.CONT if n else Opcode.TEXT, fin=n == len(parts) - 1)
            for n, part in enumerate(parts)
        ]
        for sent in (masked(text), masked(b"", Opcode.PING).join(fragments)):
            for start in range(0, len(sent), 9_973):
                await client.stream.send_all(sent[start : start + 9_973])
                await trio.lowlevel.checkpoint()
            assert (await client.event("phx_reply"))["status"] == "ok"
        await client.aclose()

        waves = [body for topic, body in served.bus.published if topic == "from:obs:wave"]
        assert waves == [payload.encode()] * 2


async def test_a_flood_of_pings_in_one_read_is_answered(clock: Clock) -> None:
    """Each of many pings gets its pong, in order, and the message behind them is handled."""
    async with serving_channels(Settings()) as served:
        client = await served.open()
        await client.join("obs")
        pings = b"".join(masked(b"%d" % n, Opcode.PING) for n in range(900))
        await client.stream.send_all(pings + masked(b'["1","2","obs","wave",{}]'))
        pongs: list[int] = []
        while len(pongs) < 900:
            frame = await client.frame()
            if frame.opcode is Opcode.PONG:
                pongs.append(int(frame.data))
        assert pongs == list(range(900))
        assert (await client.event("phx_reply"))["status"] == "ok"
        await client.aclose()
