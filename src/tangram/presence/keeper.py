"""The task that removes the members of sessions that have ended, on behalf of all nodes.

It asks Redis only when there is a reason: at its start, when a node is gone, when a session has ended, and
rarely while this node has members.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, Final, NoReturn

import structlog
import trio

from tangram.bus.library import load_library
from tangram.bus.resp import Link
from tangram.bus.scripts import FunctionCall, Prefixes
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.presence.library import (
    LIBRARY,
    claim_call,
    forget_call,
    parse_sessions,
    sessions_call,
    sweep_call,
)
from tangram.presence.sessions import SessionSweeps, Sweep

__all__ = ["Keeper", "load_presence"]

log = structlog.get_logger("tangram.presence")

RETRY: Final = 1.0
"""Seconds after which a look is repeated that failed, or that found another node sweeping."""
SELDOM: Final = 30.0
"""Seconds between two looks without a reason, while this node has members."""
LOCK: Final = 10.0
"""Seconds for one sweep; another node may go on after them."""
TOPICS_AT_ONCE: Final = 20
"""Topics that are swept at once: Redis serves others between two calls."""


async def load_presence(link: Link) -> Prefixes:
    """Load the functions of presence on a new connection.

    Without them presence is that of one node.
    """
    try:
        return await load_library(link, LIBRARY)
    except BrokerRefused as error:
        log.error(  # noqa: TRY400 - Redis' answer needs no traceback
            "presence is of this node alone: redis allows neither functions nor scripts", cause=str(error)
        )
        return {}


class Keeper:
    """The task of one node.

    Args:
        node: the id of this node.
        sessions: decides which sessions are to be swept.
        limit: returns the members above which a topic shows their number.
        call: calls a function on Redis.
        alive: returns the ids of the nodes that are alive.
        has_members: returns whether this node has members.
        note_ended: called with each session that has ended and has members still.
    """

    def __init__(
        self,
        node: str,
        sessions: SessionSweeps,
        *,
        limit: Callable[[str], int | None],
        call: Callable[[FunctionCall], Awaitable[Any]],
        alive: Callable[[], Collection[str]],
        has_members: Callable[[], bool],
        note_ended: Callable[[str], None],
    ) -> None:
        self._node = node
        self._sessions = sessions
        self._limit = limit
        self._call = call
        self._alive = alive
        self._has_members = has_members
        self._note_ended = note_ended
        self._wake = trio.Event()

    def look_now(self) -> None:
        """Look at once: a node is gone, a session has ended, or Redis is back."""
        self._wake.set()

    async def run(self) -> NoReturn:
        """Sweep until cancelled."""
        while True:
            self._wake = trio.Event()
            pause = await self._look()
            with trio.move_on_after(pause):
                await self._wake.wait()
            await trio.lowlevel.checkpoint()

    async def _look(self) -> float:
        """Sweep the sessions that are due, and return the seconds until the next look."""
        try:
            answer = await self._call(sessions_call())
            found = parse_sessions(answer)
            due = self._sessions.look(trio.current_time(), found, self._alive())
            for session in self._sessions.ended:
                self._note_ended(session)
            done = [await self._sweep(one) for one in due]  # another look follows, which finds them gone
        except BrokerRefused as error:
            log.debug("sessions not read", cause=str(error))
            return SELDOM
        except BrokerUnavailable as error:
            log.debug("members of ended sessions not removed", cause=str(error))
            return RETRY
        if due:
            return 0.0 if all(done) else RETRY
        later = max(0.0, self._sessions.next_due() - trio.current_time())
        return min(later, SELDOM) if self._has_members() else later

    async def _sweep(self, sweep: Sweep) -> bool:
        """Sweep a session; return whether nothing is left to do for this node."""
        session, node, gone = sweep
        topics = await self._call(claim_call(session, node, self._node, LOCK, gone=gone))
        if not isinstance(topics, list):
            return bool(topics == 0)
        begun = trio.current_time()
        limit = trio.CapacityLimiter(TOPICS_AT_ONCE)
        failed: list[BrokerUnavailable] = []
        async with trio.open_nursery() as nursery:
            for topic in topics:
                await limit.acquire_on_behalf_of(topic)
                nursery.start_soon(partial(self._sweep_topic, topic, session, limit, failed))
        if failed:
            raise failed[0]
        await self._call(forget_call(session))
        seconds = round(trio.current_time() - begun, 3)
        log.info("members of an ended session removed", node=node, topics=len(topics), seconds=seconds)
        return True

    async def _sweep_topic(
        self, topic: bytes, session: str, limit: trio.CapacityLimiter, failed: list[BrokerUnavailable]
    ) -> None:
        name = topic.decode()
        try:
            while await self._call(sweep_call(name, session, self._limit(name))):
                pass
        except BrokerUnavailable as error:
            failed.append(error)
        finally:
            limit.release_on_behalf_of(topic)
