"""Received bytes in pieces with few frames each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.http.hypercorn.pieces import PREFACE, FramePieces, WebSocketFrames, http2_frame
from tests.hostile.attacks import frame

PING = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"x" * 8
"""A PING frame of HTTP/2."""


def test_http2_frames_are_cut_after_the_preface() -> None:
    """The preface counts as a frame, and no piece begins within a frame."""
    pieces = FramePieces(http2_frame, frames=2, size=1000)

    assert list(pieces.cut(PREFACE + PING * 4)) == [PREFACE + PING, PING * 2, PING]
    assert pieces.seen == 5


@pytest.mark.parametrize("size", [0, 5, 125, 126, 65535, 65536])
def test_each_form_of_a_websocket_length_is_read(size: int) -> None:
    """Frames of all three forms of the length are cut at their end."""
    data = frame(1, b"x" * size)
    pieces = FramePieces(WebSocketFrames(), frames=1, size=1_000_000)

    assert list(pieces.cut(data * 3)) == [data] * 3
    assert pieces.seen == 3


def test_large_frames_are_cut_by_size() -> None:
    """A frame larger than a piece is passed on in several."""
    pieces = FramePieces(WebSocketFrames(), frames=10, size=100)
    data = frame(1, b"x" * 250) * 2

    assert [len(piece) for piece in pieces.cut(data)] == [100] * 5 + [len(data) - 500]


@pytest.mark.parametrize("frame_size", [http2_frame, WebSocketFrames()])
@given(reads=st.lists(st.binary(max_size=200), max_size=20))
def test_pieces_keep_every_byte(frame_size: Callable[[bytes, int], int], reads: list[bytes]) -> None:
    """The pieces together are the bytes, in order."""
    pieces = FramePieces(frame_size, frames=3, size=50)

    for read in reads:
        assert b"".join(pieces.cut(read)) == read


@given(cuts=st.lists(st.integers(0, 400), max_size=8))
def test_frames_are_counted_however_the_reads_are_cut(cuts: list[int]) -> None:
    """Also a header that comes in two reads is one frame."""
    data = (PING + PING[:3] + b"\x01" + PING[4:]) * 12
    pieces = FramePieces(http2_frame, frames=3, size=1000)
    bounds = sorted({0, *cuts, len(data)})
    longest = 0
    for start, end in pairwise(bounds):
        for piece in pieces.cut(data[start:end]):
            longest = max(longest, len(piece))

    assert pieces.seen == 24
    assert longest <= 4 * len(PING)


def test_small_frames_of_a_websocket_are_counted() -> None:
    """Control frames and tiny fragments are small; messages and the last fragment of one are not."""
    frames = WebSocketFrames()
    pieces = FramePieces(frames, frames=100, size=1000)
    small = [frame(9, b""), frame(10, b"x" * 100), frame(1, b"x", fin=False), frame(0, b"", fin=False)]
    others = [frame(1, b""), frame(0, b""), frame(2, b"x" * 16, fin=False)]

    assert len(list(pieces.cut(b"".join([*small, *others])))) == 1
    assert (frames.small, pieces.seen) == (len(small), 7)
