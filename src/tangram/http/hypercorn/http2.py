"""HTTP/2 behind Hypercorn: one stream never affects another one, also at a stop.

1. Frames for a stream whose application has ended are dropped: Hypercorn 0.18 would end the connection.
2. A request that Hypercorn cannot decode ends its connection, with HTTP/1.1 too, and counts as no failure of
   the server.
3. At a stop a new stream is refused with REFUSED_STREAM, so that the client may send it again on a new
   connection. GOAWAY is sent after the end of the last response: Hypercorn sends it before, and then loses
   that end and all other responses in flight.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any, Final, cast

import h2.errors
import h2.events
import h2.exceptions
import h11
import trio
from hypercorn.events import Closed
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol

__all__ = ["GuardedProtocol", "send_goaway"]

CLOSE_TIME: Final = 1.0
"""Seconds for the end of the last response to be written before GOAWAY."""


class _EndedStream:
    """A stream whose application has ended."""

    idle = True

    async def handle(self, event: StreamEvent) -> None:
        """Drop the event."""


class _Streams(dict[int, Any]):
    """The streams of a connection by number; a missing one counts as ended."""

    def __missing__(self, number: int) -> _EndedStream:
        return _EndedStream()


class _EmptyLineSkipper:
    """``next_event`` of an h11 connection that drops one empty line before a request.

    RFC 9112, section 2.2, asks for it; h11 answers 400.
    """

    def __init__(self, connection: h11.Connection) -> None:
        self._connection = connection
        self._next_event = connection.next_event
        self._skipped = False

    def __call__(self) -> Any:
        """Return the next event of the connection."""
        connection = self._connection
        if connection.their_state is h11.IDLE and not self._skipped:
            data, _ = connection.trailing_data
            if data == b"\r":
                return h11.NEED_DATA
            if data.startswith(b"\r\n"):
                connection._receive_buffer.maybe_extract_at_most(2)  # noqa: SLF001 - no public method
                self._skipped = True
        event = self._next_event()
        if isinstance(event, h11.Request):
            self._skipped = False
        return event


class GuardedProtocol(ProtocolWrapper):
    """Hypercorn's protocol with the corrections of this module.

    Hypercorn chooses between HTTP/1.1 and HTTP/2, and may change its choice at the first request (h2c).
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name == "protocol" and isinstance(value, H2Protocol):
            _guard_h2(value)
        elif name == "protocol" and isinstance(value, H11Protocol):
            if isinstance(value.connection, h11.Connection):
                cast("Any", value.connection).next_event = _EmptyLineSkipper(value.connection)
            create = value._create_stream  # noqa: SLF001 - no public hook
            cast("Any", value)._create_stream = partial(_create_h11_stream, value, create)  # noqa: SLF001 - same
        super().__setattr__(name, value)


def _guard_h2(protocol: H2Protocol) -> None:
    protocol.streams = _Streams()
    connection = cast("Any", protocol.connection)
    # Hypercorn resets a stream only to refuse it. It sends GOAWAY too early, also when its bound on requests
    # is passed, which this engine sets to 0 at a stop for `connection: close` with HTTP/1.1. `send_goaway`
    # replaces it.
    refused = h2.errors.ErrorCodes.REFUSED_STREAM
    connection.reset_stream = partial(connection.reset_stream, error_code=refused)
    connection.close_connection = _send_no_goaway
    create = protocol._create_stream  # noqa: SLF001 - no public hook
    cast("Any", protocol)._create_stream = partial(_create_h2_stream, protocol, create)  # noqa: SLF001 - same


def _send_no_goaway() -> None:
    """Replace Hypercorn's early GOAWAY."""


async def _create_h2_stream(protocol: H2Protocol, create: Any, request: h2.events.RequestReceived) -> None:
    fields = dict(request.headers or ())
    path = fields.get(b":path")
    if isinstance(path, bytes) and path.isascii():
        with contextlib.suppress(UnicodeDecodeError):
            await create(request)
            return
    await protocol.send(Closed())


async def _create_h11_stream(protocol: H11Protocol, create: Any, request: h11.Request) -> None:
    try:
        await create(request)
    except UnicodeDecodeError:  # the handshake of a WebSocket with a field that is not ASCII
        await protocol._send_error_response(400)  # noqa: SLF001 - no public method
        await protocol.send(Closed())


async def send_goaway(protocol: H11Protocol | H2Protocol) -> None:
    """Send GOAWAY to an HTTP/2 client once its responses are written, or after a second."""
    if not isinstance(protocol, H2Protocol) or protocol.closed:
        return
    with trio.move_on_after(CLOSE_TIME):
        while protocol.stream_buffers:  # noqa: ASYNC110 - Hypercorn has no event for it
            await trio.sleep(0.01)
        try:
            type(protocol.connection).close_connection(protocol.connection)
        except h2.exceptions.ProtocolError:
            return
        await protocol._flush()  # noqa: SLF001 - no public method
