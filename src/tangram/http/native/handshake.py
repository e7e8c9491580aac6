"""The WebSocket handshake: from a request to the I/O-free protocol of its frames.

1. No I/O here. The reader of the head has already checked GET, HTTP/1.1, Upgrade, Connection and that there
   is no body.
2. permessage-deflate is agreed on only if it is switched on, and without context takeover: a window for each
   connection would cost more memory than all its other state.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tangram.http.native.head import RejectedRequest, RequestHead
from tangram.http.native.response import BadResponse

if TYPE_CHECKING:
    from websockets.extensions.base import ServerExtensionFactory

__all__ = ["Upgrade", "prepare_upgrade"]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTROLLED: Final = frozenset(
    {
        b"upgrade",
        b"connection",
        b"sec-websocket-accept",
        b"sec-websocket-protocol",
        b"sec-websocket-extensions",
    }
)

_silent_log = logging.getLogger("tangram.websockets")
_silent_log.setLevel(logging.CRITICAL)


class _Protocol(ServerProtocol):
    """The protocol of ``websockets``, with a close frame allowed between two fragments.

    RFC 6455, section 5.4, allows a control frame there, and a close frame is one: its sender has given the
    message up. ``websockets`` takes it for an error of the protocol.
    """

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


class Upgrade:
    """A WebSocket handshake that may be accepted."""

    __slots__ = ("accept", "extensions", "protocol", "subprotocols")

    def __init__(
        self, protocol: ServerProtocol, subprotocols: Sequence[str], accept: bytes, extensions: str | None
    ) -> None:
        self.protocol = protocol
        self.subprotocols = subprotocols
        """The subprotocols that the client offers, in its order."""
        self.accept = accept
        self.extensions = extensions

    def response(self, subprotocol: str | None = None, headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
        """Return the head of the 101 response.

        Args:
            subprotocol: one of the offered subprotocols.
            headers: further header fields of the application.

        Raises:
            BadResponse: the subprotocol was not offered, or a header holds a line break.
        """
        lines = [
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            b"sec-websocket-accept: " + self.accept
        ]
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise BadResponse(f"the subprotocol {subprotocol!r} was not offered")
            lines.append(b"sec-websocket-protocol: " + subprotocol.encode("latin-1"))
        if self.extensions is not None:
            lines.append(b"sec-websocket-extensions: " + self.extensions.encode("latin-1"))
        for name, value in headers:
            if name.lower() in _CONTROLLED:
                continue
            line = name.lower() + b": " + value
            if b"\r" in line or b"\n" in line or b"\x00" in line:
                raise BadResponse("a response header holds a line break or a null byte")
            lines.append(line)
        return b"\r\n".join(lines) + b"\r\n\r\n"


def prepare_upgrade(request: RequestHead, *, max_message: int, compression: bool) -> Upgrade:
    """Check the WebSocket headers of a request.

    Args:
        request: a request with ``websocket`` set.
        max_message: the largest message to accept, in bytes.
        compression: whether to agree on permessage-deflate if the client offers it.

    Raises:
        RejectedRequest: a header is missing or malformed, or the version is not 13.
    """
    keys: list[bytes] = []
    versions: list[bytes] = []
    offered: list[str] = []
    extensions: list[str] = []
    for name, value in request.headers:
        if name == b"sec-websocket-key":
            keys.append(value)
        elif name == b"sec-websocket-version":
            versions.append(value)
        elif name == b"sec-websocket-protocol":
            offered += [token.strip() for token in value.decode("latin-1").split(",") if token.strip()]
        elif name == b"sec-websocket-extensions":
            extensions.append(value.decode("latin-1"))
    if versions != [b"13"]:
        raise RejectedRequest(
            426, "only version 13 of WebSocket is spoken here", b"sec-websocket-version: 13\r\n"
        )
    if len(keys) != 1 or not _is_key(keys[0]):
        raise RejectedRequest(400, "malformed Sec-WebSocket-Key")
    accept = base64.b64encode(hashlib.sha1(keys[0] + _GUID, usedforsecurity=False).digest())
    factories = _deflate() if compression and extensions else None
    protocol = _Protocol(state=OPEN, max_size=max_message, extensions=factories, logger=_silent_log)
    answer = _negotiate(protocol, extensions) if factories else None
    return Upgrade(protocol, offered, accept, answer)


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False


def _deflate() -> Sequence[ServerExtensionFactory]:
    from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

    return [
        ServerPerMessageDeflateFactory(
            server_no_context_takeover=True, client_no_context_takeover=True, server_max_window_bits=12
        )
    ]


def _negotiate(protocol: ServerProtocol, offers: Sequence[str]) -> str | None:
    from websockets.datastructures import Headers
    from websockets.exceptions import InvalidHandshake

    try:
        answer, protocol.extensions = protocol.process_extensions(
            Headers([("Sec-WebSocket-Extensions", offer) for offer in offers])
        )
    except InvalidHandshake as error:
        raise RejectedRequest(400, "malformed Sec-WebSocket-Extensions") from error
    return answer
