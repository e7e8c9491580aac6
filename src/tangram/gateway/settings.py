"""The settings of ``[channel]`` that the channels read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tangram.channels.policy import GateSettings
from tangram.channels.presence_rules import Mode, PresenceRule, PresenceRules

__all__ = ["ChannelSettings", "PresenceSetting", "presence_rules"]


class PresenceSetting(Protocol):
    """One ``[[channel.presence]]``."""

    @property
    def topics(self) -> str: ...
    @property
    def mode(self) -> Mode: ...
    @property
    def limit(self) -> int: ...


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
    def presence(self) -> bool | Sequence[PresenceSetting]: ...
    @property
    def presence_rate(self) -> float: ...
    @property
    def broadcast_join_ref(self) -> bool: ...
    @property
    def push_replies(self) -> bool: ...


def presence_rules(setting: bool | Sequence[PresenceSetting]) -> PresenceRules | None:
    """Return the rules of presence; None if no topic has any."""
    if setting is False:
        return None
    entries = () if setting is True else setting
    return PresenceRules(PresenceRule(one.topics, one.mode, one.limit) for one in entries)
