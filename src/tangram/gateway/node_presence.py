"""Presence of all nodes in the channels of one: the roll, connected with Redis."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, Final

import attrs
import trio

from tangram.bus.scripts import FunctionCall
from tangram.channels.membership import Membership
from tangram.channels.presence_rules import PresenceRules
from tangram.errors import BrokerUnavailable
from tangram.presence.keeper import Keeper
from tangram.presence.library import end_call, version_call
from tangram.presence.roll import Flush, Roll
from tangram.presence.sessions import SessionSweeps

__all__ = ["CallNowait", "NodeParts", "NodePresence"]

AUDIT_EVERY: Final = 5
"""Ticks of a second between two comparisons of a topic's version with that on Redis."""

CallNowait = Callable[[FunctionCall, Callable[[Any], None]], None]


@attrs.frozen
class NodeParts:
    """The other nodes, as presence needs them."""

    node: str
    """The id of this node."""
    alive: Callable[[], Collection[str]]
    """Returns the ids of the nodes that are alive."""
    call_nowait: CallNowait
    """Calls a function on Redis without waiting, and hands over its answer or error."""
    grace: float = 5.0
    """Seconds for which members stay whose connection the server has closed."""


class NodePresence:
    """Presence of all nodes, for the channels of one incarnation.

    Args:
        parts: the other nodes.
        call: calls a function on Redis.
        rules: how the members of each topic are shown.
    """

    def __init__(
        self, parts: NodeParts, call: Callable[[FunctionCall], Awaitable[Any]], rules: PresenceRules
    ) -> None:
        node, session = parts.node, f"{parts.node}/{secrets.token_hex(4)}"
        self._parts = parts
        self._call = call
        self._flushed = False
        self._ticks = 0
        self._audits: dict[str, int] = {}
        self.roll: Roll[Membership] = Roll(
            node, session, rules, grace=parts.grace, on_ended=lambda _: self.keeper.look_now()
        )
        self.on_answer: Callable[[], None] = lambda: None
        """Called after each answer that the roll has taken."""
        self.keeper = Keeper(
            node,
            SessionSweeps(node, session, parts.grace),
            limit=rules.limit,
            call=call,
            alive=parts.alive,
            has_members=lambda: bool(self.roll.topics),
            note_ended=self.roll.note_ended,
        )

    async def run(self) -> None:
        """Remove the members of ended sessions, until cancelled."""
        await self.keeper.run()

    def flush(self) -> None:
        """Publish the changes of this node."""
        for flush in self.roll.flush():
            self._flushed = True
            try:
                self._parts.call_nowait(flush.call, partial(self._take_answer, flush))
            except BrokerUnavailable:
                self.roll.failed(flush)

    def _take_answer(self, flush: Flush, answer: Any) -> None:
        if isinstance(answer, Exception):
            # It is repeated with the next change or by the next tick, so that an outage causes no busy loop.
            self.roll.failed(flush)
            return
        self.roll.answered(flush, answer)
        self.on_answer()

    def restored(self) -> None:
        """State all members again: the feed was interrupted, and Redis may have lost them."""
        self.roll.announce()
        self.keeper.look_now()

    def tick(self) -> None:
        """Let the time go on by a second, and compare one topic with Redis from time to time."""
        self.roll.tick()
        self._ticks += 1
        if self._ticks % AUDIT_EVERY == 0:
            self._audit()

    def _audit(self) -> None:
        topic = self.roll.next_audit()
        if topic is None:
            return
        try:
            self._parts.call_nowait(version_call(topic), partial(self._take_version, topic))
        except BrokerUnavailable:
            return

    def _take_version(self, topic: str, answer: Any) -> None:
        if not isinstance(answer, Exception):
            self.roll.audited(topic, int(answer))

    def end(self) -> None:
        """Note on Redis that this session ends as planned."""
        if not self._flushed:
            return
        try:
            self._parts.call_nowait(end_call(self.roll.session, self.roll.node), lambda _: None)
        except BrokerUnavailable:
            return  # the next session of this node, or another node, finds it

    async def members(self, topic: str) -> Mapping[str, str]:
        """Return the external ids of a topic's members on all nodes, by agent."""
        from tangram.presence.library import parse_members, read_call

        known = self.roll.known(topic)
        if known is not None:
            await trio.lowlevel.checkpoint()
            return {ref: id_ for id_, ref in known}
        found = parse_members(await self._call(read_call(topic)))
        return {ref: member.id for ref, member in found.items()}
