"""The part of the server that its connections know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from tangram.asgi import ASGIApp
from tangram.gateway.pump import PumpStatistics
from tangram.http.engine import Engine, EngineSettings
from tangram.readiness import Readiness

__all__ = ["Host", "Upgraded"]


class Host(Protocol):
    """The application, the settings and the counters that all connections of one engine share."""

    @property
    def app(self) -> ASGIApp:
        """The ASGI application."""

    @property
    def settings(self) -> EngineSettings:
        """The bounds and timeouts of ``[server]``."""

    @property
    def engine(self) -> Engine:
        """The engine that accepted the connection, with its counters."""

    @property
    def pumps(self) -> PumpStatistics:
        """The counters of all channel WebSockets' writes."""

    @property
    def readiness(self) -> Readiness:
        """The task that reads from the WebSockets of all channels."""

    def spawn(self, run: Callable[[], Awaitable[None]]) -> None:
        """Start a task that may outlive the incarnation, as adopted connections do."""


class Upgraded(Protocol):
    """The WebSocket that a connection has become."""

    def start_close(self, code: int) -> bool:
        """Begin the closing handshake; return False if the opening one is not over."""

    def tick(self, now: float) -> None:
        """Send a ping if one is due; called every half second."""
