"""Connections of this process to Redis that outlived the code that opened them.

An extension in another language (the Rust runtime of a compiled plugin) may keep a task after its service
was stopped, and with the task a connection to Redis. Python cannot cancel that task. But the socket is a
descriptor of this process: if the process shuts it down, the task gets the end of the stream, as after a
restart of Redis.

``CLIENT KILL`` would need rights that an external Redis may refuse, cannot name connections over a Unix
socket or behind a proxy, and could hit other processes. The shutdown needs no rights and concerns this
process only.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

import trio

from tangram.own_sockets import own_inodes
from tangram.redis_url import RedisAddress, parse_redis_url

__all__ = ["RedisConnection", "close_foreign_connections", "find_connections"]

_LOOK_UP_TIMEOUT: Final = 2.0
"""Seconds for the look-up of the host's name."""


class RedisConnection(NamedTuple):
    """One open connection of this process to Redis."""

    descriptor: int
    inode: int
    """Identifies the socket: a descriptor may be used again for another one."""


async def find_connections(url: str) -> frozenset[RedisConnection]:
    """Return the connections of this process to a Redis, without those of the server itself.

    The cost is about 2 microseconds for each open descriptor of the process.
    """
    address = parse_redis_url(url)
    hosts = set[str]() if address.path else await _look_up(address)
    return frozenset(_connections(address, hosts))


async def close_foreign_connections(
    url: str, *, keep: Collection[RedisConnection] = ()
) -> tuple[RedisConnection, ...]:
    """Shut down this process's connections to Redis that are not in ``keep``; return them.

    Call it when everything that should have closed its connections has ended, for example at the end of an
    incarnation. It also ends connections of Python code, and of a program that embeds the
    server.

    For example::

        before = await find_connections(url)
        ...  # run the plugins
        left = await close_foreign_connections(url, keep=before)

    Args:
        url: the URL of Redis.
        keep: connections that existed before, from ``find_connections``.
    """
    found = sorted(await find_connections(url) - set(keep))
    return tuple(one for one in found if _shut_down(one))


async def _look_up(address: RedisAddress) -> set[str]:
    with trio.move_on_after(_LOOK_UP_TIMEOUT):
        try:
            entries = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except OSError:
            return set()
        return {str(entry[4][0]) for entry in entries}
    return set()


def _connections(address: RedisAddress, hosts: Collection[str]) -> Iterator[RedisConnection]:
    own = own_inodes()
    for descriptor in _descriptors():
        if _leads_to(descriptor, address, hosts):
            inode = _inode_of(descriptor)
            if inode is not None and inode not in own:
                yield RedisConnection(descriptor, inode)


def _descriptors() -> list[int]:
    for folder in ("/proc/self/fd", "/dev/fd"):  # Linux, macOS
        try:
            return sorted(int(name) for name in os.listdir(folder))  # noqa: PTH208 - names only
        except OSError:
            continue
    return []


def _inode_of(descriptor: int) -> int | None:
    if descriptor < 0:
        return None
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else None


def _leads_to(descriptor: int, address: RedisAddress, hosts: Collection[str]) -> bool:
    """Return whether a descriptor is a socket that is connected to the address."""
    try:
        # The family only sets the room for the peer's name; that of IPv6 is enough for IPv4.
        family = socket.AF_UNIX if address.path else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM, 0, fileno=descriptor)
    except OSError:  # not a socket
        return False
    try:
        peer = sock.getpeername()
    except OSError:  # not connected
        return False
    finally:
        sock.detach()  # the descriptor stays open
    if isinstance(peer, tuple):
        host = str(peer[0]).removeprefix("::ffff:").partition("%")[0]
        return peer[1] == address.port and host in hosts
    path = os.fsdecode(peer)
    return bool(path) and path == address.path


def _shut_down(connection: RedisConnection) -> bool:
    """Shut down a socket if the descriptor is still its own; its owner closes it."""
    try:
        copy = socket.socket(fileno=os.dup(connection.descriptor))
    except OSError:
        return False
    with copy:
        # The copy is checked, because another thread may have reused the descriptor in the meantime.
        if _inode_of(copy.fileno()) != connection.inode:
            return False
        try:
            copy.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
    return True
