"""The native engine: HTTP/1.1 (httptools) and WebSockets (websockets) on Trio's sockets."""

from __future__ import annotations

from tangram.http.native.server import serve_native

__all__ = ["serve_native"]
