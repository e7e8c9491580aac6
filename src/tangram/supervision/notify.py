"""Notify systemd: READY, STOPPING and WATCHDOG by the sd_notify protocol.

The protocol is a datagram of ``KEY=value`` lines to the Unix socket in ``NOTIFY_SOCKET`` (sd_notify(3)); a
name that begins with ``@`` is in the abstract namespace. Without that variable nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

import structlog
import trio

__all__ = ["Notifier"]

log = structlog.get_logger("tangram.supervision")


class Notifier:
    """The connection to systemd that the environment describes, if any.

    Args:
        environ: holds ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``; the process's by default.
        pid: this process's id.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, *, pid: int | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        # Other kinds of address (vsock) are for virtual machines.
        self.address: str | None = address if address[:1] in ("/", "@") else None
        self.watchdog_interval = _watchdog_interval(environ, os.getpid() if pid is None else pid)
        """Seconds between two keep-alive messages (half of the time that systemd allows), or None."""

    def notify(self, *lines: str) -> bool:
        """Send lines to systemd; never raise.

        Returns:
            False if there is no socket, or the lines could not be sent: a server must serve without systemd.
        """
        if self.address is None:
            return False
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.warning("notification of systemd failed", lines=lines, cause=str(error))
            return False
        return True

    def ready(self, status: str = "") -> bool:
        """Notify that the server answers requests."""
        return self.notify("READY=1", *_status(status))

    def reloading(self) -> bool:
        """Notify that the configuration is read again; `ready` ends this."""
        # CLOCK_MONOTONIC, which systemd compares with the time of its request.
        return self.notify(
            "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        )

    def stopping(self, status: str = "") -> bool:
        """Notify that the stop has begun."""
        return self.notify("STOPPING=1", *_status(status))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send keep-alive messages until cancelled.

        They come from the event loop itself: a blocked loop sends none, and systemd ends the process.
        """
        task_status.started()
        if self.address is None or self.watchdog_interval is None:
            await trio.sleep_forever()
        while True:
            self.notify("WATCHDOG=1")
            await trio.sleep(self.watchdog_interval)


def _status(status: str) -> tuple[str, ...]:
    return (f"STATUS={status}",) if status else ()


def _watchdog_interval(environ: Mapping[str, str], pid: int) -> float | None:
    # WATCHDOG_PID names the process that is watched: a child of it must not answer in its place.
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    try:
        allowed = int(environ.get("WATCHDOG_USEC", "0")) / 1_000_000
    except ValueError:
        return None
    return allowed / 2 if allowed > 0 else None
