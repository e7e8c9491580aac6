"""WebSocket bytes of a client, for browsers that misbehave."""

from __future__ import annotations

from typing import Final

__all__ = ["UPGRADE", "masked"]

UPGRADE: Final = (
    b"GET /websocket?vsn=2.0.0 HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
"""A handshake as a browser sends it; the key is the example of RFC 6455, section 1.3."""

_SHORT: Final = 126
"""Length from which on two more bytes hold the length (RFC 6455, section 5.2)."""


def masked(text: str) -> bytes:
    """Return a text frame of up to 65535 bytes as a browser sends it, masked with zeros."""
    data = text.encode()
    size = bytes([0x80 | len(data)]) if len(data) < _SHORT else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + size + b"\0\0\0\0" + data
