"""Accept JSON texts with simdjson, if the extra ``fast`` is installed.

simdjson parses a text without building Python objects, and checks everything that ``json_text`` demands but
the depth: its own limit is about 1,024 levels. A text is accepted for one of two reasons:

1. simdjson accepts it, and it has at most ``max_depth`` opening brackets, those in strings included.
2. simdjson accepts it inside of so many arrays that ``max_depth`` levels are left for it. A text such as
   ``1],[2`` would close some of these arrays and open others. So two secret numbers follow the text, which no
   text has. If they are the second and the third element of the innermost array that was opened before the
   text, and the last ones, the text is the first element, and whole.

Every other text is undecided, and ``json_text`` checks it by itself: simdjson also refuses sound texts, those
with an integer beyond 64 bits. A text with a byte-order mark is undecided, because simdjson would skip it.
"""

from __future__ import annotations

import secrets
from codecs import BOM_UTF8
from collections.abc import Callable
from typing import Final

try:
    from simdjson import Array, Parser
except ImportError:  # the extra is not installed, or has no wheel for this Python
    _found = False
else:
    _found = True

__all__ = ["AVAILABLE", "Accepts", "acceptor"]

AVAILABLE: Final = _found
"""Whether simdjson is installed."""

Accepts = Callable[[bytes], bool]
"""Returns True for a sound text; False if this is undecided."""

LEVELS: Final = 1024
"""Levels of nesting that simdjson refuses unless the innermost one is empty, which it does not count. So some
texts of exactly ``max_depth`` levels are undecided, and no deeper text is accepted."""
WRAPPED: Final = 8_192
"""Bytes from which on a text is put into arrays; this takes 25 us more."""
FEW: Final = 16
"""Brackets of a text from ``WRAPPED`` on that are counted, because finding each one takes time."""
MAX_KEPT: Final = 1024 * 1024
"""Bytes of the largest text whose parser is kept for the next one. A parser keeps 5 bytes for each byte of
aircraft, and 13 at most."""


def acceptor(max_depth: int) -> Accepts:
    """Return the check for texts of at most ``max_depth`` levels."""
    return _Acceptor(max_depth).accepts if AVAILABLE else _accept_none


def _accept_none(_text: bytes) -> bool:
    return False


class _Acceptor:
    def __init__(self, max_depth: int) -> None:
        arrays = LEVELS - max_depth
        self._max_depth = max_depth
        self._behind = [secrets.randbits(63), secrets.randbits(63)]
        self._before = b"[" * arrays
        self._after = b",%d,%d" % tuple(self._behind) + b"]" * arrays
        self._innermost = "/0" * (arrays - 1)
        # Taken out while it is used: other threads make one of their own.
        self._kept: list[Parser] = []

    def accepts(self, text: bytes) -> bool:
        """Return True for a sound text; False if this is undecided."""
        flat = self._is_flat(text)
        if (not flat and len(text) < WRAPPED) or text.startswith(BOM_UTF8):
            return False
        parser = self._kept.pop() if self._kept else Parser()
        try:
            if flat:
                parser.parse(text)
                return True
            return self._is_accepted_in_arrays(parser, text)
        except (ValueError, RuntimeError, MemoryError):
            return False
        finally:
            if len(text) <= MAX_KEPT and not self._kept:
                self._kept.append(parser)

    def _is_flat(self, text: bytes) -> bool:
        """Return whether there are too few brackets, in strings or not, to be too deep."""
        if len(text) < WRAPPED:
            return text.count(b"[") + text.count(b"{") <= self._max_depth
        found = 0
        for bracket in (b"[", b"{"):
            at = text.find(bracket)
            while at >= 0:
                found += 1
                if found > FEW:
                    return False
                at = text.find(bracket, at + 1)
        return True

    def _is_accepted_in_arrays(self, parser: Parser, text: bytes) -> bool:
        outermost = parser.parse(b"".join((self._before, text, self._after)))
        assert isinstance(outermost, Array)
        innermost = outermost.at_pointer(self._innermost)
        assert isinstance(innermost, Array)
        return len(innermost) == 3 and list(innermost)[1:] == self._behind
