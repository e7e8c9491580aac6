"""What every transport of channels must do: the engines on sockets, and one in memory.

The client is trio-websocket, which shares no code with the engines; where a browser must not read, bytes are
sent by hand.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
import trio

from tangram.channels import disconnects
from tangram.groups import first_leaf
from tangram.testing.fakes.client_frames import UPGRADE, masked

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

    from tangram.testing.run.server import RunningTangram

__all__ = ["Transport", "check_transport", "transport_of"]

ANSWER_SECONDS = 5.0
"""Within which an answer comes on a slow machine; it takes milliseconds."""

FULL_SECONDS = 30.0
"""Within which a client that reads nothing is given up: ``[server] write_timeout``, and what fills it."""

QUIET_SECONDS = 0.05
"""That nothing comes is believed after so long."""

CHUNK = 64 * 1024
CHUNKS = 300
"""Bytes of a message and how many of them: more than an outbox and the kernel keep for one connection."""

RESOURCE = "/websocket?vsn=2.0.0"
TOPIC = "conformance"


@attrs.frozen
class Transport:
    """A running transport of channels, as a test reaches it."""

    open_connection: Callable[[], Awaitable[trio.abc.Stream]]
    """Connects; bytes go in and out."""
    token: Callable[[str], Awaitable[str]]
    """A token for a topic."""
    publish: Callable[[str, bytes], Awaitable[object]]
    """Publishes on a Redis channel, ``to:TOPIC:EVENT``."""
    stop: Callable[[], object]
    """Begins its end; returns at once."""


def transport_of(running: RunningTangram) -> Transport:
    """The transport of a server under test, on its own port or on one in memory."""
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
    """Upgrade, join, heartbeat, push with reply, broadcast, leave, refusals, malformed frames, both closing
    handshakes, a client that does not read, and the end with a documented code. The transport is being
    stopped when this returns.

    Raises:
        AssertionError: it does not; the message says what.
    """
    try:
        await _check(transport)
    except BaseExceptionGroup as group:
        found = first_leaf(group)
        if isinstance(found, AssertionError):
            raise found from None  # as it is: nobody wants to look for it in a group of one
        raise


async def _check(transport: Transport) -> None:
    await _refuses_another_version(transport)
    async with _browser(transport) as browser:
        await _answers_heartbeats(browser)
        await _refuses_a_join_without_token(browser)
        await _joins_pushes_and_hears(transport, browser)
        await _lives_on_after_a_malformed_frame(browser)
        await _leaves(transport, browser)
        await _closes_when_asked(browser)
    await _gives_up_who_does_not_read(transport)
    await _says_goodbye(transport)


class _Browser:
    """A WebSocket and the frames that came and were not asked for yet."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection
        self._waiting: list[Any] = []

    async def say(self, *frame: object) -> None:
        await self.connection.send_message(json.dumps(frame))

    async def hear(self, event: str, ref: str | None = None) -> Any:
        """The payload of the next message of ``event`` (a reply: to ``ref``); others are kept."""
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
        raise AssertionError(f"no {event!r} came within {ANSWER_SECONDS:g} s; what came was {came}")

    async def ask(self, *frame: object) -> Any:
        """The reply to a message: its status and its response."""
        await self.say(*frame)
        return await self.hear("phx_reply", str(frame[1]))


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
    answer = await browser.ask(None, "h1", "phoenix", "heartbeat", {})
    assert answer == {"status": "ok", "response": {}}, f"a heartbeat was answered {answer!r}"


async def _refuses_a_join_without_token(browser: _Browser) -> None:
    answer = await browser.ask("1", "1", TOPIC, "phx_join", {})
    reason = disconnects.UNAUTHORIZED.reason
    assert answer["status"] == "error", f"a join without a token was answered {answer!r}"
    assert answer["response"]["reason"] == reason, f"the reason should be {reason!r}: {answer!r}"
    await browser.hear("phx_close")


async def _joins_pushes_and_hears(transport: Transport, browser: _Browser) -> None:
    token = await transport.token(TOPIC)
    answer = await browser.ask("2", "2", TOPIC, "phx_join", {"token": token})
    assert answer["status"] == "ok", f"a join with a good token was answered {answer!r}"
    answer = await browser.ask("2", "3", TOPIC, "wave", {"at": "you"})
    assert answer["status"] == "ok", f"a push was answered {answer!r}"
    for number in range(20):
        await transport.publish(f"to:{TOPIC}:n", b'{"n":%d}' % number)
    heard = [(await browser.hear("n"))["n"] for _ in range(20)]
    assert heard == list(range(20)), f"messages came in the order {heard}"


async def _lives_on_after_a_malformed_frame(browser: _Browser) -> None:
    await browser.connection.send_message("no message of the protocol")
    await _answers_heartbeats(browser)


async def _leaves(transport: Transport, browser: _Browser) -> None:
    answer = await browser.ask("2", "5", TOPIC, "phx_leave", {})
    assert answer["status"] == "ok", f"a leave was answered {answer!r}"
    await transport.publish(f"to:{TOPIC}:late", b"{}")
    with trio.move_on_after(QUIET_SECONDS):
        await browser.hear("late")
        raise AssertionError("it had left the topic, and got a message of it")


async def _closes_when_asked(browser: _Browser) -> None:
    with trio.fail_after(ANSWER_SECONDS):
        await browser.connection.aclose(1000, "bye")
    told = browser.connection.closed
    assert told is not None
    assert told.code == 1000, f"a close with 1000 was answered with {told.code}"


async def _gives_up_who_does_not_read(transport: Transport) -> None:
    """One reads nothing and is closed; the other gets all, in order."""
    token = await transport.token(TOPIC)
    filler = b"x" * CHUNK
    async with _browser(transport) as reader:
        await reader.ask("1", "1", TOPIC, "phx_join", {"token": token})
        async with await transport.open_connection() as deaf:
            await deaf.send_all(UPGRADE)
            await deaf.receive_some(4096)
            await deaf.send_all(masked(json.dumps(["1", "1", TOPIC, "phx_join", {"token": token}])))
            await reader.hear("presence_diff")
            for number in range(CHUNKS):
                await transport.publish(f"to:{TOPIC}:n", b'{"n":%d,"x":"%s"}' % (number, filler))
                got = (await reader.hear("n"))["n"]
                assert got == number, f"one client does not read, and another got {got} for {number}"
            await _must_be_closed(deaf)


async def _must_be_closed(stream: trio.abc.Stream) -> None:
    taken, closed = 0, False
    with trio.move_on_after(FULL_SECONDS):
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(1 << 20):
                taken += len(data)
        closed = True
    assert closed, f"a client that did not read is not closed after {taken} bytes"
    assert taken < CHUNK * CHUNKS, f"{taken} bytes waited for a client that did not read"


async def _says_goodbye(transport: Transport) -> None:
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
