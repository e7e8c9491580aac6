"""The addresses of a server that follow from its configuration and its sockets."""

from __future__ import annotations

from urllib.parse import urlsplit

from tangram.channels.origins import OriginPolicy
from tangram.config import Config
from tangram.config.listen import UNIX, first_name, split_hosts
from tangram.http.listeners import HeldSocket

__all__ = ["base_url", "origin_policy"]


def origin_policy(config: Config) -> OriginPolicy:
    """Return the origins whose pages may use a server."""
    server, channel = config.server, config.channel
    public = urlsplit(channel.public_url).hostname if channel.public_url else None
    named = (*split_hosts(server.host), *server.hosts, *split_hosts(channel.host or server.host), public)
    return OriginPolicy(server.allowed_origins, [host for host in named if host])


def base_url(config: Config, held: HeldSocket) -> str:
    """Return the URL of a server for a program on the same machine."""
    server = config.server
    host, port = held.host, held.port
    if host.startswith(UNIX):
        host, port = first_name(server.host), server.port
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    scheme = "https" if server.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
