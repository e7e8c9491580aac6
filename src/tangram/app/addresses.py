"""The addresses of a server that follow from its configuration and its sockets."""

from __future__ import annotations

from urllib.parse import urlsplit

from tangram.channels.origins import OriginPolicy
from tangram.config import Config
from tangram.config.listen import UNIX, first_name, split_hosts
from tangram.http.listeners import HeldSocket

__all__ = ["base_url", "node_url", "origin_policy"]


def origin_policy(config: Config) -> OriginPolicy:
    """Return the origins whose pages may use a server."""
    server, channel = config.server, config.channel
    public = urlsplit(channel.public_url).hostname if channel.public_url else None
    named = (*split_hosts(server.host), *server.hosts, *split_hosts(channel.host or server.host), public)
    return OriginPolicy(server.allowed_origins, [host for host in named if host])


def base_url(config: Config, held: HeldSocket) -> str:
    """Return the URL of a server for a program on the same machine."""
    host, port = _bound(config, held)
    return _url(config, {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104 - compared, not bound


def node_url(config: Config, held: HeldSocket, internal: str | None) -> str:
    """Return the URL of a node for the operator, who may be on another machine.

    Args:
        config: the configuration.
        held: the first socket for clients.
        internal: address and port for requests of other nodes.
    """
    host, port = _bound(config, held)
    if host in {"0.0.0.0", "::"} and internal is not None:  # noqa: S104 - compared, not bound
        # The server listens on every address of its machine, and other nodes reach it by this one.
        return _url(config, internal.rpartition(":")[0].strip("[]"), port)
    return base_url(config, held)


def _bound(config: Config, held: HeldSocket) -> tuple[str, int]:
    if held.host.startswith(UNIX):
        return first_name(config.server.host), config.server.port
    return held.host, held.port


def _url(config: Config, host: str, port: int) -> str:
    scheme = "https" if config.server.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
