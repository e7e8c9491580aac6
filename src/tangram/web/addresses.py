"""Addresses of the client and of the server, from transport and forwarding headers.

1. Forwarding headers count only when the peer of the transport is one of ``forwarded_allow_ips``.
   ``Forwarded`` counts where no ``X-`` header stands beside it: a proxy that writes ``X-`` headers passes
   ``Forwarded`` on as it came from the client.
2. A request is answered only under a name or address of this server. A page that makes its own name point to
   127.0.0.1 (DNS rebinding) could otherwise read the answers in the visitor's browser.
3. Being on loopback gives no rights: behind a proxy on this machine every client is on loopback.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import attrs

from tangram.asgi import Scope, header, headers_of
from tangram.config.listen import ALL, UNIX, first_name, listens_on_all, split_hosts
from tangram.config.model import Config
from tangram.web.forwarded import UNKNOWN_HOP, Hop, read_forwarded

__all__ = ["REPLACING", "Addresses", "is_loopback"]

_ANY: Final = {"", "0.0.0.0", "::", ALL}  # noqa: S104 - compared with, not bound to
REPLACING: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"forwarded"})
"""Headers of a trusted proxy that change the scope of a request."""
_X_FORWARDING: Final = (b"x-forwarded-for", b"x-real-ip", b"x-forwarded-host", b"x-forwarded-proto")


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is a loopback name or address.

    These are ``localhost``, ``*.localhost``, 127.0.0.0/8 and ``::1``, also in brackets or as IPv4-mapped
    IPv6.
    """
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and address.is_loopback


Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen
class Addresses:
    """The addresses of this server, and the proxies that it trusts."""

    hosts: frozenset[str]
    """Host names and addresses from the configuration, in lower case."""
    trusted: tuple[Network, ...]
    """``forwarded_allow_ips``."""
    trust_all: bool
    """``forwarded_allow_ips`` holds ``*``."""
    port: int
    channel_port: int | None
    public_url: str | None
    """``[channel] public_url``: the manifest shows it unchanged."""
    fallback_host: str
    """The host that the manifest names to a client whose ``Host`` is not one of the server's."""
    scheme: str
    wildcard: bool = False
    """Whether the server listens on all addresses of the machine."""
    root_path: str = ""
    """``[server] root_path``, which is part of the channels' URL."""
    any_host: bool = False
    """``[server] hosts`` holds ``*``: every ``Host`` is answered."""

    @classmethod
    def of(cls, config: Config) -> Addresses:
        """Read the addresses from the configuration."""
        server, channel = config.server, config.channel
        public = urlsplit(channel.public_url).hostname if channel.public_url else None
        listening = split_hosts(server.host)
        named = {
            *listening,
            *server.hosts,
            *split_hosts(channel.host or server.host),
            public or "",
            *_machine_names(),
        }
        return cls(
            hosts=frozenset(
                name.lower() for name in named if name and name not in _ANY and not name.startswith(UNIX)
            ),
            trusted=tuple(
                ipaddress.ip_network(one, strict=False) for one in server.forwarded_allow_ips if one != "*"
            ),
            trust_all="*" in server.forwarded_allow_ips,
            port=server.port,
            channel_port=channel.port,
            public_url=channel.public_url,
            fallback_host="127.0.0.1" if listens_on_all(server.host) else first_name(server.host),
            scheme="https" if server.tls_cert else "http",
            wildcard=listens_on_all(server.host),
            any_host="*" in server.hosts,
            root_path=server.root_path,
        )

    def is_ours(self, host: str) -> bool:
        """Return whether ``host`` is a configured host or loopback."""
        return host.lower().strip("[]") in self.hosts or is_loopback(host)

    def answers(self, scope: Scope) -> bool:
        """Return whether the request is for this server, by its ``Host``.

        Accepted are configured names, loopback, the address of the socket, and any numeric address if the
        server listens on all addresses (it may be reached through address translation). A request without
        ``Host`` is accepted too: browsers always send it.
        """
        hosts = headers_of(scope, b"host")
        if not hosts or self.any_host:
            return True
        parts = _split(f"//{hosts[0]}") if len(hosts) == 1 else None
        if parts is None:
            return False
        host = parts[0].rstrip(".")
        return (
            self.is_ours(host)
            or _is_own_address(host, scope)
            or (self.wildcard and _address(host) is not None)
        )

    def is_named(self, scope: Scope) -> bool:
        """Return whether ``Host`` is a configured name, and not loopback or a numeric address."""
        parts = _split(f"//{header(scope, b'host') or ''}")
        return parts is not None and parts[0].lower() in self.hosts and not is_loopback(parts[0])

    def may_be_proxy(self, scope: Scope) -> bool:
        """Return whether the peer is a proxy by its address: on loopback, or trusted."""
        peer = _peer(scope)
        return is_loopback(peer) or self.trusts(peer)

    def channel_url(self, scope: Scope) -> str:
        """Return ``channel.url`` of the manifest: where this client reaches the channels."""
        if self.public_url:
            return self.public_url
        scheme, host, port = self._requested_address(scope)
        if self.channel_port is not None:
            port = self.channel_port
        shown = f"[{host}]" if ":" in host else host
        default = {"http": 80, "https": 443}.get(scheme)
        origin = f"{scheme}://{shown}" if port in {None, default} else f"{scheme}://{shown}:{port}"
        return origin + self.root_path

    def forwarded(self, scope: Scope) -> Scope:
        """Return the scope with client address and scheme from the headers of a trusted proxy.

        The address of the transport's peer is kept under ``tangram.peer``.
        """
        # Most requests have no such header, and the work below costs a fifth of a small request.
        for name, _ in scope["headers"]:
            if name.lower() in REPLACING:
                break
        else:
            return scope
        if not self.trusts(_peer(scope)):
            return scope
        address, proto, _ = self._claim(scope)
        changed: dict[str, object] = {"tangram.peer": scope.get("client")}
        if _address(address) is not None:
            changed["client"] = (address, 0)
        if proto in {"http", "https"}:
            secure = {"ws": "wss", "wss": "wss"}.get(str(scope.get("scheme")), "https")
            plain = {"ws": "ws", "wss": "ws"}.get(str(scope.get("scheme")), "http")
            changed["scheme"] = secure if proto == "https" else plain
        return scope if len(changed) == 1 else {**scope, **changed}

    def _requested_address(self, scope: Scope) -> tuple[str, str, int | None]:
        scheme = str(scope.get("scheme", "http"))
        host = header(scope, b"host") or ""
        if self.trusts(_peer(scope)):
            claim = self._claim(scope)
            scheme, host = claim.proto or scheme, claim.host or host
        parts = _split(f"//{host}")
        if (
            scheme in {"http", "https"}
            and parts is not None
            and (self.is_ours(parts[0]) or _is_own_address(parts[0], scope))
        ):
            return scheme, parts[0], parts[1]
        return self.scheme, self.fallback_host, self.port

    def trusts(self, peer: str) -> bool:
        """Return whether an address is one of ``forwarded_allow_ips``: a trusted proxy."""
        if self.trust_all:
            return True
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self.trusted)

    def _claim(self, scope: Scope) -> Hop:
        """Return the description of the browser's own request by the trusted proxies."""
        if any(headers_of(scope, name) for name in _X_FORWARDING):
            proto, host = header(scope, b"x-forwarded-proto"), header(scope, b"x-forwarded-host")
            return Hop(self._forwarded_for(scope), _last(proto), _last(host))
        hop = UNKNOWN_HOP
        for hop in read_forwarded(headers_of(scope, b"forwarded")):  # the last one is the answer
            if self.trust_all or not self.trusts(hop.address):
                break
        return hop

    def _forwarded_for(self, scope: Scope) -> str:
        """Return the nearest address that is no trusted proxy; empty without ``X-Forwarded-For``."""
        chain = [part.strip() for value in headers_of(scope, b"x-forwarded-for") for part in value.split(",")]
        nearest = chain[0] if chain else ""
        for address in reversed(chain):
            if self.trust_all or not self.trusts(address):
                nearest = address
                break
        real = header(scope, b"x-real-ip")
        if real and nearest and real != nearest and not self.trusts(real):
            return ""  # the proxy writes one of the two only, and the client wrote the other
        return nearest


def _machine_names() -> set[str]:
    """Return the names under which other machines of the local network may know this one."""
    name = socket.gethostname()
    return {name, f"{name.partition('.')[0]}.local"}


def _peer(scope: Scope) -> str:
    """Return the transport's peer address; a client of a Unix socket counts as loopback."""
    client = scope["tangram.peer"] if "tangram.peer" in scope else scope.get("client")
    return "127.0.0.1" if client is None or client[0] == "unix" else str(client[0])


def _is_own_address(host: str, scope: Scope) -> bool:
    """Return whether ``host`` is the numeric address at which the client reached the socket.

    A server that listens on all addresses knows its address from the connection only. Names never count,
    because the client's resolver decides where a name points.
    """
    server = scope.get("server")
    address = _address(host)
    return server is not None and address is not None and address == _address(str(server[0]))


def _address(text: str) -> Address | None:
    """Parse a numeric address; an IPv4-mapped IPv6 address becomes IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _last(value: str | None) -> str:
    return value.rpartition(",")[2].strip() if value else ""


def _split(url: str) -> tuple[str, int | None] | None:
    """Return host and port of ``scheme://host:port`` or ``//host:port``, else ``None``."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or parts.path not in {"", "/"} or parts.query or parts.fragment or parts.username is not None:
        return None
    return host, port
