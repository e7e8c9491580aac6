"""A byte stream to the host of a URL."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

import trio

__all__ = ["Stream", "dial"]

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


async def dial(url: str, ssl_context: ssl.SSLContext | None = None) -> Stream:
    """Connect to the host that ``url`` (http, https, ws, wss) names; raises OSError."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme in ("https", "wss"):
        return await trio.open_ssl_over_tcp_stream(host, parts.port or 443, ssl_context=ssl_context)
    return await trio.open_tcp_stream(host, parts.port or 80)
