"""Clients that reset their connection, or send one byte a second, at each stage."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock as Clock

from tests.channels.fakes import Settings
from tests.http.hostile_clients import UPGRADE, Site, message, open_site, reset
from tests.http.native.sockets import Socket, masked, token

pytestmark = pytest.mark.slow

Stage = Callable[[Site], Awaitable[object]]
"""Brings a client to a stage, and returns it for the reset."""

SETTLE = 0.05
"""Seconds of the test's clock for the server to reach the stage."""


def sent(data: bytes) -> Stage:
    """Open a connection and send these bytes."""

    async def go(site: Site) -> object:
        client = await site.server.connect()
        await client.send(data)
        await trio.sleep(SETTLE)
        return client

    return go


async def half_an_answer(site: Site) -> object:
    """Read a part of a streamed answer."""
    client = await site.server.connect()
    await client.send(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
    await client.stream.receive_some(10_000)
    return client


async def upgraded(site: Site) -> Socket:
    return await site.open()


async def half_a_frame(site: Site) -> Socket:
    client = await site.open()
    await client.join("town", "hostile")
    await client.stream.send_all(masked(b"x" * 1000)[:500])
    await trio.sleep(SETTLE)
    return client


async def joined(site: Site) -> Socket:
    client = await site.open()
    await client.join("town", "hostile")
    return client


async def joining(site: Site) -> Socket:
    """Send a join, and read nothing of its reply."""
    client = await site.open()
    await client.push("1", "1", "town", "phx_join", {"token": token("town")})
    return client


async def in_a_broadcast(site: Site) -> Socket:
    """Let a broadcast fill the socket in part."""
    client = await joined(site)
    await client.join("alone", "hostile")
    site.publish("to:alone:big", b'"' + b"x" * 9_000_000 + b'"')
    await client.stream.receive_some(100_000)
    return client


async def closing(site: Site) -> Socket:
    """Send a close frame without waiting for the server's."""
    client = await joined(site)
    client.protocol.send_close(1000, "")
    await client.flush()
    return client


async def told_to_go(site: Site) -> Socket:
    """Make the server send its close frame, which the client answers by a reset."""
    client = await site.open()
    await client.stream.send_all(masked(message("1", "1", "town", "x", {})) * 3 + b"\x83\x80\x00\x00\x00\x00")
    await trio.sleep(SETTLE)
    return client


POST = b"POST /hello HTTP/1.1\r\nHost: test\r\n"
STAGES: dict[str, Stage] = {
    "connected": sent(b""),
    "half a head": sent(b"GET /hello HTTP/1.1\r\nHost: te"),
    "before the body": sent(POST + b"Content-Length: 10\r\n\r\n"),
    "before the body that it asks leave for": sent(
        POST + b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n"
    ),
    "half a body": sent(POST + b"Content-Length: 10\r\n\r\nhalf"),
    "half a chunk": sent(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe"),
    "while the handler runs": sent(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n"),
    "while the answer streams": half_an_answer,
    "half an upgrade": sent(UPGRADE[:-20]),
    "behind an upgrade": sent(UPGRADE),
    "upgraded": upgraded,
    "half a frame": half_a_frame,
    "joining": joining,
    "joined": joined,
    "in a broadcast": in_a_broadcast,
    "closing": closing,
    "told to go": told_to_go,
}


@pytest.mark.parametrize("stage", STAGES)
async def test_reset_at_each_stage(engine: str, stage: str, clock: Clock) -> None:
    """A reset leaves no connection, membership or byte; the good client is served."""
    async with open_site(engine, write_timeout=5.0) as site:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on, site.good_client)
            for _ in range(3):
                reset(await STAGES[stage](site))
            await trio.sleep(SETTLE)
            nursery.cancel_scope.cancel()
        await site.check_serves()
        await site.wait_cleaned_up()

        assert site.server.engine.statistics().failed == 0


async def read_on(client: Socket) -> None:
    while True:
        await client.frame(1000)


async def test_stop_with_hostile_clients_at_each_stage(engine: str, clock: Clock) -> None:
    """With hostile clients at each stage a stop takes the grace and at most a second more."""
    async with open_site(engine, grace=3.0, write_timeout=1000.0) as site:
        clients = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on, site.good_client)
            clients += [await stage(site) for stage in STAGES.values()]
            nursery.cancel_scope.cancel()
        took = await site.server.stop()

        assert took < 4
        assert site.server.engine.statistics().connections == 0
        for client in clients:
            reset(client)


# The bytes to send one a second, and the seconds after which the client is cut (None: never).
DRIPS: dict[str, tuple[bytes, float | None]] = {
    "a request line": (b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\n", 10),
    "a header": (b"GET / HTTP/1.1\r\nHost: test\r\nX-Long: aaaaaaaaaaaaaaaaaaaaaaaa\r\n\r\n", 10),
    "an upgrade": (UPGRADE, 10),
    "a body": (POST + b"Content-Length: 60\r\n\r\n" + b"x" * 60, None),
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10 + b"0\r\n\r\n", None),
    "a frame": (UPGRADE + masked(message("1", "1", "town", "wave", {"n": "x" * 100})), 30),
    "a join": (UPGRADE + masked(message("1", "1", "t", "phx_join", {"token": token("t")})), 30),
}


@pytest.mark.parametrize("what", DRIPS)
async def test_one_byte_a_second(engine: str, what: str, clock: Clock) -> None:
    """A head or a message that comes a byte a second is cut after its time.

    A body may come so. Other clients are served meanwhile.
    """
    data, limit = DRIPS[what]
    # The head of a body or frame is sent at once; the bytes behind it come one a second.
    at = data.index(b"\r\n\r\n") + 4 if what in {"a body", "chunks", "a frame", "a join"} else 1
    options: dict[str, Any] = {"ping_interval": 1000.0} if engine == "native" else {}
    async with open_site(engine, Settings(idle_timeout=30.0), header_timeout=10.0, **options) as site:
        client = await site.server.connect()
        await client.send(data[:at])
        if data.startswith(UPGRADE) and at == len(UPGRADE):
            await trio.sleep(SETTLE)  # Hypercorn drops bytes in one read with an upgrade
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, site.good_client)
            nursery.start_soon(serve_others, site)
            with suppress(trio.BrokenResourceError):
                for byte in data[at:]:
                    await client.send(bytes([byte]))
                    await trio.sleep(1)
                    if site.server.engine.statistics().connections == 1:
                        break
            took = trio.current_time() - began
            nursery.cancel_scope.cancel()
        if limit is None:
            assert json.loads((await client.answer_to("POST")).body)["body"].startswith("x" * 10)
        else:
            assert limit <= took <= limit + 6
        await site.check_serves()
        await trio.aclose_forcefully(client.stream)
        await site.wait_cleaned_up()


async def beat(client: Socket) -> None:
    """Send phoenix.js's heartbeat, which keeps a silent client connected."""
    while True:
        await client.push(None, "beat", "phoenix", "heartbeat", {})
        await trio.sleep(5)


async def serve_others(site: Site) -> None:
    while True:
        await trio.sleep(5)
        async with await site.server.connect() as other:
            assert (await other.get("/hello")).status == 200
