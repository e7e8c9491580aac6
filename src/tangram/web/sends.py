"""Wrappers of ASGI's ``send``: one knows the status, the other one answers HEAD."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from tangram.asgi import Message, Send
from tangram.http.engine import ClientGone

__all__ = ["StatusSend", "with_status", "without_body"]


class StatusSend(Protocol):
    """A ``send`` that knows the status of the answer, 0 before its start."""

    @property
    def status(self) -> int: ...
    def __call__(self, message: Message, /) -> Awaitable[None]: ...


def with_status(send: Send) -> StatusSend:
    """Return the ``send`` itself if its engine tells the status, else one that notes it."""
    return send if hasattr(send, "status") else _NotingSend(send)


class _NotingSend:
    """A ``send`` that notes the status, around one of an engine that does not."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def without_body(send: Send) -> Send:
    """Return a ``send`` for a handler of GET that answers HEAD: headers only.

    The response ends with the first part of its body. Further parts raise ``ClientGone``, so that a handler
    that streams without end stops.
    """
    ended = False

    async def send_head(message: Message) -> None:
        nonlocal ended
        if ended:
            raise ClientGone("a response to HEAD has no body")
        if message["type"] == "http.response.body":
            ended = True
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    return send_head
