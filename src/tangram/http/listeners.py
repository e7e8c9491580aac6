"""Listening sockets that are opened once, in the root, and outlive every restart.

1. A socket is opened before anything else starts, so that a port that is taken ends the start with a message.
2. Nobody but the root closes it. An incarnation accepts on a ``dup()``: closing that leaves the queue of
   connections in the kernel alone, and whoever connects between two incarnations waits there, not refused.
3. It is not inheritable: a child process (the broker) that outlived us would keep the port.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from socket import AddressFamily

import attrs

from tangram.errors import AddressError

__all__ = ["HeldSocket", "close_listeners", "open_listeners"]

SOMAXCONN_FILE = Path("/proc/sys/net/core/somaxconn")
"""What Linux cuts every backlog to."""

PORT_ATTEMPTS = 16
"""For port 0: a port that is free for one family may be taken for the other, and then another is tried."""

_MISSING_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})
"""A name such as ``localhost`` also has an IPv6 address on machines that have no IPv6."""

_WHY = {
    errno.EADDRINUSE: "another program listens there",
    errno.EACCES: "this user may not listen there",
    errno.EADDRNOTAVAIL: "it is not an address of this machine",
}


@attrs.frozen
class HeldSocket:
    """One listening socket of the root."""

    listener: socket.socket
    host: str
    """The address it is bound to, in numbers."""
    port: int
    """The port it is bound to, also where 0 was asked for."""

    def dup(self) -> socket.socket:
        """A second handle of the same queue, non-blocking, not inheritable, for one incarnation to close."""
        twin = self.listener.dup()
        twin.setblocking(False)
        return twin

    def close(self) -> None:
        """Stop listening. Only the root does this, at the very end."""
        self.listener.close()


def open_listeners(
    host: str, port: int, *, backlog: int | None = None, setting: str = "[server] port"
) -> list[HeldSocket]:
    """Listen on every address that ``host`` stands for; an empty host means all addresses of the machine.

    Port 0 is one free port, the same for all families. ``backlog`` is as large as the kernel allows unless
    given: during a restart it is the waiting room. ``setting`` is what an AddressError says to change.
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
    """Close them all."""
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
            raise missing  # noqa: TRY301
    except BaseException:
        close_listeners(held)
        raise
    return held


def _listen(family: AddressFamily, address: tuple[object, ...], backlog: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Each family has a socket of its own, so that IPv4 clients have IPv4 addresses.
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
