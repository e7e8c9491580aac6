"""WebSockets behind Hypercorn: a bounded message buffer, pings, and the close at a stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import trio
from hypercorn.protocol.events import Body, Data, Event
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WebsocketBuffer, WSStream
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Ping, TextMessage

from tangram.channels.frames import BINARY, TEXT
from tangram.http.flood import ControlBudget
from tangram.http.hypercorn.pieces import FramePieces, WebSocketFrames
from tangram.http.pending import PendingItem
from tangram.pieces import PieceBuffer
from tangram.turns import ClientTurns

__all__ = [
    "OPCODE",
    "BoundedMessage",
    "FrameGuard",
    "close_websocket",
    "connected_websockets",
    "ping_websocket",
    "watch_close",
]

STEP_FRAMES: Final = 32
"""Frames that are handled in one step: each takes Hypercorn 20 to 50 µs."""

PIECE: Final = 65536
"""Bytes that are handled in one step."""


OPCODE: Final = "tangram.opcode"
"""The key of the opcode in a message whose payload is ``bytes``, also that of a text, or ``Pieces``."""


class BoundedMessage(WebsocketBuffer):
    """The fragments of one message, bounded: Hypercorn's own buffer grows past its bound.

    For an application that calls ``bound``, a large message stays in pieces, and texts stay UTF-8.
    """

    def __init__(self, max_length: int, on_too_large: Callable[[], None], pending: PendingItem) -> None:
        super().__init__(max_length)
        self._size: Callable[[], int] = lambda: max_length
        self._on_too_large = on_too_large
        self._pending = pending
        self._over = False
        self._pieces: PieceBuffer | None = None
        self._opcode = BINARY

    def extend(self, event: Any) -> None:
        """Add a fragment; raise ``FrameTooLargeError`` for a message too large or dropped."""
        data = event.data
        if self._pieces is not None and isinstance(data, str):
            data = data.encode()
        if not self._over and self.length + len(data) <= min(self.max_length, self._size()):
            if self._pieces is None:
                super().extend(event)
            else:
                self._opcode = TEXT if isinstance(event, TextMessage) else BINARY
                self._pieces.append(bytes(data))
                self.length += len(data)
            self._pending.update(self.length)
            if not self._over:
                return
        self.clear()
        if not self._over:
            self._over = True
            self._on_too_large()
        raise FrameTooLargeError

    def bound(self, size: Callable[[], int], on_too_large: Callable[[], None]) -> None:
        """Bound the message further, by a size that is asked for with each fragment.

        ``on_too_large`` is called in addition to that of the constructor.
        """
        self._size = size
        self._pieces = PieceBuffer()
        end_soon = self._on_too_large

        def both() -> None:
            on_too_large()
            end_soon()

        self._on_too_large = both

    def to_message(self) -> dict[str, Any]:
        """Return the event of the message; that of the channels has an ``OPCODE``."""
        if self._pieces is None:
            return super().to_message()
        return {"type": "websocket.receive", "bytes": self._pieces.take(), OPCODE: self._opcode}

    def clear(self) -> None:
        """Forget the fragments."""
        super().clear()
        if self._pieces is not None:
            self._pieces = PieceBuffer()
        self._pending.update(0)

    def drop(self) -> None:
        """Forget the fragments, and all that follow."""
        self._over = True
        self.clear()


class FrameGuard:
    """Passes a WebSocket's bytes on in pieces, and ends a flood of small frames.

    Args:
        stream: the WebSocket; its ``handle`` is replaced.
        turns: those of its client.
        on_flood: ends the connection.
    """

    def __init__(self, stream: WSStream, turns: ClientTurns, on_flood: Callable[[], None]) -> None:
        self._stream = stream
        self._handle_piece = stream.handle
        self._turns = turns
        self._on_flood = on_flood
        self._frames = WebSocketFrames()
        self._pieces = FramePieces(self._frames, STEP_FRAMES, PIECE)
        self._budget = ControlBudget(trio.current_time())
        self._heavy = self._flooded = False
        cast("Any", stream).handle = self.handle

    async def handle(self, event: Event) -> None:
        """Handle an event of the stream: bytes in pieces, in turns with other clients."""
        if not isinstance(event, Body | Data) or not self._stream.handshake.accepted:
            await self._handle_piece(event)
            return
        heavy, count = self._heavy or len(event.data) >= PIECE, 0
        for piece in self._pieces.cut(event.data):
            if heavy or count:
                await self._turns.wait()
            if not self._flooded:
                await self._take(Data(stream_id=event.stream_id, data=piece))
            count += 1
        self._heavy = count > 1

    async def _take(self, piece: Data) -> None:
        small, self._frames.small = self._frames.small, 0
        if small and not self._budget.spend(small, trio.current_time()):
            self._flooded = True
            self._on_flood()
            return
        await self._handle_piece(piece)


def watch_close(stream: WSStream, on_close: Callable[[int, str], None]) -> None:
    """Call ``on_close`` with the code and the reason of the client's close frame.

    Hypercorn answers the frame with the same ones at once, and reports 1006 to the application.
    """
    send_event = stream._send_wsproto_event  # noqa: SLF001 - Hypercorn has no public method

    async def send(event: Any) -> None:
        if isinstance(event, CloseConnection) and stream.connection.state is ConnectionState.REMOTE_CLOSING:
            on_close(int(event.code), event.reason or "")
        await send_event(event)

    cast("Any", stream)._send_wsproto_event = send  # noqa: SLF001 - as above


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
