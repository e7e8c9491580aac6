"""When a channel is joined again, on a connection that is a fake."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import trio
from trio.testing import MockClock

from tangram.channels import codec
from tangram.channels.frames import TEXT, SocketMessage
from tangram.client import Channel
from tangram.client.socket import ClientSocket


class Server:
    """Answer every frame with ok after ``delay`` seconds, and record it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.received: list[tuple[str, str | None]] = []
        self.delay = 0.0
        self.socket = ClientSocket(
            "ws://nowhere", nursery, reconnect=True, heartbeat=30, rng=random.Random(1), ssl_context=None
        )
        self.socket._connection = self  # type: ignore[assignment]  # all that is asked of it is below
        self._nursery = nursery

    async def send_message(self, frame: str | bytes) -> None:
        data = frame.encode() if isinstance(frame, str) else frame
        message = codec.decode(TEXT, data)
        self.received.append((message.event, message.join_ref))
        self._nursery.start_soon(self._answer, message)

    async def _answer(self, message: SocketMessage) -> None:
        await trio.sleep(self.delay)
        payload = b'{"status":"ok","response":{"id":"me"}}'
        self.say("phx_reply", message.topic, message.join_ref, message.ref, payload)

    def say(
        self, event: str, topic: str, join_ref: str | None, ref: str | None = None, payload: bytes = b"{}"
    ) -> None:
        self.socket._dispatch(SocketMessage(join_ref, ref, topic, event, payload))


async def test_after_an_error_a_channel_is_joined_again(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """It is joined once, a second later, under a new ref, also after two errors."""
    server = Server(nursery)
    channel = await server.socket.join("obs")
    server.say("phx_error", "obs", None)
    server.say("phx_error", "obs", None)
    await trio.sleep(5)

    assert channel.joined
    assert server.received == [("phx_join", "1"), ("phx_join", "2")]


async def test_a_channel_that_was_left_is_not_joined_again(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """A rejoin after or during the leave would make a member without a channel."""
    server = Server(nursery)
    channel = await server.socket.join("obs")
    server.say("phx_error", "obs", None)
    await channel.leave()
    slow = await server.socket.join("slow")
    server.say("phx_error", "slow", None)
    server.delay = 3.0
    await slow.leave()
    await trio.sleep(20)

    assert [event for event, _ in server.received] == ["phx_join", "phx_leave"] * 2
    assert not channel.joined


async def test_a_rejoin_that_is_due_leaves_the_next_channel_of_its_topic_alone(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """The new channel of the topic is joined and rejoined on its own."""
    server = Server(nursery)
    old = await server.socket.join("obs")
    server.say("phx_error", "obs", None)
    await trio.sleep(0.5)
    new = await server.socket.join("obs")
    server.say("phx_error", "obs", None)
    await trio.sleep(0.6)
    assert server.received[-1] == ("phx_join", new._join_ref)
    assert server.received.count(("phx_join", new._join_ref)) == 1
    await trio.sleep(20)

    assert old.closed
    assert new.joins == 2
    assert [event for event, _ in server.received] == ["phx_join", "phx_leave", "phx_join", "phx_join"]


class LosingSocket:
    """A socket whose connection ends in one read with the reply to each join."""

    channel: Channel

    def next_ref(self) -> str:
        return "1"

    async def call(self, _message: SocketMessage) -> Mapping[str, Any]:
        await trio.lowlevel.checkpoint()
        self.channel.lost()
        return {"status": "ok", "response": {"id": "a", "position": "e.1", "recovered": True}}

    async def send(self, message: SocketMessage) -> None:
        raise NotImplementedError

    def forget(self, channel: Channel) -> None:
        raise NotImplementedError

    def rejoin(self, channel: Channel) -> None:
        raise NotImplementedError


async def test_a_membership_that_ends_in_one_read_with_its_reply_is_joined_again(
    autojump_clock: MockClock,
) -> None:
    """The task that joins runs after the loss, and must not take the channel for joined."""
    carrier = LosingSocket()
    channel = carrier.channel = Channel(carrier, "t", dict, position="")
    await channel.join_once()

    assert (channel.joined, channel.wants_join) == (False, True)
    assert (channel.joins, channel.position) == (1, "e.1")
