"""One WebSocket that another node serves.

1. The handshake is forwarded first, and the client's handshake is accepted once the node's application has
   accepted it: with its subprotocol and fields, or refused with its answer.
2. Then messages cross in both directions, one at a time: a side that does not read slows the other one down.
   Each engine pings its own client, and close codes are passed on.
3. If the connection to the node breaks, the client is asked to come back (1012).
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal

import attrs
import trio
from websockets.client import ClientProtocol
from websockets.exceptions import ProtocolError
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import OPEN
from websockets.uri import WebSocketURI

from tangram.asgi import Message, RawHeaders, Receive, Scope, Send
from tangram.channels.disconnects import RESTART
from tangram.http.engine import ClientGone
from tangram.http.forward.heads import (
    AnswerHead,
    BadHead,
    answer_fields,
    encode_head,
    refusal_of,
    signed_text,
)
from tangram.http.forward.keys import NodeSession
from tangram.http.forward.pool import NodeConnection, NodeUnreachable, Peer, Pool
from tangram.http.forward.rules import SendFailure

__all__ = ["ForwardedWebSocket"]

MAX_REFUSAL: Final = 65536
"""Bytes of the answer with which an application refuses a handshake."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NOWHERE: Final = WebSocketURI(secure=False, host="tangram", port=80, path="/", query="")
_REFUSALS: Final = {b"moved": SendFailure.MOVED, b"seen": SendFailure.SEEN, b"session": SendFailure.FORGOTTEN}
_NOT_SENT: Final = frozenset({1005, 1006, 1015})
"""Codes that stand for the absence of a close frame or of its code."""


@attrs.define(eq=False)
class ForwardedWebSocket:
    """A WebSocket of a client, until another node serves it."""

    pool: Pool
    scope: Scope
    receive: Receive
    send: Send
    head: tuple[bytes, bytes, RawHeaders]
    """Method, target and the fields to pass on, the envelope among them."""
    more: RawHeaders
    """Fields of the answer in addition to those of the node."""
    refused_by: str = ""
    at_hand: bool = True
    on_answer: Callable[[], None] = lambda: None
    """Called when the node has accepted or refused the handshake."""
    _client_left: bool = False
    _connected: bool = False

    async def attempt(self, peer: Peer, *, same: bool = False) -> SendFailure | None:
        """Hand the WebSocket to a node, and return None after its end.

        Args:
            peer: the node.
            same: not used: a handshake is sent anew each time.

        Raises:
            ClientGone: the client has left before the end of the handshake.
            BadHead: the handshake cannot be passed on.
        """
        del same
        if not self._connected:
            await self.receive()  # websocket.connect
            self._connected = True
        try:
            session = await self.pool.session(peer)
            connection = await self.pool.take(peer)
        except NodeUnreachable as error:
            self.refused_by = str(error)
            return SendFailure.NOT_SENT
        try:
            failure = await self._handshake(session, connection)
        except (OSError, EOFError, BadHead, ProtocolError) as error:
            if self._client_left:
                raise ClientGone("the client has gone") from None
            if isinstance(error, ClientGone):
                raise
            self.refused_by = str(error) or "the node closed the connection"
            return SendFailure.UNANSWERED
        finally:
            self.pool.discard(connection)
        if failure is SendFailure.FORGOTTEN:
            self.pool.forget_session(peer.id, session)
        return failure

    def receive_again(self) -> Receive:
        """Return a ``receive`` that begins with the handshake."""
        kept: list[Message] = [{"type": "websocket.connect"}] if self._connected else []

        async def receive() -> Message:
            if kept:
                await trio.lowlevel.checkpoint()
                return kept.pop()
            return await self.receive()

        return receive

    async def _handshake(self, session: NodeSession, connection: NodeConnection) -> SendFailure | None:
        key = base64.b64encode(os.urandom(16))
        method, target, fields = self.head
        ours = [
            (b"upgrade", b"websocket"),
            (b"connection", b"Upgrade"),
            (b"sec-websocket-version", b"13"),
            (b"sec-websocket-key", key),
        ]
        signed = signed_text(method, target, [*fields, *ours])
        await connection.write(encode_head(signed, session.seal(session.next_number(), signed)))
        answer = await self._watched_head(connection)
        refusal = _REFUSALS.get(refusal_of(answer) or b"")
        if refusal is not None:
            return refusal
        self.on_answer()
        if answer.status != 101:
            await self._refuse(connection, answer)
            return None
        expected = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        if answer.value(b"sec-websocket-accept") != expected:
            raise BadHead("a handshake with a wrong sec-websocket-accept")
        chosen = answer.value(b"sec-websocket-protocol")
        await self.send(
            {
                "type": "websocket.accept",
                "subprotocol": None if chosen is None else chosen.decode("latin-1"),
                "headers": [*answer_fields(answer, websocket=True), *self.more],
            }
        )
        await _Crossing(self.receive, self.send, connection).run()
        return None

    async def _watched_head(self, connection: NodeConnection) -> AnswerHead:
        """Return the answer to the handshake; end the wait when the client leaves."""
        answer: AnswerHead | None = None
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, connection)
            try:
                answer = await connection.read_head(connection.read)
            except (OSError, EOFError, BadHead) as error:
                failure = error
            nursery.cancel_scope.cancel()
        if answer is None:
            raise failure or EOFError
        return answer

    async def _watch(self, connection: NodeConnection) -> None:
        while (await self.receive())["type"] != "websocket.disconnect":
            await trio.lowlevel.checkpoint()
        self._client_left = True
        connection.close()

    async def _refuse(self, connection: NodeConnection, answer: AnswerHead) -> None:
        """Refuse the client's handshake with the answer of the application."""
        parts: list[bytes] = []
        while True:
            part, connection.buffer = answer.body.feed(connection.buffer)
            parts.append(part)
            if answer.body.done or sum(map(len, parts)) > MAX_REFUSAL:
                break
            data = await connection.read()
            if not data:
                break
            connection.buffer += data
        if "websocket.http.response" not in (self.scope.get("extensions") or {}):
            await self.send({"type": "websocket.close", "code": 1008})
            return
        headers = [*answer_fields(answer), *self.more]
        await self.send(
            {"type": "websocket.http.response.start", "status": answer.status, "headers": headers}
        )
        await self.send({"type": "websocket.http.response.body", "body": b"".join(parts)})


@attrs.define(eq=False)
class _Crossing:
    """Both directions of an accepted WebSocket."""

    receive: Receive
    send: Send
    connection: NodeConnection
    _protocol: ClientProtocol = attrs.field(
        factory=lambda: ClientProtocol(_NOWHERE, state=OPEN, max_size=None)
    )
    _parts: list[bytes] = attrs.field(factory=list)
    _opcode: Opcode = Opcode.TEXT
    _writing: trio.Lock = attrs.field(factory=trio.Lock)

    async def run(self) -> None:
        """Pass messages on until one side closes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._to_node, nursery.cancel_scope)
            await self._to_client()
            nursery.cancel_scope.cancel()

    async def _to_node(self, both: trio.CancelScope) -> None:
        try:
            while True:
                message = await self.receive()
                if message["type"] == "websocket.disconnect":
                    await self._leave(message)
                    both.cancel()
                    return
                text: str | None = message.get("text")
                if text is not None:
                    self._protocol.send_text(text.encode())
                else:
                    self._protocol.send_binary(message["bytes"])
                await self._flush()
        except (OSError, ProtocolError):
            return  # the other direction sees the end, too

    async def _leave(self, message: dict[str, object]) -> None:
        """Pass the client's close on; without one, the connection ends without one, too."""
        code = message.get("code", 1006)
        if code == 1006 or self._protocol.state is not OPEN:
            return
        reason = str(message.get("reason") or "")
        self._protocol.send_close(None if code in _NOT_SENT else int(str(code)), reason)
        await self._flush()

    async def _to_client(self) -> None:
        try:
            while True:
                self._protocol.receive_data(self.connection.buffer)
                self.connection.buffer = b""
                await self._flush()
                for frame in self._protocol.events_received():
                    assert isinstance(frame, Frame)
                    if await self._take(frame) == "closed":
                        return
                if self._protocol.parser_exc is not None:
                    break
                self.connection.buffer = await self.connection.read()
                if not self.connection.buffer:
                    break
        except ClientGone:
            return
        except OSError:
            pass
        await self._close(RESTART.code, RESTART.reason)

    async def _take(self, frame: Frame) -> Literal["open", "closed"]:
        if frame.opcode is Opcode.CLOSE:
            close = Close.parse(frame.data)
            await self._close(close.code, close.reason)
            return "closed"
        if frame.opcode in {Opcode.PING, Opcode.PONG}:
            return "open"  # the protocol has answered
        if frame.opcode is not Opcode.CONT:
            self._opcode = frame.opcode
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return "open"
        data, self._parts = b"".join(self._parts), []
        if self._opcode is Opcode.TEXT:
            await self.send({"type": "websocket.send", "text": data.decode()})
        else:
            await self.send({"type": "websocket.send", "bytes": data})
        return "open"

    async def _close(self, code: int, reason: str) -> None:
        if code in _NOT_SENT:
            code = 1000
        with suppress(ClientGone):
            await self.send({"type": "websocket.close", "code": code, "reason": reason})

    async def _flush(self) -> None:
        async with self._writing:
            data = b"".join(self._protocol.data_to_send())
            if data:
                await self.connection.write(data)
