"""A small Quart application with our route, served by Hypercorn on Trio, on a port of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import attrs
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response, request
from quart_trio import QuartTrio
from trio_websocket import ConnectionRejected, WebSocketConnection, wrap_client_stream

from tangram.channels.origins import OriginPolicy
from tangram.channels.policy import Authorizer
from tangram.client.dial import dial
from tangram.transports.channels import Channels, connect_info
from tangram.transports.quart import WebsocketConnection, websocket_blueprint
from tangram.transports.tokens import issue_token
from tests.channels.fakes import FakeBus, Settings

SECRET = "a secret that is long enough for PyJWT not to warn"
OPERATOR = "operator-token"


@attrs.define
class Server:
    url: str
    channels: Channels
    bus: FakeBus
    app: QuartTrio


def make_channels(
    bus: FakeBus, settings: Settings | None = None, *, authorizers: Sequence[Authorizer] = (), **more: Any
) -> Channels:
    channels = Channels(
        settings or Settings(),
        SECRET,
        bus.publish_all,
        origins=more.pop("origins", OriginPolicy()),
        operator_token=OPERATOR,
        authorizers=authorizers,
        **more,
    )
    bus.sink = channels.deliver
    return channels


def make_app(channels: Channels) -> QuartTrio:
    app = QuartTrio(__name__)
    app.asgi_websocket_class = WebsocketConnection
    app.register_blueprint(websocket_blueprint(lambda: channels))

    @app.post("/token")
    async def token() -> Response:
        answer = await issue_token(
            channels.gate,
            await request.body,
            content_type=request.headers.get("content-type"),
            authorization=request.headers.get("authorization"),
            info=connect_info(request.scope),
        )
        return Response(answer.body, answer.status, dict(answer.headers), content_type=answer.content_type)

    return app


@asynccontextmanager
async def open_server(
    settings: Settings | None = None, *, authorizers: Sequence[Authorizer] = (), **more: Any
) -> AsyncIterator[Server]:
    bus = FakeBus()
    channels = make_channels(bus, settings, authorizers=authorizers, **more)
    app = make_app(channels)
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    config.graceful_timeout = 1.0
    async with trio.open_nursery() as nursery:
        await nursery.start(channels.run)
        binds = await nursery.start(
            partial(serve, app, config, mode="asgi", shutdown_trigger=trio.sleep_forever)
        )
        yield Server(binds[0], channels, bus, app)
        await channels.drain(within=1.0)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_raw(url: str) -> AsyncIterator[WebSocketConnection]:
    """A bare WebSocket to ``url`` (http, with path and query), whose stream is closed whoever ends it."""
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
