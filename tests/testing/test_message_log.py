"""The record of numbered messages: the loss of a membership announces a gap."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tangram.channels.frames import ERROR, SocketMessage
from tangram.client import Event
from tangram.errors import Refused
from tangram.testing import Evidence, InvariantBroken, check
from tangram.testing.checks.message_log import KeptLog, KeptMessage, MessageLog


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


class KeptChannel(FakeChannel):
    """A channel that recovers, as far as the record uses one."""

    def __init__(self, *early: int, recovered: bool) -> None:
        self.recovered, self.reason = recovered, None if recovered else "epoch"
        self.position = "e.1"
        self._events = [Event("n", {"n": number}, binary=False) for number in early]


async def test_the_record_of_a_client_that_recovers_knows_each_join() -> None:
    """Messages of the first read count, and only a join that was answered tells of a gap."""
    log = KeptLog()
    channel: Any = KeptChannel(1, recovered=False)
    log.follow(channel)
    receive(channel, 2)
    channel.recovered = True
    await channel.join_once()
    receive(channel, 2)
    receive(channel, 3)
    channel.recovered = False
    await channel.join_once()
    receive(channel, 7)

    kept = log.evidence([1, 2, 3, 4, 5, 6, 7])
    assert kept == [KeptMessage(*one) for one in [(0, 1, 1), (1, 1, 1), (1, 2, 1), (2, 2, 1), (6, 3, 2)]]
    check(Evidence(kept={"topic": kept}), ["nothing_missed"])
    assert (log.recovered, log.position) == (1, "e.1")


async def test_a_refused_join_excuses_no_missing_message() -> None:
    """A join without an answer is no notice of a gap."""

    async def refuse() -> None:
        await trio.lowlevel.checkpoint()
        raise Refused("unavailable")

    log = KeptLog()
    channel: Any = KeptChannel(1, recovered=True)
    channel.join_once = refuse
    log.follow(channel)
    with pytest.raises(Refused):
        await channel.join_once()
    again: Any = KeptChannel(3, recovered=True)
    log.follow(again)

    with pytest.raises(InvariantBroken, match="nothing_missed: messages 1 to 1 of 'topic'"):
        check(Evidence(kept={"topic": log.evidence([1, 2, 3])}), ["nothing_missed"])
