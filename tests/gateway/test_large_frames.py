"""Frames of the largest size, over both engines: how long they hold the event loop."""

from __future__ import annotations

import socket
import struct
import time
from functools import partial
from typing import Final, Literal

import pytest
import trio
import trio.lowlevel

from tangram.channels.tokens import Claims, mint
from tangram.testing.fakes.client_frames import UPGRADE, masked
from tangram.testing.run.transport import SECRET, open_transport

pytestmark = pytest.mark.slow

SIZE: Final = 16 * 1024 * 1024
"""Bytes of the largest message."""
LONGEST: Final = 0.04
"""Seconds of the loop's processor time in one go, twice as long as it takes where nothing else runs."""


def hostile(topic: str, piece: bytes, size: int = SIZE) -> bytes:
    """Return a push of the largest size whose payload is an array of ``piece``."""
    head = b'["1","2","%b","x",[' % topic.encode()
    text = head + piece * ((size - len(head) - 10) // len(piece)) + b"0]]"
    return b"\x81\xff" + struct.pack("!Q", len(text)) + bytes(4) + text


def talk(port: int, data: list[bytes]) -> bytes:
    """Send frames by a blocking socket, in a thread, and return everything that comes back."""
    received = b""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(UPGRADE)
        received = client.recv(4096)
        try:
            for one in data:
                client.sendall(one)
                if one is not data[-1]:
                    received += client.recv(4096)  # the reply to the join
        except OSError:
            return received  # the server has closed the connection
        client.settimeout(20)
        while b'"2","obs","phx_reply"' not in received and (chunk := client.recv(65536)):
            received += chunk
    return received


async def watch(turns: list[float]) -> None:
    """Note the processor time that the loop's thread takes between two turns of this task."""
    before = time.thread_time()
    while True:
        await trio.lowlevel.checkpoint()
        now = time.thread_time()
        turns.append(now - before)
        before = now


@pytest.mark.parametrize(
    ("engine", "piece"),
    [("native", b"[],"), ("native", b'{"a":0},'), ("native", b'["]",0],'), ("hypercorn", b"1,")],
)
async def test_a_hostile_push_does_not_hold_the_loop(
    engine: Literal["native", "hypercorn"], piece: bytes
) -> None:
    """A push of 16 MiB after a join is published, and other tasks run meanwhile.

    A step that is too long is so in each of three runs. One that the hypervisor interrupted is not.
    """
    runs: list[list[float]] = []
    while len(runs) < 3 and not (runs and sorted(runs[-1])[-2] < LONGEST):
        runs.append(await turns_beside_a_push(engine, piece))

    assert sorted(runs[-1])[-2] < LONGEST, f"the loop was held for up to {max(runs[-1]) * 1000:.0f} ms"


async def turns_beside_a_push(engine: Literal["native", "hypercorn"], piece: bytes) -> list[float]:
    """Push a large message that is published; return the processor times of the loop's turns."""
    token = mint(Claims("me", "obs", 4_000_000_000), SECRET)
    join = f'["1","1","obs","phx_join",{{"token":"{token}"}}]'
    turns: list[float] = []
    with trio.fail_after(60):
        async with open_transport(engine=engine) as server, trio.open_nursery() as nursery:
            nursery.start_soon(watch, turns)
            port = int(server.url.rpartition(":")[2])
            frames = [masked(join), hostile("obs", piece)]
            answer = await trio.to_thread.run_sync(partial(talk, port, frames))
            nursery.cancel_scope.cancel()

    assert b'"status":"ok","response":{}' in answer
    assert len(server.bus.payloads("from:obs:x")[0]) > SIZE - 1000
    return turns


@pytest.mark.parametrize("engine", ["native", "hypercorn"])
async def test_before_a_join_a_large_frame_closes_the_connection(
    engine: Literal["native", "hypercorn"],
) -> None:
    """The client gets 1009, and nothing is published."""
    with trio.fail_after(60):
        async with open_transport(engine=engine) as server:
            port = int(server.url.rpartition(":")[2])
            await trio.to_thread.run_sync(partial(talk, port, [hostile("obs", b"[],", 200_000)]))
            while server.channels.statistics().connections:  # noqa: ASYNC110 - the channels have no event for it
                await trio.sleep(0.01)

    assert server.channels.statistics().closed == {"message too big": 1}
    assert server.bus.published == []
