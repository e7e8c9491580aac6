"""Routes of the operator about topics: list them, follow one, publish and push.

All of them need the operator's token, because payloads are the data of plugins and their users.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Protocol

import attrs

from tangram.bus.topics import from_channel, to_channel
from tangram.errors import BrokerUnavailable
from tangram.gateway.tails import MAX_TAILS, Tails
from tangram.routing import APIRouter, HTTPException, InvalidRequest, JSONResponse, Query, Request
from tangram.routing.exceptions import Problem
from tangram.routing.responses import StreamingResponse, encode_json

__all__ = ["TopicControl", "add_topic_routes"]

_NO_STORE: Final = {"cache-control": "no-store"}
_REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    401: {"description": "The operator's token is needed"},
    503: {"description": "The channels restart, or Redis is away"},
}
NDJSON: Final = "application/x-ndjson"


class TopicControl(Protocol):
    """The topics of the running server, as the operator's routes see them."""

    def topics(self) -> Sequence[Mapping[str, Any]] | None:
        """Return the numbers of each topic with members, or None while the channels restart."""
        ...

    @property
    def tails(self) -> Tails:
        """The topics that the operator follows."""
        ...

    async def publish(self, channel: str, payload: bytes) -> int:
        """Publish on Redis, and return the number of Redis clients that received it.

        Raises:
            BrokerUnavailable: Redis is away.
        """
        ...


class Access(Protocol):
    """The check of the operator's token."""

    def require_token(self, request: Request) -> None:
        """Raise 401 for a request without it."""
        ...


@attrs.frozen
class TopicMessage:
    """The body of ``/-/publish`` and ``/-/push``."""

    topic: str
    event: str
    payload: Any = attrs.field(factory=dict)


def add_topic_routes(router: APIRouter, control: TopicControl, access: Access) -> None:
    """Add the routes to the operator's router."""

    @router.get("/topics", summary="The topics", responses=_REFUSALS)
    async def topics(request: Request) -> JSONResponse:
        """Return members, messages, sent bytes and backlog of each topic that has members."""
        access.require_token(request)
        listed = control.topics()
        if listed is None:
            raise HTTPException(503, "the channels are restarting", {"retry-after": "1"})
        return JSONResponse(listed, headers=_NO_STORE)

    @router.get(
        "/tail",
        summary="Follow a topic",
        responses={**_REFUSALS, 200: {"description": "A JSON object a line", "content": {NDJSON: {}}}},
    )
    async def tail(
        request: Request, topic: Annotated[str, Query(min_length=1)], event: str | None = None
    ) -> StreamingResponse:
        """Stream the messages of a topic as JSON lines, until the client goes or the server stops.

        Empty lines are heartbeats. A line with ``dropped`` counts messages that were left out, because there
        were more than 500 a second or the client reads too slowly.
        """
        access.require_token(request)
        if control.tails.full:
            raise HTTPException(503, f"{MAX_TAILS} topics are followed already", {"retry-after": "5"})
        headers = {**_NO_STORE, "x-accel-buffering": "no"}
        return StreamingResponse(_lines(control.tails, topic, event), headers=headers, media_type=NDJSON)

    @router.post("/publish", summary="Publish to a topic's members", responses=_REFUSALS)
    async def publish(request: Request, message: TopicMessage) -> JSONResponse:
        """Send a message to every browser that has joined the topic, on all nodes."""
        access.require_token(request)
        return await _publish(control, message, to_channel)

    @router.post("/push", summary="Push to the plugins", responses=_REFUSALS)
    async def push(request: Request, message: TopicMessage) -> JSONResponse:
        """Publish a message as if a browser had pushed it; plugins that subscribed receive it."""
        access.require_token(request)
        return await _publish(control, message, from_channel)


async def _lines(tails: Tails, topic: str, event: str | None) -> AsyncIterator[bytes]:
    with tails.open(topic, event) as tail:
        yield b"\n"  # the head of the response is sent with it
        while (lines := await tail.next_lines()) is not None:
            yield lines


async def _publish(
    control: TopicControl, message: TopicMessage, channel_of: Callable[[str, str], str]
) -> JSONResponse:
    problems = []
    if not message.topic:
        problems.append(Problem(("body", "topic"), "expected a topic, got ''", "string_too_short"))
    if not message.event or ":" in message.event or message.event.startswith("phx_"):
        what = f"expected an event without a colon that does not begin with 'phx_', got {message.event!r}"
        problems.append(Problem(("body", "event"), what, "value_error"))
    if problems:
        raise InvalidRequest(problems)
    try:
        receivers = await control.publish(
            channel_of(message.topic, message.event), encode_json(message.payload)
        )
    except BrokerUnavailable as error:
        raise HTTPException(503, str(error), {"retry-after": "1"}) from None
    return JSONResponse(
        {"topic": message.topic, "event": message.event, "receivers": receivers}, headers=_NO_STORE
    )
