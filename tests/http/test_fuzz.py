"""Mutated requests and frames at both engines: the server survives, and cleans up."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from websockets.frames import Opcode

from tests.channels.fakes import Settings
from tests.http.hostile_clients import UPGRADE, Site, message, open_site
from tests.http.native.sockets import masked, token

pytestmark = pytest.mark.slow

SESSIONS = 240
"""Sessions for each seed, which take about 3 s. Run other seeds in a loop for a longer search."""

POST = b"POST /hello HTTP/1.1\r\nHost: a\r\n"
REQUESTS = [
    b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n",
    POST + b"Content-Length: 5\r\n\r\nhello",
    POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"HEAD /x HTTP/1.0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n",
    b"GET http://b/c?d HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n",
    UPGRADE,
    UPGRADE[:-2]
    + b"Sec-WebSocket-Protocol: phoenix, base64url.bearer.phx.YWJj\r\n"
    + b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n",
]
FRAMES = [
    masked(message("1", "1", "obs", "phx_join", {"token": token("obs")})),
    masked(message("1", "2", "obs", "x", {"a": 1})),
    masked(message("1", "3", "obs", "phx_leave", {})),
    masked(message(None, "4", "phoenix", "heartbeat", {})),
    masked(b"x" * 70_000),
    masked(b"", Opcode.PING),
    masked(b"\x03\xe8", Opcode.CLOSE),
    masked(b'["1"', fin=False) + masked(b',"1","obs","x",{}]', Opcode.CONT),
    masked(bytes([0, 1, 1, 3, 1]) + b"11obsxab", Opcode.BINARY),
]
WORDS = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\xff", b"%00", b"%", b"-1", b"[::1", b"http://"),
    *(b"HTTP/1.1", b"chunked", b"ffffffffffffffff", b"0\r\n\r\n", b"\x81\xff", b"\x88\x80", bytes(8)),
    *(b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: x\r\n", b"Upgrade: websocket\r\n"),
    *(b"Connection: Upgrade\r\n", b"Expect: 100-continue\r\n"),
]


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Return the bytes with up to eight small changes."""
    changed = bytearray(data)
    changes: list[Callable[[int], None]] = [
        lambda at: changed.__setitem__(at, dice.randrange(256)),
        lambda at: changed.__delitem__(slice(at, at + dice.randrange(1, 8))),
        lambda at: changed.__setitem__(slice(at, at), dice.choice(WORDS)),
        lambda at: changed.__setitem__(slice(at, at), changed[at : at + dice.randrange(1, 20)]),
        lambda at: changed.__setitem__(slice(at, at + 1), dice.choice(WORDS)),
    ]
    for _ in range(dice.choice([0, 1, 1, 2, 3, 8])):
        if changed:
            dice.choice(changes)(dice.randrange(len(changed)))
    return bytes(changed)


def session(dice: random.Random) -> list[bytes]:
    """Generate the writes of one hostile client."""
    if dice.random() < 0.5:
        return [mutated(dice.choice(REQUESTS), dice) for _ in range(dice.randrange(1, 4))]
    frames = [mutated(dice.choice(FRAMES), dice) for _ in range(dice.randrange(1, 8))]
    return [dice.choice(REQUESTS[-2:]), *frames]


async def play(site: Site, parts: list[bytes], dice: random.Random) -> None:
    with suppress(trio.BrokenResourceError):
        async with await trio.open_tcp_stream("127.0.0.1", site.server.port) as stream:
            with trio.move_on_after(0.1):
                for part in parts:
                    await stream.send_all(part)
                    if dice.random() < 0.3:
                        await trio.sleep(0.002)
                if dice.random() < 0.3:
                    await stream.send_eof()
                while await stream.receive_some(65536):
                    pass


@pytest.mark.parametrize("seed", [1, 2])
async def test_mutated_bytes_crash_nothing(engine: str, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """No connection or application fails, and the good client is served.

    No hostile connection is left.
    """
    dice = random.Random(seed)
    bounds: dict[str, Any] = {"header_timeout": 1.0, "idle_timeout": 3.0, "write_timeout": 1.0}
    async with open_site(engine, Settings(max_message=200_000), **bounds) as site:
        for _ in range(SESSIONS // 8):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(play, site, session(dice), dice)
            statistics = site.server.engine.statistics()
            assert (statistics.crashed, statistics.failed) == (0, 0)
        await site.check_serves()
        await site.wait_cleaned_up(30)

    assert caplog.records == []
