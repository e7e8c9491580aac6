"""``BackendState``: what services, lifespans and routes are handed. One for each incarnation, shared by all
plugins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

import trio

from tangram.config.model import Config
from tangram.config.names import normalise
from tangram.errors import PluginError

if TYPE_CHECKING:
    import httpx

    from tangram.bus.client import RedisClient
    from tangram.plugins.plugin import Plugin

__all__ = ["HTTP_CLOSE_SECONDS", "BackendState"]

T = TypeVar("T")

HTTP_CLOSE_SECONDS = 2.0
"""For closing idle HTTP connections: a peer that does not answer a TLS close must not hold a restart up."""


class BackendState:
    """What a plugin gets to work with. Plugins may hang attributes of their own on it."""

    config: Config
    """The server's configuration; ``config.core.redis_url`` is the address that really is in use."""
    redis_client: RedisClient
    """redis-py's asyncio client, awaitable from Trio tasks; answers are bytes."""
    loaded_plugins: dict[str, Plugin]
    """The plugins that were loaded, by the name of their distribution."""
    base_url: str
    """Where this server answers, as a program on the same machine would write it; no trailing slash."""

    if TYPE_CHECKING:
        # What plugins hang on it is theirs to know; a type checker has to let it pass.
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...
        def __delattr__(self, name: str) -> None: ...

    def __init__(
        self,
        config: Config,
        *,
        redis_client: RedisClient,
        publish: Callable[[str, bytes | str], Awaitable[int]],
        subscribe: Callable[..., Any],
        loaded_plugins: Mapping[str, Plugin] | None = None,
        base_url: str = "",
    ) -> None:
        self.config = config
        self.redis_client = redis_client
        self.loaded_plugins = dict(loaded_plugins or {})
        self.base_url = base_url or _base_url(config)
        self._publish = publish
        self._subscribe = subscribe
        self._http_client: httpx.AsyncClient | None = None
        self._plugin_configs: dict[str, tuple[type[Any] | None, Any]] = {}
        self._closed = False

    async def publish(self, channel: str, payload: bytes | str) -> int:
        """Publish on a Redis channel (``to:<topic>:<event>`` reaches browsers); the number of receivers.

        Raises `BrokerUnavailable` while Redis is away, and its subclass `BrokerRefused` where it says no.
        """
        return await self._publish(channel, payload)

    def subscribe(self, *patterns: str) -> Any:
        """Messages of Redis channels: ``async for message in state.subscribe("from:chat:*")``.

        Also an async context manager, which has subscribed once it is entered. Raises `BrokerRefused` where
        Redis says no.
        """
        return self._subscribe(*patterns)

    @property
    def http_client(self) -> httpx.AsyncClient:
        """A shared httpx client, made when first used (HTTP/2 where h2 is installed)."""
        if self._http_client is None:
            if self._closed:
                raise PluginError("the http_client of an incarnation that has ended is used")
            self._http_client = _make_http_client()
        return self._http_client

    @http_client.setter
    def http_client(self, client: httpx.AsyncClient) -> None:
        self._http_client = client

    @overload
    def plugin_config(self, of: type[T]) -> T: ...
    @overload
    def plugin_config(self, of: Plugin | str) -> Any: ...
    def plugin_config(self, of: Plugin | str | type[Any]) -> Any:
        """The validated configuration of a plugin: by its config class, itself, or its distribution's name.

        Without a ``config_class`` it is the raw table. Raises `PluginError` where there is none.
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
        """For the plugin's host: what ``plugin_config`` answers from now on."""
        self._plugin_configs[normalise(dist_name)] = (config_class, value)

    async def aclose(self) -> None:
        """Close what was opened on behalf of plugins; safe under cancellation, and bounded."""
        self._closed = True
        client, self._http_client = self._http_client, None
        if client is not None:
            with trio.move_on_after(HTTP_CLOSE_SECONDS, shield=True):
                await client.aclose()


def _make_http_client() -> httpx.AsyncClient:
    try:
        import httpx
    except ImportError:
        raise PluginError(
            "http_client needs httpx, which is not installed: pip install 'tangram-trio[http]'"
        ) from None
    try:
        import h2  # noqa: F401
    except ImportError:
        return httpx.AsyncClient()
    return httpx.AsyncClient(http2=True)


def _base_url(config: Config) -> str:
    host = config.server.host
    if host in {"0.0.0.0", ""}:  # noqa: S104  # compared with, not bound to
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    scheme = "https" if config.server.tls_cert else "http"
    return (
        f"{scheme}://[{host}]:{config.server.port}"
        if ":" in host
        else f"{scheme}://{host}:{config.server.port}"
    )
