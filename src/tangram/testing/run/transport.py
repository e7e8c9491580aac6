"""Engines and channels without the rest of the server, on a bus in memory.

`open_engine` serves any ASGI application by either engine, `open_transport` channels and ``/token``. At
the end they check that no connection is left, and that no connection was ended by an exception of the
engine itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import trio

from tangram.asgi import ASGIApp
from tangram.channels.origins import OriginPolicy
from tangram.channels.policy import Authorizer
from tangram.config import ChannelConfig, ServerConfig
from tangram.errors import BrokerUnavailable
from tangram.gateway.admission import connect_info
from tangram.gateway.channels import Channels
from tangram.gateway.settings import ChannelSettings
from tangram.http.engine import Engine, EngineSettings
from tangram.http.listeners import HeldSocket, close_listeners, open_listeners
from tangram.pieces import Pieces
from tangram.testing.checks.invariants import Broken, InvariantBroken
from tangram.testing.run.nursery import open_unwrapped_nursery

if TYPE_CHECKING:
    from quart_trio import QuartTrio

__all__ = [
    "OPERATOR",
    "SECRET",
    "FakeBus",
    "RunningEngine",
    "RunningTransport",
    "channels_app",
    "make_channels",
    "open_engine",
    "open_transport",
]

EngineName = Literal["native", "hypercorn"]
Done = Callable[[Mapping[int, Exception]], None]

SECRET: Final = "a secret that is long enough for PyJWT not to warn"  # noqa: S105 - signs tokens of tests
"""Key that signs the tokens of `open_transport`."""

OPERATOR: Final = "operator-token"
"""Bearer token of the operator at `open_transport`."""

DRAIN_SECONDS: Final = 1.0
"""Seconds for clients to receive their close frames when a test is over: they share machine and loop."""

GRACE_SECONDS: Final = 5.0
"""Seconds that an engine gives its connections when it is stopped, unless the test says otherwise."""


@attrs.define
class FakeBus:
    """A bus in memory that keeps messages and delivers those on ``to:`` channels."""

    up: bool = True
    published: list[tuple[str, bytes]] = attrs.Factory(list)
    sink: Callable[[Sequence[tuple[bytes, bytes]]], None] | None = None
    hold: bool = False
    """Whether outcomes of publishes are kept back, in ``held``."""
    held: list[Done] = attrs.Factory(list)

    def publish_nowait(self, channel: str, payload: bytes) -> None:
        """Publish one message."""
        self.publish_all([(channel, payload)])

    def publish_all(self, messages: Sequence[tuple[str, bytes | Pieces]], done: Done | None = None) -> None:
        """Publish all messages or none.

        Args:
            messages: channels and payloads.
            done: called with the errors by place: none, or a `BrokerUnavailable` each while ``up`` is
                False.
        """
        if not self.up:
            if done is not None:
                done(dict.fromkeys(range(len(messages)), BrokerUnavailable("redis is away")))
            return
        published = [(channel, bytes(payload)) for channel, payload in messages]
        self.published += published
        for channel, payload in published:
            if self.sink is not None and channel.startswith("to:"):
                self.sink([(channel.encode(), payload)])
        if done is not None:
            if self.hold:
                self.held.append(done)
            else:
                done({})

    def names(self, prefix: str = "") -> list[str]:
        """Return the channels of the published messages, in order."""
        return [channel for channel, _ in self.published if channel.startswith(prefix)]

    def payloads(self, channel: str) -> list[bytes]:
        """Return the messages published on one channel, in order."""
        return [payload for name, payload in self.published if name == channel]


@attrs.define
class RunningEngine:
    """A running engine with its sockets, counters and end; made by `open_engine`."""

    held: list[HeldSocket]
    engine: Engine
    grace: float = GRACE_SECONDS
    """Seconds that a stop gives its connections; may be set until then."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    done: trio.Event = attrs.field(factory=trio.Event)

    @property
    def port(self) -> int:
        """Return the port on which it listens."""
        return self.held[0].port

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self.port}"

    async def wait_closed(self, limit: float = 5.0) -> None:
        """Wait until no connection is open, at most ``limit`` seconds."""
        with trio.fail_after(limit):
            while self.engine.statistics().connections:  # noqa: ASYNC110 - statistics have no event
                await trio.sleep(0.05)

    async def stop(self) -> float:
        """Cancel the engine, wait for its end, and return the seconds that it took."""
        began = trio.current_time()
        self.scope.cancel()
        await self.done.wait()
        return trio.current_time() - began


@attrs.define
class RunningTransport:
    """Channels behind an engine; made by `open_transport`."""

    url: str
    channels: Channels
    bus: FakeBus
    app: QuartTrio
    """The application beside the channels: ``/token``, and routes that the test adds."""
    engine: Engine

    def publish(self, channel: str, payload: bytes) -> None:
        """Deliver a message to the channels as Redis would."""
        self.channels.deliver([(channel.encode(), payload)])


def make_channels(
    bus: FakeBus,
    settings: ChannelSettings | None = None,
    *,
    authorizers: Sequence[Authorizer] = (),
    **more: Any,
) -> Channels:
    """Return channels on a bus in memory, not running.

    Args:
        bus: receives published messages, and delivers to the channels.
        settings: the defaults of ``[channel]`` unless given.
        authorizers: of joins.
        more: as for ``Channels``.
    """
    channels = Channels(
        settings or ChannelConfig(),
        SECRET,
        bus.publish_all,
        origins=more.pop("origins", OriginPolicy()),
        operator_token=OPERATOR,
        authorizers=authorizers,
        **more,
    )
    bus.sink = channels.deliver
    return channels


def channels_app(channels: Channels) -> QuartTrio:
    """Return a Quart application with ``POST /token``; a test may add WebSockets of its own."""
    from quart import Response, request
    from quart_trio import QuartTrio

    from tangram.gateway.tokens import issue_token
    from tangram.web.quart_app import QuartWebSocketConnection

    app = QuartTrio(__name__)
    app.asgi_websocket_class = QuartWebSocketConnection

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
async def open_engine(
    name: str,
    app: ASGIApp,
    *,
    settings: EngineSettings | None = None,
    held: list[HeldSocket] | None = None,
    grace: float = GRACE_SECONDS,
    crashes: int = 0,
    **options: Any,
) -> AsyncIterator[RunningEngine]:
    """Serve an ASGI application by one engine on a free port of 127.0.0.1, for the block.

    Args:
        name: ``native`` or ``hypercorn``.
        app: the application.
        settings: of ``[server]``; its defaults unless given.
        held: listening sockets that outlive the engine; the caller closes them.
        grace: seconds that a stop gives its connections; at the end of the block they have one at most.
        crashes: number of connections that the test ends by an exception of the engine itself.
        options: as for ``serve_native`` or ``serve_hypercorn``.

    Raises:
        InvariantBroken: the block ended well, but a connection is left (``nothing_left_alive``), or not
            exactly ``crashes`` connections were ended by exceptions of the engine itself
            (``faults_are_counted``).
    """
    serve = _serve(name)
    sockets = held if held is not None else open_listeners("127.0.0.1", 0)
    server: list[RunningEngine] = []
    scope, done = trio.CancelScope(), trio.Event()

    async def run(*, task_status: trio.TaskStatus[Engine]) -> None:
        try:
            with scope:
                await serve(
                    app,
                    sockets,
                    settings or ServerConfig(),
                    grace=lambda: server[0].grace,
                    task_status=task_status,
                    **options,
                )
        finally:
            done.set()

    try:
        async with open_unwrapped_nursery() as nursery:
            engine: Engine = await nursery.start(run)
            server.append(RunningEngine(sockets, engine, grace, scope, done))
            yield server[0]
            server[0].grace = min(server[0].grace, DRAIN_SECONDS)
            scope.cancel()
    finally:
        if held is None:
            close_listeners(sockets)
    _judge(server[0].engine, crashes)


@asynccontextmanager
async def open_transport(
    settings: ChannelSettings | None = None,
    *,
    engine: EngineName = "native",
    authorizers: Sequence[Authorizer] = (),
    engine_settings: EngineSettings | None = None,
    **more: Any,
) -> AsyncIterator[RunningTransport]:
    """Serve channels and ``/token`` by one engine on a bus in memory, for the block.

    Args:
        settings: of ``[channel]``; its defaults unless given.
        engine: ``native`` takes the channels itself, ``hypercorn`` as an ASGI application before Quart.
        authorizers: of joins.
        engine_settings: of ``[server]``.
        more: as for ``Channels``.

    Raises:
        InvariantBroken: as of `open_engine`, or a WebSocket is left after all were closed.
    """
    bus = FakeBus()
    channels = make_channels(bus, settings, authorizers=authorizers, **more)
    app = channels_app(channels)
    served: Any = app
    own: dict[str, Any] = {}
    if engine == "native":
        own["channels"] = channels
    else:
        from tangram.http.hypercorn.channels import with_channels

        served = with_channels(served, lambda: channels)
    if settings is not None:
        own["max_message"] = settings.max_message
    opened = partial(open_engine, engine, served, settings=engine_settings, **own)
    async with open_unwrapped_nursery() as nursery:
        await nursery.start(channels.run)
        async with opened() as running:
            yield RunningTransport(running.url, channels, bus, app, running.engine)
            await channels.drain(within=DRAIN_SECONDS)
        nursery.cancel_scope.cancel()
    if left := channels.statistics().connections:
        raise InvariantBroken(
            [Broken("nothing_left_alive", f"{left} WebSockets are connected to channels that have ended")]
        )


def _serve(name: str) -> Any:
    if name == "hypercorn":
        from tangram.http.hypercorn.server import serve_hypercorn

        return serve_hypercorn
    if name == "native":
        from tangram.http.native import serve_native

        return serve_native
    raise ValueError(f"engine {name!r}: expected 'native' or 'hypercorn'")


def _judge(engine: Engine, crashes: int) -> None:
    seen = engine.statistics()
    found = []
    if seen.connections:
        found.append(
            Broken("nothing_left_alive", f"{seen.connections} connections of the engine are still open")
        )
    if seen.crashed != crashes:
        found.append(
            Broken(
                "faults_are_counted",
                f"{seen.crashed} connections were ended by an exception of the engine's own, not {crashes}",
            )
        )
    if found:
        raise InvariantBroken(found)
