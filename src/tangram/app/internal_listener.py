"""The sockets on which other nodes reach this one.

The child ``nodes`` owns them: its record names their address, and they outlive the incarnations.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

import structlog

from tangram.config import Config
from tangram.http.forward.pool import current_network
from tangram.http.listeners import HeldSocket, open_listeners
from tangram.redis_url import parse_redis_url

__all__ = ["address_of", "open_internal"]

log = structlog.get_logger("tangram.app")

LOOPBACK: Final = "127.0.0.1:0"
"""The internal listener of nodes on one machine: a free port, which the node's record names."""


def open_internal(config: Config, redis_url: str) -> Sequence[HeldSocket]:
    """Listen for requests of other nodes; return no socket if none can reach this one.

    Raises:
        AddressError: the address of ``cluster.listen`` is in use, or not one of this machine.
    """
    listen = config.cluster.listen
    if listen is None:
        if not _is_local(redis_url):
            log.warning(
                "other nodes cannot forward requests to this one: cluster.listen is not set",
                hint="set it to an address that only the nodes can reach, for example 10.0.0.5:2350",
            )
            # Workers of this machine reach each other all the same. A node elsewhere that dials this address
            # on its own machine finds no node of this name.
            if config.server.workers == 1:
                return []
        listen = LOOPBACK
    network = current_network.get()
    if network is not None:
        return network.listen()
    host, _, port = listen.rpartition(":")
    return open_listeners(host.strip("[]"), int(port), section="cluster")


def address_of(sockets: Sequence[HeldSocket]) -> str | None:
    """Return the address under which other nodes reach the listener."""
    if not sockets:
        return None
    host, port = sockets[0].host, sockets[0].port
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_local(url: str) -> bool:
    """Return whether Redis is on this machine, and so probably all nodes."""
    address = parse_redis_url(url)
    if address.path:
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return address.host == "localhost"
