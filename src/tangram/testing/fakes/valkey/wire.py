"""Parse requests and encode replies: RESP2 and RESP3, on the server's side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

__all__ = [
    "NIL_ARRAY",
    "OK",
    "Members",
    "Pairs",
    "ProtocolFault",
    "Push",
    "Reply",
    "ReplyError",
    "Requests",
    "Several",
    "Simple",
    "encode",
]

LONGEST_LINE: Final = 64 * 1024
"""Bytes of a line (PROTO_INLINE_MAX_SIZE): a longer one is another protocol."""

LONGEST_WORD: Final = 512 * 1024 * 1024
"""Bytes of one word (proto-max-bulk-len)."""

MOST_WORDS: Final = 2**31 - 1
"""Words of one request, as Valkey counts them."""

_TYPED: Final = re.compile(
    rb"""\s*+(?P<bare>[^\s"']*)"""
    rb"""(?:"(?P<double>(?:\\.|[^"\\])*)"|'(?P<single>(?:[^'\\]|\\(?!')|\\')*)')?(?=\s|\Z)"""
)
"""A word of an inline request: quotes hold words together, and a space follows a closing quote."""

_ESCAPE: Final = re.compile(rb"\\x([0-9a-fA-F]{2})|\\(.)", re.DOTALL)
_ESCAPES: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


class ProtocolFault(Exception):
    """The bytes are no request, and nothing after them can be understood."""


class ReplyError(Exception):
    """An error as an answer: its code and text. Commands raise it, and it is a reply itself."""


@attrs.frozen
class Simple:
    """A simple string such as ``+OK``."""

    text: bytes


class Pairs(dict[bytes, "Reply"]):
    """A map; in RESP2 a list of keys and values in turn."""


class Members(list["Reply"]):
    """A set; in RESP2 a list."""


class Push(list["Reply"]):
    """A message without a request; in RESP2 a list."""


class Several(list["Reply"]):
    """Several replies to one request, or none."""


class _NilArray:
    """A null array, where None is a null string; RESP3 has one null for both."""


NIL_ARRAY: Final = _NilArray()
OK: Final = Simple(b"OK")

Reply = int | bytes | None | _NilArray | Simple | ReplyError | Pairs | Sequence["Reply"]


def encode(reply: Reply, protocol: int) -> bytes:
    """Return a reply as bytes.

    Args:
        reply: any value of `Reply`.
        protocol: 2 or 3.
    """
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if reply is None or isinstance(reply, _NilArray | Simple | ReplyError):
        return _line_of(reply, protocol)
    return _group(reply, protocol)


def _line_of(reply: _NilArray | Simple | ReplyError | None, protocol: int) -> bytes:
    if isinstance(reply, Simple):
        return b"+%b\r\n" % reply.text
    if isinstance(reply, ReplyError):
        # In one line, because it may quote bytes of the client.
        return b"-%b\r\n" % str(reply).encode("latin-1").replace(b"\r", b" ").replace(b"\n", b" ")
    if protocol == 3:
        return b"_\r\n"
    return b"$-1\r\n" if reply is None else b"*-1\r\n"


def _group(reply: Pairs | Sequence[Reply], protocol: int) -> bytes:
    if isinstance(reply, Pairs):
        mark, size = (b"%", len(reply)) if protocol == 3 else (b"*", 2 * len(reply))
        parts = [part for pair in reply.items() for part in pair]
    else:
        mark, size = _mark(reply, protocol), len(reply)
        parts = list(reply)
    head = b"" if isinstance(reply, Several) else b"%b%d\r\n" % (mark, size)
    return head + b"".join(encode(part, protocol) for part in parts)


def _mark(reply: Sequence[Reply], protocol: int) -> bytes:
    if protocol == 3 and isinstance(reply, Push):
        return b">"
    return b"~" if protocol == 3 and isinstance(reply, Members) else b"*"


class Requests:
    """Splits the bytes of one client into requests: `feed` it, and iterate over it."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._wanted = 0
        """Words of the current request that are still to come."""
        self._words: list[bytes] = []

    def feed(self, data: bytes | bytearray) -> None:
        """Take more bytes."""
        self._data += data

    def __iter__(self) -> Iterator[list[bytes]]:
        """Yield every complete request that is not empty.

        Raises:
            ProtocolFault: the bytes are no request.
        """
        while (words := self._next()) is not None:
            if words:
                yield words

    def _next(self) -> list[bytes] | None:
        if not self._wanted and not self._begin():
            return None
        while self._wanted:
            word = self._word()
            if word is None:
                return None
            self._words.append(word)
            self._wanted -= 1
        words, self._words = self._words, []
        return words

    def _begin(self) -> bool:
        """Read the first line of a request; return whether there is one.

        It has the number of words, or all words of an inline request.
        """
        line = self._line(
            "too big mbulk count string" if self._data[:1] == b"*" else "too big inline request"
        )
        if line is None:
            return False
        if line[:1] != b"*":
            self._words = _split(line)
            return True
        self._wanted = max(0, _number(line[1:], MOST_WORDS, "invalid multibulk length"))
        return True

    def _word(self) -> bytes | None:
        end = self._data.find(b"\r\n", 0, LONGEST_LINE)
        if self._data and self._data[:1] != b"$":
            got = chr(self._data[0])
            raise ProtocolFault(f"expected '$', got '{got}'")
        if end < 0:
            self._not_endless("too big bulk count string")
            return None
        size = _number(bytes(self._data[1:end]), LONGEST_WORD, "invalid bulk length")
        if size < 0:
            raise ProtocolFault("invalid bulk length")
        begin = end + 2
        if len(self._data) < begin + size + 2:
            return None
        word = bytes(memoryview(self._data)[begin : begin + size])
        if self._data[begin + size : begin + size + 2] != b"\r\n":
            raise ProtocolFault("invalid CRLF in request")
        del self._data[: begin + size + 2]
        return word

    def _line(self, fault: str) -> bytes | None:
        end = self._data.find(b"\n", 0, LONGEST_LINE)
        if end < 0:
            self._not_endless(fault)
            return None
        line = bytes(self._data[:end]).removesuffix(b"\r")
        del self._data[: end + 1]
        return line

    def _not_endless(self, fault: str) -> None:
        if len(self._data) >= LONGEST_LINE:
            raise ProtocolFault(fault)


def _number(word: bytes, most: int, fault: str) -> int:
    digits = word.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > len(str(most)) or int(digits) > most:
        raise ProtocolFault(fault)
    return int(word)


def _split(line: bytes) -> list[bytes]:
    words = []
    line = line.strip()
    at = 0
    while at < len(line):
        found = _TYPED.match(line, at)
        if found is None:
            raise ProtocolFault("unbalanced quotes in request")
        at = found.end()
        double, single = found["double"] or b"", found["single"] or b""
        words.append(found["bare"] + _ESCAPE.sub(_unescaped, double) + single.replace(b"\\'", b"'"))
    return words


def _unescaped(found: re.Match[bytes]) -> bytes:
    if found[1] is not None:
        return bytes([int(found[1], 16)])
    return _ESCAPES.get(found[2], found[2])
