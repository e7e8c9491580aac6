"""Whole answers and small bodies: the way of most native requests through the engine."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock as Clock

from tangram.http.native.response import BadResponse, build_whole_head
from tangram.http.native.stream import JOIN_BYTES, ClientStream
from tests.http.harness import serving

FIELDS = ((b"content-type", b"application/json"), (b"vary", b"Origin"))


async def whole(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer as the routes do, with the request's body in the answer."""
    body = (await receive())["body"]
    await send.answer(200, FIELDS, b"[%b]" % body)


@pytest.mark.parametrize(
    ("request_", "lines"),
    [
        (b"GET / HTTP/1.1\r\nHost: test\r\n\r\n", {b"content-length: 2"}),
        (b"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n", {b"content-length: 2"}),
        (b"GET / HTTP/1.0\r\n\r\n", {b"content-length: 2", b"connection: close"}),
        (
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            {b"content-length: 2", b"connection: keep-alive"},
        ),
        (
            b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
            {b"content-length: 2", b"connection: close"},
        ),
    ],
)
async def test_a_whole_answer_is_framed_as_any_other(
    request_: bytes, lines: set[bytes], clock: Clock
) -> None:
    """Length, connection and body are those of the request's version and method."""
    async with serving("native", whole) as server, await server.connect() as client:
        await client.send(request_)
        head, _, body = bytes(await client.stream.receive_some(65536)).partition(b"\r\n\r\n")

    first, *rest = head.split(b"\r\n")
    assert first == b"HTTP/1.1 200 OK"
    assert {line for line in rest if line.startswith((b"content-length", b"connection"))} == lines
    assert {b"%b: %b" % field for field in FIELDS} < {*rest}
    assert any(line.startswith(b"date: ") for line in rest)
    assert body == (b"" if request_.startswith(b"HEAD") else b"[]")


@pytest.mark.parametrize(
    "fields",
    [
        ((b"x", b"a\r\nset-cookie: evil"),),
        ((b"x", b"a\x00b"),),
        ((b"content-length", b"1"),),
        ((b"date", b"now"),),
    ],
    ids=str,
)
def test_fields_that_frame_or_split_an_answer_are_refused(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    """Again at the next time: the lines of such fields are not kept."""
    for _ in range(2):
        with pytest.raises(BadResponse):
            build_whole_head(200, fields, 1, version="1.1", keep_alive=True)


async def test_an_answer_after_another_one_is_an_error(clock: Clock) -> None:
    """The client gets the first answer, and the application's fault is counted."""

    async def twice(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send.answer(200, FIELDS, b"1")
        await send.answer(200, FIELDS, b"2")

    async with serving("native", twice) as server, await server.connect() as client:
        answer = await client.get("/")

        assert answer.body == b"1"
        assert server.engine.statistics().failed == 1


async def test_a_small_body_with_its_head_is_taken_at_once(clock: Clock) -> None:
    """The next request, pipelined behind it, is read from its own first byte on."""
    post = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc"
    async with serving("native", whole) as server, await server.connect() as client:
        await client.send(post + post.replace(b"abc", b"xyz"))

        assert (await client.answer_to("POST")).body == b"[abc]"
        assert (await client.answer_to("POST")).body == b"[xyz]"
        assert server.engine.statistics().pending == 0


class Reluctant:
    """A socket that refuses some calls of ``send``, and takes only a part of each other one."""

    def __init__(self, sock: socket.socket, refused: set[int]) -> None:
        self._sock = sock
        self._refused = refused
        self._calls = 0
        self.fileno, self.close = sock.fileno, sock.close

    def send(self, data: bytes, flags: int = 0) -> int:
        """Send at most half of the data, or raise an error as a full socket does."""
        self._calls += 1
        if self._calls in self._refused:
            raise BlockingIOError
        return self._sock.send(data[: len(data) // 2 + 1], flags)


@pytest.mark.parametrize("refused", [set(), {1}, {2}, {1, 2}, {2, 3}])
@pytest.mark.parametrize("head", [b"h", b"head"])
async def test_a_large_answer_is_whole_behind_its_head(head: bytes, refused: set[int]) -> None:
    """Each byte is sent once, also where the socket does not even take the head at once."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    body = bytes(range(256)) * (8 * JOIN_BYTES // 256)
    received = bytearray()

    async def read(stream: trio.SocketStream) -> None:
        async with stream:
            async for data in stream:
                received.extend(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
        stream = ClientStream(cast("socket.socket", Reluctant(ours, refused)), ("unix", 0), 5.0)
        await stream.write_joined(head, body)
        stream.abort()

    assert bytes(received) == head + body
