"""Check the Origin header of upgrades and of CORS requests.

A page of any host can open a WebSocket to a server that its visitor can reach; only the Origin header tells
which page it was. Programs other than browsers send no Origin and pass, because they could send any value.
``null`` (a sandboxed frame, a local file) does not pass, because any page can produce it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

__all__ = ["OriginPolicy"]


class OriginPolicy:
    """Allowed origins: those configured, those on the server's own hosts, and loopback."""

    def __init__(self, allowed: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        """Make a policy.

        Args:
            allowed: whole origins (``https://a.example``, ``https://*.a.example``), or ``*`` for all.
            hosts: names or addresses under which the server is reached. Their pages are allowed on any port
                and with either scheme, in addition to ``allowed``, as are pages of loopback.
        """
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in allowed)
        self._suffixes = tuple(tuple(origin.split("*", 1)) for origin in self._allowed if "://*." in origin)
        self._hosts = frozenset(host.strip("[]").lower() for host in hosts)

    def allows(self, origin: str | None, host: str | None = None) -> bool:
        """Return whether a page of ``origin`` may use the server.

        Args:
            origin: the Origin header; None if the request has none.
            host: the Host header, that is the name by which the page called the server.
        """
        if origin is None or "*" in self._allowed:
            return True
        origin = origin.lower()
        if origin in self._allowed or any(
            origin.startswith(scheme) and origin.endswith(tail) and len(origin) > len(scheme) + len(tail)
            for scheme, tail in self._suffixes
        ):
            return True
        return self._is_ours(origin, host)

    def _is_ours(self, origin: str, host: str | None) -> bool:
        name = _host_of(origin)
        if name is None:
            return False
        if name in self._hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            # A name that equals the Host header proves nothing: anyone can point a name at this server.
            return False
        return address.is_loopback or (host is not None and _host_of(f"http://{host}") == name)


def _host_of(origin: str) -> str | None:
    try:
        parts = urlsplit(origin)
        return parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        return None
