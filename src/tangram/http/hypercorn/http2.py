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
from collections.abc import Callable
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
from hypercorn.protocol.h2 import (
    BUFFER_HIGH_WATER,
    BUFFER_LOW_WATER,
    BufferCompleteError,
    H2Protocol,
    StreamBuffer,
)
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.worker_context import EventWrapper
from hyperframe.frame import (
    DataFrame,
    Frame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tangram.http.flood import RESET_COST, ControlBudget
from tangram.http.hypercorn.applications import Applications

__all__ = ["GuardedProtocol", "may_send", "reset_stream", "send_goaway"]

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
    """``next_event`` of an h11 connection that drops an empty line and reports errors.

    RFC 9112, section 2.2, asks for it; h11 answers 400.
    """

    def __init__(self, connection: h11.Connection, on_malformed: Callable[[Exception], None]) -> None:
        self._connection = connection
        self._next_event = connection.next_event
        self._on_malformed = on_malformed
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
        try:
            event = self._next_event()
        except h11.RemoteProtocolError as error:
            self._on_malformed(error)
            raise
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
                control = cast("Applications", value.task_group).connection
                next_event = _EmptyLineSkipper(value.connection, control.malformed)
                cast("Any", value.connection).next_event = next_event
            create = value._create_stream  # noqa: SLF001 - no public hook
            cast("Any", value)._create_stream = partial(_create_h11_stream, value, create)  # noqa: SLF001 - same
        super().__setattr__(name, value)


def _guard_h2(protocol: H2Protocol) -> None:
    protocol.stream_buffers = _StreamBuffers()
    guard = _FrameGuard(protocol)
    cast("Any", protocol)._priority_updated = guard.ignore_priority  # noqa: SLF001 - no public hook
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


class _BoundedBuffer(StreamBuffer):
    """The bytes of one stream that wait for the client's window.

    Hypercorn's own buffer lets the application go on whenever it is asked for bytes, also for none: a window
    of 0 made it hold whole responses.
    """

    async def push(self, data: bytes) -> None:
        """Add bytes, and wait while the buffer is full."""
        if self._complete:
            raise BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        """Take bytes, and let the application go on once the buffer is half empty."""
        length = min(len(self.buffer), max_length)
        data = bytes(self.buffer[:length])
        del self.buffer[:length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class _StreamBuffers(dict[int, StreamBuffer]):
    """The buffers of a connection; Hypercorn's are replaced as they are added."""

    def __setitem__(self, stream_id: int, buffer: StreamBuffer) -> None:
        super().__setitem__(stream_id, _BoundedBuffer(EventWrapper))


class _FrameGuard:
    """Counts the control frames of one connection, and the data that is sent on each stream."""

    def __init__(self, protocol: H2Protocol) -> None:
        connection = cast("Any", protocol.connection)
        self._receive_frame = connection._receive_frame  # noqa: SLF001 - no public hook
        self._send_data = connection.send_data
        self._budget = ControlBudget(trio.current_time())
        self._applications = cast("Applications", protocol.task_group)
        self._receive_data = connection.receive_data
        connection.receive_data = self.receive_data
        connection._receive_frame = self.receive_frame  # noqa: SLF001 - no public hook
        connection.send_data = self.send_data
        self._frames = connection.incoming_buffer
        self._update_headers = self._frames._update_header_buffer  # noqa: SLF001 - no public hook
        self._frames._update_header_buffer = self.update_headers  # noqa: SLF001 - no public hook
        self._max_headers = protocol.config.h2_max_header_list_size

    def update_headers(self, frame: Frame | None) -> Any:
        """Keep the frames of an unfinished header block, up to the size that a whole one may have.

        h2 alone keeps 64 frames of 16 KiB, also of a connection that lingers after its end.
        """
        known = self._update_headers(frame)
        kept = self._frames._headers_buffer  # noqa: SLF001 - no public name
        if kept and sum(len(one.data) for one in kept) > self._max_headers:
            kept.clear()
            raise h2.exceptions.DenialOfServiceError(
                f"unfinished header block: expected at most {self._max_headers} bytes"
            )
        return known

    def receive_data(self, data: bytes) -> Any:
        """Handle received bytes; report those that break the protocol."""
        try:
            return self._receive_data(data)
        except h2.exceptions.DenialOfServiceError:
            self._applications.connection.flooded()
            raise
        except h2.exceptions.ProtocolError as error:
            self._applications.connection.malformed(error)
            raise

    def receive_frame(self, frame: Frame) -> Any:
        """Handle one frame; end the connection with ENHANCE_YOUR_CALM if its budget is used up."""
        cost = _COSTS.get(type(frame), 0)
        if isinstance(frame, DataFrame) and not frame.data and "END_STREAM" not in frame.flags:
            cost = 1
        if cost and not self._budget.spend(cost, trio.current_time()):
            raise h2.exceptions.DenialOfServiceError("too many control frames")
        return self._receive_frame(frame)

    def send_data(self, stream_id: int, data: bytes, **options: Any) -> None:
        """Send data on a stream, which is progress of this stream only."""
        self._send_data(stream_id, data, **options)
        self._budget.earn()
        self._applications.progress(lambda waiting: waiting == stream_id)

    async def ignore_priority(self, _event: h2.events.PriorityUpdated) -> None:
        """Ignore PRIORITY frames: RFC 9113 deprecates them, and their tree has no bound."""


_COSTS: Final[dict[type[Frame], int]] = {
    RstStreamFrame: RESET_COST,
    PriorityFrame: 1,
    WindowUpdateFrame: 1,
    PingFrame: 1,
    SettingsFrame: 1,
}
"""Units that a frame costs; other frames are bounded elsewhere."""


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


def may_send(protocol: object, stream_id: int) -> bool:
    """Return whether the client lets the server send on a stream; always true with HTTP/1.1."""
    if not isinstance(protocol, H2Protocol):
        return True
    try:
        return protocol.connection.local_flow_control_window(stream_id) > 0
    except h2.exceptions.ProtocolError:
        return False


async def reset_stream(protocol: H2Protocol, stream_id: int) -> None:
    """Reset one stream, and let its application know."""
    buffer = protocol.stream_buffers.get(stream_id)
    if buffer is not None:
        await buffer.close()
    with contextlib.suppress(h2.exceptions.ProtocolError):
        type(protocol.connection).reset_stream(protocol.connection, stream_id, h2.errors.ErrorCodes.CANCEL)
    await protocol._flush()  # noqa: SLF001 - no public method
    await protocol._close_stream(stream_id)  # noqa: SLF001 - no public method


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
