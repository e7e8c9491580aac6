"""The native engine: HTTP/1.1 by httptools and WebSockets by an I/O-free protocol, on Trio's own sockets."""

from __future__ import annotations

from tangram.http.native.server import serve_native

__all__ = ["serve_native"]
