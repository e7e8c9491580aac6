"""The Unix sockets of the embedded broker, in its working folder.

A read or a write on loopback passes through all of TCP, and costs twice as much as on a Unix socket. So the
server reaches its own broker by a socket, beside the port for all other clients, where that is possible.
"""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["LONGEST_PATH", "new_path", "remove", "remove_stale", "why_unusable"]

LONGEST_PATH: Final = 103
"""Bytes of a Unix socket's path that every system accepts (macOS 103, Linux 107)."""


def new_path(folder: Path) -> Path:
    """Return a path for a socket that no other broker has."""
    return folder / f"broker-{secrets.token_hex(4)}.sock"


def remove_stale(folder: Path) -> None:
    """Remove the sockets of brokers that were killed.

    Raises:
        OSError: the folder cannot be changed.
    """
    for old in folder.glob("broker-*.sock"):
        if not _is_listening(old):
            old.unlink(missing_ok=True)


def remove(*paths: Path | None) -> None:
    """Remove the sockets of a broker that has ended: one that was killed leaves them."""
    for path in paths:
        if path is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def why_unusable(path: Path) -> str:
    """Return why no server can listen at the path and be reached there; empty if one can.

    Folders may be read-only, full, or on a file system without sockets, paths may be too long, and a sandbox
    may refuse this kind of socket.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        return f"the path {str(path)!r} is longer than {LONGEST_PATH} bytes"
    try:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(os.fspath(path))
            try:
                listener.listen(1)
                client.setblocking(False)
                client.connect(os.fspath(path))
            finally:
                path.unlink()
    except OSError as error:
        return str(error)
    return ""


def _is_listening(path: Path) -> bool:
    """Return whether a process listens on a Unix socket; a full queue counts as listening."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True
