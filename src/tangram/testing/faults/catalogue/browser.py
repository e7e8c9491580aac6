"""Faults of browsers: slow ones, ones that go, ones that want too much."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress

import trio

from tangram.channels.disconnects import OVERLOAD, TOKEN_EXPIRED, TOO_MANY_JOINS
from tangram.channels.frames import JOIN, SocketMessage
from tangram.channels.tokens import LEEWAY, Claims, mint
from tangram.client import ClientSocket
from tangram.errors import BrokerUnavailable, Refused
from tangram.testing.checks.invariants import Evidence, check
from tangram.testing.fakes.client_frames import UPGRADE, masked
from tangram.testing.faults.catalogue.base import Chaos, fault
from tangram.testing.faults.catalogue.witness import TOPIC, must_answer, publishes

__all__ = ["browser_half_frame", "browser_reset", "slow_browser", "upgrade_with_extra_byte"]

RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""SO_LINGER on, zero seconds: close() sends a reset."""

JOINS = 10_000

AT_ONCE = 100
"""Of these, so many wait for their answers at a time."""

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
    """A connection to the web port, driven by hand; ``buffer`` is what its kernel keeps, in bytes.

    Raises:
        NothingToStrike: a buffer is asked for, and the web port is one in memory.
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
    """A WebSocket, spoken by hand."""
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
    """What comes until those bytes have; without them, until the other side has ended the stream."""
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
    """A WebSocket upgrade with a byte too many behind its headers: it hurts that connection at most, whether
    it is taken, refused or cut.
    """
    async with _upgraded(chaos):  # without it it would be taken
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
    """A client that sends its request a byte at a time, and is served all the same."""
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
    """A token as the server makes them, good for so many seconds from now."""
    tree = chaos.tangram.server.tree
    assert tree is not None
    return mint(Claims("tangram-chaos", topic, int(time.time() + good_for)), tree.secrets.jwt)


@fault(on="sockets")
async def browser_never_reads(chaos: Chaos) -> None:
    """Two browsers join, and read nothing although their topic is busy: what waits for them stays within
    ``max_backlog``, and they are told to go (1013). One reads at last, and sees that; the other never does,
    and is closed all the same; who reads gets its messages.
    """
    topic = f"{TOPIC}-busy"
    join = masked(json.dumps(["1", "1", topic, "phx_join", {"token": _token(chaos, topic)}]))
    before = _sent_away(chaos)
    async with (
        publishes(chaos),
        _upgraded(chaos, buffer=4096) as late,
        _upgraded(chaos, buffer=4096) as never,
    ):
        late.send(join)
        never.send(join)
        held = await _fill(chaos, topic)
        bound = chaos.tangram.server.config.channel.max_backlog + 2 * CHUNK
        check(Evidence(backlogs=held, backlog_bound=bound), ["memory_per_slow_client"])
        with trio.fail_after(SECONDS):
            tail = (await _receive_until(late))[-len(_FAREWELL) :]
        assert tail == _FAREWELL, f"the last that a browser was told is {tail!r}, not a close with 1013"
        # One engine waits out its close timeout for who reads nothing, the other its write timeout.
        with trio.fail_after(chaos.tangram.server.config.server.write_timeout + SECONDS):
            while _sent_away(chaos) < before + 2:  # noqa: ASYNC110 - the server has no event for it
                await trio.sleep(0.1)


_FAREWELL = (
    bytes([0x88, 2 + len(OVERLOAD.reason)]) + OVERLOAD.code.to_bytes(2, "big") + OVERLOAD.reason.encode()
)
"""The close frame (RFC 6455, section 5.5.1)."""


async def _fill(chaos: Chaos, topic: str) -> list[int]:
    """Publish until both are told to go; what waited for one of them at most, again and again."""
    tree = chaos.tangram.server.tree
    assert tree is not None
    held: list[int] = []
    payload = b'"' + b"x" * CHUNK + b'"'
    with trio.fail_after(JOIN_SECONDS):
        while _told_to_go(chaos) < 2:
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


def _told_to_go(chaos: Chaos) -> int:
    tree = chaos.tangram.server.tree
    if tree is None or tree.incarnation.channels is None:
        return 0
    # Statistics count them when they have gone: too late for one that is to hear it.
    sessions = tree.incarnation.channels._sessions.values()  # noqa: SLF001
    return sum(session.outbox.disconnect == OVERLOAD for session in sessions)


def _sent_away(chaos: Chaos) -> int:
    tree = chaos.tangram.server.tree
    if tree is None or tree.incarnation.channels is None:
        return 0
    return tree.incarnation.channels.statistics().closed.get(OVERLOAD.reason, 0)


@fault(on="real")
async def browser_10000_joins(chaos: Chaos) -> None:
    """A browser joins 10,000 topics: the first ``max_joins`` are taken, the others are refused by name, and
    somebody else is served meanwhile.
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
        # With a good token, too.
        topic = f"{TOPIC}-last"
        await _must_be_refused(client.join(topic, token=_token(chaos, topic)), TOO_MANY_JOINS.reason)


async def _join(client: ClientSocket, topic: str, token: str, answers: Counter[str]) -> None:
    """One join, without a channel: its answer is all that is looked at."""
    payload = json.dumps({"token": token}).encode()
    ref = client.next_ref()
    reply = await client.call(SocketMessage(ref, ref, topic, JOIN, payload))
    answers["ok" if reply["status"] == "ok" else reply["response"]["reason"]] += 1


@fault()
async def browser_expired_token(chaos: Chaos) -> None:
    """A browser comes with tokens that have expired, one of its join and one of its connection: both joins
    are refused by name, and a good token is taken.
    """
    old = _token(chaos, TOPIC, good_for=-LEEWAY - 10.0)
    async with chaos.tangram.open_socket(rng=chaos.rng) as client:
        await _must_be_refused(client.join(TOPIC, token=old), TOKEN_EXPIRED.reason)
        channel = await client.join(TOPIC, token=_token(chaos, TOPIC))
        await channel.leave()
    # The connection itself is taken, whatever its token is: it is looked at by a join that has none.
    async with chaos.tangram.open_socket(token=old, rng=chaos.rng) as client:
        await _must_be_refused(client.join(TOPIC), TOKEN_EXPIRED.reason)


async def _must_be_refused(join: Awaitable[object], reason: str) -> None:
    try:
        await join
    except Refused as refused:
        answer = str(refused)
    else:
        answer = "taken"
    assert reason in answer, f"it should be refused with {reason!r}, the answer was {answer!r}"
