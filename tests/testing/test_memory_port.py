"""The web port in memory: who dials what it says reaches nobody."""

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
"""Below it no program without privileges listens (netinet/in.h)."""


async def test_its_address_is_nobodys(autojump_clock: MockClock) -> None:
    """A server on it tells a port where no program of a developer's listens, and answers all the same."""
    async with open_tangram(fakes=True, memory_port=True) as running:
        port = urlsplit(running.url).port
        assert port is not None
        assert running.server.held[0].port == port

        assert port < IPPORT_RESERVED
        assert not is_listening(port)
        assert (await running.http.get("/-/healthz")).status_code == 200


def test_it_is_refused_where_nobody_listens() -> None:
    """Like a port of the kernel's: before it listens, and once it is closed."""
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
