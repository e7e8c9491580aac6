"""Recognition of a proxy that does not name its clients.

A proxy with default settings sends its own address as that of every client: nginx with ``proxy_pass`` alone
also replaces ``Host``. All clients then share one rate limit, and logs show the proxy. Nothing else depends
on it, because being on loopback opens nothing. The first such request is reported with the lines that the
proxy lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import structlog

from tangram.asgi import Scope, header

__all__ = ["SIGNS", "ProxyHint", "missing_proxy_headers"]

log = structlog.get_logger("tangram.web")

MAX_EXAMINED: Final = 2000
"""Requests with a sign that are examined: a proxy is found among the first ones, and later ones are free."""

NGINX: Final = (
    "proxy_set_header Host $host; "
    "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; "
    "proxy_set_header X-Forwarded-Proto $scheme;"
)
HAPROXY: Final = "option forwardfor; http-request set-header X-Forwarded-Proto http|https"

_CLIENT: Final = frozenset({b"x-forwarded-for", b"forwarded"})
"""Headers that name the client."""
_PROXY: Final = frozenset({b"x-real-ip", b"x-forwarded-proto", b"x-forwarded-host", b"via"})
"""Headers that only proxies send."""

SIGNS: Final = _CLIENT | _PROXY | {b"sec-fetch-site"}
"""Headers without which a request shows a proxy by its HTTP version or its ``Host`` alone."""


def missing_proxy_headers(scope: Scope, *, own_name: bool) -> str | None:
    """Return the sign of a proxy that sent a request without naming its client, or None.

    Args:
        scope: A request whose peer may be a proxy: loopback, or one of ``forwarded_allow_ips``.
        own_name: Whether ``Host`` is a configured name, which browsers on this machine would hardly use.
    """
    names = {name.lower() for name, _ in scope["headers"]}
    reason = None
    if names & _CLIENT:
        real, chain = header(scope, b"x-real-ip"), header(scope, b"x-forwarded-for")
        if real and chain and real not in {part.strip() for part in chain.split(",")}:
            reason = "X-Real-IP is not in X-Forwarded-For, which the client may have written"
    elif names & _PROXY:
        reason = "it has headers of a proxy"
    elif scope.get("http_version") == "1.0" and (header(scope, b"user-agent") or "").startswith("Mozilla"):
        reason = "a browser does not speak HTTP/1.0"
    elif header(scope, b"sec-fetch-site") == "same-origin" and not _is_page_of_host(scope):
        reason = "its page has another host"
    elif own_name:
        reason = "its host is a public name and its client this machine"
    return reason


def _is_page_of_host(scope: Scope) -> bool:
    """Return whether the page that sent the request has the request's host, or is unknown."""
    page = header(scope, b"origin") or header(scope, b"referer")
    try:
        return not page or urlsplit(page).netloc == header(scope, b"host")
    except ValueError:
        return True


class ProxyHint:
    """Examines requests until one shows a proxy without client addresses, and logs that once.

    All incarnations of a process share its state, so that a restart does not begin anew.
    """

    _left = MAX_EXAMINED

    @property
    def active(self) -> bool:
        """Whether requests are still to be examined."""
        return ProxyHint._left > 0

    def examine(self, scope: Scope, may_be_proxy: Callable[[Scope], bool], *, own_name: bool) -> None:
        """Examine one request, if its peer may be a proxy."""
        if not self.active:
            return
        ProxyHint._left -= 1
        reason = missing_proxy_headers(scope, own_name=own_name)
        if reason is None or not may_be_proxy(scope):
            return
        ProxyHint._left = 0
        log.warning(
            "a proxy does not send the addresses of its clients, so all of them share one rate limit",
            reason=reason,
            peer=str((scope.get("client") or ("",))[0]),
            missing="X-Forwarded-For",
            nginx=NGINX,
            haproxy=HAPROXY,
        )
