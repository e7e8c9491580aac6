"""Server-Sent Events: one topic over an ordinary request, for programs and dashboards.

1. ``GET /sse/<topic>?token=TOKEN`` is a connection as any other: admitted, bounded by its outbox, a member of
   the topic. A refused join is answered with a status, before the stream begins.
2. Each event is ``event:`` and ``data:``. If the topic has a history, ``id:`` is a position, and the header
   ``Last-Event-ID``, which browsers send by themselves, is the position from which the client recovers.
3. The stream ends when the server would close the connection or end the membership. The client then comes
   back with its last id.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import msgspec
import trio

from tangram.channels.catchup import POSITION_EVENT
from tangram.channels.disconnects import BUSY, Refusal
from tangram.channels.frames import CLOSE, ERROR, JOIN, REPLY, TEXT, Encoded
from tangram.channels.serializers import V2_TEXT
from tangram.gateway.admission import connect_info
from tangram.gateway.channels import Channels
from tangram.gateway.session import Session
from tangram.routing import APIRouter, Request, Response, StreamingResponse

__all__ = ["format_event", "sse_router"]

KEEP_ALIVE: Final = 15.0
"""Seconds of silence after which a comment is sent: less than the usual timeouts of proxies."""
JOIN_TIMEOUT: Final = 10.0
"""Seconds for the answer to the join."""
_REF: Final = "1"

Frame = tuple[str | None, str | None, str, str, msgspec.Raw]
_decode: Final = msgspec.json.Decoder(Frame).decode


class _Listener:
    """One client of this transport."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.changed = trio.Event()

    def wake(self) -> None:
        """Note that the outbox has work; the hub may be calling."""
        self.changed.set()
        session = self.session
        if session is not None and session.outbox.disconnect is not None:
            # Later, because leaving changes the topics of the hub. The stream may not have begun yet.
            trio.lowlevel.current_trio_token().run_sync_soon(session.gone)

    async def take(self, within: float) -> Sequence[Encoded]:
        """Return the messages that wait; none after ``within`` seconds."""
        assert self.session is not None
        outbox = self.session.outbox
        with trio.move_on_after(within):
            while not len(outbox) and outbox.disconnect is None:
                self.changed = trio.Event()
                await self.changed.wait()
        items = list(outbox.take_all())
        outbox.written(sum(item.size for item in items))
        return items


def format_event(event: str, payload: bytes) -> bytes:
    """Return one event of the stream.

    A position is an ``id:`` alone, which clients keep without reporting an event. The data may have line ends
    of any kind, and an event's name must have none.
    """
    if event == POSITION_EVENT:
        return b"id: %b\n\n" % msgspec.json.decode(payload)["at"].encode()
    name = "".join(event.splitlines()).encode()
    lines = payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"event: %b\n%b\n" % (name, b"".join(b"data: %b\n" % line for line in lines))


def _join_frame(topic: str, token: str | None, last: str) -> bytes:
    payload = {"token": token, "recover": last} if token is not None else {"recover": last}
    return msgspec.json.encode([_REF, _REF, topic, JOIN, payload])


async def _joined(listener: _Listener) -> tuple[dict[str, Any], list[Frame]]:
    """Return the reply to the join, and the frames behind it."""
    with trio.move_on_after(JOIN_TIMEOUT):
        while True:
            frames = [_decode(item.data) for item in await listener.take(JOIN_TIMEOUT)]
            for at, frame in enumerate(frames):
                if frame[3] == REPLY and frame[1] == _REF:
                    reply: dict[str, Any] = msgspec.json.decode(frame[4])
                    return reply, frames[at + 1 :]
            assert listener.session is not None
            if listener.session.outbox.disconnect is not None:
                break
    return {"status": "error", "response": {"reason": BUSY.reason}}, []


async def _stream(listener: _Listener, first: bytes, frames: Sequence[Frame]) -> AsyncIterator[bytes]:
    """Yield the events until the membership or the connection ends."""
    session = listener.session
    assert session is not None
    try:
        yield first
        while True:
            parts: list[bytes] = []
            for _, _, _, event, payload in frames:
                if event in (ERROR, CLOSE):
                    yield b"".join(parts)
                    return
                if event != REPLY:
                    parts.append(format_event(event, bytes(payload)))
            if parts:
                yield b"".join(parts)
            if session.outbox.disconnect is not None:
                return
            items = await listener.take(KEEP_ALIVE)
            frames = [_decode(item.data) for item in items]
            if not items:
                yield b":\n\n"
            session.alive()  # the client has taken the last chunk
    finally:
        session.gone()


def sse_router(channels: Callable[[], Channels | None]) -> APIRouter:
    """Return the route; ``channels`` is called at each request, and None is answered with 503."""
    router = APIRouter(tags=["channels"])

    @router.get("/sse/{topic:path}", include_in_schema=False)
    async def events(request: Request, topic: str) -> Response:
        """Send the events of a topic as Server-Sent Events."""
        owner = channels()
        if owner is None:
            return _refused(BUSY)
        info = connect_info(request.scope)
        admission = owner.admit(info, b"")
        if isinstance(admission, Refusal):
            return _refused(admission)
        listener = _Listener()
        session = owner.connect(info, admission._replace(serializer=V2_TEXT), listener.wake)
        listener.session = session
        token = request.query_params.get("token") or _bearer(info.headers.get("authorization", ""))
        last = info.headers.get("last-event-id", request.query_params.get("recover") or "")
        answered = False
        try:
            session.feed([(TEXT, _join_frame(topic, token, last))])
            reply, rest = await _joined(listener)
            answered = reply["status"] == "ok"
        finally:
            if not answered:
                session.gone()
        if not answered:
            return Response(f"{reply['response'].get('reason', '')}\n", 403, media_type="text/plain")
        response = reply["response"]
        position = response.get("position")
        first = b"" if position is None else b"id: %b\n" % position.encode()
        first += b"event: tangram:joined\ndata: %b\n\n" % msgspec.json.encode(response)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(
            _stream(listener, first, rest), headers=headers, media_type="text/event-stream"
        )

    return router


def _bearer(authorization: str) -> str | None:
    scheme, _, credentials = authorization.partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def _refused(refusal: Refusal) -> Response:
    headers = {"retry-after": "1"} if refusal.retry else {}
    return Response(f"{refusal.reason}\n", refusal.status, headers=headers, media_type="text/plain")
