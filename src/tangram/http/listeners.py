"""Listening sockets, which are opened once at the start and outlive every restart.

1. They are opened before anything else, so that an address in use ends the start with a message.
2. Only the root closes them, when the stop of the whole server begins. Each incarnation accepts on a
   ``dup()``. Closing that leaves the kernel's queue of connections as it is, so clients that connect between
   two incarnations wait there and are not refused. At a stop the last ``dup()`` is closed after the last
   accept: from then on the kernel refuses connections, and a balancer tries another node at once.
3. They are not inheritable: a child process (the broker) that outlives the server would keep the port.
4. Sockets that systemd hands over (``LISTEN_FDS``) are used instead of opening any. A process that replaces
   its program hands its own over in the same way.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterable, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from socket import AddressFamily
from typing import Final, Protocol

import attrs
import structlog

from tangram.config.listen import ALL, UNIX, split_hosts
from tangram.config.model import Config
from tangram.errors import AddressError, OperatorError

__all__ = [
    "FairShare",
    "HeldSocket",
    "close_listeners",
    "hand_over",
    "inherited_listeners",
    "open_configured",
    "open_listeners",
]

log = structlog.get_logger("tangram.app")

SOMAXCONN_FILE: Final = Path("/proc/sys/net/core/somaxconn")
"""Contains the largest backlog that Linux allows."""

PORT_ATTEMPTS: Final = 16
"""Attempts for port 0: a port that is free in one address family may be in use in the other."""

FIRST_INHERITED: Final = 3
"""The first descriptor that systemd hands over (``sd_listen_fds(3)``)."""

UNIX_MODE: Final = 0o666
"""Mode of a Unix socket: the folder decides which accounts may connect, for example that of a proxy."""

KEPT: Final = "tangram-kept"
"""The name of a socket that a process hands to its successor."""

KEPT_FILE: Final = "tangram-kept-file"
"""The same for a Unix socket whose file is deleted at the end."""

_MISSING_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})
"""Errors to ignore for one of several addresses: ``localhost`` may resolve to ``::1`` without IPv6."""

_OF_THE_HOST: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENOENT, errno.ENOTDIR})
"""Errors that another port would not mend."""

_WHY: Final = {
    errno.EADDRINUSE: "another program listens there",
    errno.EACCES: "this user may not listen there",
    errno.EADDRNOTAVAIL: "it is not an address of this machine",
    errno.ENOENT: "its folder does not exist",
}


class FairShare(Protocol):
    """The share of one of several processes that accept on the same sockets."""

    def pause(self, connections: int) -> float:
        """Publish the number of connections; return the seconds to wait before an accept."""

    def leave(self) -> None:
        """Note that this process accepts no more connections."""


@attrs.frozen
class HeldSocket:
    """One listening socket."""

    listener: socket.socket
    host: str
    """The numeric address to which it is bound, or ``unix:`` and the path."""
    port: int
    """The port to which it is bound, also if port 0 was requested; 0 for a Unix socket."""
    path: Path | None = None
    """The file of a Unix socket that is deleted at the end."""
    share: FairShare | None = None
    """The share of this process, if others accept on the same socket."""

    @property
    def closed(self) -> bool:
        """Whether the root has closed it."""
        return self.listener.fileno() < 0

    def dup(self) -> socket.socket:
        """Return a non-blocking, not inheritable duplicate for one incarnation to close."""
        duplicate = self.listener.dup()
        duplicate.setblocking(False)
        return duplicate

    def close(self) -> None:
        """Stop listening once the last ``dup()`` is closed; only the root does this, at its stop.

        A second call does nothing: the file may already be that of the next server.
        """
        if self.closed:
            return
        with suppress(OSError):  # a plugin may have closed the descriptor
            self.listener.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def open_configured(config: Config, environ: MutableMapping[str, str]) -> list[HeldSocket]:
    """Return the sockets of systemd, or listen on the configured addresses.

    Raises:
        AddressError: as for `open_listeners` and `inherited_listeners`.
    """
    renewed = environ.get("LISTEN_FDNAMES", "").startswith(KEPT)
    held = inherited_listeners(environ)
    if held:
        if not renewed:
            log.info("listening on sockets of systemd", sockets=[one.host for one in held])
        return held
    held = open_listeners(config.server.host, config.server.port)
    if config.channel.port is not None:
        try:
            host = config.channel.host or config.server.host
            held += open_listeners(host, config.channel.port, section="channel")
        except OperatorError:
            close_listeners(held)
            raise
    return held


def open_listeners(
    host: str, port: int, *, backlog: int | None = None, section: str = "server"
) -> list[HeldSocket]:
    """Listen on every address of ``host``.

    Args:
        host: ``[server] host`` in any of its forms; see ``tangram.config.listen``.
        port: 0 means one free port, the same for all addresses.
        backlog: Connections that wait for an accept, also during a restart; as many as the kernel allows
            unless given.
        section: The table of the settings that an error message names.

    Raises:
        AddressError: An address is in use, not allowed, or not an address of this machine.
    """
    hosts = split_hosts(host)
    for attempt in range(PORT_ATTEMPTS):
        held: list[HeldSocket] = []
        chosen, one = port, ""
        try:
            # Unix sockets last: the first socket is the one that the server's URL names.
            for one in sorted(hosts, key=lambda host: host.startswith(UNIX)):
                try:
                    held += _open_host(one, chosen, backlog, section)
                except OSError as error:
                    raise _address_error(one, chosen, error, section) from error
                chosen = chosen or held[0].port
        except AddressError as error:
            close_listeners(held)
            in_use = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            if port == 0 and in_use and attempt + 1 < PORT_ATTEMPTS and not one.startswith(UNIX):
                continue
            raise
        except BaseException:
            close_listeners(held)
            raise
        return held
    raise AssertionError("the last attempt returns or raises")


def inherited_listeners(environ: MutableMapping[str, str]) -> list[HeldSocket]:
    """Return the listening sockets that systemd or a predecessor hands over, if any.

    The variables are removed from ``environ``, because they do not apply to child processes.

    Raises:
        AddressError: A descriptor is no listening stream socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    ours = {number for number, name in enumerate(names) if name == KEPT_FILE}
    return [_inherited(FIRST_INHERITED + number, ours=number in ours) for number in range(int(count))]


def hand_over(listeners: Sequence[HeldSocket], environ: MutableMapping[str, str]) -> None:
    """Prepare sockets and environment for a program that replaces this one (``os.exec``).

    Call it at the very end: other open descriptors are replaced.
    """
    # Above all places first, so that no socket is replaced before it is copied.
    free = FIRST_INHERITED + len(listeners)
    copies = [fcntl.fcntl(one.listener, fcntl.F_DUPFD_CLOEXEC, free) for one in listeners]
    for place, copy in enumerate(copies, FIRST_INHERITED):
        os.dup2(copy, place, inheritable=True)
    environ["LISTEN_PID"] = str(os.getpid())
    environ["LISTEN_FDS"] = str(len(listeners))
    environ["LISTEN_FDNAMES"] = ":".join(KEPT if one.path is None else KEPT_FILE for one in listeners)


def close_listeners(listeners: Iterable[HeldSocket]) -> None:
    """Close all ``listeners``."""
    for listener in listeners:
        listener.close()


def _inherited(descriptor: int, *, ours: bool) -> HeldSocket:
    try:
        listener = socket.socket(fileno=descriptor)
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise AddressError(
            f"descriptor {descriptor} of LISTEN_FDS is no socket: expected listening sockets of systemd"
        ) from error
    if not listening or listener.type != socket.SOCK_STREAM:
        listener.close()
        raise AddressError(
            f"descriptor {descriptor} of LISTEN_FDS does not listen: expected ListenStream= in its unit"
        )
    listener.set_inheritable(False)
    listener.setblocking(False)
    return _held(listener, Path(os.fsdecode(listener.getsockname())) if ours else None)


def _held(listener: socket.socket, path: Path | None = None) -> HeldSocket:
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return HeldSocket(listener, f"{UNIX}{os.fsdecode(name)}", 0, path)
    return HeldSocket(listener, str(name[0]), int(name[1]))


def _address_error(host: str, port: int, error: OSError, section: str) -> AddressError:
    shown = host if host.startswith(UNIX) else f"{host}:{port}"
    why = _WHY.get(error.errno or 0, os.strerror(error.errno) if error.errno else str(error))
    if host.startswith(UNIX) or error.errno in _OF_THE_HOST:
        advice = f"change [{section}] host"
    elif error.errno == errno.EACCES:
        advice = f"change [{section}] port"
    else:
        advice = f"stop what uses it or change [{section}] port"
    return AddressError(f"cannot listen on {shown}: {why}; {advice}")


def _open_host(host: str, port: int, backlog: int | None, section: str) -> list[HeldSocket]:
    if host.startswith(UNIX):
        return [_open_unix(Path(host.removeprefix(UNIX)), _backlog(backlog))]
    return _open_all(_addresses(host, port, section), port, _backlog(backlog))


def _open_unix(path: Path, backlog: int) -> HeldSocket:
    """Listen on a Unix socket; a file that a killed server left behind is replaced."""
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(os.fspath(path))
            except ConnectionRefusedError:
                path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(os.fspath(path))
        path.chmod(UNIX_MODE)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return _held(listener, path)


def _addresses(host: str, port: int, section: str) -> list[tuple[AddressFamily, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(
            None if host == ALL else host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        raise AddressError(f"cannot listen on {host!r}: no such address; change [{section}] host") from error
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
            held.append(_held(listener))
            port = held[-1].port
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
