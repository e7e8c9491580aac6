"""Assemble the messages of one WebSocket from the bytes that its client sends.

1. No I/O here: bytes in, messages out.
2. A common frame is a whole, masked text or binary message of less than 64 KiB without extensions, as
   phoenix.js sends. It is cut out here, which costs a fifth of the protocol's parser.
3. Larger frames are unmasked piece by piece as they arrive, and a large message stays in these pieces
   (``tangram.pieces``): 16 MiB at once would hold the event loop.
4. The protocol parses everything else: control frames, small fragments, compressed connections, and all
   errors. It is given whole frames (or a wrong one piece by piece), so that it stands between two frames
   whenever one is cut out here. After the end of the connection has begun it is given all bytes.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tangram.http.flood import TINY
from tangram.pieces import LARGE, PieceBuffer, Pieces

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without a compiled wheel
    from websockets.utils import apply_mask

__all__ = ["COMPRESSED_READ", "CONTROL", "FragmentBuffer", "MessageAssembler"]

CONTROL: Final = 8
"""Opcodes from here on are control frames."""

LARGEST: Final = 65535
"""Bytes of the largest frame that is buffered until it is whole."""

MAX_INFLATED: Final = 1 << 20
"""Bytes of the largest compressed message, once inflated. A frame of 16 KiB can inflate to 16 MiB, and does
so in one step.
"""

STEP_FRAMES: Final = 200
"""Frames that the protocol parses in one step: one read can hold 10,000 empty pings, which take 70 ms."""

COMPRESSED_READ: Final = 4096
"""Bytes of a compressed connection that are handled in one step: with deflate's best ratio they are 4 MiB."""

_COMMON: Final = (0x81, 0x82)
"""The first byte of a common frame: a whole message, text or binary, no extension."""

_DATA: Final = (Opcode.CONT, Opcode.TEXT, Opcode.BINARY)
"""Opcodes of data frames; with reserved bits the first byte of a frame is none of them."""

_UNKNOWN: Final = frozenset(range(3, 8)) | frozenset(range(11, 16))
"""Reserved opcodes."""

_ALL: Final = 1 << 62
"""More bytes than a connection can send: the protocol is given all that follow."""


class FragmentBuffer:
    """The fragments of an unfinished message; the protocol bounds their total.

    An empty fragment adds no byte, so that any number of them may come.
    """

    __slots__ = ("buffer", "opcode")

    def __init__(self) -> None:
        self.opcode = 0
        """The opcode of the message that has begun and not ended; 0 without one."""
        self.buffer = PieceBuffer()
        """Its bytes so far."""

    def add(self, frame: Frame) -> tuple[int, bytes | Pieces] | None:
        """Add a data frame; return the message, ``(opcode, payload)``, if the frame completes it."""
        data = bytes(frame.data)
        if frame.fin and len(data) <= LARGE and not self.opcode and frame.opcode != Opcode.CONT:
            return int(frame.opcode), data
        payload = PieceBuffer()
        payload.append(data)
        return self.add_pieces(int(frame.opcode), payload, fin=frame.fin)

    def add_pieces(
        self, opcode: int, payload: PieceBuffer, *, fin: bool
    ) -> tuple[int, bytes | Pieces] | None:
        """Add a data frame whose payload is in pieces, and take these; the same as ``add``."""
        if opcode != Opcode.CONT:
            if fin and not self.opcode:
                return opcode, payload.take()
            self.opcode = opcode
        self.buffer.extend(payload)
        if not fin:
            return None
        message = self.opcode, self.buffer.take()
        self.opcode = 0
        return message


def _discard_input(protocol: ServerProtocol) -> None:
    """Make a protocol drop the bytes that it holds, and those that follow."""
    protocol.reader.buffer = bytearray()
    protocol.parser = _dropped(protocol)
    next(protocol.parser)


def _dropped(protocol: ServerProtocol) -> Generator[None]:
    # Not the protocol's own `discard`, which expects that our side of the connection is closed already.
    while not (yield from protocol.reader.at_eof()):
        protocol.reader.discard()
    while True:
        yield


class MessageAssembler:
    """The incoming half of one client's WebSocket."""

    __slots__ = (
        "_first",
        "_fragments",
        "_largest",
        "_left",
        "_mask",
        "_max_message",
        "_passing",
        "_payload",
        "_reader",
        "_rest",
        "controls",
        "more",
        "pending",
        "protocol",
    )

    def __init__(self, protocol: ServerProtocol, max_message: int) -> None:
        self.protocol = protocol
        self.max_message = max_message
        self._left = 0
        """Bytes that are still to come of a large frame."""
        self._payload = PieceBuffer()
        """The pieces that have come of it."""
        self._first = 0
        self._mask = b""
        self._fragments = FragmentBuffer()
        self._reader = protocol.reader
        self._rest = b""
        self._passing = _ALL if protocol.extensions else 0
        """Bytes that are still to be given to the protocol."""
        self.controls = 0
        """Control frames so far, and fragments of less than ``TINY`` bytes."""
        self.more = False
        """Whether the bytes of the last ``feed`` are not all used: they hold very many small frames."""
        self.pending = 0
        """Bytes held of an unfinished message."""

    @property
    def max_message(self) -> int:
        """Bytes of the largest message; may be changed between two messages."""
        return self._max_message

    @max_message.setter
    def max_message(self, size: int) -> None:
        self._max_message = size
        # An inflated message is bounded further: see MAX_INFLATED.
        self.protocol.max_message_size = min(size, MAX_INFLATED) if self.protocol.extensions else size
        self._largest = min(size, LARGEST)

    def feed(self, data: bytes) -> list[tuple[int, bytes | Pieces]]:
        """Return the messages, ``(opcode, payload)``, that these bytes complete.

        The payloads of large messages are ``Pieces``.

        If there is ``more`` afterwards, the caller lets other tasks run, and calls this again with ``b""``.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        messages: list[tuple[int, bytes | Pieces]] = []
        self.more = False
        at, size, passed = 0, len(data), 0
        while at < size:
            if self._left:
                at = self._gather(data, at, messages)
                continue
            if not self._passing:
                at = self._cut(data, at, size, messages)
                if at < 0:
                    break
            if self._passing and at < size:
                piece = data[at : at + self._passing] if at or self._passing < size else data
                self._pass(piece, messages)
                at += len(piece)
                passed += 1
                if passed == STEP_FRAMES and not self._passing:
                    self._rest, self.more = data[at:], at < size
                    break
        self.pending = (
            len(self._rest) + len(self._reader.buffer) + self._fragments.buffer.size + self._payload.size
        )
        return messages

    def discard(self) -> None:
        """Drop the bytes of the unfinished message, and all bytes that follow."""
        self._rest = b""
        self._fragments = FragmentBuffer()
        self._left = 0
        self._payload = PieceBuffer()
        self.more = False
        self._passing = _ALL
        self.pending = 0
        _discard_input(self.protocol)

    def _cut(self, data: bytes, at: int, size: int, messages: list[tuple[int, bytes | Pieces]]) -> int:
        """Cut common frames out; return where another frame begins, or -1 at the end of the bytes."""
        fragmented = self._fragments.opcode != 0
        while size - at >= 2:
            first, second = data[at], data[at + 1]
            # An unmasked frame ends the connection: the protocol reports it, and drops all that follows.
            if second < 128:
                self._passing = _ALL
                return at
            # The length of the frame has one of three forms (RFC 6455, section 5.2).
            start, length = at + 6, second & 127
            if length == 126:
                if size - at < 4:
                    return self._keep(data, at)
                start, length = at + 8, data[at + 2] << 8 | data[at + 3]
            elif length == 127:
                if size - at < 10:
                    return self._keep(data, at)
                start, length = at + 14, int.from_bytes(data[at + 2 : at + 10], "big")
            end = start + length
            if fragmented or first not in _COMMON or length > self._largest:
                return self._begin_other(data, at, start, length)
            # A common frame that is not complete yet.
            if end > size:
                break
            messages.append((first & 15, apply_mask(data[start:end], data[start - 4 : start])))
            at = end
        self._rest = data[at:]
        return -1

    def _begin_other(self, data: bytes, at: int, start: int, length: int) -> int:
        """Begin a frame that is not common; return the offset to go on at, or -1.

        ``start`` is the offset of its payload.
        """
        # A large data frame is gathered here; its head may be incomplete.
        if length > self._largest and self._may_gather(data[at], length):
            if len(data) < start:
                self._rest = data[at:]
                return -1
            self._first, self._left, self._mask = data[at], length, data[start - 4 : start]
            return start
        # The protocol gets any other frame as a whole.
        self._passing = start + length - at
        return at

    def _may_gather(self, first: int, length: int) -> bool:
        """Return whether a frame breaks no rule; the protocol reports those that do."""
        unfinished = self.protocol.current_size
        if first & 0x7F not in _DATA or (first & 15 == Opcode.CONT) != (unfinished is not None):
            return False
        return (unfinished or 0) + length <= self._max_message

    def _gather(self, data: bytes, at: int, messages: list[tuple[int, bytes | Pieces]]) -> int:
        """Unmask a piece of a large frame; return where it ends."""
        piece = data[at : at + self._left]
        turn = self._payload.size & 3
        self._payload.append(apply_mask(piece, self._mask[turn:] + self._mask[:turn]))
        self._left -= len(piece)
        if not self._left:
            self._finish_large(messages)
        return at + len(piece)

    def _finish_large(self, messages: list[tuple[int, bytes | Pieces]]) -> None:
        protocol, size, fin = self.protocol, self._payload.size, self._first >= 0x80
        # As the protocol counts fragments.
        protocol.current_size = None if fin else (protocol.current_size or 0) + size
        message = self._fragments.add_pieces(self._first & 15, self._payload, fin=fin)
        if message is not None:
            messages.append(message)

    def _keep(self, data: bytes, at: int) -> int:
        """Keep an incomplete head of a frame, unless its opcode is not valid."""
        if data[at] & 15 in _UNKNOWN:
            # The protocol reports it at once.
            self._passing = _ALL
            return at
        self._rest = data[at:]
        return -1

    def _pass(self, piece: bytes, messages: list[tuple[int, bytes | Pieces]]) -> None:
        """Give bytes to the protocol, and collect the messages that they complete."""
        protocol = self.protocol
        self._passing -= len(piece)
        protocol.receive_data(piece)
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode < CONTROL:
                if len(event.data) < TINY and not event.fin:
                    self.controls += 1
                message = self._fragments.add(event)
                if message is not None:
                    messages.append(message)
            else:
                self.controls += 1
        if protocol.state is not OPEN or protocol.parser_exc is not None:
            self._passing = _ALL
