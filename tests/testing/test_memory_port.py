"""The web port in memory: no connection to its URL reaches another program."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
from trio.testing import MockClock

from tangram.config import Config
from tangram.testing import open_tangram
from tangram.testing.fakes.memory_port import MemoryPort
from tangram.testing.fakes.ports import is_listening

IPPORT_RESERVED = 1024
"""Below this port only privileged programs listen (netinet/in.h)."""


async def test_its_url_has_a_port_without_a_program(autojump_clock: MockClock) -> None:
    """The URL has a port where no developer's program listens, and the server answers."""
    async with open_tangram(fakes=True, memory_port=True) as running:
        port = urlsplit(running.url).port
        assert port is not None
        assert running.server.held[0].port == port

        assert port < IPPORT_RESERVED
        assert not is_listening(port)
        assert (await running.http.get("/-/healthz")).status_code == 200


def test_a_connection_is_refused_without_a_listener() -> None:
    """It is refused before the port listens and after it is closed, like a TCP port."""
    port = MemoryPort()
    with pytest.raises(ConnectionRefusedError):
        port.connect()
    (held,) = port.listen(Config())
    with port.connect() as client, held.listener.accept()[0] as accepted:
        client.send(b"x")
        assert accepted.recv(10) == b"x"
        assert accepted.getsockname() == (held.host, held.port)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    held.close()
    with pytest.raises(ConnectionRefusedError):
        port.connect()
