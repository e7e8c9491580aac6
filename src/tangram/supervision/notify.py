"""Telling systemd: READY, STOPPING and WATCHDOG by the sd_notify protocol; nothing where it does not listen.

The protocol is a datagram of ``KEY=value`` lines to the Unix socket in ``NOTIFY_SOCKET`` (sd_notify(3)); a
name that begins with ``@`` is in the abstract namespace.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import structlog
import trio

__all__ = ["Notifier"]

log = structlog.get_logger("tangram.supervision")


class Notifier:
    """systemd's ear, as the environment describes it."""

    def __init__(self, environ: Mapping[str, str] | None = None, *, pid: int | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        # Other kinds of socket (vsock) are for virtual machines.
        self.address: str | None = address if address[:1] in ("/", "@") else None
        self.watchdog_interval = _watchdog_interval(environ, os.getpid() if pid is None else pid)
        """Seconds between two signs of life, or None if none are wanted: half of what systemd allows."""

    def notify(self, *lines: str) -> bool:
        """Send the lines; False if nobody listens, or it failed (systemd's absence must never end a
        server).
        """
        if self.address is None:
            return False
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.warning("systemd could not be told", lines=lines, cause=str(error))
            return False
        return True

    def ready(self, status: str = "") -> bool:
        """The server answers."""
        return self.notify("READY=1", *_status(status))

    def stopping(self, status: str = "") -> bool:
        """The stop has begun."""
        return self.notify("STOPPING=1", *_status(status))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send signs of life from the event loop itself: a blocked loop sends none, and systemd ends it."""
        task_status.started()
        if self.address is None or self.watchdog_interval is None:
            await trio.sleep_forever()
        while True:
            self.notify("WATCHDOG=1")
            await trio.sleep(self.watchdog_interval)


def _status(status: str) -> tuple[str, ...]:
    return (f"STATUS={status}",) if status else ()


def _watchdog_interval(environ: Mapping[str, str], pid: int) -> float | None:
    # WATCHDOG_PID names the process that is meant: a child of it must not answer in its place.
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    try:
        allowed = int(environ.get("WATCHDOG_USEC", "0")) / 1_000_000
    except ValueError:
        return None
    return allowed / 2 if allowed > 0 else None
