"""Pushes for handlers that run on another node, and those that come from there.

1. A plugin that runs on one node at a time has on each other node a `RelayPool` in place of its handlers.
   Order, bounds and deadlines are those of ``pool.py``: one push of a connection at a time is on its way.
2. The node of the handlers counts the answers and checks the payload. The first node knows the sender.
3. Seconds and not a time are sent, because the clocks of two machines differ.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, NamedTuple

import msgspec
import trio

from tangram.channels.disconnects import HANDLER_TIMEOUT, INVALID, RESTARTING, Refusal
from tangram.channels.frames import SocketMessage
from tangram.declared.binding import SENDER, Handler, Named
from tangram.declared.channel import Incoming
from tangram.declared.lanes import Lane, Unanswered, WaitingPush
from tangram.declared.payload import payload_reader
from tangram.declared.pool import PushPool, refused
from tangram.declared.sender import Sender
from tangram.declared.table import Declaration
from tangram.routing.exceptions import InvalidRequest

__all__ = ["INTERRUPTED", "RelayPool", "RelayedPush", "Reply", "handle_relayed"]

PATIENCE: Final = 1.0
"""Seconds after the deadline of a push in which its pool must have answered."""


class RelayedPush(msgspec.Struct, frozen=True):
    """One push on its way to the node of its handler."""

    plugin: str
    topic: str
    event: str
    payload: bytes
    binary: bool
    seconds: float
    """Seconds until the reply."""
    id: str
    connection: str
    address: str
    metadata: bytes
    """A JSON object; numbers of any size fit."""

    @classmethod
    def of(cls, plugin: str, message: SocketMessage, sender: Sender, seconds: float) -> RelayedPush:
        """Return the push of a sender."""
        return cls(
            plugin=plugin,
            topic=message.topic,
            event=message.event,
            payload=message.payload,
            binary=message.binary,
            seconds=seconds,
            id=sender.id,
            connection=sender.connection,
            address=sender.address,
            metadata=json.dumps(dict(sender.metadata)).encode(),
        )

    @property
    def sender(self) -> Sender:
        """The client that sent it."""
        return Sender(
            id=self.id,
            connection=self.connection,
            topic=self.topic,
            address=self.address,
            metadata=json.loads(self.metadata),
        )


class Reply(NamedTuple):
    """The reply to a push."""

    status: Literal["ok", "error"]
    response: msgspec.Raw
    """JSON."""

    @classmethod
    def refusal(cls, refusal: Refusal, error: InvalidRequest | None = None) -> Reply:
        """Return an error reply."""
        return cls("error", msgspec.Raw(msgspec.json.encode(refused(refusal, error))))


class RelayPool(PushPool):
    """The pushes of a plugin that runs on another node.

    Args:
        plugin: the plugin's name.
        send: lets the node of the handler answer a push.
    """

    def __init__(self, plugin: str, send: Callable[[RelayedPush], Awaitable[Reply]]) -> None:
        super().__init__(plugin, (), None)
        self._relay = send

    def handler(self, incoming: Incoming) -> Handler | None:
        """Return a handler that is not called: it has the seconds until the reply."""
        if self._nursery is None:
            return None
        return Handler(incoming, incoming.handler, _UNREAD, _NOTHING, True, incoming.reply_timeout)

    def bind(self, handler: Handler, sender: Sender, parameters: dict[str, str]) -> dict[str, Any]:
        """Return the sender alone: the other node binds the arguments."""
        del handler, parameters
        return {SENDER: sender}

    async def _handle(self, lane: Lane, push: WaitingPush) -> None:
        seconds = push.deadline - trio.current_time()
        relayed = RelayedPush.of(self.plugin, push.message, push.arguments[SENDER], seconds)
        reply = await self._relay(relayed)
        lane.current = None
        self.results[reply.status] += 1
        self._reply(lane, push, reply.status, bytes(reply.response))

    def _may_log(self, push: WaitingPush, kind: str) -> bool:
        """Return False: the node of the handler logs its failures."""
        del push, kind
        return False


_UNREAD: Final = payload_reader(bytes)
_NOTHING: Final = Named((), ())


async def handle_relayed(pool: PushPool | None, found: Declaration | None, push: RelayedPush) -> Reply | None:
    """Let the handlers of this node answer a push; return None if they do not run here.

    Args:
        pool: the running handlers of the plugin.
        found: the declaration of the push on this node.
        push: the push.
    """
    handler = None
    if pool is not None and found is not None and found.plugin == push.plugin:
        handler = pool.handler(found.incoming)
    if pool is None or found is None or handler is None:
        return None
    try:
        arguments = pool.bind(handler, push.sender, found.parameters)
    except InvalidRequest as error:
        pool.results["invalid"] += 1
        return Reply.refusal(INVALID, error)
    deadline = trio.current_time() + min(push.seconds, handler.timeout)
    message = SocketMessage(None, "1", push.topic, push.event, push.payload, push.binary)
    answer = _OneAnswer()
    pool.put(Lane(answer, Unanswered()), WaitingPush(handler, arguments, message, deadline))
    with trio.move_on_at(deadline + PATIENCE):
        await answer.there.wait()
    return answer.reply


class _OneAnswer:
    """Takes the reply to one push."""

    def __init__(self) -> None:
        self.there = trio.Event()
        self.reply = Reply.refusal(HANDLER_TIMEOUT)

    def add(self, push: SocketMessage, status: str, response: bytes) -> None:
        del push
        self.reply = Reply("ok" if status == "ok" else "error", msgspec.Raw(response))

    def flush(self) -> None:
        self.there.set()


INTERRUPTED: Final = Reply.refusal(RESTARTING)
"""The reply where no node runs the handler, or its node ended before it answered."""
