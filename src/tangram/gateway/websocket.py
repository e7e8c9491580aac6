"""Serve a channel connection over any accepted WebSocket.

One reader task and one writer task run. Only the writer writes: messages, and the close frame after them.
Every end of the connection (the client, a full outbox, idleness, a stop, a crash of the server) sets the
disconnect of the outbox, so that there is one path to the close frame.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import structlog
import trio

from tangram.channels.disconnects import CRASH, GONE, TOO_BIG, Disconnect
from tangram.channels.frames import Encoded
from tangram.channels.policy import ConnectInfo
from tangram.gateway.admission import Admission
from tangram.gateway.channels import Channels
from tangram.gateway.session import Frame, Session

__all__ = ["AcceptedWebSocket", "serve_websocket"]

log = structlog.get_logger("tangram.http")

CLOSE_TIMEOUT: Final = 2.0
"""Seconds for the client to take the waiting messages and the close frame."""


BoundMessage = Callable[[Callable[[], int], Callable[[], None]], None]
"""Bounds the messages of a WebSocket by a function's result; another one is called for a larger message."""


class AcceptedWebSocket(Protocol):
    """An accepted WebSocket, as an engine offers it."""

    async def receive(self) -> Frame:
        """Return the next message with its opcode.

        Raises:
            trio.EndOfChannel: the client has gone.
        """

    async def send(self, item: Encoded) -> None:
        """Send one frame."""

    async def close(self, disconnect: Disconnect) -> None:
        """Send the close frame."""


class _WriterWakeup:
    """Wake the writer task, and bound its time once the connection is to end."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.session: Session | None = None
        self._event = trio.Event()

    def wake(self) -> None:
        self._event.set()
        if self.session is not None and self.session.outbox.disconnect is not None:
            self.scope.deadline = min(self.scope.deadline, trio.current_time() + CLOSE_TIMEOUT)

    async def wait(self) -> None:
        await self._event.wait()
        self._event = trio.Event()


async def serve_websocket(
    channels: Channels,
    connection: AcceptedWebSocket,
    info: ConnectInfo,
    admission: Admission,
    *,
    bound: BoundMessage = lambda _size, _too_big: None,
) -> Disconnect:
    """Serve an accepted WebSocket until it ends, and return how it ended.

    Errors of the connection and of the channels end the connection; they are not raised.

    Args:
        channels: the channels of the incarnation.
        connection: the WebSocket.
        info: the request of the upgrade.
        admission: the answer of ``channels.admit``.
        bound: tells the transport how to learn the bytes that a message may have at the moment (few before
            the first join), and what to call for a larger one.
    """
    wakeup = _WriterWakeup()
    session = wakeup.session = channels.connect(info, admission, wakeup.wake)
    bound(lambda: session.max_message, partial(session.outbox.close, TOO_BIG))
    closed = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read, session, connection)
            closed = await _write(session, connection, wakeup)
            nursery.cancel_scope.cancel()
    finally:
        # Also reached when the engine stops and cancels this task: then the client still gets a close frame.
        session.outbox.close(channels.close_reason)
        session.gone()
        if not closed and session.outbox.disconnect != GONE:
            await _close(session, connection)
    assert session.outbox.disconnect is not None
    return session.outbox.disconnect


async def _read(session: Session, connection: AcceptedWebSocket) -> None:
    try:
        while True:
            if session.congested:
                await session.wait_uncongested()
            frame = await connection.receive()
            while session.congested:  # the bus may have filled while the client was silent
                await session.wait_uncongested()
            session.feed([frame])
            if session.unfinished:
                await session.finish()
            if session.outbox.disconnect is not None:
                return
    except trio.EndOfChannel:
        session.outbox.close(GONE)
    except Exception:
        log.exception("connection crashed", conn=session.conn)
        session.outbox.close(CRASH)


async def _write(session: Session, connection: AcceptedWebSocket, wakeup: _WriterWakeup) -> bool:
    """Send messages until the connection is to end.

    Returns:
        False if the time was up before the close frame.
    """
    outbox = session.outbox
    with wakeup.scope:
        try:
            while True:
                for item in outbox.take_all():
                    await connection.send(item)
                    outbox.written(item.size)
                if outbox.disconnect is not None and not len(outbox):
                    break
                await wakeup.wait()
            if outbox.disconnect != GONE:
                await connection.close(outbox.disconnect)
        except Exception as error:  # noqa: BLE001 - any error ends this connection only
            log.debug("connection cannot be written to", conn=session.conn, cause=repr(error))
            outbox.close(GONE)
        return True
    return False


async def _close(session: Session, connection: AcceptedWebSocket) -> None:
    assert session.outbox.disconnect is not None
    with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
        try:
            await connection.close(session.outbox.disconnect)
        except Exception as error:  # noqa: BLE001 - the connection has ended in any case
            log.debug("connection cannot be closed", conn=session.conn, cause=repr(error))
