"""Connections that an extension's runtime leaves open are shut down, and no others."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio

from tangram.compat import extension_sockets
from tangram.compat.extension_sockets import ExtensionSockets
from tangram.readiness import Readiness

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="epoll and /proc are Linux's")


class Runtime:
    """An epoll instance with connections to one server, as a Rust runtime has them."""

    def __init__(self, stack: ExitStack, port: int) -> None:
        self.epoll = stack.enter_context(select.epoll())
        self.copy = os.dup(self.epoll.fileno())
        stack.callback(os.close, self.copy)
        self.sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3)]
        for one in self.sockets:
            one.settimeout(1)
            self.epoll.register(one, select.EPOLLIN)

    def stop(self) -> None:
        """Close one connection, as the service that ends does."""
        self.epoll.unregister(self.sockets[0])
        self.sockets[0].close()


@pytest.fixture
def server() -> Iterator[tuple[ExitStack, int]]:
    extension_sockets._runtimes.clear()
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=20))
        yield stack, listener.getsockname()[1]
    extension_sockets._runtimes.clear()


def is_open(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1) != b""
    except BlockingIOError:
        return True


async def test_leftover_connections_are_shut_down(server: tuple[ExitStack, int]) -> None:
    """Those of the runtime that has lost a connection; at the next stop it is known."""
    stack, port = server
    mine, other = Runtime(stack, port), Runtime(stack, port)
    sockets = ExtensionSockets("demo", "demo", f"redis://127.0.0.1:{port}/0")
    sockets.note()
    mine.stop()

    assert await sockets.close_leftover() == 2
    assert [is_open(one) for one in mine.sockets[1:]] == [False, False]
    assert all(is_open(one) for one in other.sockets)
    again = ExtensionSockets("demo", "demo", f"redis://127.0.0.1:{port}/0")
    again.note()
    assert await again.close_leftover() >= 0
    assert all(is_open(one) for one in other.sockets)


async def test_connections_to_other_servers_stay(server: tuple[ExitStack, int]) -> None:
    """Only connections to Redis are shut down."""
    stack, port = server
    mine = Runtime(stack, port)
    sockets = ExtensionSockets("demo", "demo", f"redis://127.0.0.1:{port + 1}")
    sockets.note()
    mine.stop()

    assert await sockets.close_leftover() == 0
    assert all(is_open(one) for one in mine.sockets[1:])


async def test_nothing_is_done_without_a_sign(server: tuple[ExitStack, int]) -> None:
    """If no runtime, or more than one, has lost a connection; and never to sockets of Trio."""
    stack, port = server
    one, two = Runtime(stack, port), Runtime(stack, port)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        sockets = ExtensionSockets("demo", "demo", f"redis://127.0.0.1:{port}")
        sockets.note()
        nursery.cancel_scope.cancel()
    assert await sockets.close_leftover() == 0
    sockets = ExtensionSockets("demo", "demo", f"redis://127.0.0.1:{port}")
    sockets.note()
    one.stop()
    two.stop()

    assert await sockets.close_leftover() == 0
    assert all(is_open(left) for runtime in (one, two) for left in runtime.sockets[1:])
    assert await ExtensionSockets("demo", "demo", "redis://h").close_leftover() == 0


async def test_the_servers_own_connections_are_not_those_of_an_extension(
    server: tuple[ExitStack, int], nursery: trio.Nursery
) -> None:
    """A client that leaves during the stop of a plugin does not cost the bus its connection."""
    stack, port = server
    client, theirs = socket.socketpair()
    bus = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    readiness = Readiness(nursery.start_soon)
    with client, theirs:
        nursery.start_soon(readiness.serve, bus, lambda: None)
        leaving = trio.CancelScope()

        async def serve_client() -> None:
            with leaving:
                await readiness.serve(client, lambda: None)

        nursery.start_soon(serve_client)
        await trio.testing.wait_all_tasks_blocked()
        sockets = ExtensionSockets("demo", "demo", f"redis://127.0.0.1:{port}")
        sockets.note()
        leaving.cancel()
        await trio.testing.wait_all_tasks_blocked()

        assert await sockets.close_leftover() == 0
        assert is_open(bus)
        nursery.cancel_scope.cancel()
