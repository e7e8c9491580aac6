"""Check JSON text without building objects, at once or in slices.

A payload is passed on as the bytes that were received, so that its objects are of no use here, and 5,000,000
of them would hold the event loop for a second. Texts of more than ``SMALL`` bytes are given to simdjson
first, if that is installed (``simd_json``). All others, and those that it does not accept, are checked as
follows, so that the answers are the same:

1. msgspec skips the text as ``Raw``, which checks the grammar, the escapes and surrogates of strings, and
   the syntax of numbers. It checks neither UTF-8 nor numbers beyond a double nor the depth: those are here.
2. A large text is first reduced to its skeleton, in one pass: brackets, quotes, commas, colons, each digit as
   "0" and each "E" as "e".
3. Depth. The skeleton is reduced to brackets and quotes. If all runs of quotes in it are even, no string has
   a bracket in it: the first string with one would follow an odd run. Only otherwise strings are cut out by a
   pattern. (Brackets in strings must not count: ``["]",`` repeated.)
4. Numbers. A number overflows a double only if its exponent has three digits or if it has 200 digits in a
   row. In the skeleton both are constants, and the byte before a number is a bracket, a comma or a colon: the
   addresses of aircraft (``"3e1000"``) are not read. Otherwise the parser reads the whole text, which refuses
   floats that are too large, and each integer of 200 digits is read exactly, however long it is, unless it is
   in a string.
5. Small texts are parsed as a whole, because that takes less time than the steps above.
6. In slices: the text is cut before a comma between two elements, or inside a string. Each slice is completed
   to a document of its own, by opening the brackets that are open at its begin and closing those that are
   open at its end, and checked as above. So each slice takes a bounded time.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from itertools import accumulate
from math import isinf
from typing import Final

import msgspec

from tangram.channels.simd_json import acceptor
from tangram.json_brackets import ARRAY, CLOSERS, ESCAPED, STRINGS, outer_brackets, unescape
from tangram.pieces import Pieces

__all__ = [
    "MAX_DEPTH",
    "SHALLOW",
    "SLICE",
    "check_slices",
    "is_document",
    "is_sound",
    "is_value",
]

MAX_DEPTH: Final = 128
"""Levels of nesting, as in the JSON parser of Rust (serde), which other servers and plugins use."""
SLICE: Final = 16_384
"""Bytes of a slice: its check takes less than 2 ms for any text."""

SHALLOW: Final = 2 * MAX_DEPTH
"""Bytes of a text that cannot be too deep, because each level has two brackets."""
SMALL: Final = 1024
"""Bytes of a text that is parsed: for so few objects that takes less time than the single checks."""

_decode: Final = msgspec.json.Decoder().decode
_skip: Final = msgspec.json.Decoder(msgspec.Raw).decode
_accepts = acceptor(MAX_DEPTH)
"""Accepts most sound texts with simdjson; accepts none where that is not installed."""

_ROUNDS: Final = 6
"""Levels that are collapsed from the innermost outwards, before brackets are counted one by one."""
_SKELETON: Final = bytes(
    0x30 if chr(byte).isdigit() and byte < 128 else 0x65 if byte == 0x45 else byte for byte in range(256)
)
"""Every digit as "0", and "E" as "e"."""
_NOT_SKELETON: Final = bytes(byte for byte in range(256) if byte not in b'[]{}",:eE0123456789')
_NO_BRACKETS_OR_QUOTES: Final = b",:e0"
_BEFORE_NUMBER: Final = b"[,:"
"""The bytes of a skeleton that may stand before a number."""
_RUN: Final = 64
"""Bytes of a skeleton before an exponent that are looked at; a longer run is read in the text."""
_MAX_EXPONENTS: Final = 300
_BYTES_FOR_EXPONENT: Final = 128
"""Places of a skeleton that are looked at, or one for so many bytes of a larger text.

With more of them the parser reads the whole text. The addresses of 4,000 aircraft have 300 in 640 KB.
"""
_STEPS: Final = bytes(1 if byte in b"[{" else 255 if byte in b"]}" else 0 for byte in range(256))
"""Brackets as +1 and -1 (255 as a signed byte)."""
_ZEROS: Final = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))
"""Every digit as "0"."""
_DIGITS: Final = 309
"""Digits of the largest double; an integer with fewer cannot overflow it. (The parser checks floats.)"""
_MANY_DIGITS: Final = b"0" * 200
"""A run of digits in each integer that may be beyond a double."""
_NUMBER_BYTES: Final = b"0123456789+-.eE"
_NUMBER: Final = re.compile(rb"[-0-9+.eE]*")
_QUOTE: Final = 0x22
_BLANKS: Final = b" \t\r\n"
_MARGIN: Final = 32
"""Bytes of a string that are needed to cut it; an escaped pair of surrogates has twelve."""


def is_document(text: bytes) -> bool:
    """Return whether a text is one JSON object or array that all browsers read alike.

    False for scalars, leading blanks, a byte-order mark, text after the document, NaN, bad UTF-8, lone
    surrogates, a number beyond a double, and nesting deeper than ``MAX_DEPTH``.
    """
    if text[:1] not in (b"{", b"["):
        return False
    if len(text) > SHALLOW:
        return is_value(text)
    # As ``is_sound``, without calls: nearly all messages are as small as this.
    try:
        _decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True


def is_value(text: bytes) -> bool:
    """Return whether a text is one JSON value, by the rules of ``is_document``."""
    if len(text) > SMALL:
        if _accepts(text):
            return True
        try:
            _skip(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return False
        return _passes(text)
    return is_sound(text)


def is_sound(text: bytes) -> bool:
    """Return whether valid JSON has good UTF-8, bounded depth and bounded numbers."""
    if len(text) <= SMALL:
        try:
            _decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return False
        return len(text) <= SHALLOW or (_depth_fits(text) and (len(text) < _DIGITS or _numbers_fit(text)))
    return _accepts(text) or _passes(text)


def _passes(text: bytes) -> bool:
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            return False
    skeleton = unescape(text).translate(_SKELETON, _NOT_SKELETON)
    if not _nesting_fits(_brackets_of(skeleton)):
        return False
    return not _may_overflow(skeleton, len(text)) or _numbers_read(text)


def _depth_fits(text: bytes) -> bool:
    return text.count(b"[") + text.count(b"{") <= MAX_DEPTH or _nesting_fits(outer_brackets(unescape(text)))


def _nesting_fits(brackets: bytes) -> bool:
    rest = brackets
    for _ in range(_ROUNDS):
        rest = rest.replace(b"[]", b"").replace(b"{}", b"")
        if not rest:
            return True
    return _deepest(rest) + _ROUNDS <= MAX_DEPTH or _deepest(brackets) <= MAX_DEPTH


def _brackets_of(skeleton: bytes) -> bytes:
    """Return the brackets of a skeleton that are outside of its strings."""
    structure = skeleton.translate(None, _NO_BRACKETS_OR_QUOTES)
    if 2 * structure.count(b'""') != structure.count(b'"'):
        structure = STRINGS.sub(b"", structure)
    return structure.translate(None, b'"')


def _may_overflow(skeleton: bytes, size: int) -> bool:
    """Return whether a number may be beyond a double, in a text of ``size`` bytes."""
    if _MANY_DIGITS in skeleton:
        return True
    # Backwards: "e" is rarer than "0", so that the search skips more.
    at = skeleton.rfind(b"e000")
    left = max(_MAX_EXPONENTS, size // _BYTES_FOR_EXPONENT)
    while at >= 0:
        left -= 1
        begin = max(0, at - _RUN)
        before = skeleton[begin:at].rstrip(b"0e")
        if left < 0 or not before or before[-1] in _BEFORE_NUMBER:
            return True
        at = skeleton.rfind(b"e000", 0, begin + len(before))
    return False


def _deepest(brackets: bytes) -> int:
    return max(accumulate(memoryview(brackets.translate(_STEPS)).cast("b")), default=0)


def _numbers_read(text: bytes) -> bool:
    """Return whether all numbers fit, by the parser, which is faster than a look at each."""
    try:
        _decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return _numbers_fit(text)


def _numbers_fit(text: bytes) -> bool:
    """Return whether the integers of a parsed text fit.

    The parser has checked the floats. The numbers around each run of many digits are read, unless it is in a
    string.
    """
    zeros = text.translate(_ZEROS)
    unescaped = b""
    counted = quotes = 0
    at = zeros.find(_MANY_DIGITS)
    while at >= 0:
        begin, end = _begin_of_number(text, at), _NUMBER.match(text, at).end()  # type: ignore[union-attr]
        if not begin or text[begin - 1] != _QUOTE:
            unescaped = unescaped or unescape(text)
            quotes += unescaped.count(b'"', counted, begin)
            counted = begin
            if quotes % 2 == 0 and isinf(float(text[begin:end])):
                return False
        at = zeros.find(_MANY_DIGITS, end)
    return True


def _begin_of_number(text: bytes, at: int) -> int:
    """Return where the bytes of a number begin that end before ``at``."""
    size = _RUN
    while True:
        begin = max(0, at - size)
        before = text[begin:at].rstrip(_NUMBER_BYTES)
        if before or not begin:
            return begin + len(before)
        size *= 8


def check_slices(text: bytes | Pieces, size: int = SLICE) -> Generator[None, None, bool]:
    """Check a text in slices, and return whether it is a JSON object, an array or a string.

    It yields after each slice but the last, so that the caller can let other tasks run::

        checked = yield from check_slices(text)

    Args:
        text: the JSON text, without blanks around it.
        size: bytes of a slice.
    """
    state = _Slices(text)
    while not state.done:
        if not state.check_next(size):
            return False
        if not state.done:
            yield
    return True


class _Slices:
    """The position in a text, with its open brackets and whether it is in a string there."""

    def __init__(self, text: bytes | Pieces) -> None:
        self._text = text
        self._at = 0
        self._stack = bytearray()
        self._string = ""
        """The role of the string in which the position is, "key" or "value"; empty outside of strings."""
        self.done = False

    def check_next(self, size: int) -> bool:
        """Check the next slice; return False if the text is not sound."""
        text, begin = self._text, self._at
        if not begin and text[:1] not in (b"{", b"[", b'"'):
            return False
        before = self._prefix()
        if len(text) - begin <= size:
            self.done = True
            return is_value(before + text[begin:])
        window = text[begin : begin + size]
        unescaped = unescape(window)
        was_inside = bool(self._string)
        end = self._cut(unescaped)
        self._at += end
        inside = b'"' if was_inside else b"", b'"' if self._string else b""
        brackets = outer_brackets(inside[0] + unescaped[:end] + inside[1])
        if not end or not _follow(self._stack, brackets) or not (self._stack or self._string):
            return False
        return is_value(before + window[:end] + self._suffix())

    def _prefix(self) -> bytes:
        """Return a text that leads to this position.

        It has the open brackets, then an element or a quote.
        """
        if not self._at:
            return b""
        if not self._stack:
            return b'"'
        opened = b"".join([b"[" if bracket == ARRAY else b'{"":' for bracket in self._stack[:-1]])
        in_array = self._stack[-1] == ARRAY
        if self._string == "key":
            return opened + b'{"'
        if self._string:
            return opened + (b'["' if in_array else b'{"":"')
        return opened + (b"[0" if in_array else b'{"":0')

    def _suffix(self) -> bytes:
        """Return a text that completes the document from this position on.

        Outside of strings a comma follows, and an element: it shows that ``[,`` and ``{,`` are wrong.
        """
        if self._string:
            rest = b'":0' if self._string == "key" else b'"'
        else:
            rest = b",0" if self._stack[-1] == ARRAY else b',"":0'
        return rest + bytes([CLOSERS[bracket] for bracket in reversed(self._stack)])

    def _cut(self, unescaped: bytes) -> int:
        """Find the end of the slice, and the role of the string there.

        Returns 0 if there is no place to cut.

        The search goes back from the end, in turn through the strings and the text between them.
        """
        inside = (unescaped.count(b'"') + bool(self._string)) % 2 == 1
        end = len(unescaped)
        while True:
            quote = unescaped.rfind(b'"', 0, end)
            if inside and end - quote > _MARGIN:
                if quote >= 0:
                    self._string = self._role(unescaped[:quote])
                return _end_in_string(unescaped, end - 12)
            if not inside and (comma := unescaped.rfind(b",", quote + 1, end)) > 0:
                self._string = ""
                return comma
            if quote < 0:
                return 0
            end, inside = quote, not inside

    def _role(self, before: bytes) -> str:
        """Return the role of a string, from the text of the slice before it."""
        stack = self._stack.copy()
        _follow(stack, outer_brackets((b'"' if self._string else b"") + before))
        in_object = stack[-1:] == b"{"
        return "key" if in_object and before.rstrip(_BLANKS)[-1:] in (b"{", b",") else "value"


def _end_in_string(unescaped: bytes, end: int) -> int:
    """Return a place before ``end`` that is neither in an escape nor in a character."""
    if unescaped[end] == ESCAPED[1]:
        end -= 1
    escape = unescaped.rfind(b"\\", end - 5, end)
    if escape >= 0:
        end = escape
    if unescaped[end - 6 : end - 3].lower() == b"\\ud" and unescaped[end - 3] in b"89abAB":
        end -= 6  # not between the two surrogates of a character
    while unescaped[end] & 0xC0 == 0x80 and end:
        end -= 1
    return end


def _follow(stack: bytearray, brackets: bytes) -> bool:
    """Apply brackets to the stack of open ones; return False if they are wrong or too deep."""
    for bracket in brackets:
        if bracket in CLOSERS:
            stack.append(bracket)
        elif not stack or CLOSERS[stack.pop()] != bracket:
            return False
    return len(stack) <= MAX_DEPTH
