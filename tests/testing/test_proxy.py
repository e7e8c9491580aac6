"""The proxy that spoils connections, before the web port and before Redis."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import httpx
import pytest
import trio
import trio.testing

from tangram.bus import Bus
from tangram.config import BrokerConfig
from tangram.errors import BrokerUnavailable
from tangram.testing import MemoryBroker, open_tangram
from tangram.testing.proxy import open_proxy


async def test_a_web_behind_a_bad_network_is_served_all_the_same() -> None:
    """Latency, jitter, a narrow line and slices of three bytes delay an answer, and spoil nothing."""
    async with open_tangram(fakes=True) as running:
        held = running.server.held[0]
        async with open_proxy(held.host, held.port) as proxy, httpx.AsyncClient() as client:
            proxy.latency, proxy.jitter, proxy.slice, proxy.bandwidth = 0.0005, 0.0005, 16, 1e6
            answer = await client.get(f"http://{proxy.host}:{proxy.port}/-/healthz")

            assert answer.status_code == 200


async def test_connections_that_are_reset_or_half_closed_end_alone() -> None:
    """Resets and half-closes from the network cost the client its connection, and the server nothing."""
    async with open_tangram(fakes=True) as running:
        held = running.server.held[0]
        async with open_proxy(held.host, held.port) as proxy:
            async with await trio.open_tcp_stream(proxy.host, proxy.port) as client:
                await client.send_all(b"GET /-/healthz HTTP/1.1\r\n")
                await trio.testing.wait_all_tasks_blocked(0.01)
                proxy.half_close_all()
                with trio.fail_after(5):
                    assert await client.receive_some() == b""
            async with await trio.open_tcp_stream(proxy.host, proxy.port) as client:
                await client.send_all(b"GET /-/healthz HTTP/1.1\r\n")
                await trio.testing.wait_all_tasks_blocked(0.01)
                proxy.reset_all()
                with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                    await client.receive_some()

        assert (await running.http.get("/-/healthz")).status_code == 200
        assert not [event for event in running.events if event.kind == "crashed"]


async def test_who_takes_no_connections_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose connection leads nowhere is reset after a time, as if the target had refused it."""
    monkeypatch.setattr("tangram.testing.proxy.CONNECT_SECONDS", 0.05)
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # more than wait in its queue: the kernel does not answer the next
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        async with open_proxy(*full.getsockname()) as proxy:
            async with await trio.open_tcp_stream(proxy.host, proxy.port) as client:
                with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                    await client.receive_some()


async def test_the_bus_comes_back_when_the_network_does() -> None:
    """A bus whose connections are reset and then refused reconnects as soon as it is let."""
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
            with trio.fail_after(5):
                await bus.wait_up()
            assert await bus.publish("to:x:y", b"3") == 1
        nursery.cancel_scope.cancel()
