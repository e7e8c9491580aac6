"""Listening sockets, which are opened once at the start and outlive every restart.

1. They are opened before anything else, so that an address in use ends the start with a message.
2. Only the root closes them. Each incarnation accepts on a ``dup()``. Closing that leaves the kernel's queue
   of connections as it is, so clients that connect between two incarnations wait there and are not refused.
3. They are not inheritable: a child process (the broker) that outlives the server would keep the port.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from socket import AddressFamily
from typing import Final

import attrs

from tangram.errors import AddressError

__all__ = ["HeldSocket", "close_listeners", "open_listeners"]

SOMAXCONN_FILE: Final = Path("/proc/sys/net/core/somaxconn")
"""Contains the largest backlog that Linux allows."""

PORT_ATTEMPTS: Final = 16
"""Attempts for port 0: a port that is free in one address family may be in use in the other."""

_MISSING_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})
"""Errors to ignore for one of several addresses: ``localhost`` may resolve to ``::1`` without IPv6."""

_WHY: Final = {
    errno.EADDRINUSE: "another program listens there",
    errno.EACCES: "this user may not listen there",
    errno.EADDRNOTAVAIL: "it is not an address of this machine",
}


@attrs.frozen
class HeldSocket:
    """One listening socket."""

    listener: socket.socket
    host: str
    """The numeric address to which it is bound."""
    port: int
    """The port to which it is bound, also if port 0 was requested."""

    def dup(self) -> socket.socket:
        """Return a non-blocking, not inheritable duplicate for one incarnation to close."""
        duplicate = self.listener.dup()
        duplicate.setblocking(False)
        return duplicate

    def close(self) -> None:
        """Stop listening; only the root does this, at the end of the server."""
        with suppress(OSError):  # a plugin may have closed the descriptor
            self.listener.close()


def open_listeners(
    host: str, port: int, *, backlog: int | None = None, setting: str = "[server] port"
) -> list[HeldSocket]:
    """Listen on every address of ``host``; an empty host means all addresses of the machine.

    Args:
        host: A name or a numeric address.
        port: 0 means one free port, the same in all address families.
        backlog: Connections that wait for an accept, also during a restart; as many as the kernel allows
        unless
            given.
        setting: The setting that an error message names.

    Raises:
        AddressError: The address is in use, not allowed, or not an address of this machine.
    """
    for attempt in range(PORT_ATTEMPTS):
        try:
            return _open_all(_addresses(host, port, setting), port, _backlog(backlog))
        except OSError as error:
            if port == 0 and error.errno == errno.EADDRINUSE and attempt + 1 < PORT_ATTEMPTS:
                continue
            why = _WHY.get(error.errno or 0, os.strerror(error.errno) if error.errno else str(error))
            raise AddressError(
                f"cannot listen on {host or '*'}:{port}: {why}; stop what uses it or change {setting}"
            ) from error
    raise AssertionError("the last attempt returns or raises")


def close_listeners(listeners: Iterable[HeldSocket]) -> None:
    """Close all ``listeners``."""
    for listener in listeners:
        listener.close()


def _addresses(host: str, port: int, setting: str) -> list[tuple[AddressFamily, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise AddressError(f"cannot listen on {host!r}: no such address; change {setting}") from error
    unique = dict.fromkeys((family, address) for family, _, _, _, address in found)
    return [(family, tuple(address)) for family, address in unique]


def _open_all(
    addresses: Iterable[tuple[AddressFamily, tuple[object, ...]]], port: int, backlog: int
) -> list[HeldSocket]:
    held: list[HeldSocket] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            try:
                listener = _listen(family, (address[0], port, *address[2:]), backlog)
            except OSError as error:
                if error.errno not in _MISSING_FAMILY:
                    raise
                missing = error
                continue
            name = listener.getsockname()
            port = int(name[1])
            held.append(HeldSocket(listener, str(name[0]), port))
        if missing is not None and not held:
            raise missing  # noqa: TRY301 - the handler below closes the sockets
    except BaseException:
        close_listeners(held)
        raise
    return held


def _listen(family: AddressFamily, address: tuple[object, ...], backlog: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Each family has its own socket, so that IPv4 clients are shown with IPv4 addresses.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _backlog(wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    try:
        return int(SOMAXCONN_FILE.read_text())
    except (OSError, ValueError):
        return socket.SOMAXCONN
