"""HTTP/2 behind Hypercorn, contained: one stream must not cost another, also at a stop.

1. What comes for a stream whose application has ended is dropped: Hypercorn 0.18 would end the connection.
2. A request that Hypercorn cannot read ends its connection, with HTTP/1.1 too, and is no failure of ours.
3. At a stop a new stream is refused so that it may be sent again elsewhere, and GOAWAY is said after the last
   answer's end: Hypercorn says it before, and with it loses that end, and all other answers in flight.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any, cast

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

__all__ = ["Protocol", "say_goaway"]

CLOSE_TIME = 1.0
"""Seconds for the end of the last answer to leave before GOAWAY."""


class _Nobody:
    """Stands for a stream whose application has ended."""

    idle = True

    async def handle(self, event: StreamEvent) -> None:
        """Nobody hears it."""


class _Streams(dict[int, Any]):
    """A connection's streams by number; those that are over are nobody's."""

    def __missing__(self, number: int) -> _Nobody:
        return _Nobody()


class Protocol(ProtocolWrapper):
    """Hypercorn's choice between HTTP/1.1 and HTTP/2, which it may change at the first request (h2c)."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "protocol" and isinstance(value, H2Protocol):
            _contain(value)
        elif name == "protocol" and isinstance(value, H11Protocol):
            cast("Any", value)._create_stream = partial(_create_h11, value, value._create_stream)  # noqa: SLF001
        super().__setattr__(name, value)


def _contain(protocol: H2Protocol) -> None:
    protocol.streams = _Streams()
    connection = cast("Any", protocol.connection)
    # Hypercorn resets a stream only to refuse it. Its GOAWAY comes too soon, also when the bound on requests
    # is passed, by which HTTP/1.1 is told `connection: close`: `say_goaway` is ours.
    refused = h2.errors.ErrorCodes.REFUSED_STREAM
    connection.reset_stream = partial(connection.reset_stream, error_code=refused)
    connection.close_connection = _later
    cast("Any", protocol)._create_stream = partial(_create_stream, protocol, protocol._create_stream)  # noqa: SLF001


def _later() -> None:
    """In the place of Hypercorn's GOAWAY."""


async def _create_stream(protocol: H2Protocol, create: Any, request: h2.events.RequestReceived) -> None:
    fields = dict(request.headers or ())
    path = fields.get(b":path")
    if isinstance(path, bytes) and path.isascii():
        with contextlib.suppress(UnicodeDecodeError):
            await create(request)
            return
    await protocol.send(Closed())


async def _create_h11(protocol: H11Protocol, create: Any, request: h11.Request) -> None:
    try:
        await create(request)
    except UnicodeDecodeError:  # a WebSocket's handshake with a field that is not ASCII
        await protocol._send_error_response(400)  # noqa: SLF001
        await protocol.send(Closed())


async def say_goaway(protocol: H11Protocol | H2Protocol) -> None:
    """Tell an HTTP/2 client that the connection ends, after what it is still to get."""
    if not isinstance(protocol, H2Protocol) or protocol.closed:
        return
    with trio.move_on_after(CLOSE_TIME):
        while protocol.stream_buffers:  # noqa: ASYNC110  # Hypercorn has no event for it
            await trio.sleep(0.01)
        try:
            type(protocol.connection).close_connection(protocol.connection)
        except h2.exceptions.ProtocolError:
            return
        await protocol._flush()  # noqa: SLF001
