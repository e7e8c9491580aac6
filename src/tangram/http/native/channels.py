"""The WebSocket of a channel on the native engine.

The socket feeds the session, and the pump empties the session's outbox.

One task reads from all sockets (``readiness``). A connection's own task wakes up for reads that are too much
for one step, and for the end. The frames of one read are handled as a batch, and the answers to them are sent
in one write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import structlog
import trio
from websockets.protocol import OPEN

from tangram.asgi import Scope
from tangram.channels.disconnects import (
    ABUSE,
    BUSY,
    CRASH,
    FLOOD,
    GONE,
    MEMORY,
    RESTART,
    SHUTDOWN,
    SLOW_MESSAGE,
    TOO_BIG,
    Disconnect,
    Refusal,
)
from tangram.gateway.admission import connect_info
from tangram.gateway.channels import Channels
from tangram.gateway.pump import Pump
from tangram.gateway.session import Session
from tangram.http.flood import ControlBudget
from tangram.http.native.connection import HttpConnection
from tangram.http.native.handshake import prepare_upgrade
from tangram.http.native.head import RejectedRequest, RequestHead
from tangram.http.native.message_assembly import COMPRESSED_READ, MessageAssembler
from tangram.http.native.stream import READ_SIZE, ClientStream
from tangram.http.pending import PendingBytes
from tangram.readiness import Readiness

__all__ = ["ChannelSocket", "channels_getter", "serve_channel"]

log = structlog.get_logger("tangram.http")

_RETRY: Final = b"retry-after: 1\r\n"


async def serve_channel(
    connection: HttpConnection,
    request: RequestHead,
    scope: Scope,
    channels: Channels | None,
    *,
    compression: bool,
    ping_interval: float,
) -> None:
    """Accept a channel's WebSocket, and start the task that serves it to its end.

    Raises:
        RejectedRequest: the handshake is wrong, or the channels do not admit the client.
    """
    if channels is None:
        raise _rejected(BUSY)
    upgrade = prepare_upgrade(request, max_message=channels.settings.max_message, compression=compression)
    info = connect_info(scope)
    admission = channels.admit(info, request.query, upgrade.subprotocols)
    if isinstance(admission, Refusal):
        raise _rejected(admission)
    host, stream = connection.host, connection.stream
    pump = Pump(
        stream,
        upgrade.protocol,
        spawn=host.spawn,
        write_timeout=host.settings.write_timeout,
        statistics=host.pumps,
    )
    try:
        session = channels.connect(info, admission, pump.wake)
    except Exception:
        # Rejected before the handshake is complete, so that the client learns the reason.
        log.exception("channel session failed to start", address=info.address)
        raise RejectedRequest(500, CRASH.reason) from None
    session.transport = stream.sock
    assembler = MessageAssembler(upgrade.protocol, session.max_message)
    stream.readiness = host.readiness
    socket = ChannelSocket(
        stream,
        assembler,
        session,
        pump,
        pending=host.engine.pending,
        readiness=host.readiness,
        ping_interval=ping_interval,
    )
    connection.upgraded = socket
    try:
        await stream.write(upgrade.response(admission.subprotocol))
    except BaseException:
        socket.end()
        raise
    pump.attach(session.outbox)
    connection.adopted = True
    host.engine.adopt(connection, stream.sock, stream.client, partial(_serve, connection, socket))


async def _serve(connection: HttpConnection, socket: ChannelSocket) -> None:
    engine = connection.host.engine
    engine.websockets += 1
    try:
        await socket.run()
    finally:
        engine.websockets -= 1
        socket.end()
        connection.abort()


def _rejected(refusal: Refusal) -> RejectedRequest:
    return RejectedRequest(refusal.status, refusal.reason, _RETRY if refusal.retry else b"")


class ChannelSocket:
    """One accepted connection of the channels."""

    __slots__ = (
        "_assembler",
        "_before_join",
        "_budget",
        "_heavy",
        "_pending",
        "_ping_interval",
        "_pinged_at",
        "_protocol",
        "_pump",
        "_read_size",
        "_readiness",
        "_session",
        "_stream",
    )

    def __init__(
        self,
        stream: ClientStream,
        assembler: MessageAssembler,
        session: Session,
        pump: Pump,
        *,
        pending: PendingBytes,
        readiness: Readiness,
        ping_interval: float,
    ) -> None:
        self._stream = stream
        self._assembler = assembler
        self._protocol = assembler.protocol
        self._before_join = True
        self._budget = ControlBudget(trio.current_time())
        self._heavy = False
        """Whether the last read was too much for one step."""
        self._read_size = COMPRESSED_READ if assembler.protocol.extensions else READ_SIZE
        self._readiness = readiness
        self._session = session
        self._pump = pump
        self._pending = pending.item(lambda: session.info.address, self._drop_message)
        self._ping_interval = ping_interval
        self._pinged_at = trio.current_time()

    # Called by the engine.

    def start_close(self, code: int) -> bool:
        """Send the backlog, then the close frame."""
        self._session.outbox.close(SHUTDOWN if code == SHUTDOWN.code else RESTART)
        return True

    def tick(self, now: float) -> None:
        """Ping a silent client; close one whose message takes too long."""
        if self._pending.is_late(now):
            self._end_message(SLOW_MESSAGE)
        if now - max(self._pinged_at, self._session.last_seen) >= self._ping_interval:
            self._pinged_at = now
            self._pump.ping()

    def _drop_message(self) -> None:
        """Close the connection because the unfinished messages of all clients are too many."""
        self._end_message(MEMORY)

    def _end_message(self, disconnect: Disconnect) -> None:
        self._assembler.discard()
        self._pending.update(0)
        self._session.outbox.close(disconnect)

    # The connection's own task.

    async def run(self) -> None:
        """Send the backlog, and read until one side closes."""
        stream = self._stream
        self._pump.attach(self._session.outbox)
        data, stream.buffer = stream.buffer, b""
        try:
            go_on = not data or await self._take_all(data)
            while go_on and not stream.closed:
                follow = await self._readiness.serve(stream.sock, self._read)
                go_on = await follow()
        except (OSError, trio.ClosedResourceError):
            return
        if self._protocol.parser_exc is not None and not stream.closed:
            # Our close frame is on its way while the client still sends: a reset would drop the frame.
            await stream.linger()

    def _read(self) -> Callable[[], Awaitable[bool]] | None:
        """Read once, and handle the bytes in one step; called when the socket has bytes.

        Returns:
            None if the next read may follow, else what the connection's task has to do before it: it returns
            whether to read on.
        """
        session = self._session
        if session.congested:
            return self._wait_uncongested
        try:
            data = self._stream.sock.recv(self._read_size)
        except BlockingIOError:
            return None
        if self._heavy or len(data) == self._read_size:
            return partial(self._take_all, data)
        if not data or not self._take(data):
            return _end
        return self._take_rest if session.unfinished or self._assembler.more else None

    async def _wait_uncongested(self) -> bool:
        await self._session.wait_uncongested()
        self._pending.restart()
        return True

    async def _take_all(self, data: bytes) -> bool:
        """Handle the bytes of one read; return whether to read on.

        The first step is done at once, unless the read is full or the last one was too much for one step; the
        others are done in turns with other clients.
        """
        full = len(data) == self._read_size
        if full or self._heavy:
            await self._session.wait_turn()
        if not data or not self._take(data):
            return False
        self._heavy = full
        return await self._take_rest()

    async def _take_rest(self) -> bool:
        """Handle the rest of a read in turns with other clients; return whether to read on."""
        session, assembler = self._session, self._assembler
        if session.unfinished or assembler.more:
            self._heavy = True
        while session.unfinished or assembler.more:
            if session.unfinished:
                await self._finish_step()
                continue
            await session.wait_turn()
            if not self._take(b""):
                return False
        return True

    async def _finish_step(self) -> None:
        """Let the session handle frames for one turn; the replies go out together."""
        session, pump = self._session, self._pump
        try:
            await session.prepare()
            session.outbox.corked = True
            session.resume()
        except Exception as error:  # noqa: BLE001 - an error of the channels ends this connection only
            self._crash(error)
        finally:
            session.outbox.corked = False
        pump.flush()

    def _crash(self, error: Exception) -> None:
        """Log an error of the channels, and end this connection."""
        session = self._session
        log.error("channel connection crashed", conn=session.conn, exc_info=error)
        session.outbox.close(CRASH)

    def end(self) -> None:
        """Report to the session that the connection has ended; idempotent."""
        self._session.outbox.close(GONE)
        self._session.gone()
        self._pending.update(0)

    def _spend(self, controls: int) -> bool:
        """Count control frames; return False and close after too many of them."""
        self._session.alive()
        if self._budget.spend(controls, self._session.last_seen):
            return True
        self._end_message(FLOOD)
        return False

    def _take(self, data: bytes) -> bool:
        """Handle the bytes of one read; return whether to read on."""
        protocol, session, pump = self._protocol, self._session, self._pump
        assembler = self._assembler
        if self._before_join and session.socket.joined:
            # Once is enough: the session checks the size of each frame, also after the last leave.
            self._before_join = False
            assembler.max_message = session.max_message
        controls = assembler.controls
        messages = assembler.feed(data)
        if assembler.controls != controls and not self._spend(assembler.controls - controls):
            messages = []
        session.outbox.corked = True
        try:
            if messages:
                session.feed(messages)
        except Exception as error:  # noqa: BLE001 - an error of the channels ends this connection only
            self._crash(error)
        finally:
            session.outbox.corked = False
        pending = assembler.pending
        if pending or self._pending.size:
            if messages:
                self._pending.restart()
            self._pending.update(pending)
        if protocol.writes:
            pump.control(protocol.data_to_send())
        if protocol.parser_exc is not None:
            sent = protocol.close_sent
            session.outbox.close(TOO_BIG if sent is not None and sent.code == TOO_BIG.code else ABUSE)
        elif protocol.close_rcvd is not None:
            session.outbox.close(GONE)
        pump.flush()
        return (protocol.close_rcvd is None and protocol.parser_exc is None) or protocol.state is OPEN


async def _end() -> bool:
    """Read no more, because one side has ended the connection."""
    return False


def channels_getter(
    channels: Callable[[], Channels | None] | Channels | None,
) -> Callable[[], Channels | None]:
    """Return a getter of the current channels, which may be replaced at any time."""
    if channels is None or isinstance(channels, Channels):
        return lambda: channels
    return channels
