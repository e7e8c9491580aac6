"""Faults of browsers: slow ones, ones that go, ones that want too much."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress

import trio

from tangram.channels.tokens import LEEWAY, Claims, mint
from tangram.errors import BrokerUnavailable, Refused
from tangram.testing.catalogue.base import TOPIC, Chaos, fault, must_answer, publishes
from tangram.testing.frames import UPGRADE, masked
from tangram.testing.invariants import Evidence, check

__all__ = ["browser_half_frame", "browser_reset", "slow_browser", "upgrade_with_extra_byte"]

RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""SO_LINGER on, zero seconds: close() sends a reset."""

JOINS = 10_000

KNOCKS = 20
"""Browsers that go at once."""

SECONDS = 5.0
"""Within which a browser has its answer."""

JOIN_SECONDS = 60.0
"""Within which all joins are answered: one takes less than a millisecond, on a slow machine a few."""

CHUNK = 64 * 1024
"""Bytes of each message that nobody reads."""

CHUNKS = 300
"""By then the outbox and the kernel's buffers are full: Linux keeps some MiB for a connection."""


def connect(chaos: Chaos, *, buffer: int | None = None) -> socket.socket:
    """A connection to the web port, driven by hand; ``buffer`` is what its kernel keeps, in bytes."""
    if buffer is None:
        return chaos.tangram.connect()
    held = chaos.tangram.server.held[0]
    client = socket.socket(socket.AF_INET6 if ":" in held.host else socket.AF_INET)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(SECONDS)
    client.connect((held.host, held.port))
    client.setblocking(False)
    return client


@asynccontextmanager
async def _upgraded(
    chaos: Chaos, more: bytes = b"", *, buffer: int | None = None
) -> AsyncIterator[socket.socket]:
    """A WebSocket, spoken by hand."""
    client = connect(chaos, buffer=buffer)
    try:
        client.send(UPGRADE + more)
        with trio.move_on_after(SECONDS):
            await trio.lowlevel.wait_readable(client)
        yield client
    finally:
        trio.lowlevel.notify_closing(client)
        client.close()


@fault()
async def browser_reset(chaos: Chaos) -> None:
    """Twenty clients connect, send half a request, and reset the connection."""
    for _ in range(KNOCKS):
        client = connect(chaos)
        with suppress(OSError):  # a socket in memory knows no reset
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.send(b"GET /-/readyz HTT")
        await trio.lowlevel.checkpoint()
        client.close()
    await must_answer(chaos)


@fault()
async def browser_half_frame(chaos: Chaos) -> None:
    """A browser opens a WebSocket, sends half a frame, and goes."""
    async with _upgraded(chaos) as client:
        client.send(b"\x81\xfe\x01")
        await trio.sleep(0.01)
    await must_answer(chaos)


@fault()
async def upgrade_with_extra_byte(chaos: Chaos) -> None:
    """A WebSocket upgrade with a byte too many behind its headers: it ends that connection only."""
    async with _upgraded(chaos, b"X"):
        await must_answer(chaos)


@fault()
async def slow_browser(chaos: Chaos) -> None:
    """A client that sends its request a byte at a time, and is served all the same."""
    client = connect(chaos)
    try:
        for byte in b"GET /-/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n":
            client.send(bytes([byte]))
            await trio.sleep(0.002)
        with trio.fail_after(SECONDS):
            await trio.lowlevel.wait_readable(client)
        answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200"), f"a slow request was answered {answer[:80]!r}"
    finally:
        trio.lowlevel.notify_closing(client)
        client.close()


def _token(chaos: Chaos, topic: str, *, good_for: float = 3600.0) -> str:
    """A token as the server makes them, good for so many seconds from now."""
    tree = chaos.tangram.server.tree
    assert tree is not None
    return mint(Claims("tangram-chaos", topic, int(time.time() + good_for)), tree.secrets.jwt)


@fault(on="sockets")
async def browser_never_reads(chaos: Chaos) -> None:
    """A browser joins, and reads nothing although its topic is busy: what waits for it stays within
    ``max_backlog``, it is told to go (1013), and the others get their messages.
    """
    topic = f"{TOPIC}-busy"
    tree = chaos.tangram.server.tree
    assert tree is not None
    join = json.dumps(["1", "1", topic, "phx_join", {"token": _token(chaos, topic)}])
    async with publishes(chaos), _upgraded(chaos, buffer=4096) as client:
        client.send(masked(join))
        held: list[int] = []
        payload = b'"' + b"x" * CHUNK + b'"'
        with trio.fail_after(JOIN_SECONDS):
            while not _too_far_behind(chaos):
                if len(held) < CHUNKS and tree.bus is not None:
                    with suppress(BrokerUnavailable):
                        await tree.bus.publish(f"to:{topic}:n", payload)
                held.append(0 if tree.channels is None else tree.channels.statistics().pending)
                await trio.sleep(0.002 if len(held) < CHUNKS else 0.1)
        # What the others wait for meanwhile is a few short messages.
        bound = chaos.tangram.server.config.channel.max_backlog + 2 * CHUNK
        check(Evidence(backlogs=held, backlog_bound=bound), ["memory_per_slow_client"])


def _too_far_behind(chaos: Chaos) -> bool:
    tree = chaos.tangram.server.tree
    if tree is None or tree.channels is None:
        return False
    return tree.channels.statistics().closed.get("too far behind", 0) > 0


@fault(on="real")
async def browser_10000_joins(chaos: Chaos) -> None:
    """A browser joins 10,000 topics: the first ``max_joins`` are taken, the others are refused by name, and
    somebody else is served meanwhile.
    """
    limit = chaos.tangram.server.config.channel.max_joins
    async with chaos.tangram.open_socket(rng=chaos.rng) as client:
        with trio.fail_after(JOIN_SECONDS):
            for number in range(JOINS):
                topic = f"{TOPIC}-{number}"
                token = _token(chaos, topic) if number < limit else ""
                frame = json.dumps([f"j{number}", f"j{number}", topic, "phx_join", {"token": token}])
                await client.send_raw(frame)
                if number % 1000 == 0:
                    await must_answer(chaos)
            topic = f"{TOPIC}-last"
            await _must_be_refused(client.join(topic, token=_token(chaos, topic)), "too many channels")


@fault()
async def browser_expired_token(chaos: Chaos) -> None:
    """A browser comes with tokens that have expired: its join and its connection are refused by name."""
    old = _token(chaos, TOPIC, good_for=-LEEWAY - 10.0)
    async with chaos.tangram.open_socket(rng=chaos.rng) as client:
        await _must_be_refused(client.join(TOPIC, token=old), "token expired")
        channel = await client.join(TOPIC, token=_token(chaos, TOPIC))
        await channel.leave()


async def _must_be_refused(join: Awaitable[object], reason: str) -> None:
    try:
        await join
    except Refused as refused:
        answer = str(refused)
    else:
        answer = "taken"
    assert reason in answer, f"it should be refused with {reason!r}, the answer was {answer!r}"
