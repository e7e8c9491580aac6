"""redis-py's asyncio clients for every kind of URL: one Redis, sentinels, a Redis Cluster.

redis-py's own ``from_url`` knows the first kind alone. Its clients follow a failover by themselves: with
sentinels each new connection asks for the primary, and a cluster's client follows MOVED and ASK.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlencode

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, parse_url
from redis.asyncio.sentinel import Sentinel

from tangram.redis_url import RedisAddress, read_redis_url

if TYPE_CHECKING:
    from tangram.redis_url import Endpoint

__all__ = ["open_client", "open_single"]

NOT_OF_CLUSTERS: Final = frozenset({"retry_on_timeout", "host", "port", "db"})
"""Options that redis-py's client of a cluster does not take."""


def open_client(
    url: str,
    *,
    single: type[Redis] = Redis,
    cluster: type[RedisCluster] = RedisCluster,
    **options: Any,
) -> Redis:
    """Return a client for a URL of any kind.

    Args:
        url: the URL.
        single: the class of the client of one Redis, also behind sentinels.
        cluster: the class of the client of a cluster.
        options: further options of redis-py.
    """
    address = read_redis_url(url)
    if address.kind == "single":
        return single.from_url(url, **options)
    if address.kind == "sentinel":
        return _open_sentinel(address, single, options)
    options = _options(address) | options
    nodes = [ClusterNode(host, port) for host, port in address.guides]
    allowed = {name: value for name, value in options.items() if name not in NOT_OF_CLUSTERS}
    # A cluster's client has the commands of Redis; its few own names are not used here.
    return cast("Redis", cluster(startup_nodes=nodes, ssl=address.tls, **allowed))


def open_single(url: str) -> Redis:
    """Return a client for subscriptions: in a cluster, any node has all messages."""
    address = read_redis_url(url)
    if address.kind != "cluster":
        return open_client(url)
    options = _options(address) | {"guides": address.guides}
    kind = _AnySSLNode if address.tls else _AnyNode
    return Redis(connection_pool=ConnectionPool(connection_class=kind, **options))


def _open_sentinel(address: RedisAddress, kind: type[Redis], options: Mapping[str, Any]) -> Redis:
    mine = _options(address) | dict(options)
    tls = {name: value for name, value in mine.items() if name.startswith("ssl_")}
    of_sentinels = tls | ({"ssl": True} if address.tls else {})
    if address.sentinel_password is not None:
        of_sentinels |= {"username": address.sentinel_username, "password": address.sentinel_password}
    for name in ("socket_timeout", "socket_connect_timeout"):
        # Without a deadline a sentinel that hangs would keep the others from being asked.
        of_sentinels[name] = mine.get("socket_connect_timeout") or 1.0
    sentinel = Sentinel(list(address.guides), sentinel_kwargs=of_sentinels)  # type: ignore[no-untyped-call]
    if address.tls:
        mine["ssl"] = True
    return cast("Redis", sentinel.master_for(address.master, redis_class=kind, **mine))


def _options(address: RedisAddress) -> dict[str, Any]:
    """Return the options of a URL as redis-py reads them, and the account."""
    scheme = "rediss" if address.tls else "redis"
    options: dict[str, Any] = dict(parse_url(f"{scheme}://host?{urlencode(address.options)}"))
    for name in ("host", "port", "connection_class"):
        options.pop(name, None)
    if address.db:
        options["db"] = address.db
    if address.password is not None:
        options |= {"username": address.username, "password": address.password}
    return options


class _Anywhere:
    """A connection to the first of several nodes that accepts it."""

    host: str
    port: int

    def __init__(self, *, guides: tuple[Endpoint, ...], **options: Any) -> None:
        self._guides = guides
        super().__init__(host=guides[0][0], port=guides[0][1], **options)  # type: ignore[call-arg]  # of the class beside it

    async def _connect(self) -> None:
        for host, port in self._guides[:-1]:
            self.host, self.port = host, port
            try:
                await super()._connect()  # type: ignore[misc]
            except OSError:
                continue
            return
        self.host, self.port = self._guides[-1]
        await super()._connect()  # type: ignore[misc]


class _AnyNode(_Anywhere, Connection):
    pass


class _AnySSLNode(_Anywhere, SSLConnection):
    pass
