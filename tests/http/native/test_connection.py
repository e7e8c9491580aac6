"""Connections of the native engine, beyond the tests that both engines share."""

from __future__ import annotations

import gc
import socket
import tracemalloc
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock as Clock

from tangram.http.listeners import close_listeners, open_listeners
from tests.http.harness import hello, serving


async def raw(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def test_response_is_one_write(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response whose body is at hand leaves in one segment, head and body together."""
    async with serving("native", raw) as server, await server.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        first = bytes(await client.stream.receive_some(65536))

    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 5\r\n" in first
    assert first.endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x", b"a\r\nset-cookie: evil")],
        [(b"x\r\n", b"a")],
        [(b"x", b"a\nb")],
        [(b"x", b"a\x00b")],
        [(b"content-length", b"4\r\nx: y")],
        [(b"content-length", b"1"), (b"content-length", b"2")],
    ],
)
async def test_header_that_splits_the_response(headers: list[tuple[bytes, bytes]], clock: Clock) -> None:
    """A line break or a null byte in a response header is a 500, and is not sent."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"body"})

    async with serving("native", app) as server, await server.connect() as client:
        answer = await client.get("/")

        assert answer.status == 500
        assert server.engine.statistics().failed == 1


@pytest.mark.parametrize(
    ("length", "parts"), [(5, [b"abc"]), (2, [b"abc"]), (5, [b"abc", b""]), (2, [b"a", b"bc"])]
)
async def test_body_that_differs_from_its_content_length(
    length: int, parts: list[bytes], clock: Clock
) -> None:
    """A body of another length than its content-length ends the connection.

    The client would read the next answer wrongly.
    """

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        head = [(b"content-length", b"%d" % length)]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for number, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    async with serving("native", app) as server, await server.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" * 2)
        answer = await client.rest()

        assert answer.count(b"HTTP/1.1") == 1
        assert server.engine.statistics().requests == 1


async def test_unread_body_is_skipped_if_it_is_small(clock: Clock) -> None:
    """A small body that the application did not read keeps the connection.

    It is not read as a request.
    """
    async with serving("native", raw) as server, await server.connect() as client:
        first = await client.post("/", b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        second = await client.get("/")

        assert (first.status, first.keep, second.status) == (200, True, 200)
        assert server.engine.statistics().requests == 2


async def test_unread_body_that_is_malformed_gets_no_second_answer(clock: Clock) -> None:
    """The connection ends: a second answer would be taken for that of the next request."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    async with serving("native", app) as server, await server.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n")
        told = await client.rest()

    assert told.count(b"HTTP/1.1 ") == 1
    assert told.endswith(b"done")


async def test_unread_body_ends_the_connection_if_it_is_large(clock: Clock) -> None:
    """A large unread body ends the connection, after its answer has reached the client."""
    async with serving("native", raw) as server, await server.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n")
        await client.send(b"x" * 500_000)
        answer = await client.rest()

    assert answer.endswith(b"hello")


async def test_no_100_continue_if_the_application_does_not_read(clock: Clock) -> None:
    """The client gets the final answer in place of 100 Continue, and the connection ends."""
    async with serving("native", raw) as server, await server.connect() as client:
        await client.send(
            b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = await client.rest()

    assert answer.startswith(b"HTTP/1.1 200")


async def test_bare_line_feeds_are_refused_at_once(clock: Clock) -> None:
    """A request whose lines end with LF alone is answered 400 without waiting for more."""
    async with serving("native", hello) as server, await server.connect() as client:
        began = trio.current_time()
        await client.send(b"GET / HTTP/1.1\nHost: test\n\n")
        answer = await client.rest()

    assert answer.startswith(b"HTTP/1.1 400")
    assert trio.current_time() - began < 3


async def test_tls_to_a_plain_port_is_refused_at_once(clock: Clock) -> None:
    """The first bytes of TLS are answered 400."""
    async with serving("native", hello) as server, await server.connect() as client:
        await client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        answer = await client.rest()

    assert answer.startswith(b"HTTP/1.1 400")


async def test_slow_head_is_answered_408(clock: Clock) -> None:
    """A head that does not end within header_timeout is answered 408."""
    async with serving("native", hello, header_timeout=5.0) as server, await server.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\n")
        answer = await client.rest()

    assert answer.startswith(b"HTTP/1.1 408")


async def test_body_that_stops_half_way(clock: Clock) -> None:
    """A body that pauses for idle_timeout ends its connection.

    The application gets a disconnect.
    """
    heard: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            heard.append(message["type"])
            if message["type"] == "http.disconnect":
                return

    async with serving("native", app, idle_timeout=5.0) as server, await server.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf")
        await client.rest()

    assert heard == ["http.request", "http.disconnect"]


async def test_malformed_chunk_is_400_and_a_disconnect(clock: Clock) -> None:
    """A malformed chunk is answered 400, and the application gets a disconnect."""
    async with serving("native", hello) as server, await server.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        answer = await client.rest()

        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1
        assert server.engine.statistics().failed == 0


async def test_send_after_the_client_left_raises_oserror(clock: Clock) -> None:
    """An application that streams to a client that has gone gets an OSError.

    That is no failure of the application.
    """
    ended = trio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        finally:
            ended.set()

    async with serving("native", app) as server:
        client = await server.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await client.stream.receive_some(100)
        client.reset()
        await trio.aclose_forcefully(client.stream)
        with trio.fail_after(5):
            await ended.wait()

        assert server.engine.statistics().failed == 0


async def test_two_tasks_of_an_application_may_send(clock: Clock) -> None:
    """Pieces that two tasks send at once to a slow client arrive whole."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def stream(letter: bytes) -> None:
            for _ in range(40):
                await send({"type": "http.response.body", "body": letter * 100_000, "more_body": True})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream, b"a")
            nursery.start_soon(stream, b"b")
        await send({"type": "http.response.body"})

    async with serving("native", app) as server, await server.connect() as client:
        answer = await client.get("/")

    assert len(answer.body) == 8_000_000
    pieces = {answer.body[start : start + 100_000] for start in range(0, 8_000_000, 100_000)}
    assert pieces == {b"a" * 100_000, b"b" * 100_000}


async def test_pipelined_requests_give_way_to_others(clock: Clock) -> None:
    """A client that pipelines thousands of requests does not delay other clients."""
    async with serving("native", raw) as server:
        greedy, other = await server.connect(), await server.connect()
        await greedy.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" * 1500)
        await other.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await other.stream.receive_some(65536)

        assert server.engine.statistics().requests < 1000
        await trio.aclose_forcefully(greedy.stream)
        await trio.aclose_forcefully(other.stream)


async def test_draining_answers_the_request_that_is_on_its_way(clock: Clock) -> None:
    """A request that arrives at the moment of the stop is answered with Connection: close."""
    async with serving("native", raw) as server, await server.connect() as client:
        await client.get("/")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.stop)
            await trio.sleep(0.03)
            answer = await client.get("/")

    assert (answer.status, answer.headers["connection"]) == (200, "close")


@pytest.mark.slow
async def test_idle_connection_is_small() -> None:
    """A connection between two requests holds at most 16 KiB of Python memory."""
    count = 200
    held = open_listeners("127.0.0.1", 0)
    clients = [socket.create_connection(("127.0.0.1", held[0].port)) for _ in range(count)]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    async with serving("native", raw, held=held) as server:
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        with trio.fail_after(10):
            while server.engine.statistics().requests < count:  # noqa: ASYNC110 - statistics have no event
                await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.05)
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / count
        tracemalloc.stop()

        assert server.engine.statistics().connections == count
        for client in clients:
            client.close()
    close_listeners(held)

    assert each < 16 * 1024
