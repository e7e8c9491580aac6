"""Bytes of large messages in pieces, which are never copied as a whole.

1. No I/O here. A message of 16 MiB arrives in hundreds of reads and leaves in dozens of writes. A copy of all
   of it holds the event loop for 10 ms, and several times as long on a busy machine: most of that is the
   kernel's work on 4,000 fresh pages. So such a message stays the pieces that were read, all the way.
2. Small pieces are gathered: each piece takes 40 bytes more, and any number of them may come.
3. A message of at most ``LARGE`` bytes is one ``bytes`` object, as all parts of the server expect it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from io import BytesIO
from itertools import accumulate
from typing import Final

__all__ = ["LARGE", "PART", "PieceBuffer", "Pieces", "encode_slices", "join_in_steps"]

LARGE: Final = 131_072
"""Bytes above which a message stays in pieces."""

PART: Final = 4096
"""Bytes of a piece that is kept as it is; smaller ones are gathered."""

STEP: Final = 262_144
"""Bytes that are encoded or copied in one step, which takes less than a millisecond."""


class Pieces:
    """The bytes of one large message."""

    __slots__ = ("_ends", "_size", "pieces")

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self.pieces: Sequence[bytes | memoryview] = [piece for piece in pieces if piece]
        """The pieces in order; none is empty."""
        self._ends = list(accumulate(map(len, self.pieces)))
        self._size = self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        """Return all bytes in one copy; see ``join_in_steps`` for one that lets other tasks run."""
        pieces = self.pieces
        if len(pieces) == 1 and isinstance(pieces[0], bytes):
            return pieces[0]
        return b"".join(pieces)

    def __getitem__(self, part: slice) -> bytes:
        """Return a copy of a part, without a step; negative places count from the end, as ever."""
        start, stop, _ = part.indices(self._size)
        return b"".join(self._parts(start, stop))

    def cut(self, start: int, stop: int) -> Pieces:
        """Return the part from ``start`` to ``stop``; nothing is copied."""
        return Pieces(self._parts(start, stop))

    def _parts(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        at = bisect_right(self._ends, start)
        while start < stop:
            piece, end = self.pieces[at], self._ends[at]
            begin = end - len(piece)
            if start > begin or stop < end:
                piece = memoryview(piece)[start - begin : stop - begin]
            yield piece
            start, at = end, at + 1


class PieceBuffer:
    """Pieces that arrive one after the other."""

    __slots__ = ("_pieces", "_tail", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._tail = bytearray()
        self.size = 0
        """Bytes so far."""

    def append(self, piece: bytes) -> None:
        """Add a piece; small ones are gathered."""
        self.size += len(piece)
        if len(piece) < PART:
            self._tail += piece
        if len(piece) >= PART or len(self._tail) >= PART:
            self._flush()
        if len(piece) >= PART:
            self._pieces.append(piece)

    def extend(self, other: PieceBuffer) -> None:
        """Take the pieces of another buffer, and leave it empty."""
        for piece in other._take():
            self.append(piece)

    def take(self) -> bytes | Pieces:
        """Return the message, and leave this buffer empty."""
        large = self.size > LARGE
        pieces = self._take()
        if large:
            return Pieces(pieces)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take(self) -> list[bytes]:
        self._flush()
        pieces, self._pieces, self.size = self._pieces, [], 0
        return pieces

    def _flush(self) -> None:
        if self._tail:
            self._pieces.append(bytes(self._tail))
            self._tail = bytearray()


def encode_slices(text: str, size: int = STEP) -> Iterator[bytes]:
    """Yield a text as UTF-8 in pieces, so that other tasks can run between them.

    Surrogates, which have no UTF-8, become question marks.
    """
    for start in range(0, len(text), size):
        yield text[start : start + size].encode(errors="replace")


async def join_in_steps(
    message: bytes | Pieces, pause: Callable[[], Awaitable[object]], size: int = STEP
) -> bytes:
    """Return a message as one object, after a copy in steps if it is in several pieces.

    Args:
        message: the bytes.
        pause: awaited after each step; it lets other tasks run.
        size: bytes of a step.
    """
    if isinstance(message, bytes) or len(message.pieces) == 1:
        return bytes(message)
    joined = BytesIO()
    for start in range(0, len(message), size):
        joined.write(message[start : start + size])
        await pause()
    return joined.getvalue()  # BytesIO hands its own object over, without a copy
