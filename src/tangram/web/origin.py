"""Who asks, and under which address: what may be believed of a request's ``Host``, ``Origin`` and forwarding
headers.

1. Forwarding headers count only when the transport's peer is one of ``forwarded_allow_ips``. ``Forwarded``
   counts where there is no ``X-`` header beside it: a proxy that writes those hands the other on as it came
   from the client.
2. A request is local when its peer is this machine and nobody says that it was forwarded from elsewhere. A
   proxy on the same machine is a local peer, too: with a forwarding header the request is as local as the
   address in there.
3. A local request under a foreign ``Host`` is not local: a page that binds its own name to 127.0.0.1 in the
   visitor's browser would read what only the operator may.
"""

from __future__ import annotations

import ipaddress
from typing import TypeAlias
from urllib.parse import urlsplit

import attrs

from tangram.asgi import Scope, header, headers_of
from tangram.config.model import Config
from tangram.web.forwarded import NOTHING, Hop, read_forwarded

__all__ = ["Addresses", "is_loopback"]

_ANY = {"", "0.0.0.0", "::"}  # noqa: S104  # compared with, not bound to
_REPLACING = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"forwarded"})
"""Headers that change a request's scope, where they are believed."""
_X_FORWARDING = (b"x-forwarded-for", b"x-real-ip", b"x-forwarded-host", b"x-forwarded-proto")
_FORWARDING = (*_X_FORWARDING, b"forwarded")


def is_loopback(host: str) -> bool:
    """``localhost``, ``*.localhost``, 127.0.0.0/8, ``::1``, also written in brackets or mapped into IPv6."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and address.is_loopback


Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen
class Addresses:
    """The addresses that are ours, and the proxies that we believe."""

    hosts: frozenset[str]
    """Host names and addresses that the configuration names, in lower case."""
    trusted: tuple[Network, ...]
    """``forwarded_allow_ips``."""
    trust_all: bool
    """``forwarded_allow_ips`` holds ``*``."""
    port: int
    channel_port: int | None
    public_url: str | None
    """What the manifest says verbatim, if it is set."""
    fallback_host: str
    """What is told to a client that used an address that is not ours."""
    scheme: str

    @classmethod
    def of(cls, config: Config) -> Addresses:
        """Those that the configuration names."""
        server, channel = config.server, config.channel
        public = urlsplit(channel.public_url).hostname if channel.public_url else None
        named = {server.host, *server.hosts, channel.host or "", public or ""}
        return cls(
            hosts=frozenset(name.lower() for name in named if name and name not in _ANY),
            trusted=tuple(
                ipaddress.ip_network(one, strict=False) for one in server.forwarded_allow_ips if one != "*"
            ),
            trust_all="*" in server.forwarded_allow_ips,
            port=server.port,
            channel_port=channel.port,
            public_url=channel.public_url,
            fallback_host="127.0.0.1" if server.host in _ANY else server.host,
            scheme="https" if server.tls_cert else "http",
        )

    def is_ours(self, host: str) -> bool:
        """One of our configured hosts, or loopback."""
        return host.lower().strip("[]") in self.hosts or is_loopback(host)

    def is_local(self, scope: Scope) -> bool:
        """Whether the request was made on this machine, under a name of this machine."""
        peer = _peer(scope)
        if not is_loopback(peer):
            return False
        forwarded = any(headers_of(scope, name) for name in _FORWARDING)
        if forwarded and not (self._believes(peer) and is_loopback(self._claim(scope).address)):
            return False
        parts = _split(f"//{header(scope, b'host') or ''}")
        return parts is not None and self.is_ours(parts[0])

    def channel_url(self, scope: Scope) -> str:
        """``channel.url`` of the manifest: where the browser that asks reaches the channels."""
        if self.public_url:
            return self.public_url
        scheme, host, port = self._asked_as(scope)
        if self.channel_port is not None:
            port = self.channel_port
        shown = f"[{host}]" if ":" in host else host
        default = {"http": 80, "https": 443}.get(scheme)
        return f"{scheme}://{shown}" if port in {None, default} else f"{scheme}://{shown}:{port}"

    def forwarded(self, scope: Scope) -> Scope:
        """The scope as the browser made it: address and scheme from a trusted proxy's headers, if they say.

        What the transport itself saw stays under ``tangram.peer``, for `is_local`.
        """
        # Asked for every request, and few have such headers: a fifth of a small request's time otherwise.
        for name, _ in scope["headers"]:
            if name.lower() in _REPLACING:
                break
        else:
            return scope
        if not self._believes(_peer(scope)):
            return scope
        address, proto, _ = self._claim(scope)
        seen: dict[str, object] = {"tangram.peer": scope.get("client")}
        if _address(address) is not None:
            seen["client"] = (address, 0)
        if proto in {"http", "https"}:
            secure = {"ws": "wss", "wss": "wss"}.get(str(scope.get("scheme")), "https")
            plain = {"ws": "ws", "wss": "ws"}.get(str(scope.get("scheme")), "http")
            seen["scheme"] = secure if proto == "https" else plain
        return scope if len(seen) == 1 else {**scope, **seen}

    def _asked_as(self, scope: Scope) -> tuple[str, str, int | None]:
        scheme = str(scope.get("scheme", "http"))
        asked = header(scope, b"host") or ""
        if self._believes(_peer(scope)):
            claim = self._claim(scope)
            scheme, asked = claim.proto or scheme, claim.host or asked
        parts = _split(f"//{asked}")
        if (
            scheme in {"http", "https"}
            and parts is not None
            and (self.is_ours(parts[0]) or _is_own_address(parts[0], scope))
        ):
            return scheme, parts[0], parts[1]
        return self.scheme, self.fallback_host, self.port

    def _believes(self, peer: str) -> bool:
        if self.trust_all:
            return True
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self.trusted)

    def _claim(self, scope: Scope) -> Hop:
        """What our proxies say of the browser's own request."""
        if any(headers_of(scope, name) for name in _X_FORWARDING):
            proto, host = header(scope, b"x-forwarded-proto"), header(scope, b"x-forwarded-host")
            return Hop(self._forwarded_for(scope), _last(proto), _last(host))
        hop = NOTHING
        for hop in read_forwarded(headers_of(scope, b"forwarded")):  # the last one is the answer
            if self.trust_all or not self._believes(hop.address):
                break
        return hop

    def _forwarded_for(self, scope: Scope) -> str:
        """The nearest address that no proxy of ours has; empty where the headers do not say."""
        chain = [part.strip() for value in headers_of(scope, b"x-forwarded-for") for part in value.split(",")]
        for address in reversed(chain):
            if self.trust_all or not self._believes(address):
                return address
        return chain[0] if chain else ""


def _peer(scope: Scope) -> str:
    client = scope.get("tangram.peer") or scope.get("client")
    return str(client[0]) if client else ""


def _is_own_address(host: str, scope: Scope) -> bool:
    """Whether ``host`` is the address at which the transport's own socket was reached: with a wildcard to
    listen on, no other one is known. A name is never that, whatever it may be made to point to.
    """
    server = scope.get("server")
    address = _address(host)
    return server is not None and address is not None and address == _address(str(server[0]))


def _address(text: str) -> Address | None:
    """An address in numbers; one that is mapped into IPv6, as sockets for both kinds show it, as itself."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _last(value: str | None) -> str:
    return value.rpartition(",")[2].strip() if value else ""


def _split(url: str) -> tuple[str, int | None] | None:
    """Host and port of ``scheme://host:port`` or ``//host:port``; ``None`` where it is not that and nothing
    else.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or parts.path not in {"", "/"} or parts.query or parts.fragment or parts.username is not None:
        return None
    return host, port
