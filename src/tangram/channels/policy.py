"""Who may come in: upgrades, tokens and joins.

Asked in this order, and the first no is the answer: rate, origin, what the topic's name demands (``admin``
is the operator's, ``streaming-<id>`` belongs to that id), the token, and at last every plugin's
``authorize``. A plugin that cannot answer (it raises, or takes too long) refuses with *unavailable*: the
client comes back, nobody slips in.
"""

from __future__ import annotations

import hmac
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import attrs
import structlog
import trio

from tangram.channels import tokens
from tangram.channels.disconnects import (
    BUSY,
    ID_TOO_LONG,
    LIMITED,
    NOT_OPERATOR,
    NOT_YOUR_STREAM,
    ORIGIN,
    TOPIC_TOO_LONG,
    UNAUTHORIZED,
    UNAVAILABLE,
    WRONG_CHANNEL,
    Refusal,
    refused_by,
)
from tangram.channels.frames import MAX_FIELD
from tangram.channels.hub import ADMIN
from tangram.channels.limits import Limiter, client_key
from tangram.channels.origins import OriginPolicy
from tangram.errors import Refused

__all__ = ["STREAMING", "Authorizer", "ConnectInfo", "Gate", "GateSettings", "Minted"]

log = structlog.get_logger("tangram.channels")

STREAMING: Final = "streaming-"
"""``streaming-<id>`` is the private stream of the browser with that id."""
AUTHORIZE_TIMEOUT: Final = 5.0
"""Seconds for all plugins together to judge one join: phoenix.js gives a join up after ten."""
THREADS: Final = 8
"""Synchronous ``authorize`` functions at once: a stuck one must not take the server's other threads."""


@attrs.frozen
class ConnectInfo:
    """The connection (or request) that asks: what ``authorize(topic, id, request)`` sees as ``request``."""

    address: str
    """The peer's IP address, as far as trusted proxies tell."""
    headers: Mapping[str, str] = attrs.Factory(dict)
    """Header names in lower case."""
    query: Mapping[str, str] = attrs.Factory(dict)
    """Query parameters, without the user token; the last of those given twice."""
    origin: str | None = None
    path: str = ""


class Authorizer(NamedTuple):
    """A plugin's say."""

    plugin: str
    function: Callable[[str, str, ConnectInfo], object]
    """``authorize(topic, id, request)``, sync or async: None allows, a string or ``Refused(reason)``
    refuses."""


class Minted(NamedTuple):
    """The answer to a token request."""

    channel: str
    id: str
    token: str


class GateSettings(Protocol):
    """What the gate reads of ``[channel]``. Rates are per second and address, 0 is no limit."""

    @property
    def jwt_expiration_secs(self) -> int: ...
    @property
    def token_rate(self) -> float: ...
    @property
    def token_burst(self) -> float: ...
    @property
    def join_rate(self) -> float: ...
    @property
    def join_burst(self) -> float: ...
    @property
    def upgrade_rate(self) -> float: ...
    @property
    def upgrade_burst(self) -> float: ...


class Gate:
    """The policy of one incarnation."""

    def __init__(
        self,
        settings: GateSettings,
        secret: str,
        *,
        origins: OriginPolicy,
        new_id: Callable[[], str],
        clock: Callable[[], float],
        operator_token: str | None = None,
        authorizers: Sequence[Authorizer] = (),
        authorize_timeout: float = AUTHORIZE_TIMEOUT,
    ) -> None:
        """``clock`` gives wall time in seconds since 1970; ``new_id`` an id for a browser that brings
        none.
        """
        self.origins = origins
        self.authorizers = tuple(authorizers)
        self.refused = 0
        self._secret = secret
        self._lifetime = settings.jwt_expiration_secs
        self._new_id = new_id
        self._clock = clock
        self._operator_token = operator_token
        self._timeout = authorize_timeout
        self._threads = trio.CapacityLimiter(THREADS)
        self._tokens = Limiter(settings.token_rate, settings.token_burst)
        self._joins = Limiter(settings.join_rate, settings.join_burst)
        self._upgrades = Limiter(settings.upgrade_rate, settings.upgrade_burst)

    def check_upgrade(self, info: ConnectInfo) -> Refusal | None:
        """May this connection become a WebSocket?"""
        if not self._upgrades.take(client_key(info.address), self._clock()):
            return BUSY
        return self.check_origin(info)

    def check_origin(self, info: ConnectInfo) -> Refusal | None:
        return None if self.origins.allows(info.origin, info.headers.get("host")) else ORIGIN

    def is_operator(self, bearer: str | None) -> bool:
        """Is ``bearer`` the operator's token?"""
        if bearer is None or not self._operator_token:
            return False
        return hmac.compare_digest(bearer.encode(), self._operator_token.encode())

    async def mint(
        self,
        channel: str,
        id_: str | None,
        info: ConnectInfo,
        *,
        bearer: str | None = None,
    ) -> Minted | Refusal:
        """A token for ``channel``, if the policy allows."""
        now = self._clock()
        if not self._tokens.take(client_key(info.address), now):
            return LIMITED
        external = self._new_id() if id_ is None else id_
        refusal = self.check_origin(info) or self._check_name(channel, external)
        if refusal is None and channel == ADMIN and not self.is_operator(bearer):
            refusal = NOT_OPERATOR
        if refusal is None:
            refusal = await self.ask(channel, external, info)
        if refusal is not None:
            return refusal
        claims = tokens.Claims(external, channel, int(now) + self._lifetime)
        return Minted(channel, external, tokens.mint(claims, self._secret))

    def check_join(
        self, topic: str, token: str | None, user_token: str | None, info: ConnectInfo
    ) -> str | Refusal:
        """The external id that may join ``topic`` as far as tokens tell; plugins are still to be asked.

        A join's own token is final. Without one the connection's counts, for the channel that it names.
        """
        now = self._clock()
        if not self._joins.take(client_key(info.address), now):
            return LIMITED
        chosen = token if token is not None else user_token
        if chosen is None:
            return UNAUTHORIZED
        claims = tokens.verify(chosen, self._secret, now)
        if isinstance(claims, Refusal):
            return claims
        if claims.channel != topic:
            return WRONG_CHANNEL
        return self._check_name(topic, claims.id) or claims.id

    @staticmethod
    def _check_name(topic: str, id_: str) -> Refusal | None:
        if len(topic.encode()) > MAX_FIELD:
            return TOPIC_TOO_LONG
        if len(id_.encode()) > MAX_FIELD:
            return ID_TOO_LONG
        if topic.startswith(STREAMING) and topic != STREAMING + id_:
            return NOT_YOUR_STREAM
        return None

    async def ask(self, topic: str, id_: str, info: ConnectInfo) -> Refusal | None:
        """What the plugins say; the first no counts. They share one deadline."""
        deadline = trio.current_time() + self._timeout
        for authorizer in self.authorizers:
            refusal = await self._ask_one(authorizer, topic, id_, info, deadline)
            if refusal is not None:
                return refusal
        return None

    async def _ask_one(
        self, authorizer: Authorizer, topic: str, id_: str, info: ConnectInfo, deadline: float
    ) -> Refusal | None:
        plugin, function = authorizer
        answer: object = UNAVAILABLE
        with trio.CancelScope(deadline=deadline) as limit:
            try:
                answer = await self._call(function, topic, id_, info)
            except Refused as refused:
                return refused_by(refused.reason)
            except Exception as error:
                log.exception("authorize raised", plugin=plugin, topic=topic, error=type(error).__name__)
                return UNAVAILABLE
        if limit.cancelled_caught:
            log.warning("authorize took too long", plugin=plugin, topic=topic, seconds=self._timeout)
            return UNAVAILABLE
        if answer is None:
            return None
        if isinstance(answer, str):
            return refused_by(answer)
        log.error(
            "authorize must return None or a reason", plugin=plugin, topic=topic, got=type(answer).__name__
        )
        return UNAVAILABLE

    async def _call(
        self, function: Callable[[str, str, ConnectInfo], object], topic: str, id_: str, info: ConnectInfo
    ) -> object:
        if _is_async(function):
            return await function(topic, id_, info)  # type: ignore[misc]
        return await trio.to_thread.run_sync(
            function, topic, id_, info, abandon_on_cancel=True, limiter=self._threads
        )


def _is_async(function: Callable[..., object]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - objects with an async __call__
    )
