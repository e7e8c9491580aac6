"""Phoenix' LongPoll transport: the channels over ordinary requests.

phoenix.js with ``longPollFallbackMs`` changes to this transport after one failed or slow WebSocket. No answer
of a server makes it change back before the page is loaded again, so the server must speak it.

1. ``GET`` without a known ``token`` opens a session: status 410 and a new token. With a token it waits for
   messages, ``POLL_WINDOW`` seconds at most: status 200 with ``messages``, or 204. ``POST`` has one frame in
   each line: text, or base64 of a binary one. These statuses are in the JSON body, as phoenix.js expects; the
   HTTP status is 200.
2. A session is a connection as any other: admitted, bounded by its outbox, closed when idle. It ends when its
   outbox is closed; the next request gets 410 and the client opens a new session.
3. There are no binary messages to clients: another payload than a JSON object or array is a JSON string.
"""

from __future__ import annotations

import secrets
from base64 import b64decode
from collections.abc import Callable
from typing import Final

import attrs
import msgspec
import trio

from tangram.channels.disconnects import BUSY, Refusal
from tangram.channels.frames import BINARY, TEXT
from tangram.channels.serializers import V2, V2_TEXT
from tangram.gateway.admission import connect_info
from tangram.gateway.channels import Channels
from tangram.gateway.session import Session
from tangram.routing import APIRouter, Request, Response

__all__ = ["POLL_WINDOW", "longpoll_router"]

POLL_WINDOW: Final = 10.0
"""Seconds that a request waits for messages, as in Phoenix; less than the usual timeouts of proxies."""
STEP_FRAMES: Final = 200
"""Frames of a request that are handled before other tasks run: a body can have 100,000."""
PATHS: Final = ("/longpoll", "/websocket/longpoll")
"""The path of phoenix.js for the socket of this server, and that below the WebSocket."""


@attrs.define(eq=False)
class _PollSession:
    """One client of this transport."""

    owner: Channels
    session: Session
    changed: trio.Event = attrs.Factory(trio.Event)
    feeding: trio.Lock = attrs.Factory(trio.Lock)
    """Frames of two requests must not mix."""


class _PollSessions:
    """The open sessions by token; one set for all incarnations."""

    def __init__(self) -> None:
        self._sessions: dict[str, _PollSession] = {}

    def find(self, token: str | None) -> _PollSession | None:
        """Return the open session of a token."""
        return self._sessions.get(token or "")

    def open(self, owner: Channels, request: Request) -> str | Refusal:
        """Admit a client, and return the token of its new session."""
        info = connect_info(request.scope)
        query_string = request.scope["query_string"]
        admission = owner.admit(info, query_string)
        if isinstance(admission, Refusal):
            return admission
        if admission.serializer is V2:
            admission = admission._replace(serializer=V2_TEXT)
        if admission.user_token is None:
            admission = admission._replace(user_token=info.headers.get("x-phoenix-authtoken"))
        token = secrets.token_urlsafe(24)

        def wake() -> None:
            polled = self._sessions.get(token)
            if polled is not None:
                polled.changed.set()
                if polled.session.outbox.disconnect is not None:
                    # Later, because the hub may be calling, and leaving changes its topics.
                    trio.lowlevel.current_trio_token().run_sync_soon(self._end, token)

        self._sessions[token] = _PollSession(owner, owner.connect(info, admission, wake))
        return token

    def _end(self, token: str) -> None:
        polled = self._sessions.pop(token, None)
        if polled is not None:
            polled.session.gone()


async def _poll(polled: _PollSession, token: str) -> Response:
    """Wait for messages of a session, and answer with them."""
    outbox = polled.session.outbox
    polled.session.alive()
    if not len(outbox) and outbox.disconnect is None:
        polled.changed = trio.Event()
        with trio.move_on_after(POLL_WINDOW):
            await polled.changed.wait()
    items = outbox.take_all()
    outbox.written(sum(item.size for item in items))
    messages = [item.data.decode() for item in items]
    if messages:
        return _answer({"status": 200, "token": token, "messages": messages})
    status = 204 if outbox.disconnect is None else 410
    return _answer({"status": status, "token": token, "messages": []})


async def _feed(polled: _PollSession, body: bytes) -> Response:
    """Handle the frames of one request."""
    session = polled.session
    frames: list[tuple[int, bytes | str]] = []
    for line in body.splitlines():
        if line.startswith((b"[", b"{")):
            frames.append((TEXT, line))
        elif line:
            try:
                frames.append((BINARY, b64decode(line, validate=True)))
            except ValueError:
                frames.append((TEXT, line))  # counted as malformed
    async with polled.feeding:
        for start in range(0, len(frames), STEP_FRAMES):
            if start:
                await trio.lowlevel.checkpoint()
            while session.congested:
                await session.wait_uncongested()
            session.feed(frames[start : start + STEP_FRAMES])
            if session.unfinished:
                await session.finish()
    return _answer({"status": 200 if session.outbox.disconnect is None else 410})


def _answer(body: object) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(msgspec.json.encode(body), headers=headers, media_type="application/json")


def longpoll_router(channels: Callable[[], Channels | None]) -> APIRouter:
    """Return the routes; ``channels`` is called at each request, None answers an error."""
    router = APIRouter(tags=["channels"])
    sessions = _PollSessions()

    async def poll(request: Request) -> Response:
        """Open a session, or wait for its messages."""
        token = request.query_params.get("token")
        polled = sessions.find(token)
        if polled is not None and token is not None:
            return await _poll(polled, token)
        owner = channels()
        opened = BUSY if owner is None else sessions.open(owner, request)
        if isinstance(opened, Refusal):
            return _answer({"status": 500 if opened.retry else 403})
        return _answer({"status": 410, "token": opened, "messages": []})

    async def push(request: Request) -> Response:
        """Handle the frames of a session."""
        polled = sessions.find(request.query_params.get("token"))
        return _answer({"status": 410}) if polled is None else await _feed(polled, await request.body())

    for path in PATHS:
        router.get(path, include_in_schema=False)(poll)
        router.post(path, include_in_schema=False)(push)
    return router
