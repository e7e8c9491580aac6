"""The proxy that spoils connections, before the web port and before Redis."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import httpx
import pytest
import trio
import trio.testing

from tangram.bus import Bus
from tangram.config import BrokerConfig
from tangram.errors import BrokerUnavailable
from tangram.testing import MemoryBroker, open_tangram
from tangram.testing.faults.proxy import Proxy, open_proxy


async def test_a_web_behind_a_bad_network_is_served() -> None:
    """Latency, jitter, little bandwidth and slices delay an answer and do not spoil it."""
    async with open_tangram(fakes=True) as running:
        held = running.server.held[0]
        async with open_proxy(held.host, held.port) as proxy, httpx.AsyncClient() as client:
            proxy.latency, proxy.jitter, proxy.slice, proxy.bandwidth = 0.0005, 0.0005, 16, 1e6
            answer = await client.get(f"http://{proxy.host}:{proxy.port}/-/healthz")

            assert answer.status_code == 200


async def test_a_reset_or_half_close_costs_one_connection() -> None:
    """The server is not hurt."""
    async with open_tangram(fakes=True) as running:
        held = running.server.held[0]
        async with open_proxy(held.host, held.port) as proxy:
            async with await trio.open_tcp_stream(proxy.host, proxy.port) as client:
                await client.send_all(b"GET /-/healthz HTTP/1.1\r\n")
                await trio.testing.wait_all_tasks_blocked(0.01)
                proxy.half_close_all()
                with trio.fail_after(30):
                    assert await client.receive_some() == b""
            async with await trio.open_tcp_stream(proxy.host, proxy.port) as client:
                await client.send_all(b"GET /-/healthz HTTP/1.1\r\n")
                await trio.testing.wait_all_tasks_blocked(0.01)
                proxy.reset_all()
                with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
                    await client.receive_some()

        assert (await running.http.get("/-/healthz")).status_code == 200
        assert not [event for event in running.events if event.kind == "crashed"]


async def test_a_silent_target_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose target does not accept is reset after a while."""
    monkeypatch.setattr("tangram.testing.faults.proxy.CONNECT_SECONDS", 0.05)
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # more than wait in its queue: the kernel does not answer the next
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        async with open_proxy(*full.getsockname()) as proxy:
            async with await trio.open_tcp_stream(proxy.host, proxy.port) as client:
                with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
                    await client.receive_some()


async def test_the_bus_comes_back_when_the_network_does() -> None:
    """A bus whose connections are reset and refused reconnects as soon as it can."""
    broker = MemoryBroker(BrokerConfig(port=0))
    async with trio.open_nursery() as nursery:
        url: str = await nursery.start(broker.run)
        async with open_proxy("127.0.0.1", int(url.rsplit(":", 1)[1])) as proxy:
            bus: Bus = await nursery.start(Bus(f"redis://127.0.0.1:{proxy.port}").run)
            assert await bus.publish("to:x:y", b"1") == 1
            proxy.refuse = True
            proxy.reset_all()
            with pytest.raises(BrokerUnavailable):
                await bus.publish("to:x:y", b"2", timeout=0.2)
            proxy.refuse = False
            with trio.fail_after(30):
                await bus.wait_up()
            assert await bus.publish("to:x:y", b"3") == 1
        nursery.cancel_scope.cancel()


class Echo:
    """A server that echoes, and notes the pieces that it received."""

    def __init__(self) -> None:
        self.pieces: list[int] = []

    async def carry(self, stream: trio.SocketStream) -> None:
        async with stream:
            async for data in stream:
                self.pieces.append(len(data))
                await stream.send_all(data)


@asynccontextmanager
async def open_echo() -> AsyncIterator[tuple[Echo, Proxy, trio.SocketStream]]:
    """Open an echo server, a proxy before it, and a connection through that."""
    echo = Echo()
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo.carry, [listener])
        async with open_proxy("127.0.0.1", listener.socket.getsockname()[1]) as proxy:
            async with await trio.open_tcp_stream(proxy.host, proxy.port) as stream:
                yield echo, proxy, stream
        nursery.cancel_scope.cancel()


async def say(stream: trio.SocketStream, size: int) -> float:
    """Send some bytes, get them back, and return the seconds on the loop's clock."""
    began, came = trio.current_time(), 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, bytes(size))
        while came < size:
            came += len(await stream.receive_some(65536))
    return trio.current_time() - began


async def test_latency_is_paid_in_each_direction(autojump_clock: trio.testing.MockClock) -> None:
    """A word and its echo take twice the latency."""
    async with open_echo() as (_, proxy, stream):
        assert await say(stream, 1) == 0
        proxy.latency = 0.5

        assert await say(stream, 1) == pytest.approx(1.0)


async def test_jitter_is_drawn_anew_for_each_piece(autojump_clock: trio.testing.MockClock) -> None:
    """Words take different times within the bound."""
    async with open_echo() as (_, proxy, stream):
        proxy.latency, proxy.jitter = 0.5, 0.5
        took = [await say(stream, 1) for _ in range(10)]

        assert all(1.0 <= one <= 2.0 for one in took)
        assert len(set(took)) == 10


async def test_bandwidth_bounds_the_bytes_per_second(autojump_clock: trio.testing.MockClock) -> None:
    """200 kB at 100 kB/s take at least two seconds; later bytes come back beside them."""
    async with open_echo() as (_, proxy, stream):
        proxy.bandwidth = 100_000.0
        took = await say(stream, 200_000)

        assert 2.0 <= took <= 4.1


async def test_slices_are_cut_on_the_way(autojump_clock: trio.testing.MockClock) -> None:
    """The target gets no more than a slice at once, where each has time to arrive."""
    async with open_echo() as (echo, proxy, stream):
        proxy.slice, proxy.latency = 7, 0.001
        await say(stream, 100)

        assert max(echo.pieces) == 7
        assert sum(echo.pieces) == 100
        assert list(proxy.pieces) == [7] * 14 + [2] + echo.pieces


async def test_a_black_hole_swallows_silently(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing comes back, and connections stay open."""
    async with open_echo() as (echo, proxy, stream):
        proxy.black_hole = True
        with trio.move_on_after(60) as silence:
            await say(stream, 10)

        assert silence.cancelled_caught
        assert echo.pieces == []
