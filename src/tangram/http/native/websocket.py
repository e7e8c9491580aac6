"""WebSockets of the application, as ASGI's websocket scope, on the native engine.

The application runs in the connection's task. A reader task runs beside it, so that pings are answered and a
close is noticed while the application does not call ``receive``. The server closes with 1000 only if the
application asks for it: after 1000 many clients do not come back.
"""

from __future__ import annotations

import codecs
import contextlib
from collections import deque
from typing import Any, Final

import structlog
import trio
from websockets.protocol import OPEN

from tangram.asgi import Message, Scope
from tangram.channels.frames import TEXT
from tangram.groups import all_leaves_are
from tangram.http.engine import ClientGone, failures_of, has_hung_up
from tangram.http.flood import ControlBudget
from tangram.http.native.exchange import AHEAD_BYTES
from tangram.http.native.handshake import Upgrade
from tangram.http.native.host import Host
from tangram.http.native.message_assembly import COMPRESSED_READ, MessageAssembler
from tangram.http.native.response import BadResponse, build_head, simple_response
from tangram.http.native.stream import NEVER, READ_SIZE, ClientStream
from tangram.pieces import Pieces, join_in_steps

__all__ = ["AppSocket"]

log = structlog.get_logger("tangram.http")

DECODE_SLICE: Final = 1 << 18
"""Bytes of text that are decoded in one step."""

QUEUED_MESSAGES: Final = 16
"""Messages that wait for the application before reading from the client pauses."""

QUEUED_BYTES: Final = 262_144
"""Bytes of waiting messages before reading pauses: 16 messages of the largest size would be 256 MiB."""

MISSED_PINGS: Final = 3
"""Ping intervals after which a client that sends nothing is taken for gone. They do not count while reading
pauses, since the client's answers lie unread then.
"""

CLOSE_TIME: Final = 2.0
"""Seconds in which a client must answer our close frame."""

ABNORMAL: Final = 1006
"""The code that ASGI reports when the client has gone without a close frame."""

MESSAGE_TOO_SLOW: Final = 1008
"""The code for a message that takes longer than ``body_timeout``."""

TOO_MANY_FRAMES: Final = 1008
"""The code for a client that sends too many control frames, or fragments of a few bytes."""

TRY_AGAIN_LATER: Final = 1013
"""The code for a message that is dropped because of ``max_pending_bytes``."""

INTERNAL_ERROR: Final = 1011
"""The code with which we close for an application that did not."""


async def _decode(payload: bytes | Pieces) -> str:
    """Decode UTF-8, a large text in slices between which other tasks run."""
    if isinstance(payload, bytes):
        return payload.decode()
    decoder = codecs.getincrementaldecoder("utf-8")()
    parts: list[str] = []
    for start in range(0, len(payload), DECODE_SLICE):
        end = start + DECODE_SLICE
        parts.append(decoder.decode(payload[start:end], end >= len(payload)))
        await trio.lowlevel.checkpoint()
    return "".join(parts)


class AppSocket:
    """One connection of a websocket scope, with ``receive`` and ``send`` for the application."""

    def __init__(
        self,
        host: Host,
        stream: ClientStream,
        upgrade: Upgrade,
        scope: Scope,
        *,
        max_message: int,
        ping_interval: float,
    ) -> None:
        self._host = host
        self._stream = stream
        self._upgrade = upgrade
        self._protocol = upgrade.protocol
        self._scope = scope
        self._ping_interval = ping_interval
        self._seen_at = self._pinged_at = trio.current_time()
        self._paused = False
        self._nursery: trio.Nursery | None = None
        self._accepted = False
        self._connected = False
        self._denial: Message | None = None
        self._denied = False
        self._assembler = MessageAssembler(upgrade.protocol, max_message)
        self._queue: deque[Message] = deque()
        self._queued = 0
        self._wake_app = trio.Event()
        self._wake_reader = trio.Event()
        self._gone = False
        self._failed = False
        self._end_at = NEVER
        self._pending = host.engine.pending.item(self._address, self._drop_message)
        self._turns = host.engine.turns.client(self._address)
        self._heavy = False
        self._budget = ControlBudget(trio.current_time())

    @property
    def status(self) -> int:
        """The status of the handshake's answer, for the access log."""
        if self._accepted:
            return 101
        if not self._denied:
            return 500
        return 403 if self._denial is None else int(self._denial["status"])

    # Called by the engine.

    def start_close(self, code: int) -> bool:
        """Send a close frame with ``code``; return False if the application has not accepted yet."""
        if self._nursery is not None and self._accepted:
            self._nursery.start_soon(self._close, code, "")
        return self._accepted

    def tick(self, now: float) -> None:
        """Ping a silent client; give up one that has not answered for ``MISSED_PINGS`` intervals."""
        if not self._paused and self._assembler.pending and self._pending.is_late(now):
            self._end_message(MESSAGE_TOO_SLOW)
        last = max(self._pinged_at, self._seen_at)
        if self._paused and not has_hung_up(self._stream.sock):
            # The client's pongs lie unread because the application is behind, which says nothing about the
            # client. Pings are still sent: if they are not acknowledged, the kernel ends the connection.
            self._seen_at, last = now, self._pinged_at
        if now - self._seen_at >= MISSED_PINGS * self._ping_interval:
            self._stream.abort()
        elif self._nursery is not None and now - last >= self._ping_interval:
            self._pinged_at = now
            self._nursery.start_soon(self._ping)

    def _drop_message(self) -> None:
        """Close the connection because the unfinished messages of all clients are too many."""
        self._queue.clear()
        self._queued = 0
        self._end_message(TRY_AGAIN_LATER)

    def _end_message(self, code: int) -> None:
        self._assembler.discard()
        self._pending.update(0)
        if self._nursery is not None:
            self._nursery.start_soon(self._close, code, "")

    def _address(self) -> str:
        return self._host.engine.address_of(self._scope)

    def _count_pending(self) -> None:
        self._pending.update(self._assembler.pending + self._queued)

    # The connection's own task.

    async def run(self) -> None:
        """Call the application, then close the WebSocket if the application has not."""
        engine = self._host.engine
        engine.requests += 1
        engine.websockets += 1
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._read)
                try:
                    await self._call()
                    await self._finish()
                finally:
                    # A nursery takes no tasks once its last one has ended, a pass before its block does.
                    self._nursery = None
                nursery.cancel_scope.cancel()
        finally:
            engine.websockets -= 1
            self._pending.update(0)

    async def _call(self) -> None:
        try:
            await self._host.app(self._scope, self.receive, self.send)
        except BaseException as error:
            rest = failures_of(error)
            if rest is None or not isinstance(rest, Exception):
                raise
            if not all_leaves_are(rest, ClientGone):
                self._host.engine.failed += 1
                log.exception("application failed", path=self._scope["path"], exc_info=rest)

    async def _finish(self) -> None:
        stream = self._stream
        with contextlib.suppress(ClientGone):
            if not self._accepted:
                if not self._denied and not stream.closed:
                    await stream.write(simple_response(500, "internal server error", close=True))
                return
            if self._protocol.state is OPEN:
                await self._close(INTERNAL_ERROR, "")
            with trio.move_on_after(CLOSE_TIME):
                while not (self._gone or stream.closed):
                    self._wake_app = trio.Event()
                    await self._wake_app.wait()

    # From the client to the application.

    async def receive(self) -> Message:
        """Return the next event: first the connect, then messages, then the disconnect."""
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        while not self._queue:
            if self._gone or self._stream.closed:
                await trio.lowlevel.checkpoint()
                return self._disconnect()
            self._wake_app = trio.Event()
            await self._wake_app.wait()
        await trio.lowlevel.checkpoint()
        message = self._queue.popleft()
        self._queued -= len(message.get("bytes") or message.get("text", ""))
        self._count_pending()
        self._wake_reader.set()  # the reader checks once for room, and waits again if there is none
        return message

    def _disconnect(self) -> Message:
        close = self._protocol.close_rcvd or self._protocol.close_sent
        code, reason = (close.code, close.reason) if close is not None else (ABNORMAL, "")
        return {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def _read(self) -> None:
        """Read frames until one side closes."""
        stream, protocol = self._stream, self._protocol
        try:
            if not await self._read_ahead():
                return
            data, stream.buffer = stream.buffer, b""
            while True:
                if data:
                    await self._take_all(data)
                if self._failed or protocol.parser_exc is not None:
                    # The client still sends: a reset would drop our close frame.
                    await stream.linger()
                    return
                if protocol.close_rcvd is not None:
                    return
                while len(self._queue) >= QUEUED_MESSAGES or self._queued >= QUEUED_BYTES:
                    self._wake_reader = trio.Event()
                    self._paused = True
                    await self._wake_reader.wait()
                    self._paused = False
                    self._pending.restart()
                left = NEVER if self._end_at == NEVER else max(0.0, self._end_at - trio.current_time())
                data = await stream.read(left)
                if not data:
                    return
        except ClientGone:
            pass
        finally:
            self._gone = True
            self._wake_app.set()

    async def _read_ahead(self) -> bool:
        """Buffer bytes until the application accepts; return whether the client is there."""
        stream = self._stream
        while not self._accepted:
            if len(stream.buffer) >= AHEAD_BYTES:
                self._wake_reader = trio.Event()
                await self._wake_reader.wait()
                continue
            data = await stream.read(NEVER)
            if not data:
                return False
            stream.buffer += data
        return True

    async def _take_all(self, data: bytes) -> None:
        """Handle the bytes of one read in steps, in turns with other clients.

        The next read of a client that sends so much waits for a turn, too.
        """
        size = COMPRESSED_READ if self._protocol.extensions else len(data)
        full = len(data) == READ_SIZE
        if full or self._heavy:
            await self._turns.wait()
        await self._take(data[:size])
        self._heavy = full or len(data) > size or self._assembler.more
        for start in range(size, len(data), size):
            await self._turns.wait()
            await self._take(data[start : start + size])
        while self._assembler.more and not self._failed:
            await self._turns.wait()
            await self._take(b"")

    async def _take(self, data: bytes) -> None:
        """Queue the messages that these bytes complete, and answer control frames."""
        protocol, assembler = self._protocol, self._assembler
        self._seen_at = trio.current_time()
        controls = assembler.controls
        messages = assembler.feed(data)
        if assembler.controls != controls and not self._budget.spend(
            assembler.controls - controls, self._seen_at
        ):
            self._host.engine.log_client("connection closed: too many small frames", self._address())
            self._end_message(TOO_MANY_FRAMES)
            return
        for opcode, payload in messages:
            if opcode == TEXT:
                try:
                    text = await _decode(payload)
                except UnicodeDecodeError:
                    protocol.fail(1007, "a text message must be UTF-8")
                    self._failed = True
                    break
                self._queue.append({"type": "websocket.receive", "text": text})
                self._queued += len(text)
            else:
                data = await join_in_steps(payload, trio.lowlevel.checkpoint)
                self._queue.append({"type": "websocket.receive", "bytes": data})
                self._queued += len(payload)
        if self._queue:
            self._wake_app.set()
            self._pending.restart()
        self._count_pending()
        await self._flush()

    # From the application to the client.

    async def send(self, message: Message) -> None:
        """Accept or deny the handshake; then send messages, or close.

        Raises:
            ClientGone: the client has closed the connection.
            BadResponse: the message does not belong here, or cannot be sent.
        """
        kind = message["type"]
        if self._stream.closed or (self._accepted and self._gone):
            raise ClientGone("the client has gone")
        if self._accepted:
            await self._send_accepted(kind, message)
        elif kind == "websocket.accept":
            await self._stream.write(
                self._upgrade.response(message.get("subprotocol"), message.get("headers", ()))
            )
            self._accepted = True
            self._wake_reader.set()
        elif self._denied:
            raise BadResponse("the handshake is already refused")
        elif kind == "websocket.close":
            self._denied = True
            await self._stream.write(simple_response(403, "forbidden", close=True))
        elif kind == "websocket.http.response.start":
            self._denial = message
        elif kind == "websocket.http.response.body" and self._denial is not None:
            await self._deny(message)
        else:
            raise BadResponse(f"unexpected message {kind!r} before the handshake is over")

    async def _send_accepted(self, kind: str, message: Message) -> None:
        protocol = self._protocol
        if kind == "websocket.close":
            await self._close(int(message.get("code") or 1000), message.get("reason") or "")
            return
        if kind != "websocket.send":
            raise BadResponse(f"unexpected message {kind!r}")
        if protocol.state is not OPEN:
            raise ClientGone("the connection is closing")
        text: str | None = message.get("text")
        if text is not None:
            protocol.send_text(text.encode())
        else:
            protocol.send_binary(message["bytes"])
        await self._flush()
        await trio.lowlevel.checkpoint()

    async def _deny(self, message: Message) -> None:
        """Answer the handshake with a response of the application's own."""
        assert self._denial is not None
        body: Any = message.get("body", b"")
        if message.get("more_body", False):
            self._denial["body"] = self._denial.get("body", b"") + body
            return
        body = self._denial.get("body", b"") + body
        framing = build_head(
            int(self._denial["status"]),
            self._denial.get("headers", ()),
            whole=len(body),
            bodiless=False,
            version="1.1",
            keep_alive=False,
        )
        self._denied = True
        await self._stream.write(framing.head + body)

    async def _close(self, code: int, reason: str) -> None:
        if self._protocol.state is OPEN:
            self._protocol.send_close(code, reason)
            self._stream.read_deadline = self._end_at = trio.current_time() + CLOSE_TIME
            await self._flush()

    async def _ping(self) -> None:
        if self._accepted and self._protocol.state is OPEN:
            self._protocol.send_ping(b"")
            await self._flush()

    async def _flush(self) -> None:
        data = b"".join(self._protocol.data_to_send())
        if data:
            with contextlib.suppress(ClientGone):
                await self._stream.write(data)
