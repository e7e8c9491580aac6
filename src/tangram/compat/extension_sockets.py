"""Closes connections to Redis that a plugin's extension module leaves open at its stop.

A Rust extension has a runtime of its own, and a task of that runtime may keep its connection after the
service that started it was cancelled: each restart would leave one more. On Linux the sockets of a runtime
are those that are registered with its epoll instance, as ``/proc/self/fdinfo`` shows. The instance that loses
sockets while a plugin stops is that of the plugin's extension, and belongs to it as long as the process
lives. The remaining connections to Redis on this instance are shut down, so that the task reads the end and
drops them.

Elsewhere, and for a plugin without an extension module, nothing is done.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from tangram.readiness import own_epolls
from tangram.redis_url import parse_redis_url

__all__ = ["ExtensionSockets"]

log = structlog.get_logger("tangram.compat")

CLOSE_SECONDS: Final = 0.2
"""Seconds for a runtime to close the sockets of a cancelled service; it takes some milliseconds."""
POLL_SECONDS: Final = 0.005
_FDS: Final = Path("/proc/self/fd")
_EPOLL: Final = "anon_inode:[eventpoll]"

_runtimes: dict[str, int] = {}
"""The epoll instance of each package with an extension module, by its descriptor."""


class ExtensionSockets:
    """The sockets of one plugin's extension module, over one incarnation.

    Args:
        plugin: The name of the plugin.
        package: Its top-level package.
        redis_url: The address of Redis.
    """

    def __init__(self, plugin: str, package: str, redis_url: str) -> None:
        self._plugin = plugin
        self._package = package
        address = parse_redis_url(redis_url)
        self._peer: str | int = address.path or address.port
        self._before: dict[int, dict[str, int]] | None = None

    def note(self) -> None:
        """Note the sockets that are there before the services are stopped; later calls do nothing."""
        if self._before is None and sys.platform == "linux":
            self._before = _registered()

    async def close_leftover(self) -> int:
        """Shut down the connections to Redis that are left, and return their number."""
        if self._before is None:
            return 0
        own = await _epoll_of_trio()
        deadline = trio.current_time() + CLOSE_SECONDS
        while (runtime := self._runtime(own)) is None and trio.current_time() < deadline:  # noqa: ASYNC110 - no event
            await trio.sleep(POLL_SECONDS)
        if runtime is None:
            return 0
        _runtimes[self._package] = runtime
        closed = sum(_shut_down(fd, self._peer) for fd in _registered().get(runtime, {}).values())
        if closed:
            log.info("leftover connections of an extension closed", plugin=self._plugin, count=closed)
        return closed

    def _runtime(self, own: int) -> int | None:
        """Return the epoll instance of the extension, as soon as it is known."""
        known = _runtimes.get(self._package)
        if known is not None:
            return known
        assert self._before is not None
        now = _registered()
        # Clients of the server's own instances end at any time, and the bus is among their sockets.
        others = {own, *_runtimes.values(), *own_epolls()}
        lost = [
            epoll
            for epoll, sockets in self._before.items()
            if epoll not in others and sockets.keys() - now.get(epoll, {}).keys()
        ]
        return lost[0] if len(lost) == 1 else None


def _registered() -> dict[int, dict[str, int]]:
    """Return the sockets of each epoll instance of this process: descriptors by inode.

    A runtime duplicates the descriptor of its instance; the lowest one stands for all of them.
    """
    found: dict[int, dict[str, int]] = {}
    for number in sorted(int(path.name) for path in _FDS.iterdir()):
        with suppress(OSError):
            if _target(number) == _EPOLL and (sockets := _sockets_of(number)) not in found.values():
                found[number] = sockets
    return found


def _target(descriptor: int) -> str:
    return str((_FDS / str(descriptor)).readlink())


def _sockets_of(epoll: int) -> dict[str, int]:
    sockets: dict[str, int] = {}
    for line in Path(f"/proc/self/fdinfo/{epoll}").read_text(encoding="ascii").splitlines():
        words = line.split()
        if words[:1] == ["tfd:"]:
            with suppress(OSError):
                inode = _target(int(words[1]))
                if inode.startswith("socket:"):
                    sockets[inode] = int(words[1])
    return sockets


async def _epoll_of_trio() -> int:
    """Return the epoll instance of this Trio run: the one that waits for a socket of our own."""
    ours, other = socket.socketpair()
    with ours, other:
        inode = _target(ours.fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, ours)
            await trio.lowlevel.checkpoint()
            found = next((epoll for epoll, sockets in _registered().items() if inode in sockets), -1)
            nursery.cancel_scope.cancel()
    return found


def _shut_down(descriptor: int, peer: str | int) -> bool:
    """Shut a connection down if its other end is Redis; its owner closes it."""
    with suppress(OSError):
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            address = copy.getpeername()
            if (address if isinstance(address, str) else address[1]) == peer:
                copy.shutdown(socket.SHUT_RDWR)
                return True
    return False
