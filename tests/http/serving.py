"""Channels in a Quart application behind Hypercorn, and a bare WebSocket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

import trio
from trio_websocket import ConnectionRejected, WebSocketConnection, wrap_client_stream

from tangram.client.dial import dial
from tangram.testing.run.transport import OPERATOR, SECRET, make_channels, open_transport
from tangram.testing.run.transport import RunningTransport as Server
from tangram.testing.run.transport import channels_app as make_app

__all__ = ["OPERATOR", "SECRET", "Server", "make_app", "make_channels", "open_raw", "open_server"]

open_server = partial(open_transport, engine="hypercorn")


@asynccontextmanager
async def open_raw(url: str) -> AsyncIterator[WebSocketConnection]:
    """Open a bare WebSocket to ``url`` (http, with path and query); close it at the end."""
    parts = urlsplit(url)
    stream = await dial(url)
    rejected: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            resource = parts.path + ("?" + parts.query if parts.query else "")
            yield await wrap_client_stream(nursery, stream, parts.netloc, resource)
            nursery.cancel_scope.cancel()
    except* ConnectionRejected as group:
        rejected = group.exceptions[0]
    finally:
        await trio.aclose_forcefully(stream)
    if rejected is not None:
        raise rejected
