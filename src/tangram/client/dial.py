"""A byte stream to the host of a URL."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from urllib.parse import urlsplit

import trio

__all__ = ["Stream", "current_dial", "dial"]

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


current_dial: ContextVar[Callable[[str], Awaitable[Stream]] | None] = ContextVar(
    "tangram_client_dial", default=None
)
"""Replaces ``dial`` in this context, for example by connections in memory; None for real ones."""


async def dial(url: str, ssl_context: ssl.SSLContext | None = None) -> Stream:
    """Connect to the host that ``url`` (http, https, ws, wss) names; raises OSError."""
    instead = current_dial.get()
    if instead is not None:
        return await instead(url)
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme in ("https", "wss"):
        return await trio.open_ssl_over_tcp_stream(host, parts.port or 443, ssl_context=ssl_context)
    return await trio.open_tcp_stream(host, parts.port or 80)
