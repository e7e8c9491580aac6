"""WebSockets behind Hypercorn: a bounded message buffer, pings, and the close at a stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import trio
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WebsocketBuffer, WSStream
from wsproto.events import Ping

from tangram.http.pending import PendingItem

__all__ = ["BoundedMessage", "close_websocket", "connected_websockets", "ping_websocket"]


class BoundedMessage(WebsocketBuffer):
    """The fragments of one message, bounded: Hypercorn's own buffer grows past its bound."""

    def __init__(self, max_length: int, on_too_large: Callable[[], None], pending: PendingItem) -> None:
        super().__init__(max_length)
        self._on_too_large = on_too_large
        self._pending = pending
        self._over = False

    def extend(self, event: Any) -> None:
        """Add a fragment; raise ``FrameTooLargeError`` for a message too large or dropped."""
        if not self._over and self.length + len(event.data) <= self.max_length:
            super().extend(event)
            self._pending.update(self.length)
            if not self._over:
                return
        self.clear()
        if not self._over:
            self._over = True
            self._on_too_large()
        raise FrameTooLargeError

    def clear(self) -> None:
        """Forget the fragments."""
        super().clear()
        self._pending.update(0)

    def drop(self) -> None:
        """Forget the fragments, and all that follow."""
        self._over = True
        self.clear()


def connected_websockets(protocol: object) -> list[WSStream]:
    """Return the WebSockets of a connection whose handshake is complete."""
    if isinstance(protocol, H2Protocol):
        streams = list(protocol.streams.values())
    elif isinstance(protocol, H11Protocol) and protocol.stream is not None:
        streams = [protocol.stream]
    else:
        streams = []
    return [
        stream
        for stream in streams
        if isinstance(stream, WSStream) and stream.state is ASGIWebsocketState.CONNECTED
    ]


async def ping_websocket(stream: WSStream) -> None:
    """Send one ping."""
    await stream._send_wsproto_event(Ping())  # noqa: SLF001 - Hypercorn has no public method


async def close_websocket(stream: WSStream, code: int, *, timeout: float) -> None:
    """Send the close frame and wait for that of the client, for ``timeout`` seconds together."""
    with trio.move_on_after(timeout):
        await stream.app_send(cast("Any", {"type": "websocket.close", "code": code, "reason": ""}))
        while not stream.closed:  # noqa: ASYNC110 - Hypercorn has a flag only
            await trio.sleep(0.05)
