"""Ports of this machine."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

__all__ = ["HOST", "free_port", "is_listening"]

HOST = "127.0.0.1"
"""Whatever a test starts listens here and nowhere else."""


_QUIET = range(20000, 32768)
"""Ports that no outgoing connection gets by itself (Linux: net.ipv4.ip_local_port_range). Nobody else gets
one between two lives of a server, and a client that knocks meanwhile is not connected to itself.
"""

_TRIES = 64
"""Of twelve thousand ports a handful is taken."""


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago, and that nobody gets without asking for it."""
    draw = random.Random()  # noqa: S311 - of its own: a test that seeds the global one must not repeat ports
    for _ in range(_TRIES):
        port = draw.choice(_QUIET)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise OSError(f"no free port among {_TRIES} of {_QUIET.start} to {_QUIET.stop - 1}")


def is_listening(port: int, *, within: float = 1.0) -> bool:
    """Whether somebody takes connections at a port of 127.0.0.1; asked by connecting, at most ``within``
    seconds.
    """
    try:
        socket.create_connection((HOST, port), timeout=within).close()
    except OSError:
        return False
    return True
