"""Whose pages may talk to us: the check of the Origin header, for upgrades and for CORS.

A page on another host can open a WebSocket to any server that its visitor reaches; only Origin tells. A
program without a browser sends none and passes: it could send whatever it likes. ``null`` (a sandboxed
frame, a local file) can be made by any page, so it does not pass.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

__all__ = ["OriginPolicy"]


class OriginPolicy:
    """Origins that may: those configured, those on our own hosts, and loopback."""

    def __init__(self, allowed: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        """``allowed``: whole origins (``https://a.example``, ``https://*.a.example``), or ``*`` for all.

        ``hosts``: names or addresses under which we are reached, on any port and with either scheme; their
        pages may, and those of loopback, beside what is listed.
        """
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in allowed)
        self._suffixes = tuple(tuple(origin.split("*", 1)) for origin in self._allowed if "://*." in origin)
        self._hosts = frozenset(host.strip("[]").lower() for host in hosts)

    def allows(self, origin: str | None, host: str | None = None) -> bool:
        """May a page of ``origin`` talk to us, whom it called by ``host`` (its Host header)?"""
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
            # A name that equals the Host header proves nothing: any name can be made to point here.
            return False
        return address.is_loopback or (host is not None and _host_of(f"http://{host}") == name)


def _host_of(origin: str) -> str | None:
    try:
        parts = urlsplit(origin)
        return parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        return None
