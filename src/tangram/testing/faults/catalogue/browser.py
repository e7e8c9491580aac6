"""Faults of browsers: slow ones, ones that disconnect, ones that ask for too much."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from tangram.channels.disconnects import OVERLOAD, TOKEN_EXPIRED, TOO_MANY_JOINS
from tangram.channels.frames import JOIN, SocketMessage
from tangram.channels.tokens import LEEWAY, Claims, mint
from tangram.client import ClientSocket
from tangram.errors import BrokerUnavailable, Refused
from tangram.testing.checks.invariants import Evidence, check
from tangram.testing.fakes.client_frames import UPGRADE, masked
from tangram.testing.faults.catalogue.base import Chaos, fault
from tangram.testing.faults.catalogue.witness import TOPIC, expect_delivery, must_answer

__all__ = ["browser_half_frame", "browser_reset", "slow_browser", "upgrade_with_extra_byte"]

RESET: Final = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""SO_LINGER on, zero seconds: close() sends a reset."""

JOINS: Final = 10_000

AT_ONCE: Final = 100
"""Joins that wait for their answers at a time."""

DISCONNECTS: Final = 20
"""Browsers that disconnect together."""

SECONDS: Final = 5.0
"""Seconds within which a browser has its answer."""

JOIN_SECONDS: Final = 60.0
"""Seconds within which all joins are answered: one takes less than a millisecond, some on a slow machine."""

CHUNK: Final = 64 * 1024
"""Bytes of each message that is not read."""

CHUNKS: Final = 300
"""Messages after which outbox and kernel buffers are full: Linux keeps some MiB for a connection."""


def connect(chaos: Chaos, *, buffer: int | None = None) -> socket.socket:
    """Connect a socket to the web port, for a client that is driven by hand.

    Args:
        chaos: for the server under test.
        buffer: bytes of the kernel's receive buffer; the default of the system unless given.

    Raises:
        NothingToStrike: a buffer is asked for, and the web port is in memory.
    """
    if buffer is None:
        return chaos.tangram.connect()
    chaos.need_network()
    held = chaos.tangram.server.held[0]
    client = socket.socket(socket.AF_INET6 if ":" in held.host else socket.AF_INET)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(SECONDS)
    client.connect((held.host, held.port))
    client.setblocking(False)
    return client


@asynccontextmanager
async def _upgraded(chaos: Chaos, *, buffer: int | None = None) -> AsyncIterator[socket.socket]:
    """Open a WebSocket whose bytes are written by hand."""
    client = connect(chaos, buffer=buffer)
    try:
        client.send(UPGRADE)
        with trio.fail_after(SECONDS):
            answer = await _receive_until(client, b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 101"):
            chaos.forgive_cut(f"an upgrade was answered {answer[:80]!r}")
        assert answer.startswith(b"HTTP/1.1 101"), f"an upgrade was answered {answer[:80]!r}"
        yield client
    finally:
        trio.lowlevel.notify_closing(client)
        client.close()


async def _receive_until(client: socket.socket, end: bytes | None = None) -> bytes:
    """Return the bytes received up to ``end``, or without ``end`` up to the end of the stream."""
    got = bytearray()
    while end is None or end not in got:
        await trio.lowlevel.wait_readable(client)
        try:
            data = client.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            break
        got += data
    return bytes(got)


@fault()
async def browser_reset(chaos: Chaos) -> None:
    """Twenty clients connect, send half a request, and reset the connection."""
    for _ in range(DISCONNECTS):
        client = connect(chaos)
        with suppress(OSError):  # a socket in memory has no reset
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.send(b"GET /-/readyz HTT")
        await trio.lowlevel.checkpoint()
        client.close()
    await must_answer(chaos)


@fault()
async def browser_half_frame(chaos: Chaos) -> None:
    """A browser opens a WebSocket, sends half a frame, and disconnects."""
    async with _upgraded(chaos) as client:
        client.send(b"\x81\xfe\x01")
        await trio.sleep(0.01)
    await must_answer(chaos)


@fault()
async def upgrade_with_extra_byte(chaos: Chaos) -> None:
    """A WebSocket upgrade has an extra byte behind its headers: it hurts no other client.

    The server may accept, refuse or cut it.
    """
    async with _upgraded(chaos):  # without the extra byte the upgrade is accepted
        pass
    client = connect(chaos)
    try:
        client.send(UPGRADE + b"X")
        with trio.fail_after(SECONDS):
            await trio.lowlevel.wait_readable(client)
        await must_answer(chaos)
    finally:
        trio.lowlevel.notify_closing(client)
        client.close()


@fault()
async def slow_browser(chaos: Chaos) -> None:
    """A client sends its request one byte at a time, and is served all the same."""
    client = connect(chaos)
    try:
        with trio.fail_after(SECONDS):
            answer = await _ask_slowly(client)
    except OSError as error:
        chaos.forgive_cut(f"a slow request was cut: {error!r}")
        raise
    finally:
        trio.lowlevel.notify_closing(client)
        client.close()
    if not answer:
        chaos.forgive_cut("a slow request was cut")
    assert answer.startswith(b"HTTP/1.1 200"), f"a slow request was answered {answer[:80]!r}"


async def _ask_slowly(client: socket.socket) -> bytes:
    for byte in b"GET /-/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n":
        client.send(bytes([byte]))
        await trio.sleep(0.002)
    return await _receive_until(client)


def _token(chaos: Chaos, topic: str, *, good_for: float = 3600.0) -> str:
    """Return a token as the server makes them, valid for ``good_for`` seconds from now."""
    tree = chaos.tangram.server.tree
    assert tree is not None
    return mint(Claims("tangram-chaos", topic, int(time.time() + good_for)), tree.secrets.jwt)


@fault(on="sockets")
async def browser_never_reads(chaos: Chaos) -> None:
    """Two browsers join a busy topic and do not read: their outboxes are bounded.

    Each outbox stays within ``max_backlog``, and both browsers are closed with 1013. One reads at last
    and sees that; the other never does, and is closed all the same. Browsers that read get their
    messages.
    """
    topic = f"{TOPIC}-busy"
    join = masked(json.dumps(["1", "1", topic, "phx_join", {"token": _token(chaos, topic)}]))
    before = _closed(chaos)
    async with (
        expect_delivery(chaos),
        _upgraded(chaos, buffer=4096) as late,
        _upgraded(chaos, buffer=4096) as never,
    ):
        late.send(join)
        never.send(join)
        held = await _fill(chaos, topic)
        bound = chaos.tangram.server.config.channel.max_backlog + 2 * CHUNK
        check(Evidence(backlogs=held, backlog_bound=bound), ["memory_per_slow_client"])
        with trio.fail_after(SECONDS):
            tail = (await _receive_until(late))[-len(_CLOSE_FRAME) :]
        assert tail == _CLOSE_FRAME, f"the last bytes that came are {tail!r}, not a close with 1013"
        # For a client that does not read one engine waits for its close timeout, the other for its write
        # timeout.
        with trio.fail_after(chaos.tangram.server.config.server.write_timeout + SECONDS):
            while _closed(chaos) < before + 2:  # noqa: ASYNC110 - the server has no event for it
                await trio.sleep(0.1)


_CLOSE_FRAME: Final = (
    bytes([0x88, 2 + len(OVERLOAD.reason)]) + OVERLOAD.code.to_bytes(2, "big") + OVERLOAD.reason.encode()
)
"""The close frame (RFC 6455, section 5.5.1)."""


async def _fill(chaos: Chaos, topic: str) -> list[int]:
    """Publish until both browsers are being closed; return the largest backlog at each step."""
    tree = chaos.tangram.server.tree
    assert tree is not None
    held: list[int] = []
    payload = b'"' + b"x" * CHUNK + b'"'
    with trio.fail_after(JOIN_SECONDS):
        while _closing(chaos) < 2:
            if len(held) < CHUNKS and tree.incarnation.bus is not None:
                with suppress(BrokerUnavailable):
                    await tree.incarnation.bus.publish(f"to:{topic}:n", payload)
            held.append(
                0
                if tree.incarnation.channels is None
                else tree.incarnation.channels.statistics().furthest_behind
            )
            await trio.sleep(0.002 if len(held) < CHUNKS else 0.1)
    return held


def _closing(chaos: Chaos) -> int:
    tree = chaos.tangram.server.tree
    if tree is None or tree.incarnation.channels is None:
        return 0
    # Statistics count a session when it has ended: too late for a browser that shall read its close frame.
    sessions = tree.incarnation.channels._sessions.values()  # noqa: SLF001 - there is no public name
    return sum(session.outbox.disconnect == OVERLOAD for session in sessions)


def _closed(chaos: Chaos) -> int:
    tree = chaos.tangram.server.tree
    if tree is None or tree.incarnation.channels is None:
        return 0
    return tree.incarnation.channels.statistics().closed.get(OVERLOAD.reason, 0)


@fault(on="real")
async def browser_10000_joins(chaos: Chaos) -> None:
    """A browser joins 10,000 topics: those over ``max_joins`` are refused by name.

    Another client is served meanwhile.
    """
    limit = chaos.tangram.server.config.channel.max_joins
    answers: Counter[str] = Counter()
    async with chaos.tangram.open_socket(rng=chaos.rng) as client:
        with trio.fail_after(JOIN_SECONDS):
            for first in range(0, JOINS, AT_ONCE):
                async with trio.open_nursery() as nursery:
                    for number in range(first, first + AT_ONCE):
                        topic = f"{TOPIC}-{number}"
                        token = _token(chaos, topic) if number < limit else ""
                        nursery.start_soon(_join, client, topic, token, answers)
                if first % 1000 == 0:
                    await must_answer(chaos)
        wanted = Counter({"ok": limit, TOO_MANY_JOINS.reason: JOINS - limit})
        assert answers == wanted, f"{JOINS} joins should be answered {dict(wanted)}, not {dict(answers)}"
        # A good token is refused as well once the limit is reached.
        topic = f"{TOPIC}-last"
        await _must_be_refused(client.join(topic, token=_token(chaos, topic)), TOO_MANY_JOINS.reason)


async def _join(client: ClientSocket, topic: str, token: str, answers: Counter[str]) -> None:
    """Join without a channel and count the answer."""
    payload = json.dumps({"token": token}).encode()
    ref = client.next_ref()
    reply = await client.call(SocketMessage(ref, ref, topic, JOIN, payload))
    answers["ok" if reply["status"] == "ok" else reply["response"]["reason"]] += 1


@fault()
async def browser_expired_token(chaos: Chaos) -> None:
    """A browser brings expired tokens: both joins are refused by name.

    One token is that of a join, the other that of the connection. A good token is accepted.

    A good token is accepted.
    """
    old = _token(chaos, TOPIC, good_for=-LEEWAY - 10.0)
    async with chaos.tangram.open_socket(rng=chaos.rng) as client:
        await _must_be_refused(client.join(TOPIC, token=old), TOKEN_EXPIRED.reason)
        channel = await client.join(TOPIC, token=_token(chaos, TOPIC))
        await channel.leave()
    # The connection itself is accepted with any token: a join without a token of its own checks it.
    async with chaos.tangram.open_socket(token=old, rng=chaos.rng) as client:
        await _must_be_refused(client.join(TOPIC), TOKEN_EXPIRED.reason)


async def _must_be_refused(join: Awaitable[object], reason: str) -> None:
    try:
        await join
    except Refused as refused:
        answer = str(refused)
    else:
        answer = "accepted"
    assert reason in answer, f"it should be refused with {reason!r}, the answer was {answer!r}"
