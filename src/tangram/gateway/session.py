"""One connection's life over ``receive``, ``send`` and ``close``: a reader and one writer.

Only the writer writes: messages, and the close frame after them. Whatever ends the connection (the peer, a
full outbox, idleness, a stop, a crash of ours) goes through the outbox's named disconnect, so there is one
way out.
"""

from __future__ import annotations

from typing import Final, Protocol

import structlog
import trio

from tangram.channels.disconnects import CRASH, GONE, TOO_BIG, Disconnect
from tangram.channels.frames import BINARY, TEXT, Encoded
from tangram.channels.policy import ConnectInfo
from tangram.gateway.channels import Admission, Channels, Session

__all__ = ["AcceptedWebSocket", "run_session"]

log = structlog.get_logger("tangram.http")

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a peer has to take what is still to be sent once its connection is to be closed."""


class AcceptedWebSocket(Protocol):
    """An accepted WebSocket."""

    async def receive(self) -> bytes | str:
        """The next message; raises ``trio.EndOfChannel`` when the peer has gone."""

    async def send(self, item: Encoded) -> None:
        """One frame."""

    async def close(self, disconnect: Disconnect) -> None:
        """The close frame."""


class _WriterWakeup:
    """Wakes the writer, and bounds what it may still take once the connection is to end."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.session: Session | None = None
        self._event = trio.Event()

    def ring(self) -> None:
        self._event.set()
        if self.session is not None and self.session.outbox.disconnect is not None:
            self.scope.deadline = min(self.scope.deadline, trio.current_time() + CLOSE_TIMEOUT)

    async def wait(self) -> None:
        await self._event.wait()
        self._event = trio.Event()


async def run_session(
    channels: Channels, connection: AcceptedWebSocket, info: ConnectInfo, admission: Admission
) -> Disconnect:
    """Serve an accepted WebSocket until it ends, and tell how it ended. Raises nothing of its own."""
    bell = _WriterWakeup()
    session = bell.session = channels.connect(info, admission, bell.ring)
    told = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read, session, connection, channels.settings.max_message)
            told = await _write(session, connection, bell)
            nursery.cancel_scope.cancel()
    finally:
        # Reached by cancellation too: the engine stops, or the peer has gone; if it has not, it should hear
        # why.
        session.outbox.close(channels.close_reason)
        session.gone()
        if not told and session.outbox.disconnect != GONE:
            await _close(session, connection)
    assert session.outbox.disconnect is not None
    return session.outbox.disconnect


async def _read(session: Session, connection: AcceptedWebSocket, max_message: int) -> None:
    try:
        while True:
            if session.congested:
                await session.wait_uncongested()
            data = await connection.receive()
            if len(data) > max_message:
                session.outbox.close(TOO_BIG)
                return
            session.feed([(TEXT if isinstance(data, str) else BINARY, data)])
    except trio.EndOfChannel:
        session.outbox.close(GONE)
    except Exception:
        log.exception("a connection crashed", conn=session.conn)
        session.outbox.close(CRASH)


async def _write(session: Session, connection: AcceptedWebSocket, bell: _WriterWakeup) -> bool:
    """Send what comes until the connection is to end; True if the peer has been told, or cannot be."""
    outbox = session.outbox
    with bell.scope:
        try:
            while True:
                for item in outbox.take_all():
                    await connection.send(item)
                    outbox.written(len(item.data))
                if outbox.disconnect is not None and not len(outbox):
                    break
                await bell.wait()
            if outbox.disconnect != GONE:
                await connection.close(outbox.disconnect)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this connection only
            log.debug("a connection cannot be written to", conn=session.conn, cause=repr(error))
            outbox.close(GONE)
        return True
    return False


async def _close(session: Session, connection: AcceptedWebSocket) -> None:
    assert session.outbox.disconnect is not None
    with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
        try:
            await connection.close(session.outbox.disconnect)
        except Exception as error:  # noqa: BLE001 - it has ended anyhow
            log.debug("a connection cannot be closed", conn=session.conn, cause=repr(error))
