"""Both engines pass the checks of a transport, over both kinds of sockets; bad ones fail."""

from __future__ import annotations

import sys

import attrs
import pytest
import trio
from trio.testing import MockClock

from tangram.chaos.conformance import Transport, check_transport, transport_of
from tangram.testing import open_tangram

pytestmark = pytest.mark.slow


async def check(engine: str, change: object = None, *, memory: bool = False) -> None:
    config = {"server": {"engine": engine}}
    async with open_tangram(config=config, fakes=True, memory_port=memory) as running:
        transport = transport_of(running)
        await check_transport(change(transport) if callable(change) else transport)


@pytest.mark.parametrize("engine", ["native", "hypercorn"])
async def test_the_engines_conform(engine: str) -> None:
    """The native engine and Hypercorn pass every check over real sockets."""
    await check(engine)


async def test_the_socket_in_memory_conforms() -> None:
    """The fake passes every check of the real one."""
    await check("native", memory=True)


async def test_the_socket_in_memory_conforms_under_a_virtual_clock(autojump_clock: MockClock) -> None:
    """Sockets in memory need no real time, so that an autojump clock changes nothing."""
    await check("native", memory=True)


async def test_sockets_in_memory_need_the_native_engine() -> None:
    """Hypercorn uses Trio's sockets, which refuse a subclass; the error comes before a boot."""
    with pytest.raises(ValueError, match=r"memory_port.*engine 'native'.*'hypercorn'"):
        await check("hypercorn", memory=True)


async def test_a_transport_that_loses_messages_does_not_conform(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that loses one message in ten fails."""
    monkeypatch.setattr(sys.modules[check_transport.__module__], "ANSWER_SECONDS", 3.0)

    def lossy(transport: Transport) -> Transport:
        sent = []

        async def publish(channel: str, payload: bytes) -> object:
            sent.append(payload)
            return None if len(sent) % 10 == 0 else await transport.publish(channel, payload)

        return attrs.evolve(transport, publish=publish)

    with pytest.raises(AssertionError, match="no 'n' came"):
        await check("native", lossy)


async def test_a_transport_that_ends_without_a_close_frame_does_not_conform() -> None:
    """A transport that ends without a close frame fails."""

    def rude(transport: Transport) -> Transport:
        streams: list[trio.abc.Stream] = []

        async def open_connection() -> trio.abc.Stream:
            streams.append(await transport.open_connection())
            return streams[-1]

        def stop() -> None:
            last = streams[-1]
            assert isinstance(last, trio.SocketStream)
            last.socket.shutdown(2)

        return attrs.evolve(transport, open_connection=open_connection, stop=stop)

    with pytest.raises(AssertionError, match="at the end a WebSocket should be closed"):
        await check("native", rude)


async def test_a_transport_that_keeps_a_silent_client_does_not_conform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A transport without a bound for one client fails."""
    monkeypatch.setattr(sys.modules[check_transport.__module__], "FULL_SECONDS", 2.0)
    config = {"channel": {"max_backlog": 1 << 30}, "server": {"write_timeout": 60.0}}
    with pytest.raises(AssertionError, match="did not read"):
        async with open_tangram(config=config, fakes=True) as running:
            await check_transport(transport_of(running))
