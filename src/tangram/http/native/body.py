"""Find the end of a request body: by its length, or chunk by chunk.

1. No I/O here: ``feed`` takes received bytes, and returns the part of the body in them and the rest.
2. As strict as the reader of the head: an extension of a chunk must be printable, a size has at most 16
   digits, each line ends with CR LF, and trailers must be header fields (they are checked, and dropped).
"""

from __future__ import annotations

import re
from typing import Final

from tangram.http.native.head import RejectedRequest

__all__ = ["ChunkedBody", "LengthBody"]

STEP_CHUNKS: Final = 500
"""Chunks that are read in one step, which takes less than a millisecond."""

MAX_CHUNK_LINE: Final = 1024
"""Bytes of a chunk's size line. We use no extensions of chunks, and long ones are an old way to keep a
server busy.
"""

MAX_TRAILERS: Final = 8192
"""Bytes of all trailers; they are dropped."""

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e]*)?")
_TRAILERS: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+")
_FRAMING: Final = re.compile(rb"\n(?:content-length|transfer-encoding|host):", re.IGNORECASE)
"""Fields that must not be in trailers (RFC 9110, section 6.5.1): other servers may act on them."""


class LengthBody:
    """A body whose length was declared."""

    __slots__ = ("left",)

    more = False
    """Whether bytes of the last ``feed`` are left for another step; never."""

    def __init__(self, length: int) -> None:
        self.left = length

    @property
    def done(self) -> bool:
        """Whether the whole body was read."""
        return self.left == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return (body, rest) of the bytes."""
        size = len(data)
        if size <= self.left:
            self.left -= size
            return data, b""
        body, rest = data[: self.left], data[self.left :]
        self.left = 0
        return body, rest


class ChunkedBody:
    """A body in chunks."""

    __slots__ = ("_in_chunk", "_need_end", "_trailers", "done", "more")

    def __init__(self) -> None:
        self.done = False
        self.more = False
        """Whether the bytes of the last ``feed`` hold more chunks than one step reads."""
        self._in_chunk = 0
        self._need_end = False
        self._trailers = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return (body, rest) of the bytes.

        While the body is not ``done``, the rest must be given again with the bytes that follow. If there is
        ``more``, that is possible without further bytes, once other tasks have run.

        Raises:
            RejectedRequest: the bytes are not a chunk.
        """
        parts: list[bytes] = []
        start = 0
        self.more = False
        while not self.done:
            if len(parts) == STEP_CHUNKS:
                self.more = True
                break
            if self._in_chunk:
                part = data[start : start + self._in_chunk]
                if not part:
                    break
                parts.append(part)
                start += len(part)
                self._in_chunk -= len(part)
                self._need_end = not self._in_chunk
                continue
            after = self._line(data, start)
            if after < 0:
                break
            start = after
        return b"".join(parts), data[start:]

    def _line(self, data: bytes, start: int) -> int:
        """Read the bytes between two chunks; return their end, or -1 if they are incomplete."""
        # The line break that ends a chunk.
        if self._need_end:
            if len(data) - start < 2:
                if data[start:] not in {b"", b"\r"}:
                    raise RejectedRequest(400, "malformed end of a chunk")
                return -1
            if data[start : start + 2] != b"\r\n":
                raise RejectedRequest(400, "malformed end of a chunk")
            self._need_end = False
            return start + 2
        # The trailers behind the last chunk.
        if self._trailers:
            return self._read_trailers(data, start)
        # The size of the next chunk.
        end = data.find(b"\r\n", start, start + MAX_CHUNK_LINE)
        if end < 0:
            if len(data) - start >= MAX_CHUNK_LINE or b"\n" in data[start:]:
                raise RejectedRequest(400, "malformed size of a chunk")
            return -1
        match = _SIZE.fullmatch(data, start, end)
        if match is None:
            raise RejectedRequest(400, "malformed size of a chunk")
        self._in_chunk = int(match[1], 16)
        self._trailers = self._in_chunk == 0
        return end + 2

    def _read_trailers(self, data: bytes, start: int) -> int:
        if data.startswith(b"\r\n", start):
            self.done = True
            return start + 2
        end = data.find(b"\r\n\r\n", start, start + MAX_TRAILERS)
        if end < 0:
            if len(data) - start >= MAX_TRAILERS:
                raise RejectedRequest(431, "trailers too large")
            return -1
        if not _TRAILERS.fullmatch(data, start, end + 2) or _FRAMING.search(b"\n" + data[start:end]):
            raise RejectedRequest(400, "malformed trailer")
        self.done = True
        return end + 4
