"""Assemble the messages of one WebSocket from the bytes that its client sends.

1. No I/O here: bytes in, messages out.
2. A common frame is a whole, masked text or binary message of less than 64 KiB without extensions, as
   phoenix.js sends. It is cut out here, which costs a fifth of the protocol's parser.
3. The protocol parses everything else: control frames, fragments, large frames, compressed connections, and
   all errors. It is given whole frames (or a large one piece by piece), so that it stands between two frames
   whenever one is cut out here. After the end of the connection has begun it is given all bytes.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tangram.channels.frames import BINARY, TEXT

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without a compiled wheel
    from websockets.utils import apply_mask

__all__ = ["CONTROL", "FragmentBuffer", "MessageAssembler", "discard_input"]

CONTROL: Final = 8
"""Opcodes from here on are control frames."""

LARGEST: Final = 65535
"""Bytes of the largest frame that is buffered until it is whole. The protocol gathers larger ones without
copying them anew at each read.
"""

_COMMON: Final = (0x81, 0x82)
"""The first byte of a common frame: a whole message, text or binary, no extension."""

_UNKNOWN: Final = frozenset(range(3, 8)) | frozenset(range(11, 16))
"""Reserved opcodes."""

_ALL: Final = 1 << 62
"""More bytes than a connection can send: the protocol is given all that follow."""


class FragmentBuffer:
    """The fragments of an unfinished message; the protocol bounds their total."""

    __slots__ = ("_data", "_opcode")

    def __init__(self) -> None:
        self._opcode = 0
        # Not a list of parts: an empty fragment adds no byte, and so any number of them may come.
        self._data = bytearray()

    @property
    def open(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._opcode != 0

    @property
    def size(self) -> int:
        """Bytes of the fragments."""
        return len(self._data)

    def add(self, frame: Frame) -> tuple[int, bytes] | None:
        """Add a data frame; return the message, ``(opcode, payload)``, if the frame completes it."""
        if frame.fin and not self._opcode and frame.opcode is not Opcode.CONT:
            return TEXT if frame.opcode is Opcode.TEXT else BINARY, bytes(frame.data)
        if frame.opcode is not Opcode.CONT:
            self._opcode = int(frame.opcode)
        self._data += frame.data
        if not frame.fin:
            return None
        message = self._opcode, bytes(self._data)
        self._opcode = 0
        self._data = bytearray()
        return message


def discard_input(protocol: ServerProtocol) -> None:
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

    __slots__ = ("_fragments", "_largest", "_passing", "_reader", "_rest", "controls", "pending", "protocol")

    def __init__(self, protocol: ServerProtocol, max_message: int) -> None:
        self.protocol = protocol
        self._largest = min(max_message, LARGEST)
        self._fragments = FragmentBuffer()
        self._reader = protocol.reader
        self._rest = b""
        self._passing = _ALL if protocol.extensions else 0
        """Bytes that are still to be given to the protocol."""
        self.controls = 0
        """Control frames so far."""
        self.pending = 0
        """Bytes held of an unfinished message."""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the messages, ``(opcode, payload)``, that these bytes complete."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        messages: list[tuple[int, bytes]] = []
        at, size = 0, len(data)
        while at < size:
            if not self._passing:
                at = self._cut(data, at, size, messages)
                if at < 0:
                    break
            if self._passing and at < size:
                piece = data[at : at + self._passing] if at or self._passing < size else data
                self._pass(piece, messages)
                at += len(piece)
        self.pending = len(self._rest) + len(self._reader.buffer) + self._fragments.size
        return messages

    def discard(self) -> None:
        """Drop the bytes of the unfinished message, and all bytes that follow."""
        self._rest = b""
        self._fragments = FragmentBuffer()
        self._passing = _ALL
        self.pending = 0
        discard_input(self.protocol)

    def _cut(self, data: bytes, at: int, size: int, messages: list[tuple[int, bytes]]) -> int:
        """Cut common frames out; return where another frame begins, or -1 at the end of the bytes."""
        fragmented = self._fragments.open
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
            # Not a common frame: the protocol gets it as a whole.
            end = start + length
            if fragmented or first not in _COMMON or length > self._largest:
                self._passing = end - at
                return at
            # A common frame that is not complete yet.
            if end > size:
                break
            messages.append((first & 15, apply_mask(data[start:end], data[start - 4 : start])))
            at = end
        self._rest = data[at:]
        return -1

    def _keep(self, data: bytes, at: int) -> int:
        """Keep the beginning of a frame whose length is not complete, unless its opcode is not valid."""
        if data[at] & 15 in _UNKNOWN:
            # The protocol reports it at once.
            self._passing = _ALL
            return at
        self._rest = data[at:]
        return -1

    def _pass(self, piece: bytes, messages: list[tuple[int, bytes]]) -> None:
        """Give bytes to the protocol, and collect the messages that they complete."""
        protocol = self.protocol
        self._passing -= len(piece)
        protocol.receive_data(piece)
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode < CONTROL:
                message = self._fragments.add(event)
                if message is not None:
                    messages.append(message)
            else:
                self.controls += 1
        if protocol.state is not OPEN or protocol.parser_exc is not None:
            self._passing = _ALL
