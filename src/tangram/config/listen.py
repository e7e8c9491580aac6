"""The forms of ``[server] host``, without I/O.

``host`` is one address or several, as a list or separated by commas:

- ``*``, ``::`` or an empty text: all addresses of the machine, IPv4 and IPv6
- ``0.0.0.0``: all IPv4 addresses
- ``127.0.0.1``, ``::1``, ``[::1]``, ``maps.example.org``: one address, or all addresses of a name
- ``unix:/run/tangram.sock``: a Unix socket
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["ALL", "UNIX", "first_name", "listens_on_all", "split_hosts"]

ALL: Final = "*"
"""All addresses of the machine, of both families."""

UNIX: Final = "unix:"
"""The first characters of a Unix socket's address."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.:%-]+")
"""Names, IPv4 and IPv6 addresses, with a zone."""


def split_hosts(text: str) -> tuple[str, ...]:
    """Return the addresses of ``[server] host`` in one notation, each once and in order.

    For example, ``"[::1], unix:/run/t.sock"`` gives ``("::1", "unix:/run/t.sock")``, and ``"::"`` gives
    ``("*",)``.

    Raises:
        ValueError: A part is no address.
    """
    hosts = tuple(dict.fromkeys(_normalise(part.strip()) for part in text.split(",")))
    if ALL in hosts:  # the other addresses of the machine are among them
        return tuple(host for host in hosts if host == ALL or host.startswith(UNIX))
    return hosts


def _normalise(part: str) -> str:
    if part in {"", ALL, "::", "[::]"}:
        return ALL
    if part.startswith(UNIX):
        path = part.removeprefix(UNIX)
        if not path.startswith("/") or "\0" in path:
            msg = f"expected an absolute path as in 'unix:/run/tangram.sock', got {part!r}"
            raise ValueError(msg)
        return part
    name = part[1:-1] if part.startswith("[") and part.endswith("]") else part
    if _NAME.fullmatch(name) is None:
        msg = f"expected an address, a name, '*' or 'unix:/path', got {part!r}"
        raise ValueError(msg)
    return name


def listens_on_all(text: str) -> bool:
    """Return whether ``[server] host`` contains all addresses of a family."""
    return any(host in {ALL, "0.0.0.0"} for host in split_hosts(text))  # noqa: S104 - compared, not bound


def first_name(text: str) -> str:
    """Return the first address for a URL on this machine; loopback stands for all addresses."""
    if text.strip() in {"::", "[::]"}:
        return "::1"
    for host in split_hosts(text):
        if not host.startswith(UNIX):
            return "127.0.0.1" if host in {ALL, "0.0.0.0"} else host  # noqa: S104 - compared, not bound
    return "127.0.0.1"
