"""A real broker of a test's own: started, killed, frozen and thawed at will.

It is a process and needs no loop, so synchronous fixtures may hold it. Like the server's own broker it
runs under a guard and ends with the process that started it.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tangram.broker.embedded import find_server, server_arguments
from tangram.broker.process import guarded
from tangram.testing.checks.census import OWNED_BY_TEST
from tangram.testing.checks.invariants import Broken, InvariantBroken
from tangram.testing.fakes.ports import HOST, free_port, is_listening

__all__ = ["RealBroker", "open_broker"]

START_SECONDS: Final = 60.0
"""Seconds until it accepts connections: it needs some 30 ms, and longer on a machine that stands still. The
bound ends a hang, and measures nothing.
"""

START_LOOK: Final = 0.005
"""Seconds between two polls meanwhile."""

END_SECONDS: Final = 30.0
"""Seconds for its end: SIGKILL ends a process at once unless the kernel holds it, as while a disk is busy."""


class RealBroker:
    """A valkey-server on a port of its own, started many times; made by `open_broker`.

    Args:
        options: further words of its command line.
        port: where it listens; a free port unless given.
        password: asked of clients.
        command: returns the first words of the command line for a port; by default those of a broker.
    """

    def __init__(
        self,
        *options: str,
        port: int | None = None,
        password: str | None = None,
        command: Callable[[int], Sequence[str]] | None = None,
    ) -> None:
        self.port = port if port is not None else free_port()
        """Chosen once: clients that know the URL find the next start of it."""
        self.password = password
        """Password that the next `start` asks of clients; None for none."""
        self.options = options
        self._command = command or (lambda port: server_arguments(find_server(), port))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:PORT``, with the password where there is one."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{login}{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Return its process id, or None while it does not run."""
        return self._process.pid if self._process is not None else None

    def launch(self) -> None:
        """Start it without waiting for it."""
        if self._process is not None:
            raise RuntimeError(f"the broker at port {self.port} runs already; kill it first")
        login = ["--requirepass", self.password] if self.password else []
        self._process = subprocess.Popen(  # noqa: S603 - the broker's own binary, on words of the test
            guarded([*self._command(self.port), *login, *self.options]),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        OWNED_BY_TEST[self._process.pid] = self._process.stdin.fileno()

    def start(self) -> None:
        """Start it and wait until it accepts connections.

        Raises:
            TimeoutError: it does not within a minute.
        """
        self.launch()
        deadline = time.monotonic() + START_SECONDS
        while not is_listening(self.port):
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"no broker at port {self.port} within {START_SECONDS:g} s")
            time.sleep(START_LOOK)

    def kill(self) -> None:
        """Send SIGKILL and wait for its end; do nothing where it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(END_SECONDS)
        del OWNED_BY_TEST[process.pid]
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(b"done\n")
            process.stdin.close()

    def freeze(self) -> None:
        """Send SIGSTOP: it keeps its connections and answers nothing."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Send SIGCONT: it goes on with the requests that came meanwhile."""
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError(f"the broker at port {self.port} does not run; start it first")
        self._process.send_signal(number)


@contextmanager
def open_broker(
    *options: str,
    port: int | None = None,
    password: str | None = None,
    start: bool = True,
    server: Path | None = None,
) -> Iterator[RealBroker]:
    """Run a broker for the block, ready unless ``start`` is False; it is gone afterwards.

    Args:
        options: further words of valkey-server's command line.
        port: where it listens; a free port unless given.
        password: asked of clients; may be set anew between two starts.
        start: False where the test starts it itself.
        server: the binary; that of the embedded broker unless given.

    Raises:
        InvariantBroken: something goes on listening at its port (``nothing_left_alive``).
    """
    command = None if server is None else partial(server_arguments, server)
    broker = RealBroker(*options, port=port, password=password, command=command)
    try:
        if start:
            broker.start()
        yield broker
    finally:
        broker.kill()
    if is_listening(broker.port):
        raise InvariantBroken([Broken("nothing_left_alive", f"port {broker.port} is still listened on")])
