"""Oversized requests over both engines: each costs only its own connection."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import trio.testing
from trio.testing import MockClock as Clock

from tests.http.hostile_clients import (
    MIB,
    bounded_memory,
    drain,
    flood,
    open_site,
)

POST = b"POST /hello HTTP/1.1\r\nHost: test\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

# Each oversized part: the bytes to send first, the bytes to repeat, and the possible statuses of the answer.
OVERSIZED: dict[str, tuple[bytes, bytes, set[int]]] = {
    "request line": (b"GET /", b"a" * 65536, {400, 431}),
    "query": (b"GET /?", b"a=b&" * 16384, {400, 431}),
    "one header": (b"GET / HTTP/1.1\r\nHost: test\r\nX: ", b"x" * 65536, {431}),
    "a header's name": (b"GET / HTTP/1.1\r\nHost: test\r\n", b"x" * 65536, {400, 431}),
    "headers": (b"GET / HTTP/1.1\r\nHost: test\r\n", b"X: y\r\n" * 1000, {431}),
    "header count": (b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X: y\r\n" * 120 + b"\r\n", b"", {431}),
    "declared body": (POST + b"Content-Length: 999999999\r\n\r\n", b"x" * 65536, {413}),
    "length of too many digits": (POST + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n", b"", {400, 413}),
    "body in chunks": (CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n", {413}),
    "one chunk": (CHUNKED + b"ffffffff\r\n", b"x" * 65536, {413}),
    "size of a chunk": (CHUNKED, b"0" * 65536, {400, 431}),
    "extension of a chunk": (CHUNKED + b"1;", b"x" * 65536, {400, 431}),
    "trailers": (CHUNKED + b"0\r\n", b"X: y\r\n" * 1000, {400, 431}),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", OVERSIZED)
async def test_oversized_requests_are_refused_in_bounded_memory(engine: str, what: str, clock: Clock) -> None:
    """An endless part of a request is refused by its status before it fills memory."""
    begin, piece, statuses = OVERSIZED[what]
    async with open_site(engine, max_body=100_000) as site:
        with bounded_memory(4 * MIB):
            client = await site.server.connect()
            async with trio.open_nursery() as nursery:
                answers: list[bytes] = []

                async def listen() -> None:
                    answers.append(await drain(client.stream))
                    nursery.cancel_scope.cancel()

                nursery.start_soon(listen)
                with suppress(trio.BrokenResourceError):
                    await client.stream.send_all(begin)
                if piece:
                    await flood(client.stream, piece, 32 * MIB)
            await site.check_serves()
            await trio.aclose_forcefully(client.stream)
        await site.wait_cleaned_up()

        assert int(answers[0][9:12]) in statuses, answers[0][:100]
        assert site.server.engine.statistics().failed == 0
