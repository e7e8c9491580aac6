"""The access policy of upgrades, tokens and joins.

The checks run in this order, and the first refusal is the answer: rate, origin, the topic's name (``admin``
is for the operator, ``streaming-<id>`` for that id), the token, and finally the ``authorize`` function of
every plugin. If a plugin raises or takes too long, the join is refused with *unavailable*, after which the
client tries again.
"""

from __future__ import annotations

import hmac
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple, Protocol, TypeAlias

import attrs
import structlog
import trio

from tangram.channels import tokens
from tangram.channels.disconnects import (
    BUSY,
    ID_TOO_LONG,
    LIMITED,
    NOT_OPERATOR,
    NOT_YOUR_ID,
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
from tangram.channels.ids import IdMode, IdProofs
from tangram.channels.limits import Limiter, client_key
from tangram.channels.origins import OriginPolicy
from tangram.errors import Refused

__all__ = ["STREAMING", "Authorizer", "ConnectInfo", "Gate", "GateSettings", "Minted"]

log = structlog.get_logger("tangram.channels")

STREAMING: Final = "streaming-"
"""``streaming-<id>`` is the private stream of the browser with that id."""
AUTHORIZE_TIMEOUT: Final = 5.0
"""Seconds for all plugins together to answer for one join; phoenix.js gives up a join after ten."""
THREADS: Final = 8
"""Synchronous ``authorize`` functions at once, so that stuck ones do not use up the server's threads."""


@attrs.frozen
class ConnectInfo:
    """The request of a client, which ``authorize(topic, id, request)`` gets."""

    address: str
    """The client's IP address; from forwarded headers only if the proxy is trusted."""
    headers: Mapping[str, str] = attrs.Factory(dict)
    """Header names in lower case."""
    query: Mapping[str, str] = attrs.Factory(dict)
    """Query parameters without the user token. Of a repeated parameter the last value counts."""
    origin: str | None = None
    path: str = ""


AuthorizeFunction: TypeAlias = "Callable[[str, str, ConnectInfo], object]"


class Authorizer(NamedTuple):
    """The ``authorize`` function of a plugin."""

    plugin: str
    function: AuthorizeFunction
    """``authorize(topic, id, request)``, sync or async: returns None to allow, or a reason to refuse."""

    pattern: str = "*"
    """The topics for which the function is asked; ``*`` stands for any characters, colons included."""

    @classmethod
    def of(
        cls,
        plugin: str,
        authorize: AuthorizeFunction | Mapping[str, AuthorizeFunction],
    ) -> list[Authorizer]:
        """Return the authorizers of a plugin: one for all topics, or one for each pattern."""
        if isinstance(authorize, Mapping):
            return [cls(plugin, function, pattern) for pattern, function in authorize.items()]
        return [cls(plugin, authorize)]


class Minted(NamedTuple):
    """The answer to a token request."""

    channel: str
    id: str
    token: str
    proof: str
    """Sent with later requests for the same id; see ``ids``."""


class GateSettings(Protocol):
    """The settings of ``[channel]`` that the gate reads.

    Rates are per second and address; 0 means no limit.
    """

    @property
    def ids(self) -> IdMode: ...
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
    """The access policy of one incarnation."""

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
        """Make a gate.

        Args:
            settings: rates and the lifetime of tokens.
            secret: the key with which tokens are signed.
            origins: the pages that may use the server.
            new_id: returns an external id for a client that asks for a token without one.
            clock: returns wall time in seconds since 1970.
            operator_token: the bearer token of the operator; without one nothing is the operator's.
            authorizers: the functions of plugins, asked in this order.
            authorize_timeout: seconds for all of them together.
        """
        self.origins = origins
        self.authorizers = tuple(authorizers)
        self.refused = 0
        self._secret = secret
        self._lifetime = settings.jwt_expiration_secs
        self._ids = IdProofs(secret, settings.ids, new_id)
        self._clock = clock
        self._operator_token = operator_token
        self._timeout = authorize_timeout
        self._threads = trio.CapacityLimiter(THREADS)
        self._tokens = Limiter(settings.token_rate, settings.token_burst)
        self._joins = Limiter(settings.join_rate, settings.join_burst)
        self._upgrades = Limiter(settings.upgrade_rate, settings.upgrade_burst)

    def check_upgrade(self, info: ConnectInfo) -> Refusal | None:
        """Return the refusal of an upgrade to a WebSocket, or None."""
        if not self._upgrades.take(client_key(info.address), self._clock()):
            return BUSY
        return self.check_origin(info)

    def check_origin(self, info: ConnectInfo) -> Refusal | None:
        """Return the refusal of a page's origin, or None."""
        return None if self.origins.allows(info.origin, info.headers.get("host")) else ORIGIN

    def is_operator(self, bearer: str | None) -> bool:
        """Return whether ``bearer`` is the operator's token."""
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
        proofs: Collection[str] = (),
        keeps_proof: bool = False,
    ) -> Minted | Refusal:
        """Return a token for ``channel``, or the refusal.

        Args:
            channel: the topic.
            id_: the external id that the client asks for; None for a new one.
            info: the request.
            bearer: the bearer token of the request, which ``admin`` needs, and with which the operator may
                have a token of any id.
            proofs: the proofs of ids that the request has.
            keeps_proof: whether the client will have the proof with its next request.
        """
        now = self._clock()
        if not self._tokens.take(client_key(info.address), now):
            return LIMITED
        external = self._ids.make(keeps_proof=keeps_proof) if id_ is None else id_
        refusal = self.check_origin(info) or self._check_name(channel, external)
        if refusal is None and channel == ADMIN and not self.is_operator(bearer):
            refusal = NOT_OPERATOR
        if refusal is None and id_ is not None and not self._ids.may_use(id_, proofs):
            refusal = None if self.is_operator(bearer) else NOT_YOUR_ID
        if refusal is None:
            refusal = await self.ask(channel, external, info)
        if refusal is not None:
            return refusal
        claims = tokens.Claims(external, channel, int(now) + self._lifetime)
        self._ids.note(external)
        return Minted(channel, external, tokens.mint(claims, self._secret), self._ids.proof(external))

    def check_join(
        self, topic: str, token: str | None, user_token: str | None, info: ConnectInfo
    ) -> str | Refusal:
        """Return the external id of a token that allows to join ``topic``, or the refusal.

        This does not ask plugins yet. If the join has a ``token`` of its own, only that one counts; otherwise
        the ``user_token`` of the connection does.
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
        """Ask all plugins in turn, within one deadline, and return the first refusal or None."""
        deadline = trio.current_time() + self._timeout
        for authorizer in self.authorizers:
            if not fnmatchcase(topic, authorizer.pattern):
                continue
            refusal = await self._ask_one(authorizer, topic, id_, info, deadline)
            if refusal is not None:
                return refusal
        return None

    async def _ask_one(
        self, authorizer: Authorizer, topic: str, id_: str, info: ConnectInfo, deadline: float
    ) -> Refusal | None:
        plugin, function, _ = authorizer
        answer: object = UNAVAILABLE
        with trio.CancelScope(deadline=deadline) as limit:
            try:
                answer = await self._call(function, topic, id_, info)
            except Refused as refused:
                return refused_by(refused.reason)
            except (Exception, SystemExit) as error:
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
