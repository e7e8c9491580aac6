"""Declared pushes between nodes, as requests of the internal listener.

No client can send one: the envelope of such a request has the digest of its body, so that the proof covers
sender and payload, too. A push goes the way of a POST: it waits for a node that runs the plugin, and no
handler sees it twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

import msgspec
import trio

from tangram.asgi import Message, Receive, Scope, Send, send_json
from tangram.channels.disconnects import RESTARTING, Refusal
from tangram.declared.relay import INTERRUPTED, RelayedPush, Reply
from tangram.http.engine import ClientGone
from tangram.http.forward.forwarder import PUSH, Forwarder
from tangram.http.forward.receiver import FORWARDED, refuse_moved
from tangram.routing import ResponseAborted

__all__ = ["PushForwarder", "PushReceiver"]

_decode_push: Final = msgspec.msgpack.Decoder(RelayedPush).decode
_decode_reply: Final = msgspec.json.Decoder(Reply).decode

Handle = Callable[[RelayedPush], Awaitable[Reply | None]]
"""Lets the handlers of this node answer a push; returns None if they do not run here."""


class PushForwarder:
    """Sends pushes to the nodes that run their plugins.

    Args:
        forwarder: the way of requests.
        handle: answers a push whose plugin runs here by now.
        why: returns the refusal for a plugin that runs on no node, as this one knows it.
    """

    def __init__(
        self, forwarder: Forwarder, handle: Handle, why: Callable[[str], Refusal] = lambda _: RESTARTING
    ) -> None:
        self._forwarder = forwarder
        self._handle = handle
        self._why = why

    async def send(self, push: RelayedPush) -> Reply:
        """Return the reply of the node that runs the handler."""
        body = msgspec.msgpack.encode(push)
        answer = _Answer(body)
        try:
            served = await self._forwarder.forward(push.plugin, _scope(body), answer.receive, answer.send)
        except (ClientGone, ResponseAborted, OSError):
            return INTERRUPTED
        if served is not None:
            return await self._handle(push) or INTERRUPTED
        return Reply.refusal(self._why(push.plugin)) if answer.given_up else answer.reply()


class PushReceiver:
    """Answers pushes of other nodes, and hands other requests on.

    Args:
        handle: answers a push.
        serve: answers everything else.
        max_body: bytes of a push with its sender.
    """

    def __init__(
        self, handle: Handle, serve: Callable[[Scope, Receive, Send], Awaitable[None]], *, max_body: int
    ) -> None:
        self._handle = handle
        self._serve = serve
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a proven request: ASGI."""
        digest = scope[FORWARDED].push
        if not digest:
            await self._serve(scope, receive, send)
            return
        body = await self._read(receive)
        if body is None or hashlib.sha256(body).hexdigest() != digest:
            await send_json(scope, send, 400, {"detail": "the body is not the one of the envelope"})
            return
        try:
            push = _decode_push(body)
        except msgspec.MsgspecError as error:
            await send_json(scope, send, 400, {"detail": str(error)})
            return
        reply = await self._handle(push)
        if reply is None:
            await refuse_moved(scope)
        else:
            await send_json(scope, send, 200, reply)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body, or None if it is too large or broke off."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_body:
                return None
            if not message.get("more_body", False):
                return bytes(body)


def _scope(body: bytes) -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(b"content-length", b"%d" % len(body))],
        "http_version": "1.1",
        "scheme": "http",
        PUSH: hashlib.sha256(body).hexdigest(),
    }


class _Answer:
    """The client's side of the request of one push."""

    def __init__(self, body: bytes) -> None:
        self._parts = [body]
        self._status = 0
        self._received = b""

    async def receive(self) -> Message:
        if not self._parts:
            await trio.sleep_forever()  # the deadline of the push ends it
        await trio.lowlevel.checkpoint()
        return {"type": "http.request", "body": self._parts.pop(), "more_body": False}

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            self._status = message["status"]
        else:
            self._received += message.get("body", b"")

    @property
    def given_up(self) -> bool:
        """Whether no node runs the plugin: no handler has seen the push."""
        return self._status == HTTPStatus.SERVICE_UNAVAILABLE

    def reply(self) -> Reply:
        """Return the reply; an answer of 502 is that of an interrupted push."""
        if self._status != 200:
            return INTERRUPTED
        try:
            return _decode_reply(self._received)
        except msgspec.MsgspecError:
            return INTERRUPTED
