"""The class ``BackendState`` of existing plugins: each one's view of the shared state."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from tangram.channels.presence import Metas, to_metas
from tangram.plugins.state import BackendState as SharedState

if TYPE_CHECKING:
    import httpx
    from redis.asyncio import Redis

    from tangram.compat.configuration import Config
    from tangram.compat.recording import ClientFence
    from tangram.history import Rules
    from tangram.plugins.plugin import Plugin

__all__ = ["STATE", "BackendState", "open_http_client", "open_redis_client"]

STATE: Final = "backend_state"
"""The attribute of a plugin's application with the state: ``request.app.state.backend_state``."""

_HIDDEN: Final = frozenset({"subscribe", "history", "position", "aclose"})
"""Attributes of the shared state that await on Trio, and would fail on an asyncio loop."""


class BackendState:
    """The state that services, lifespans and routes of an existing plugin get.

    The clients belong to the loop of the plugin's own island. Attributes that a plugin sets are set on the
    state that all plugins share, native ones included, and live as long as one incarnation.
    """

    redis_client: Redis
    """A ``redis.asyncio.Redis``; its answers are bytes."""
    http_client: httpx.AsyncClient
    config: Config
    """This plugin's own copy of the configuration; other plugins do not see changes of it."""
    loaded_plugins: dict[str, Plugin]
    base_url: str

    _OWN = frozenset({"redis_client", "http_client", "config", "loaded_plugins", "base_url"})

    def __init__(
        self,
        shared: Callable[[], SharedState],
        *,
        config: Config,
        make: Mapping[str, Callable[[], Any]],
    ) -> None:
        """Make a view of the shared state.

        Args:
            shared: Returns the current state that all plugins share.
            config: This plugin's copy of the configuration.
            make: Opens a client at its first use, by the name of the attribute.
        """
        own = vars(self)
        own["_shared"] = shared
        own["_make"] = dict(make)
        own["config"] = config
        now = shared()
        own["loaded_plugins"] = dict(now.loaded_plugins)
        own["base_url"] = now.base_url

    def __getattr__(self, name: str) -> Any:
        own = vars(self)
        if name in own.get("_make", ()):
            value = own[name] = own["_make"][name]()
            return value
        if name.startswith("__") or "_shared" not in own:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        shared = own["_shared"]()
        if name not in vars(shared):  # an existing plugin may have set an attribute of its own
            if name == "presence":
                return self._read_presence
            if name in _HIDDEN:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(shared, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN:
            vars(self)[name] = value
        else:
            setattr(vars(self)["_shared"](), name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._OWN:
            vars(self).pop(name, None)
        else:
            delattr(vars(self)["_shared"](), name)

    async def publish(self, channel: str, payload: bytes | str) -> int:
        """Publish *payload* on *channel*, awaited on asyncio, and return the number of receivers."""
        return int(await self.redis_client.publish(channel, payload))

    async def _read_presence(self, topic: str) -> Metas:
        """Return the members of a topic on all nodes, awaited on asyncio.

        Raises:
            redis.RedisError: there is no connection to Redis.
            BrokerUnavailable: the channels restart.
            LookupError: the topic has no presence.
        """
        from tangram.presence.library import parse_members, read_call

        members = vars(self)["_shared"]().presence_nowait(topic)
        if members is None:
            (key,) = read_call(topic).keys
            fields: dict[Any, Any] = await self.redis_client.hgetall(key)
            found = parse_members([word for pair in fields.items() for word in pair])
            members = {agent: member.id for agent, member in found.items()}
        return to_metas(members)

    def opened_clients(self) -> list[Any]:
        """Return the clients that were used, which have to be closed."""
        own = vars(self)
        return [own[name] for name in own["_make"] if name in own]


def open_redis_client(url: str, rules: Rules | None = None, fence: ClientFence | None = None) -> Redis:
    """Return ``state.redis_client``: redis-py's own, on the loop on which it is first awaited.

    If topics have a history, its ``publish`` records their messages in the same step. A fence lets it publish
    only as long as this node runs the plugin.

    redis-py 8 does not look whether a pooled connection was closed if it may get maintenance notifications of
    a cluster, so the first commands after a restart of Redis would fail. They are therefore off.
    """
    from redis.asyncio import ConnectionPool

    from tangram.bus.redis_py import open_client

    options: dict[str, Any] = {}
    if "maint_notifications_config" in inspect.signature(ConnectionPool.__init__).parameters:
        from redis.maint_notifications import MaintNotificationsConfig

        options["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
    if not rules and fence is None:
        return open_client(url, **options)
    from tangram.compat.recording import publishing_client, publishing_cluster

    single, cluster = publishing_client(rules, fence), publishing_cluster(rules, fence)
    return open_client(url, single=single, cluster=cluster, **options)


def open_http_client() -> httpx.AsyncClient:
    """Return a client of httpx, with HTTP/2 where h2 is installed.

    Raises:
        AttributeError: httpx is not installed.
    """
    try:
        import httpx
    except ImportError:
        raise AttributeError(
            "http_client needs httpx, which is not installed: pip install 'tangram-trio[http]'"
        ) from None
    try:
        import h2  # noqa: F401 - only asks whether it is installed
    except ImportError:
        return httpx.AsyncClient()
    return httpx.AsyncClient(http2=True)
