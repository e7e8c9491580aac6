"""A channel client's first bytes, for raw sockets."""

from __future__ import annotations

import base64
import json
import os


def masked(opcode: int, data: bytes) -> bytes:
    """A client's frame, masked with zeros: the bytes stay as they are."""
    size = len(data)
    head = bytes((0x80 | opcode, 0x80 | size))
    if size >= 126:
        head = bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + data


def upgrade(port: int) -> bytes:
    """The request that turns a connection into a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /websocket?vsn=2.0.0 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def join_frame(topic: str, token: str, ref: int = 1) -> bytes:
    """``phx_join``."""
    return masked(1, json.dumps([str(ref), str(ref), topic, "phx_join", {"token": token}]).encode())
