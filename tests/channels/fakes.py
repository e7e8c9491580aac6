"""Fakes behind the channels' seams: settings, a bus that loops publishes back, ids that count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count

import attrs
import msgspec

from tangram.channels.outbox import Outbox
from tangram.errors import BrokerUnavailable

Done = Callable[[Mapping[int, Exception]], None]


@attrs.frozen(kw_only=True)
class Settings:
    """``[channel]`` with its defaults."""

    id_length: int = 8
    max_backlog: int = 262_144
    max_message: int = 16 * 1024 * 1024
    conflate: Sequence[str] = ()
    max_joins: int = 100
    idle_timeout: float = 90.0
    presence: bool = True
    push_replies: bool = True
    jwt_expiration_secs: int = 2_592_000
    token_rate: float = 50.0
    token_burst: float = 2000
    join_rate: float = 200.0
    join_burst: float = 5000
    upgrade_rate: float = 50.0
    upgrade_burst: float = 2000


@attrs.define
class FakeBus:
    """Takes publishes; gives what begins with ``to:`` straight back, as one Redis would."""

    up: bool = True
    published: list[tuple[str, bytes]] = attrs.Factory(list)
    sink: Callable[[Sequence[tuple[bytes, bytes]]], None] | None = None
    hold: bool = False
    held: list[Done] = attrs.Factory(list)

    def publish_nowait(self, channel: str, payload: bytes) -> None:
        self.publish_all([(channel, payload)])

    def publish_all(self, messages: Sequence[tuple[str, bytes]], done: Done | None = None) -> None:
        if not self.up:
            if done is not None:
                done(dict.fromkeys(range(len(messages)), BrokerUnavailable("redis is away")))
            return
        self.published += messages
        for channel, payload in messages:
            if self.sink is not None and channel.startswith("to:"):
                self.sink([(channel.encode(), payload)])
        if done is not None:
            if self.hold:
                self.held.append(done)
            else:
                done({})

    def names(self, prefix: str = "") -> list[str]:
        return [channel for channel, _ in self.published if channel.startswith(prefix)]

    def payloads(self, channel: str) -> list[bytes]:
        return [payload for name, payload in self.published if name == channel]


def counting_ids(prefix: str = "c") -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"{prefix}{next(numbers)}"


def open_outbox(**settings: int) -> Outbox:
    return Outbox(lambda: None, **settings)


def drained(outbox: Outbox) -> list[object]:
    """What waits, decoded: lists for text, bytes for binary."""
    items = outbox.take_all()
    outbox.written(sum(len(item.data) for item in items))
    return [msgspec.json.decode(item.data) if item.opcode == 1 else item.data for item in items]
