"""HTTP behaviour that both engines share."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing
from trio.testing import MockClock as Clock

from tests.transports.harness import hello, serving


async def test_answers_a_request(engine: str, clock: Clock) -> None:
    """A GET reaches the application with method, path, query and headers, and its answer comes back."""
    async with serving(engine, hello) as server, await server.connect() as client:
        answer = await client.get("/a%20b/c?x=1&y=%20", ("x-thing", "Value"))

    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert "date" in answer.headers
    assert "server" not in answer.headers
    told = answer.json()
    assert (told["method"], told["path"], told["raw_path"]) == ("GET", "/a b/c", "/a%20b/c")
    assert told["query"] == "x=1&y=%20"
    assert told["scheme"] == "http"
    assert ["x-thing", "Value"] in told["headers"]
    assert told["client"][0] == "127.0.0.1"


async def test_keeps_the_connection(engine: str, clock: Clock) -> None:
    """Three requests, one with a body, go over one connection."""
    async with serving(engine, hello) as server, await server.connect() as client:
        first = await client.get("/1")
        second = await client.post("/2", b"some body")
        third = await client.get("/3")

        assert server.engine.statistics().accepted == 1
    assert [first.json()["path"], second.json()["path"], third.json()["path"]] == ["/1", "/2", "/3"]
    assert second.json()["body"] == "some body"


async def test_upgrade_with_an_extra_byte_costs_one_connection(engine: str, clock: Clock) -> None:
    """A WebSocket upgrade with one byte after the headers does not disturb anybody else."""
    async with serving(engine, websocket_refusing) as server:
        async with await server.connect() as client:
            await client.send(
                b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nx"
            )
            await client.rest()
        async with await server.connect() as client:
            assert (await client.get("/")).status == 200


async def websocket_refusing(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
    else:
        await hello(scope, receive, send)


async def endless(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})


async def test_client_that_never_reads_is_closed(engine: str, clock: Clock) -> None:
    """A client that does not read for the write timeout loses its connection."""
    async with serving(engine, endless, write_timeout=10.0) as server, await server.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await trio.sleep(11)
        await server.wait_closed()

        assert server.engine.statistics().stalled == 1


async def test_stop_ends_within_grace_though_a_client_does_not_read(engine: str, clock: Clock) -> None:
    """A stop takes the grace and no longer, whatever a client does not read."""
    async with serving(engine, endless, grace=2.0, write_timeout=1000.0) as server:
        client = await server.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked(0.05)
        took = await server.stop()

        assert 1.9 < took < 2.5
        assert server.engine.statistics().forced == 1
        assert server.engine.statistics().connections == 0
        await trio.aclose_forcefully(client.stream)


async def test_stop_lets_a_request_finish(engine: str, clock: Clock) -> None:
    """A request that was accepted before the stop gets its answer, and the connection ends after it."""

    async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await trio.sleep(1)
        await hello(scope, receive, send)

    async with serving(engine, slow) as server, await server.connect() as client:
        answers = []

        async def ask() -> None:
            answers.append(await client.get("/slow"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.01)
            took = await server.stop()

        assert answers[0].status == 200
        assert not answers[0].keep
        assert took < 1.5


async def test_stop_closes_idle_connections_at_once(engine: str, clock: Clock) -> None:
    """A connection between two requests does not keep a stop."""
    async with serving(engine, hello) as server, await server.connect() as client:
        await client.get("/")
        took = await server.stop()

        assert took < 0.5
        assert await client.rest() == b""


async def test_application_error_is_500(engine: str, clock: Clock) -> None:
    """An application that raises answers 500, and the server goes on."""

    async def broken(scope: dict[str, Any], receive: Any, send: Any) -> None:
        raise RuntimeError("boom")

    async with serving(engine, broken) as server:
        async with await server.connect() as client:
            assert (await client.get("/")).status == 500
        async with await server.connect() as client:
            assert (await client.get("/")).status == 500

        assert server.engine.statistics().failed == 2
