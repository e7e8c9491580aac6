"""Engines and channels alone: their start, and the broken promises that are found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from tangram.client import fetch_token
from tangram.errors import BrokerUnavailable
from tangram.testing import FakeBus, InvariantBroken, open_engine, open_transport
from tangram.testing.run.transport import EngineName
from tests.http.harness import hello

ENGINES: tuple[EngineName, ...] = ("native", "hypercorn")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
async def test_channels_are_served_by_either_engine(engine: EngineName) -> None:
    """A token is issued, a push reaches the bus, a published message reaches the client."""
    from tangram.client import open_socket

    with trio.fail_after(10):
        async with open_transport(engine=engine) as transport, open_socket(transport.url) as socket:
            token = await fetch_token(transport.url, "room")
            channel = await socket.join("room", token=token.token)
            await channel.push("said", 1)
            transport.publish("to:room:heard", b"[2]")
            event = await channel.receive()

            assert transport.bus.payloads("from:room:said") == [b"1"]
            assert (event.name, event.payload) == ("heard", [2])


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_exception_of_the_engine_breaks_an_invariant(engine: EngineName) -> None:
    """A connection ended by an exception of the engine is found, unless expected."""

    async def broken(*_: Any) -> None:
        raise ValueError("a bug of the engine's")

    async def connect(crashes: int) -> None:
        async with open_engine(engine, hello, crashes=crashes) as running:
            running.engine.handle = broken
            with trio.fail_after(10), capture_logs():
                async with await trio.open_tcp_stream("127.0.0.1", running.port) as stream:
                    await stream.receive_some()
                await running.wait_closed()

    with pytest.raises(InvariantBroken, match="faults_are_counted: 1 connections were ended"):
        await connect(0)
    await connect(1)


async def test_a_connection_that_is_left_breaks_an_invariant() -> None:
    """An engine that has ended and still counts a connection is found."""
    with pytest.raises(InvariantBroken, match="nothing_left_alive: 1 connections"):
        async with open_engine("native", hello, grace=0.05) as running:
            running.engine._open += 1


async def test_an_unknown_engine_is_an_error() -> None:
    """The message names the known engines."""
    with pytest.raises(ValueError, match="expected 'native' or 'hypercorn'"):
        async with open_engine("uvicorn", hello):
            pass


def test_the_bus_in_memory_reports_outcomes_like_redis() -> None:
    """No message fails while it is up; all fail while it is away; held outcomes wait."""
    bus, told = FakeBus(), list[Mapping[int, Exception]]()

    bus.publish_all([("to:a:b", b"1")], told.append)
    bus.hold = True
    bus.publish_all([("from:a:b", b"2")], told.append)
    bus.up = False
    bus.publish_all([("to:a:b", b"3"), ("to:a:b", b"4")], told.append)

    assert told[0] == {}
    assert [type(error) for error in told[1].values()] == [BrokerUnavailable] * 2
    assert len(bus.held) == 1
    assert bus.names("to:") == ["to:a:b"]
