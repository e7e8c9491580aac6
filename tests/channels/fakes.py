"""Fakes for the channels: settings, a bus that delivers publications back, ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Literal

import attrs
import msgspec

from tangram.channels.outbox import Outbox
from tangram.testing.run.transport import FakeBus

__all__ = ["FakeBus", "Settings", "counting_ids", "drained", "open_outbox"]


@attrs.frozen(kw_only=True)
class Settings:
    """``[channel]`` with its defaults."""

    id_length: int = 8
    ids: Literal["auto", "proven", "open"] = "auto"
    max_backlog: int = 262_144
    max_message: int = 16 * 1024 * 1024
    max_unjoined: int = 65_536
    conflate: Sequence[str] = ()
    max_joins: int = 100
    idle_timeout: float = 90.0
    presence: bool = True
    presence_rate: float = 512 * 1024 * 1024
    push_replies: bool = True
    broadcast_join_ref: bool = False
    jwt_expiration_secs: int = 2_592_000
    token_rate: float = 50.0
    token_burst: float = 2000
    join_rate: float = 200.0
    join_burst: float = 5000
    upgrade_rate: float = 50.0
    upgrade_burst: float = 2000


def counting_ids(prefix: str = "c") -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"{prefix}{next(numbers)}"


def open_outbox(**settings: Any) -> Outbox:
    return Outbox(lambda: None, **settings)


def drained(outbox: Outbox) -> list[object]:
    """Return the waiting messages, decoded: lists for text, bytes for binary."""
    items = outbox.take_all()
    outbox.written(sum(len(item.data) for item in items))
    return [msgspec.json.decode(item.data) if item.opcode == 1 else item.data for item in items]
