"""``BackendState``: the object that services, lifespans and routes receive.

Each incarnation has one, shared by all plugins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, overload

import attrs
import structlog
import trio

from tangram.channels.presence import Metas, to_metas
from tangram.config.listen import first_name
from tangram.config.model import Config
from tangram.config.names import normalise
from tangram.errors import PluginError
from tangram.history.position import Published
from tangram.history.rules import Rules
from tangram.history.store import HistoryPage, HistoryStore

if TYPE_CHECKING:
    import httpx

    from tangram.bus.client import RedisClient
    from tangram.bus.subscriptions import Subscription
    from tangram.plugins.service import Service
    from tangram.routing import APIRouter

__all__ = ["HTTP_CLOSE_SECONDS", "BackendState", "PluginInfo", "StateKey"]

T = TypeVar("T")

log = structlog.get_logger("tangram.plugins")

HTTP_CLOSE_SECONDS: Final = 2.0
"""Seconds to close idle HTTP connections: a peer that ignores a TLS close must not delay a restart."""

NO_CHANNELS: Final = "this state belongs to no server with channels"

MAX_WARNED: Final = 50
"""Channels of each incarnation that are reported as having no receivers."""


@attrs.frozen(eq=False)
class StateKey(Generic[T]):
    """A typed key of ``BackendState``.

    It is for values of plain types, and for several objects of one class.

    Example::

        LIMIT: Final = tangram.StateKey[int]("limit")

        state[LIMIT] = 3
        half = state[LIMIT] // 2
    """

    name: str
    """For error messages."""


class PluginInfo(Protocol):
    """The part of a ``Plugin`` that other plugins read.

    A protocol, because ``Plugin`` itself refers to ``BackendState``.
    """

    @property
    def name(self) -> str:
        """The name of its entry point."""

    @property
    def dist_name(self) -> str:
        """The name of its distribution."""

    @property
    def frontend_path(self) -> str | None:
        """The folder of its front end, relative to the project or the import package."""

    @property
    def config_class(self) -> type[Any] | None:
        """The class of its configuration."""

    @property
    def routers(self) -> list[APIRouter]:
        """Its routes."""

    @property
    def services(self) -> list[Service]:
        """Its services, in the order in which they start."""


class BackendState:
    """The configuration, Redis, HTTP client and other plugins, for a plugin to use.

    Plugins keep objects of their own in it: ``state.put(Table())`` and ``state.get(Table)``, or a `StateKey`.
    They last for one incarnation. Attributes that code without type checks sets on it work as well.
    """

    config: Config
    """The server's configuration; ``config.core.redis_url`` is the address in use, embedded or not."""
    redis_client: RedisClient
    """redis-py's asyncio client, awaitable from Trio tasks; answers are bytes."""
    loaded_plugins: dict[str, PluginInfo]
    """The loaded plugins by the name of their distribution."""
    base_url: str
    """The URL of this server for a program on the same machine, without a trailing slash."""

    def __init__(
        self,
        config: Config,
        *,
        redis_client: RedisClient,
        publish: Callable[[str, bytes | str], Awaitable[int]],
        subscribe: Callable[..., Any],
        history: HistoryStore | None = None,
        presence: Callable[[str], Awaitable[Mapping[str, str]]] | None = None,
        presence_nowait: Callable[[str], Mapping[str, str] | None] | None = None,
        loaded_plugins: Mapping[str, PluginInfo] | None = None,
        base_url: str = "",
        client_url: str | None = None,
    ) -> None:
        self.config = config
        self.redis_client = redis_client
        self.loaded_plugins = dict(loaded_plugins or {})
        self.base_url = base_url or _base_url(config)
        self._publish = publish
        self._subscribe = subscribe
        self._history = history or HistoryStore.none()
        self._presence = presence
        self._presence_nowait = presence_nowait
        self._http_client: httpx.AsyncClient | None = None
        self._plugin_configs: dict[str, tuple[type[Any] | None, Any]] = {}
        self._client_url = client_url
        self._closed = False
        self._warned: set[str] = set()
        self._objects: dict[object, Any] = {}
        """The objects of plugins, by class or by `StateKey`."""

    def put(self, thing: T, *, of: type[T] | None = None) -> T:
        """Keep an object for services, handlers, routes and other plugins, and return it.

        Example::

            table = state.put(Table())  # in a lifespan, for example

        Args:
            thing: the object; another one of its class is replaced.
            of: the class by which ``get`` finds it; that of the object by default.
        """
        self._objects[of or type(thing)] = thing
        return thing

    def get(self, kind: type[T]) -> T:
        """Return the object of a class that was ``put`` in this incarnation.

        Raises:
            PluginError: there is none.
        """
        found: T = self._find(kind, f"state.put({kind.__name__}(...))")
        return found

    def __getitem__(self, key: StateKey[T]) -> T:
        found: T = self._find(key, f"state[{key.name}] = ...")
        return found

    def __setitem__(self, key: StateKey[T], value: T) -> None:
        self._objects[key] = value

    def __delitem__(self, key: StateKey[Any]) -> None:
        self._find(key, f"state[{key.name}] = ...")
        del self._objects[key]

    def __contains__(self, key: StateKey[Any] | type[Any]) -> bool:
        return key in self._objects

    def _find(self, key: object, remedy: str) -> Any:
        try:
            return self._objects[key]
        except KeyError:
            raise PluginError(
                f"the state has nothing for {key!r}: write {remedy} in a lifespan, or in a service that "
                "starts before"
            ) from None

    async def publish(self, channel: str, payload: object) -> Published:
        """Publish on a Redis channel; return the number of Redis clients that received it.

        A message on ``to:<topic>:<event>`` reaches the browsers that joined the topic. If the topic has a
        history, the result's ``position`` is the message's place in it.

        Example::

            await state.publish("to:weather:wind", {"level": 850, "speed": 13.5})

        Args:
            channel: the name of the channel.
            payload: bytes and text are sent unchanged; other values are encoded as JSON, for example dicts,
                lists, attrs objects and dataclasses.

        Raises:
            BrokerUnavailable: there is no connection to Redis.
            BrokerRefused: Redis refused the command.
            TypeError: JSON cannot represent the payload.
        """
        data = payload if isinstance(payload, bytes | str) else _encode(channel, payload)
        receivers = await self._publish(channel, data)
        if not receivers or channel.count(":") < 2:
            self._warn_of_no_receiver(channel, receivers)
        return receivers if isinstance(receivers, Published) else Published(receivers)

    async def history(self, topic: str, since: str | None = None, limit: int = 100) -> HistoryPage:
        """Return the messages of a topic that are kept, in order, with the position behind them.

        Example::

            page = await state.history("flights:eu", since=known)
            for event, payload in page.events: ...

        Args:
            topic: the topic.
            since: a position, to get the messages behind it; by default all that are kept.
            limit: the largest number of messages; the newest ones are returned.

        Raises:
            BrokerUnavailable: there is no connection to Redis.
            LookupError: the topic has no history.
        """
        return await self._history.history(topic, since, limit)

    @property
    def client_url(self) -> str:
        """The URL of a client that reaches the keys on all nodes of a Redis Cluster."""
        return self._client_url or str(self.config.core.redis_url)

    async def presence(self, topic: str) -> Metas:
        """Return the members of a topic on all nodes: external ids with their metas.

        Example::

            members = await state.presence("map")
            log.info("watched", ids=list(members))

        Args:
            topic: the topic.

        Raises:
            BrokerUnavailable: there is no connection to Redis, or the channels restart.
            LookupError: the topic has no presence.
        """
        if self._presence is None:
            raise LookupError(NO_CHANNELS)
        return to_metas(await self._presence(topic))

    def presence_nowait(self, topic: str) -> Mapping[str, str] | None:
        """Return a topic's external ids by agent, or None if Redis has them.

        Raises:
            BrokerUnavailable: the channels restart.
            LookupError: the topic has no presence.
        """
        if self._presence_nowait is None:
            raise LookupError(NO_CHANNELS)
        return self._presence_nowait(topic)

    @property
    def history_rules(self) -> Rules:
        """Which topics have a history."""
        return self._history.rules

    async def position(self, topic: str) -> str:
        """Return the position behind the newest message of a topic.

        Read it before the data of a page, and let the page join from it: then no message is missed between.

        Raises:
            BrokerUnavailable: there is no connection to Redis.
            LookupError: the topic has no history.
        """
        return await self._history.position(topic)

    def _warn_of_no_receiver(self, channel: str, receivers: int) -> None:
        """Log once that no browser and no plugin can receive the messages of a channel."""
        # The hub receives all of to:*, but without an event it drops them.
        received = channel.count(":") >= 2 if channel.startswith("to:") else receivers
        if received or channel.startswith("from:"):
            return
        if channel in self._warned or len(self._warned) >= MAX_WARNED:
            return
        self._warned.add(channel)
        log.warning(
            "message without receivers",
            channel=channel,
            hint="browsers receive to:<topic>:<event>, and plugins the channels that they subscribe to",
        )

    def subscribe(self, *patterns: str) -> Subscription:
        """Iterate over messages of Redis channels, each a `Message`.

        The result is also an async context manager, which has subscribed once it is entered.

        Example::

            async for message in state.subscribe("from:chat:*"): ...

        Args:
            patterns: Redis channel names, or patterns with ``*``, ``?`` and ``[...]``.

        Raises:
            BrokerRefused: Redis refused the subscription.
        """
        made: Subscription = self._subscribe(*patterns)
        return made

    @property
    def http_client(self) -> httpx.AsyncClient:
        """A shared httpx client, created on first use (with HTTP/2 if h2 is installed)."""
        if self._http_client is None:
            if self._closed:
                raise PluginError(
                    "this http_client belongs to an incarnation that has ended: take the new state's"
                )
            self._http_client = _make_http_client()
        return self._http_client

    @http_client.setter
    def http_client(self, client: httpx.AsyncClient) -> None:
        self._http_client = client

    @overload
    def plugin_config(self, of: type[T]) -> T: ...
    @overload
    def plugin_config(self, of: PluginInfo | str) -> Any: ...
    def plugin_config(self, of: PluginInfo | str | type[Any]) -> Any:
        """Return the validated configuration of a plugin.

        Without a ``config_class`` it is the raw table.

        Args:
            of: the plugin's ``config_class``, the plugin itself, or the name of its distribution.

        Raises:
            PluginError: no running plugin fits.
        """
        if isinstance(of, type):
            for config_class, value in self._plugin_configs.values():
                if config_class is of:
                    return value
            raise PluginError(f"no running plugin has {of.__name__!r} as its config_class")
        name = of if isinstance(of, str) else of.dist_name or of.name
        try:
            return self._plugin_configs[normalise(name)][1]
        except KeyError:
            raise PluginError(
                f"plugin {name!r} has no configuration here: it does not run", plugin=name
            ) from None

    def set_plugin_config(self, dist_name: str, config_class: type[Any] | None, value: Any) -> None:
        """Set the answer of ``plugin_config``; the plugin's host calls it at each start."""
        self._plugin_configs[normalise(dist_name)] = (config_class, value)

    async def aclose(self) -> None:
        """Close the HTTP client within ``HTTP_CLOSE_SECONDS``, also while cancelled."""
        self._closed = True
        client, self._http_client = self._http_client, None
        if client is not None:
            with trio.move_on_after(HTTP_CLOSE_SECONDS, shield=True):
                await client.aclose()


def _encode(channel: str, payload: object) -> bytes:
    if isinstance(payload, bytearray | memoryview):
        return bytes(payload)
    from tangram.routing.responses import encode_json

    try:
        return encode_json(payload)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"cannot publish {type(payload).__name__} on {channel!r}: "
            f"expected bytes, str or a value that JSON can represent ({error})"
        ) from None


def _make_http_client() -> httpx.AsyncClient:
    try:
        import httpx
    except ImportError:
        raise PluginError(
            "http_client needs httpx, which is not installed: pip install 'tangram-trio[http]'"
        ) from None
    try:
        import h2  # noqa: F401 - only asks whether it is installed
    except ImportError:
        return httpx.AsyncClient()
    return httpx.AsyncClient(http2=True)


def _base_url(config: Config) -> str:
    host = first_name(config.server.host)
    scheme = "https" if config.server.tls_cert else "http"
    return (
        f"{scheme}://[{host}]:{config.server.port}"
        if ":" in host
        else f"{scheme}://{host}:{config.server.port}"
    )
