"""The node's part of the tree: its record, made from the parts of the server."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import structlog

from tangram import defaults
from tangram.app.addresses import node_url
from tangram.app.incarnation import Incarnation
from tangram.cluster import NodeRecord, Nodes, new_node_id
from tangram.cluster.lease import STOP_SHARE, stop_limit
from tangram.config import Config
from tangram.errors import BrokerUnavailable
from tangram.gateway.node_presence import CallNowait, NodeParts
from tangram.http.listeners import HeldSocket
from tangram.plugins.registry import LoadedPlugin, LoadedPlugins
from tangram.version import VERSION

__all__ = [
    "has_successors",
    "log_long_stops",
    "long_stops",
    "node_parts",
    "open_nodes",
    "placed_names",
    "starts_with_others",
]

log = structlog.get_logger("tangram.cluster")

TOLERANCE: Final = 0.001
"""Seconds that are no difference: 0.3 times 6 is less than 1.8."""


class SecretsView(Protocol):
    """The attribute of `Secrets` that is read here."""

    @property
    def jwt(self) -> str: ...


class TreeView(Protocol):
    """The attributes of `Tree` that are read here."""

    config: Config
    held: Sequence[HeldSocket]
    incarnation: Incarnation
    nodes: Nodes | None
    plugins: LoadedPlugins

    @property
    def secrets(self) -> SecretsView: ...


def placed_names(plugins: Iterable[LoadedPlugin], tables: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """Return the plugins that run on one node, and the services as ``PLUGIN/SERVICE``.

    Args:
        plugins: the loaded plugins.
        tables: ``[plugins.NAME]`` by the normalised name.
    """
    return frozenset(name for one in plugins for name in _placed(one, tables.get(one.key, {})))


def _placed(loaded: LoadedPlugin, raw: Mapping[str, Any]) -> Iterator[str]:
    if loaded.plugin.instances_with(raw, key=loaded.key) == "one":
        yield loaded.name
    else:
        for service in loaded.plugin.services:
            if service.instances == "one":
                yield f"{loaded.name}/{service.name}"


def long_stops(plugins: Iterable[LoadedPlugin], config: Config) -> Iterator[tuple[str, float]]:
    """Yield each placed service that asks for too long a stop, with its seconds.

    A lost lease leaves less. The default of ``stop_timeout`` is no wish of the author, and is left out.

    Args:
        plugins: the loaded plugins.
        config: the configuration.
    """
    if not config.clustered:
        return
    limit, loaded = stop_limit(config.cluster.lease_ttl), list(plugins)
    placed = placed_names(loaded, config.plugins)
    for one in loaded:
        for service in one.plugin.services:
            name = f"{one.name}/{service.name}"
            asked = service.stop_timeout
            if placed & {one.name, name} and asked > limit + TOLERANCE and asked != defaults.STOP_TIMEOUT:
                yield name, asked


def log_long_stops(plugins: Iterable[LoadedPlugin], config: Config) -> None:
    """Warn of each service of `long_stops`."""
    for name, asked in long_stops(plugins, config):
        log.warning(
            "stop_timeout is longer than a lost lease allows: raise cluster.lease_ttl",
            service=name,
            stop_timeout=asked,
            limit=stop_limit(config.cluster.lease_ttl),
            lease_ttl=config.cluster.lease_ttl,
            enough=round(asked / STOP_SHARE, 1),
        )


def digest(secret: str) -> str:
    """Return a digest by which two nodes compare a secret."""
    return hmac.new(secret.encode(), b"tangram: is it the same secret?", hashlib.sha256).hexdigest()[:16]


def open_nodes(tree: TreeView, url: str, address: str | None) -> Nodes:
    """Return the part that keeps this node's record on Redis and follows the other nodes."""
    settings = tree.config.cluster
    record = NodeRecord(
        id=settings.node or new_node_id(),
        started=time.time(),
        version=VERSION,
        address=address,
        workers=1,
        members=0,
        plugins=(),
        run=secrets.token_hex(6),
        url=node_url(tree.config, tree.held[0], address),
    )

    def describe() -> Mapping[str, Any]:
        channels = tree.incarnation.channels
        return {
            "members": 0 if channels is None else channels.hub.statistics().members,
            "declared": tuple(sorted(one.name for one in tree.plugins.plugins)),
            "secret": digest(tree.secrets.jwt),
        }

    spread = starts_with_others(tree.config)
    return Nodes(url, record, describe=describe, lease_ttl=settings.lease_ttl, spread=spread)


def starts_with_others(config: Config) -> bool:
    """Return whether other nodes may start at the same time, and shall find plugins to take.

    Workers of one machine do. So do machines that boot together: ``cluster.listen`` is set where nodes on
    other machines reach this one, and only there. A server without it may be alone, and waits for none.
    """
    return config.server.workers != 1 or config.cluster.listen is not None


def has_successors(tree: TreeView, *, workers_stop: bool) -> bool:
    """Return whether other nodes take the clients of this one when it ends.

    Args:
        tree: the tree of this server.
        workers_stop: whether the other workers of this machine end at the same time.
    """
    if tree.nodes is None:
        return False
    others = tree.nodes.alive().keys() - {tree.nodes.me}
    if workers_stop and tree.config.server.workers != 1:
        server = tree.nodes.me.rpartition(".")[0]
        others = {one for one in others if one.rpartition(".")[0] != server}
    return bool(others)


def node_parts(tree: TreeView, call_nowait: CallNowait) -> NodeParts | None:
    """Return the other nodes as presence needs them; None if there can be none."""
    if tree.nodes is None:
        return None
    me = tree.nodes.me

    def alive() -> Collection[str]:
        known = () if tree.nodes is None else tree.nodes.alive()
        if me not in known:
            raise BrokerUnavailable("the other nodes are not known yet")
        return known

    return NodeParts(me, alive, call_nowait, tree.config.cluster.presence_grace)
