"""Ports of 127.0.0.1."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from typing import Final

__all__ = ["HOST", "free_port", "is_listening"]

HOST: Final = "127.0.0.1"
"""Address on which everything listens that a test starts."""


_QUIET: Final = range(20000, 32768)
"""Ports that no outgoing connection gets by itself (Linux: net.ipv4.ip_local_port_range).

So no program takes one between two starts of a server, and a client that connects meanwhile is not
connected to itself.
"""

_TRIES: Final = 64
"""Attempts to find a free port: of twelve thousand a handful is taken."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago.

    No outgoing connection is given such a port: only a program that asks for it gets it.
    """
    draw = random.Random()  # noqa: S311 - not the global one: a test that seeds that must not repeat ports
    for _ in range(_TRIES):
        port = draw.choice(_QUIET)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise OSError(f"no free port among {_TRIES} of {_QUIET.start} to {_QUIET.stop - 1}")


def is_listening(port: int, *, within: float = 1.0) -> bool:
    """Return whether a port of 127.0.0.1 accepts a connection within ``within`` seconds."""
    try:
        socket.create_connection((HOST, port), timeout=within).close()
    except OSError:
        return False
    return True
