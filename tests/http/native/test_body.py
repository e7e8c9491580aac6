"""The end of a request body is found at the right byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.http.native.body import ChunkedBody, LengthBody
from tangram.http.native.head import RejectedRequest

WIRE = b"5;a=b\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nX: y\r\nZ: \r\n\r\n"


@given(st.lists(st.integers(1, 7), min_size=1))
def test_chunks_in_any_pieces(sizes: list[int]) -> None:
    """The same body results from any cut of the bytes, and the bytes behind it are left."""
    body, buffer, at, turn = b"", b"", 0, 0
    reader = ChunkedBody()
    wire = WIRE + b"NEXT"
    while not reader.done:
        size = sizes[turn % len(sizes)]
        turn += 1
        buffer += wire[at : at + size]
        at += size
        part, buffer = reader.feed(buffer)
        body += part

    assert body == b"hello world"
    assert buffer + wire[at:] == b"NEXT"


@given(st.binary(max_size=30), st.integers(0, 30))
def test_length_takes_exactly_its_bytes(data: bytes, length: int) -> None:
    """A body of a known length takes its bytes and leaves the rest."""
    reader = LengthBody(length)
    body, rest = reader.feed(data)

    assert body == data[:length]
    assert rest == data[length:]
    assert reader.done is (len(data) >= length)


@pytest.mark.parametrize(
    "wire",
    [
        b";" * 2000,
        b"1;" + b"x" * 2000,
        b"0\r\n" + b"X: y\r\n" * 5000,
        b"1\r\nab",
        b"g\r\n",
        b"\r\n",
        b"1\r\na\rX",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\nX: y\r\ntransfer-encoding: chunked\r\n\r\n",
        b"0\r\nhOST: a\r\n\r\n",
    ],
)
def test_malformed_chunks_are_refused(wire: bytes) -> None:
    """Endless sizes, extensions and trailers, and wrong ends, are refused."""
    with pytest.raises(RejectedRequest):
        ChunkedBody().feed(wire)


def test_tiny_chunks_are_read_in_steps() -> None:
    """A read full of chunks of one byte is read in several steps, and none is lost."""
    body, rest, parts, steps = ChunkedBody(), b"1\r\nx\r\n" * 2000 + b"0\r\n\r\n", b"", 0
    while not body.done:
        data, rest = body.feed(rest)
        parts += data
        steps += 1
        assert body.more != body.done

    assert (parts, rest, steps) == (b"x" * 2000, b"", 5)
