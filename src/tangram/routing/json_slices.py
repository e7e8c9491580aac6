"""Decode large JSON in slices of bounded time; no I/O here.

1. The parser holds the event loop from the first byte to the last one: 50 ms for 2 MiB of ``[],``. So a large
   text is cut before commas that are outside of strings.
2. Each slice is completed to a document of its own: the brackets that are open at its begin are opened before
   it, and those that are open at its end are closed behind it. Its parts go into the containers that are
   open.
3. In place of the elements before and behind the slice stand marks. The one behind it is found at the end of
   the container that is open there: with a key that an object has twice that is not the last value.
4. Values and faults are those of the parser for the whole text. A text that is wrong is given to it as it is,
   behind the opened brackets, so that the fault has its own words and its place.
5. A slice without a comma is a long string, long blanks, or too deep: the parser reads or refuses it quickly.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, Final

import msgspec

from tangram.json_brackets import ARRAY, CLOSERS, outer_brackets, unescape

__all__ = ["CONTAINER_BYTES", "MAX_CONTAINERS", "SLICE", "JSONSlices", "TooManyContainers"]

SLICE: Final = 16_384
"""Bytes of a slice: it takes less than 3 ms for any text."""
MAX_CONTAINERS: Final = 262_144
"""Arrays and objects that every large text may have."""
CONTAINER_BYTES: Final = 8
"""A longer text may have an array or object for so many of its bytes."""

_BEFORE: Final = secrets.token_hex(8)
"""Stands for the elements before a slice. No client can know it."""
_BEHIND: Final = secrets.token_hex(8)
"""Stands for the elements behind a slice."""
_OBJECT_BEFORE: Final = b'{"%b":' % _BEFORE.encode()
_ELEMENT_BEHIND: Final = b',"%b"' % _BEHIND.encode()
_BACKSLASHES: Final = re.compile(rb"\\*")
_BACKSLASH: Final = 0x5C
_WORD: Final = 16
"""Bytes behind a wrong slice that the parser may read: it does so for ``nul,``."""
_ROUNDS: Final = 4
"""Levels of which pairs of brackets are removed at once, before the others are followed one by one."""
_CONTAINERS: Final = frozenset({dict, list})
_decode: Final = msgspec.json.Decoder().decode


class TooManyContainers(ValueError):
    """A text has more arrays and objects than one of its length may have."""

    def __init__(self, bound: int) -> None:
        super().__init__(f"expected at most {bound} arrays and objects in JSON of this length")


class JSONSlices:
    """The state of a text that is decoded in slices.

    Args:
        text: the JSON.
        size: bytes of a slice.

    Example::

        slices = JSONSlices(text)
        while not slices.done:
            slices.decode_next()
            await turn()
        return slices.value
    """

    __slots__ = (
        "_begin",
        "_bound",
        "_inside",
        "_left",
        "_open",
        "_scanned",
        "_size",
        "_stack",
        "_text",
        "done",
        "shift",
        "value",
    )

    def __init__(self, text: bytes, size: int = SLICE) -> None:
        self._text = text
        self._size = size
        self._bound = self._left = max(MAX_CONTAINERS, len(text) // CONTAINER_BYTES)
        self._begin = 0
        """Where the next slice begins: at 0 or at a comma."""
        self._scanned = 0
        """Up to where the end of the next slice was looked for."""
        self._inside = False
        """Whether that place is inside a string."""
        self._stack = bytearray()
        """The brackets that are open at the begin of the next slice."""
        self._open: list[Any] = []
        """Their containers."""
        self.shift = 0
        """The difference between a place in the text and that of the last slice's document."""
        self.done = False
        self.value: Any = None
        """The value of the text, once it is done."""

    def decode_next(self) -> None:
        """Decode a slice, or look for its end.

        Raises:
            TooManyContainers: the text has too many arrays and objects.
            ValueError: the parser's exception; the place in it needs ``shift``.
            RecursionError: the text is nested too deeply.
        """
        rest = len(self._text) - self._begin
        cut = 0 if rest <= self._size else self._find_cut()
        if cut:
            self._take(cut)
        elif rest <= self._size or self._scanned == len(self._text):
            self._take(len(self._text))
            self.done = True

    def _find_cut(self) -> int:
        """Return the place of the last comma in the next bytes.

        Returns 0 if there is none outside of strings.
        """
        text, begin = self._text, self._scanned
        end = min(begin + self._size, len(text))
        if text[end - 1] == _BACKSLASH:  # not inside an escape
            end = min(_BACKSLASHES.match(text, end).end() + 1, len(text))  # type: ignore[union-attr]
        parts = unescape(text[begin:end]).split(b'"')
        inside = self._inside ^ (len(parts) % 2 == 0)
        self._scanned, self._inside = end, inside
        at = end
        for part in reversed(parts):
            at -= len(part)
            if not inside and (comma := part.rfind(b",")) >= 0:
                return at + comma
            at -= 1
            inside = not inside
        return 0

    def _take(self, end: int) -> None:
        """Decode the slice up to a comma, or to the end of the text."""
        before = self._before()
        part = self._text[self._begin : end]
        self.shift = self._begin - len(before)
        found = outer_brackets(unescape(part))
        self._left -= found.count(b"[") + found.count(b"{")
        if self._left < 0:
            raise TooManyContainers(self._bound)
        kept = self._follow(found)
        last = end == len(self._text)
        if not last:
            wrong = kept < 0 or not self._stack
            part += self._text[end : end + _WORD] if wrong else self._behind()
        value = _decode(before + part)
        self._begin = end
        self._put(value, kept, complete=last)

    def _before(self) -> bytes:
        """Return a text that leads to the begin of the slice: the open brackets and an element."""
        if not self._begin:
            return b""
        opened = [b"[" if bracket == ARRAY else _OBJECT_BEFORE for bracket in self._stack]
        return b"".join(opened) + b"0"

    def _behind(self) -> bytes:
        """Return a text that completes the slice: an element and the closing brackets."""
        value = b"" if self._stack[-1] == ARRAY else b":0"
        return _ELEMENT_BEHIND + value + bytes([CLOSERS[bracket] for bracket in reversed(self._stack)])

    def _follow(self, found: bytes) -> int:
        """Apply the brackets of a slice to the stack.

        Returns:
            How many of the brackets before it stay open; -1 if one is wrong.
        """
        for _ in range(_ROUNDS):
            found = found.replace(b"[]", b"").replace(b"{}", b"")
        stack = self._stack
        kept = len(stack)
        for bracket in found:
            if bracket in CLOSERS:
                stack.append(bracket)
            elif not stack or CLOSERS[stack.pop()] != bracket:
                return -1
            else:
                kept = min(kept, len(stack))
        return kept

    def _put(self, value: Any, kept: int, *, complete: bool) -> None:
        """Put the parts of a slice into the containers that were open at its begin.

        Args:
            value: the value of the slice's document.
            kept: how many of these containers are still open.
            complete: nothing follows the slice.
        """
        newest, part = value, value
        for level, container in enumerate(self._open, 1):
            if type(container) is list:
                inner = part[0]
                container.extend(part[1:])
            else:
                inner = part.pop(_BEFORE)
                container.update(part)
            if level == kept:
                newest = part
            part = inner
        if complete:
            self.value = self._open[0] if self._open else value
            return
        if not kept:  # the first slice
            self._open, kept = [value], 1
        del self._open[kept:]
        self._open += _containers(newest, len(self._stack) - kept)
        innermost = self._open[-1]
        if type(innermost) is list:
            del innermost[-1]
        else:
            del innermost[_BEHIND]


def _containers(within: Any, depth: int) -> list[Any]:
    """Return the containers that lead to the mark behind a slice, ``depth`` of them."""
    found: list[Any] = []
    at = within
    while at and len(found) < depth:
        at = at[-1] if type(at) is list else next(reversed(at.values()))
        if type(at) not in _CONTAINERS:
            break
        found.append(at)
    if len(found) == depth and _is_marked(at):
        return found
    searched = _search(within, depth)  # an object has a key twice
    assert searched is not None
    return searched


def _search(within: Any, depth: int) -> list[Any] | None:
    if not depth:
        return [] if _is_marked(within) else None
    for child in within[-1:] if type(within) is list else within.values():
        if type(child) in _CONTAINERS and (rest := _search(child, depth - 1)) is not None:
            return [child, *rest]
    return None


def _is_marked(container: Any) -> bool:
    return _BEHIND in (container[-1:] if type(container) is list else container)
