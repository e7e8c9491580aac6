"""The first bytes of a channel client, for raw sockets."""

from __future__ import annotations

import base64
import json
import os


def masked(opcode: int, data: bytes) -> bytes:
    """Return a client's frame masked with zeros, which leaves the bytes unchanged."""
    size = len(data)
    head = bytes((0x80 | opcode, 0x80 | size))
    if size >= 126:
        head = bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + data


def upgrade(port: int) -> bytes:
    """Return the request that opens a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /websocket?vsn=2.0.0 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def join_frame(topic: str, token: str, ref: int = 1) -> bytes:
    """Return a ``phx_join`` frame."""
    return masked(1, json.dumps([str(ref), str(ref), topic, "phx_join", {"token": token}]).encode())
