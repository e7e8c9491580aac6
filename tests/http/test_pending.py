"""Unfinished messages and bodies: one bound for all clients, and a time limit for each."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock as Clock
from websockets.frames import Opcode

from tangram.http.pending import PendingBytes, PendingItem
from tests.channels.fakes import Settings
from tests.http.harness import Server, serving
from tests.http.native.sockets import Socket, masked, open_socket, serving_channels

KIB = 1024
MIB = 1024 * KIB


def named(ledger: PendingBytes, name: str, dropped: list[str]) -> PendingItem:
    return ledger.item(lambda: name, lambda: dropped.append(name))


async def test_old_and_large_items_go_first(autojump_clock: Clock) -> None:
    """Over the bound the items go in the order of bytes times seconds."""
    dropped: list[str] = []
    ledger = PendingBytes(1000, timeout=60)
    old, large, new = (named(ledger, name, dropped) for name in ("old", "large", "new"))
    old.update(200)
    await trio.sleep(10)
    large.update(500)
    await trio.sleep(1)
    with capture_logs() as lines:
        new.update(400)

    assert dropped == ["old"]
    assert ledger.total == 900
    assert [(line["event"], line["address"], line["bytes"]) for line in lines] == [
        ("unfinished message dropped", "old", 200)
    ]
    new.update(450)
    assert dropped == ["old"]
    new.update(550)
    assert dropped == ["old", "large"]


async def test_a_finished_item_counts_no_longer(autojump_clock: Clock) -> None:
    """An item of size 0 is neither counted nor dropped.

    Its time begins with its next byte.
    """
    dropped: list[str] = []
    ledger = PendingBytes(1000, timeout=60)
    item = named(ledger, "item", dropped)
    item.update(600)
    item.update(0)
    await trio.sleep(100)
    item.update(10)

    assert (ledger.total, dropped, item.is_late(trio.current_time() + 59)) == (10, [], False)
    assert item.is_late(trio.current_time() + 61)


async def unfinished(server: Server, size: int, path: str = "/websocket?vsn=2.0.0") -> Socket:
    """Open a WebSocket, and send a part of a message."""
    client = await open_socket(server, path)
    await client.stream.send_all(masked(b"x" * 10 * size)[:size])
    return client


async def test_unfinished_channel_messages_share_one_bound(clock: Clock) -> None:
    """Over ``max_pending_bytes`` the oldest client gets 1013; the next ones are kept."""
    async with serving_channels(Settings(max_unjoined=MIB), max_pending_bytes=100 * KIB) as served:
        first = await unfinished(served.server, 60 * KIB)
        await trio.sleep(1)
        second = await unfinished(served.server, 60 * KIB)

        assert await first.closed() == 1013
        assert 50 * KIB < served.server.engine.statistics().pending < 70 * KIB
        assert served.server.engine.statistics().dropped == 1
        await first.aclose()
        await second.aclose()
        await served.server.wait_closed()
        assert served.server.engine.statistics().pending == 0


async def test_pings_do_not_extend_the_time_of_a_message(clock: Clock) -> None:
    """A client that pings within an unfinished message is closed with 1008."""
    async with serving_channels(Settings(idle_timeout=1e6), body_timeout=20.0) as served:
        client = await open_socket(served.server)
        await client.stream.send_all(masked(b"begin", fin=False))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def ping() -> None:
                while True:
                    await client.stream.send_all(masked(b"", Opcode.PING))
                    await trio.sleep(1)

            nursery.start_soon(ping)
            assert await client.closed(60) == 1008
            nursery.cancel_scope.cancel()
        assert 20 <= trio.current_time() - began < 25
        await client.aclose()


async def never_receives(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Accept a WebSocket, and read none of its messages until it ends."""
    await receive()
    await send({"type": "websocket.accept"})
    await trio.sleep(1000)
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def test_messages_of_application_sockets_share_the_bound(engine: str, clock: Clock) -> None:
    """Fragments and waiting messages of application WebSockets share the bound."""
    async with serving(engine, never_receives, max_pending_bytes=100 * KIB) as server:
        first = await unfinished(server, 60 * KIB, "/ws")
        await trio.sleep(1)
        second = await open_socket(server, "/ws")
        await second.stream.send_all(masked(b"a" * 1000, fin=False) + masked(b"b" * 70_000, Opcode.CONT))

        assert await first.closed() == 1013
        assert server.engine.statistics().dropped == 1
        await first.aclose()
        await second.aclose()


async def test_an_application_message_has_a_time_limit(engine: str, clock: Clock) -> None:
    """A message that stays unfinished is closed with 1008, although the client answers pings."""
    async with serving(engine, never_receives, body_timeout=20.0) as server:
        client = await unfinished(server, 1000, "/ws")

        assert await client.closed(60) == 1008
        await client.aclose()


async def reads_body(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"%d" % len(body)})
            return


POST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n"


async def test_unfinished_bodies_share_the_bound(engine: str, clock: Clock) -> None:
    """Over the bound the oldest body is dropped, by 503 if possible, and the others go on."""

    def forwarded(scope: dict[str, Any]) -> dict[str, Any]:
        return {**scope, "client": ("203.0.113.9", 1)}

    with capture_logs() as lines:
        await drop_one(engine, lines, forwarded=forwarded)


async def drop_one(engine: str, lines: list[Any], **options: Any) -> None:
    async with serving(engine, reads_body, max_pending_bytes=100 * KIB, **options) as server:
        first, second = await server.connect(), await server.connect()
        await first.send(POST + b"x" * 60 * KIB)
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:

            async def post() -> None:
                assert (await second.post("/", b"x" * 80 * KIB)).body == b"%d" % (80 * KIB)

            nursery.start_soon(post)
            assert (await first.rest()).startswith(b"HTTP/1.1 503" if engine == "native" else b"")
        assert [line["address"] for line in lines] == ["203.0.113.9"]
        for client in (first, second):
            await trio.aclose_forcefully(client.stream)
        await server.wait_closed()
        statistics = server.engine.statistics()

    assert (statistics.dropped, statistics.failed, statistics.pending) == (1, 0, 0)


async def test_a_body_larger_than_the_default_counts_no_more_than_that(engine: str, clock: Clock) -> None:
    """A route with a larger limit can stream an upload that exceeds the bound."""
    size = 300 * KIB
    async with serving(
        engine, reads_body, max_body=64 * KIB, max_pending_bytes=100 * KIB, body_limit=lambda _: 0
    ) as server:
        async with await server.connect() as client:
            assert (await client.post("/", b"x" * size)).body == b"%d" % size
        await server.wait_closed()
        assert server.engine.statistics().pending == 0


@pytest.mark.parametrize("size", [0, 64 * KIB])
async def test_a_body_has_a_time_limit_as_a_whole(engine: str, size: int, clock: Clock) -> None:
    """A byte a second is cut after body_timeout; each 16 KiB give a second more."""
    async with serving(engine, reads_body, body_timeout=20.0) as server, await server.connect() as client:
        await client.send(POST + b"x" * size)
        began = trio.current_time()
        got: list[bytes] = []
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                got.append(await client.rest(60))
                nursery.cancel_scope.cancel()

            nursery.start_soon(read)
            with suppress(trio.BrokenResourceError):
                while True:
                    await client.send(b"x")
                    await trio.sleep(1)
        took = trio.current_time() - began

    assert got[0].startswith(b"HTTP/1.1 408" if engine == "native" else b"")
    assert 20 + size / 16384 <= took < 23 + size / 16384


async def test_the_time_of_the_application_does_not_count(engine: str, clock: Clock) -> None:
    """An application that reads slowly does not use up the time of the body."""

    async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await trio.sleep(100)
        await reads_body(scope, receive, send)

    async with serving(engine, slow, body_timeout=20.0) as server, await server.connect() as client:
        assert (await client.post("/", b"x" * 1_000_000)).body == b"1000000"
