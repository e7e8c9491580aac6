"""Where a request body ends: by its length, or chunk by chunk.

1. No I/O here: ``feed`` takes what has come, answers the part of the body in it, and leaves the rest.
2. As strict as the head's reader: an extension of a chunk is refused if it is not printable, a size may have
   16 digits, each line ends with CR LF, and trailers are header fields (read, checked, and dropped).
"""

from __future__ import annotations

import re

from tangram.http.native.head import BadHead

__all__ = ["ChunkedBody", "LengthBody"]

MAX_CHUNK_LINE = 1024
"""Bytes of a chunk's size line: extensions carry nothing that we read, and are an old way to keep a server
busy.
"""

MAX_TRAILERS = 8192
"""Bytes of all trailers: they are dropped, so that there is no reason to take more."""

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e]*)?")
_TRAILERS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+")


class LengthBody:
    """A body of a known length."""

    __slots__ = ("left",)

    def __init__(self, length: int) -> None:
        self.left = length

    @property
    def done(self) -> bool:
        """Whether the whole body was read."""
        return self.left == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Answers (body, rest)."""
        size = len(data)
        if size <= self.left:
            self.left -= size
            return data, b""
        body, rest = data[: self.left], data[self.left :]
        self.left = 0
        return body, rest


class ChunkedBody:
    """A body in chunks. ``rest`` that ``feed`` answers while not ``done`` is to be given again, with what
    follows.
    """

    __slots__ = ("_in_chunk", "_need_end", "_trailers", "done")

    def __init__(self) -> None:
        self.done = False
        self._in_chunk = 0
        self._need_end = False
        self._trailers = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Answers (body, rest). Raises BadHead for what is no chunk."""
        parts: list[bytes] = []
        start = 0
        while not self.done:
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
        """Read what stands between two chunks; answers where it ended, or -1 for "not here yet"."""
        if self._need_end:
            if len(data) - start < 2:
                if data[start:] not in {b"", b"\r"}:
                    raise BadHead(400, "malformed end of a chunk")
                return -1
            if data[start : start + 2] != b"\r\n":
                raise BadHead(400, "malformed end of a chunk")
            self._need_end = False
            return start + 2
        if self._trailers:
            return self._read_trailers(data, start)
        end = data.find(b"\r\n", start, start + MAX_CHUNK_LINE)
        if end < 0:
            if len(data) - start >= MAX_CHUNK_LINE or b"\n" in data[start:]:
                raise BadHead(400, "malformed size of a chunk")
            return -1
        match = _SIZE.fullmatch(data, start, end)
        if match is None:
            raise BadHead(400, "malformed size of a chunk")
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
                raise BadHead(431, "trailers too large")
            return -1
        if not _TRAILERS.fullmatch(data, start, end + 2):
            raise BadHead(400, "malformed trailer")
        self.done = True
        return end + 4
