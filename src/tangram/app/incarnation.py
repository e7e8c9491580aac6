"""The parts of one incarnation of the server, and how they reach each other.

1. `Tree` makes one `Incarnation` for each start of the child ``incarnation``, and puts each part here when
   its child starts. A part that has ended, or has not started yet, is None.
2. The parts look each other up here at the moment of use. So any strategy may restart one part alone
   (``one_for_one``) inside the same incarnation, and no part keeps a reference to one that has ended.
3. A part that is late to end still belongs to its own incarnation, and cannot touch the next one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import attrs
import structlog

from tangram.app.start_gate import StartGate
from tangram.bus import Bus, RedisClient
from tangram.bus.scripts import FunctionCall, Words
from tangram.bus.topics import parse_from
from tangram.cluster import Fencing
from tangram.cluster.placement import HELD_LEASE
from tangram.console.live import LiveStreams
from tangram.declared.pool import PushPool
from tangram.errors import BrokerUnavailable
from tangram.gateway.channels import Channels
from tangram.gateway.tails import Tails
from tangram.pieces import Pieces
from tangram.plugins.host import PluginHost
from tangram.plugins.state import BackendState
from tangram.supervision import Supervisor

if TYPE_CHECKING:
    from tangram.compat.island import Island
    from tangram.web.site import Site

__all__ = ["PLUGIN", "Incarnation"]

MAX_FRAMES: Final = 8
"""Frames between a plugin's code and this module: those of the state, and of generators."""

log = structlog.get_logger("tangram.app")

PLUGIN: Final = "plugin:"
"""The prefix of plugins' child names, so that no plugin can be mistaken for a part of the server."""


@attrs.define(eq=False)
class Incarnation:
    """One incarnation: its supervisor, its plugins' hosts and its parts."""

    hosts: dict[str, PluginHost] = attrs.Factory(dict)
    """The host of each plugin by the plugin's name."""
    supervisor: Supervisor | None = None
    """The supervisor of the parts; None before their start and after their end."""
    state: BackendState | None = None
    bus: Bus | None = None
    fencing: Fencing | None = None
    """Guards the publications of placed plugins; None on a server that is not one of several."""
    channels: Channels | None = None
    site: Site | None = None
    """The web's application."""
    island: Island | None = None
    """The asyncio loop that existing plugins share, if they share one."""
    start_gate: StartGate = attrs.Factory(StartGate)
    """Lets the services of existing plugins start together."""
    live_streams: LiveStreams = attrs.Factory(LiveStreams)
    """The open pages of the console."""
    tails: Tails = attrs.Factory(Tails)
    """The topics that the operator follows."""
    relays: dict[str, PushPool] = attrs.Factory(dict)
    """By plugin: the ways of declared pushes to other nodes, while the web runs on one of several nodes."""
    is_mine: Callable[[str], bool] = lambda _plugin: True
    """Returns whether this node answers for a plugin; see `Placement.is_mine`."""
    topics: dict[str, dict[str, None]] = attrs.Factory(dict)
    """The topics of which each plugin receives the clients' messages, in the order of the subscriptions."""

    @property
    def web_failures(self) -> Mapping[str, str]:
        """The plugins with a part of their HTTP side that is not served, each with the cause."""
        return {} if self.site is None else self.site.failures

    @property
    def has_redis(self) -> bool:
        """Whether the bus is connected to Redis now."""
        return self.bus is not None and self.bus.up

    def require_state(self) -> BackendState:
        """Return the state that the plugins share.

        Raises:
            BrokerUnavailable: the state is restarting.
        """
        if self.state is None:
            raise BrokerUnavailable("the server is between two incarnations; try again")
        return self.state

    def require_bus(self) -> Bus:
        """Return the bus.

        Raises:
            BrokerUnavailable: the bus is restarting.
        """
        if self.bus is None:
            raise BrokerUnavailable("the bus is restarting; try again")
        return self.bus

    def push_pool(self, plugin: str) -> PushPool | None:
        """Return the running handlers of a plugin's pushes, or None."""
        host = self.hosts.get(plugin)
        return None if host is None else host.pushes

    def push_relay(self, plugin: str) -> PushPool | None:
        """Return the way to the handlers of a plugin that runs on another node, or None."""
        return None if self.is_mine(plugin) else self.relays.get(plugin)

    def close_streams(self) -> None:
        """End the answers without an end, which would use up the grace of a stop."""
        self.tails.close()
        self.live_streams.close()

    def deliver(self, batch: Sequence[tuple[bytes, bytes]]) -> None:
        """Hand messages from Redis to the channels; without channels they have no receiver."""
        if self.tails:
            self.tails.deliver(batch)
        if self.channels is not None:
            self.channels.deliver(batch)

    async def publish(self, channel: str | bytes, payload: bytes | str) -> int:
        """Publish a message as `Bus.publish` does, with the token of a placed plugin."""
        if self.fencing is not None and (lease := HELD_LEASE.get()) is not None:
            return await self.fencing.publish(self.require_bus(), lease, channel, payload)
        return await self.require_bus().publish(channel, payload)

    def make_redis_client(self) -> RedisClient:
        """Return the client of Redis for native plugins."""
        return RedisClient(lambda: self.bus, publish=self.publish, guard=self._guard)

    def _guard(self, channel: str | bytes, payload: str | bytes) -> Words | None:
        lease = HELD_LEASE.get()
        return None if lease is None or self.fencing is None else self.fenced_words(lease, channel, payload)

    def fenced_words(
        self, lease: str, channel: str | bytes, payload: str | bytes, recording: FunctionCall | None = None
    ) -> Words:
        """Return the command by which a plugin's own client publishes under a lease.

        Raises:
            BrokerRefused: this node does not hold the lease any more.
            BrokerUnavailable: Redis has not been reached yet.
        """
        fence = self._require_fencing().fence(lease)
        return self.require_bus().words(fence.guard(channel, payload, recording))

    async def take_again(self, lease: str) -> None:
        """Take a lease again, of which Redis has lost the token."""
        await self._require_fencing().take_again(lease)

    def lose(self, lease: str) -> None:
        """Note that another node holds a lease."""
        self._require_fencing().lose(lease)

    def _require_fencing(self) -> Fencing:
        if self.fencing is None:
            raise BrokerUnavailable("the bus has not been started yet")
        return self.fencing

    async def call(self, function: FunctionCall) -> Any:
        """Call a function on Redis as `Bus.call` does."""
        return await self.require_bus().call(function)

    def call_nowait(self, function: FunctionCall, done: Callable[[Any], None]) -> None:
        """Call a function on Redis as `Bus.call_nowait` does."""
        self.require_bus().call_nowait(function, done)

    async def presence(self, topic: str) -> Mapping[str, str]:
        """Return the external ids of a topic's members, by agent.

        Raises:
            BrokerUnavailable: the channels restart, or Redis is away.
            LookupError: the topic has no presence.
        """
        return await self._require_channels().presence(topic)

    def presence_nowait(self, topic: str) -> Mapping[str, str] | None:
        """Return a topic's external ids by agent, or None if Redis has them.

        Raises:
            BrokerUnavailable: the channels restart.
            LookupError: the topic has no presence.
        """
        return self._require_channels().presence_nowait(topic)

    def _require_channels(self) -> Channels:
        if self.channels is None:
            raise BrokerUnavailable("the channels are restarting; try again")
        return self.channels

    def publish_all_nowait(
        self,
        messages: Sequence[tuple[str, bytes | Pieces]],
        done: Callable[[Mapping[int, Exception]], None] | None,
    ) -> None:
        """Publish a batch as `Bus.publish_all_nowait` does."""
        self.require_bus().publish_all_nowait(messages, done)

    def subscribe(self, *patterns: str) -> object:
        """Subscribe as `Bus.subscribe` does, and note the topics of the calling plugin."""
        self._note_topics(patterns)
        return self.require_bus().subscribe(*patterns)

    def _note_topics(self, patterns: Sequence[str]) -> None:
        """Note the topics that the code of a plugin names, for pages that show them to everyone.

        Names that are made at run time are left out: they may contain the id of a client.
        """
        frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - the documented way to see the caller
        for _ in range(MAX_FRAMES):
            if frame is None:
                return
            for name, host in self.hosts.items():
                if host.loaded.owns(frame.f_code.co_filename):
                    named = [value for value in frame.f_globals.values() if isinstance(value, str)]
                    written = {*frame.f_code.co_consts, *named}
                    found = [parse_from(one.encode()) for one in patterns if one in written]
                    self.topics.setdefault(name, {}).update((topic[0], None) for topic in found if topic)
                    return
            frame = frame.f_back

    def publish_event(self, channel: str, payload: bytes) -> None:
        """Publish a supervision event if Redis is connected; the event may be that Redis is away."""
        if self.bus is not None and self.bus.up:
            try:
                self.bus.publish_nowait(channel, payload)
            except BrokerUnavailable:
                log.debug("event not published", channel=channel)
