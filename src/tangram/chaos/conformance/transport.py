"""Checks for every transport of channels: the engines on sockets, and one in memory.

The client is trio-websocket, which shares no code with the engines; where a browser must not read,
bytes are sent by hand.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from tangram.channels import disconnects
from tangram.groups import first_leaf
from tangram.testing.fakes.client_frames import UPGRADE, masked

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

    from tangram.testing.run.server import RunningTangram

__all__ = ["Transport", "check_transport", "transport_of"]

ANSWER_SECONDS: Final = 30.0
"""Seconds within which an answer comes on a slow machine; it takes milliseconds."""

FULL_SECONDS: Final = 30.0
"""Seconds within which a client that does not read is closed: ``[server] write_timeout``, and the time to
fill it.
"""

QUIET_SECONDS: Final = 0.05
"""Seconds without a message after which it is taken for absent."""

CHUNK: Final = 64 * 1024
CHUNKS: Final = 300
"""Number of messages of `CHUNK` bytes: more than outbox and kernel keep for one connection."""

RESOURCE: Final = "/websocket?vsn=2.0.0"
TOPIC: Final = "conformance"


@attrs.frozen
class Transport:
    """A running transport of channels, as a test reaches it."""

    open_connection: Callable[[], Awaitable[trio.abc.Stream]]
    """Returns a new byte stream to it."""
    token: Callable[[str], Awaitable[str]]
    """Returns a token for a topic."""
    publish: Callable[[str, bytes], Awaitable[object]]
    """Publishes on a Redis channel, ``to:TOPIC:EVENT``."""
    stop: Callable[[], object]
    """Begins its end; returns at once."""


def transport_of(running: RunningTangram) -> Transport:
    """Return the transport of a server under test, on its own port or on one in memory."""
    from tangram.client import fetch_token
    from tangram.client.dial import dial

    async def open_connection() -> trio.abc.Stream:
        return await dial(running.url)

    async def token(topic: str) -> str:
        return (await fetch_token(running.url, topic)).token

    async def publish(channel: str, payload: bytes) -> int:
        tree = running.server.tree
        assert tree is not None
        assert tree.incarnation.bus is not None
        return await tree.incarnation.bus.publish(channel, payload)

    return Transport(open_connection, token, publish, running.stop)


async def check_transport(transport: Transport) -> None:
    """Check a transport of channels from its upgrade to its end.

    Checked are upgrade, join, heartbeat, push with reply, broadcast, leave, refusals, malformed frames,
    both closing handshakes, a client that does not read, and an end with a documented code. The
    transport is being stopped when this returns.

    Raises:
        AssertionError: it does not conform; the message says how.
    """
    try:
        await _check(transport)
    except BaseExceptionGroup as group:
        found = first_leaf(group)
        if isinstance(found, AssertionError):
            raise found from None  # without the group, which a reader would have to unfold
        raise


async def _check(transport: Transport) -> None:
    await _refuses_another_version(transport)
    async with _browser(transport) as browser:
        await _answers_heartbeats(browser)
        await _refuses_a_join_without_token(browser)
        await _joins_pushes_and_receives(transport, browser)
        await _survives_a_malformed_frame(browser)
        await _leaves(transport, browser)
        await _closes_when_asked(browser)
    await _closes_a_silent_client(transport)
    await _closes_with_a_documented_code(transport)


class _Browser:
    """A WebSocket, and received frames that no check has asked for yet."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection
        self._waiting: list[Any] = []

    async def send(self, *frame: object) -> None:
        await self.connection.send_message(json.dumps(frame))

    async def receive(self, event: str, ref: str | None = None) -> Any:
        """Return the payload of the next message of ``event``; keep the others.

        A reply must answer ``ref``.
        """
        for at, frame in enumerate(self._waiting):
            if frame[3] == event and ref in {None, frame[1]}:
                return self._waiting.pop(at)[4]
        with trio.move_on_after(ANSWER_SECONDS):
            while True:
                frame = json.loads(await self.connection.get_message())
                if frame[3] == event and ref in {None, frame[1]}:
                    return frame[4]
                self._waiting.append(frame)
        came = [frame[3] for frame in self._waiting]
        raise AssertionError(f"no {event!r} came within {ANSWER_SECONDS:g} s; the messages were {came}")

    async def request(self, *frame: object) -> Any:
        """Send a message and return its reply: status and response."""
        await self.send(*frame)
        return await self.receive("phx_reply", str(frame[1]))


@asynccontextmanager
async def _browser(transport: Transport, resource: str = RESOURCE) -> AsyncIterator[_Browser]:
    from trio_websocket import wrap_client_stream

    stream: Any = await transport.open_connection()  # trio-websocket takes any stream, and names two kinds
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(ANSWER_SECONDS):
                connection = await wrap_client_stream(nursery, stream, "127.0.0.1", resource)
            yield _Browser(connection)
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)


async def _refuses_another_version(transport: Transport) -> None:
    stream = await transport.open_connection()
    async with stream:
        await stream.send_all(UPGRADE.replace(b"vsn=2.0.0", b"vsn=9.0.0"))
        with trio.fail_after(ANSWER_SECONDS):
            answer = bytes(await stream.receive_some(4096))
    assert b" 403 " in answer.split(b"\r\n")[0], f"version 9.0.0 should be refused with 403: {answer[:80]!r}"


async def _answers_heartbeats(browser: _Browser) -> None:
    answer = await browser.request(None, "h1", "phoenix", "heartbeat", {})
    assert answer == {"status": "ok", "response": {}}, f"a heartbeat was answered {answer!r}"


async def _refuses_a_join_without_token(browser: _Browser) -> None:
    answer = await browser.request("1", "1", TOPIC, "phx_join", {})
    reason = disconnects.UNAUTHORIZED.reason
    assert answer["status"] == "error", f"a join without a token was answered {answer!r}"
    assert answer["response"]["reason"] == reason, f"the reason should be {reason!r}: {answer!r}"
    await browser.receive("phx_close")


async def _joins_pushes_and_receives(transport: Transport, browser: _Browser) -> None:
    token = await transport.token(TOPIC)
    answer = await browser.request("2", "2", TOPIC, "phx_join", {"token": token})
    assert answer["status"] == "ok", f"a join with a good token was answered {answer!r}"
    answer = await browser.request("2", "3", TOPIC, "wave", {"at": "you"})
    assert answer["status"] == "ok", f"a push was answered {answer!r}"
    for number in range(20):
        await transport.publish(f"to:{TOPIC}:n", b'{"n":%d}' % number)
    numbers = [(await browser.receive("n"))["n"] for _ in range(20)]
    assert numbers == list(range(20)), f"messages came in the order {numbers}"


async def _survives_a_malformed_frame(browser: _Browser) -> None:
    await browser.connection.send_message("no message of the protocol")
    await _answers_heartbeats(browser)


async def _leaves(transport: Transport, browser: _Browser) -> None:
    answer = await browser.request("2", "5", TOPIC, "phx_leave", {})
    assert answer["status"] == "ok", f"a leave was answered {answer!r}"
    await transport.publish(f"to:{TOPIC}:late", b"{}")
    with trio.move_on_after(QUIET_SECONDS):
        await browser.receive("late")
        raise AssertionError("it had left the topic, but got a message of it")


async def _closes_when_asked(browser: _Browser) -> None:
    with trio.fail_after(ANSWER_SECONDS):
        await browser.connection.aclose(1000, "bye")
    told = browser.connection.closed
    assert told is not None
    assert told.code == 1000, f"a close with 1000 was answered with {told.code}"


async def _closes_a_silent_client(transport: Transport) -> None:
    """Check that a client that does not read is closed, and another one gets everything."""
    token = await transport.token(TOPIC)
    filler = b"x" * CHUNK
    async with _browser(transport) as reader:
        await reader.request("1", "1", TOPIC, "phx_join", {"token": token})
        async with await transport.open_connection() as silent:
            await silent.send_all(UPGRADE)
            await silent.receive_some(4096)
            await silent.send_all(masked(json.dumps(["1", "1", TOPIC, "phx_join", {"token": token}])))
            await reader.receive("presence_diff")
            for number in range(CHUNKS):
                await transport.publish(f"to:{TOPIC}:n", b'{"n":%d,"x":"%s"}' % (number, filler))
                got = (await reader.receive("n"))["n"]
                assert got == number, f"one client does not read, but another got {got} for {number}"
            await _must_be_closed(silent)


async def _must_be_closed(stream: trio.abc.Stream) -> None:
    taken, closed = 0, False
    with trio.move_on_after(FULL_SECONDS):
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(1 << 20):
                taken += len(data)
        closed = True
    assert closed, f"a client that did not read is not closed after {taken} bytes"
    assert taken < CHUNK * CHUNKS, f"{taken} bytes waited for a client that did not read"


async def _closes_with_a_documented_code(transport: Transport) -> None:
    from trio_websocket import ConnectionClosed

    async with _browser(transport) as browser:
        await _answers_heartbeats(browser)
        transport.stop()
        code = None
        with trio.move_on_after(ANSWER_SECONDS):
            try:
                while True:
                    await browser.connection.get_message()
            except ConnectionClosed as error:
                code = None if error.reason is None else error.reason.code
    wanted = _codes([disconnects.SHUTDOWN, disconnects.RESTART])
    assert code in wanted, f"at the end a WebSocket should be closed with one of {wanted}, it was with {code}"


def _codes(ends: Sequence[disconnects.Disconnect]) -> list[int]:
    return sorted({end.code for end in ends})
