"""Ports of 127.0.0.1."""

from __future__ import annotations

import os
import random
import socket
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["HOST", "free_port", "is_listening", "listeners"]

HOST: Final = "127.0.0.1"
"""Address on which everything listens that a test starts."""


_QUIET: Final = range(10000, 20000)
"""Ports that no outgoing connection gets by itself (Linux: net.ipv4.ip_local_port_range).

So no program takes one between two starts of a server, and a client that connects meanwhile is not
connected to itself. The brokers that servers start draw from the ports above: one that starts beside a test
would else take, now and then, a port that was given and is not bound yet.
"""

_TRIES: Final = 64
"""Attempts to find a free port: of ten thousand a handful is taken."""


_given: Final = deque[int](maxlen=1000)
"""The last ports that this process was given, which need not be bound yet."""

_LISTENS: Final = "0A"
"""The state of a listening socket in ``/proc/net/tcp``."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago.

    No outgoing connection is given such a port: only a program that asks for it gets it. The port is not
    given again soon, and processes of one run of pytest-xdist draw from different ports. So two tests have
    different ports, although a server binds its port later, and leaves it free between two starts.
    """
    draw = random.Random()  # noqa: S311 - not the global one: a test that seeds that must not repeat ports
    ports = _own_ports(os.environ)
    for _ in range(_TRIES):
        port = draw.choice(ports)
        if port in _given:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            _given.append(port)
            return port
    raise OSError(f"no free port among {_TRIES} of {ports.start} to {ports.stop - 1}")


def _own_ports(environ: Mapping[str, str]) -> range:
    """Return the ports of this process among those of one run of pytest-xdist."""
    name, count = environ.get("PYTEST_XDIST_WORKER", ""), environ.get("PYTEST_XDIST_WORKER_COUNT", "")
    number = name.removeprefix("gw")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        return _QUIET
    return _QUIET[int(number) :: int(count)]


def is_listening(port: int, *, within: float = 1.0) -> bool:
    """Return whether a port of 127.0.0.1 accepts a connection within ``within`` seconds."""
    try:
        socket.create_connection((HOST, port), timeout=within).close()
    except OSError:
        return False
    return True


def listeners(port: int) -> dict[int, set[int]]:
    """Return the sockets that listen at a port, and the processes that have each of them.

    A socket is named by its inode. The processes of other users, and those that are about to end, are not
    found.
    """
    found: dict[int, set[int]] = {inode: set() for inode in _listening(port)}
    if found:
        for pid, inode in _open_sockets():
            if inode in found:
                found[inode].add(pid)
    return found


def _listening(port: int) -> Iterator[int]:
    for table in ("tcp", "tcp6"):  # a kernel without IPv6 has the first alone
        with suppress(FileNotFoundError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == _LISTENS and int(local.rpartition(":")[2], 16) == port:
                    yield int(inode)


def _open_sockets() -> Iterator[tuple[int, int]]:
    """Yield each process and the inode of each of its sockets."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):  # it was closed meanwhile
                    kind, _, inode = str(descriptor.readlink()).partition(":[")
                    if kind == "socket":
                        yield int(process.name), int(inode.removesuffix("]"))
