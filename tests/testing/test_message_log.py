"""The record of numbered messages: the loss of a membership announces a gap."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tangram.channels.frames import ERROR, SocketMessage
from tangram.testing import Evidence, InvariantBroken, check
from tangram.testing.checks.message_log import MessageLog


class FakeChannel:
    """A channel as far as the record uses one: ``phx_error`` loses the membership."""

    def take(self, message: SocketMessage) -> None:
        if message.event == ERROR:
            self.lost()

    def lost(self) -> None:
        pass

    async def join_once(self) -> None:
        await trio.lowlevel.checkpoint()


def make_log() -> tuple[Any, MessageLog]:
    channel: Any = FakeChannel()
    return channel, MessageLog(channel)


def receive(channel: Any, number: int) -> None:
    channel.take(SocketMessage(None, None, "topic", "n", b'{"n":%d}' % number))


def test_a_gap_over_a_lost_connection_is_announced() -> None:
    """Messages in one read with the reply to the join belong to the new membership."""
    channel, log = make_log()
    receive(channel, 1)
    channel.lost()
    receive(channel, 5)
    receive(channel, 6)

    check(Evidence(messages=log.messages), ["messages_in_order"])
    assert log.messages[1][1] == log.messages[2][1]


def test_a_connection_lost_after_an_error_announces_another_gap() -> None:
    """Messages go on after ``phx_error``; the connection may be lost before the rejoin."""
    channel, log = make_log()
    receive(channel, 1)
    channel.take(SocketMessage(None, None, "topic", ERROR, b"{}"))
    receive(channel, 4)
    channel.lost()
    receive(channel, 9)

    check(Evidence(messages=log.messages), ["messages_in_order"])


async def test_a_gap_between_two_joins_is_announced() -> None:
    """After ``phx_error`` a join may be refused while Redis is away, and the next one accepted."""
    channel, log = make_log()
    channel.take(SocketMessage(None, None, "topic", ERROR, b"{}"))
    receive(channel, 1)
    await channel.join_once()
    await channel.join_once()
    receive(channel, 9)

    check(Evidence(messages=log.messages), ["messages_in_order"])


def test_a_gap_within_a_membership_is_found() -> None:
    """A message that is missing between two others of one membership breaks the invariant."""
    channel, log = make_log()
    receive(channel, 1)
    receive(channel, 3)

    with pytest.raises(InvariantBroken, match="messages 2 to 2 are missing"):
        check(Evidence(messages=log.messages), ["messages_in_order"])
