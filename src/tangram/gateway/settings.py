"""The settings of ``[channel]`` that the channels read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tangram.channels.policy import GateSettings

__all__ = ["ChannelSettings"]


class ChannelSettings(GateSettings, Protocol):
    """The settings of ``[channel]``, by the names that docs/configuration.md explains."""

    @property
    def id_length(self) -> int: ...
    @property
    def max_backlog(self) -> int: ...
    @property
    def max_message(self) -> int: ...
    @property
    def max_unjoined(self) -> int: ...
    @property
    def conflate(self) -> Sequence[str]: ...
    @property
    def max_joins(self) -> int: ...
    @property
    def idle_timeout(self) -> float: ...
    @property
    def presence(self) -> bool: ...
    @property
    def presence_rate(self) -> float: ...
    @property
    def broadcast_join_ref(self) -> bool: ...
    @property
    def push_replies(self) -> bool: ...
