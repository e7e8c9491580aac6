"""Cut received bytes into pieces with few frames, which hold the event loop briefly.

1. No I/O here: bytes in, the same bytes in pieces out.
2. Hypercorn handles all frames of one read in one step. A frame takes it 20 to 300 µs whatever its size, and
   a read of 64 KiB may hold 10,000 of them.
3. Only lengths are read here. Wrong frames are the protocol's to report: of any bytes no byte is
   lost, and a piece never has more than ``frames`` headers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from tangram.http.flood import TINY

__all__ = ["FramePieces", "WebSocketFrames", "http2_frame"]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The bytes before the first frame of an HTTP/2 client (RFC 9113, section 3.4)."""


def http2_frame(data: bytes, at: int) -> int:
    """Return the size of the HTTP/2 frame at ``at``, or 0 if its header is incomplete."""
    if data.startswith(b"PRI", at):
        return len(PREFACE)
    if len(data) - at < 9:
        return 0
    return 9 + int.from_bytes(data[at : at + 3], "big")


class WebSocketFrames:
    """Reads the sizes of a WebSocket's frames, and counts the small ones."""

    def __init__(self) -> None:
        self.small = 0
        """Control frames so far, and fragments of less than ``TINY`` bytes."""

    def __call__(self, data: bytes, at: int) -> int:
        """Return the size of the frame at ``at``, or 0 if its header is incomplete."""
        have = len(data) - at
        if have < 2:
            return 0
        first, length, mask = data[at], data[at + 1] & 127, 4 if data[at + 1] & 128 else 0
        extended = {126: 2, 127: 8}.get(length, 0)
        if have < 2 + extended:
            return 0
        if extended:
            length = int.from_bytes(data[at + 2 : at + 2 + extended], "big")
        if first & 8 or (first < 128 and length < TINY):
            self.small += 1
        return 2 + extended + mask + length


class FramePieces:
    """Cuts the bytes of one connection.

    Args:
        frame_size: returns the size of the frame at an offset, or 0 if its header is incomplete.
        frames: frames that may begin in one piece.
        size: bytes of the largest piece.
    """

    def __init__(self, frame_size: Callable[[bytes, int], int], frames: int, size: int) -> None:
        self._frame_size = frame_size
        self._frames = frames
        self._size = size
        self._left = 0
        """Bytes that are still to come of the frame in hand."""
        self._head = b""
        """The incomplete header at the end of the last bytes; it was passed on already."""
        self.seen = 0
        """Frames whose header has arrived so far."""

    def cut(self, data: bytes) -> Iterator[bytes]:
        """Yield the bytes in pieces."""
        start = 0
        for end in self._ends(data):
            for at in range(start, end, self._size):
                yield data[at : min(at + self._size, end)]
            start = end

    def _ends(self, data: bytes) -> Iterator[int]:
        """Yield the offsets behind every ``frames`` frames, and the end of the bytes."""
        before = len(self._head)
        text, self._head = self._head + data, b""
        at, begun = before + self._left if not before else 0, 0
        while at < len(text):
            size = self._frame_size(text, at)
            if not size:
                self._head = text[at:]
                break
            self.seen += 1
            begun += 1
            at += size
            if begun == self._frames and at < len(text):
                begun = 0
                yield at - before
        self._left = max(0, at - len(text))
        yield len(data)
