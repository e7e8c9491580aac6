"""Valkey's glob patterns (its ``stringmatchlen``), for PSUBSCRIBE, KEYS and SCAN.

Python's ``fnmatch`` differs: it negates by ``!`` and has no backslash.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

__all__ = ["matches"]

KEPT: Final = 512
"""Patterns whose expression is kept: each publish matches all subscribed patterns."""


def matches(pattern: bytes, text: bytes) -> bool:
    """Return whether ``pattern`` matches the whole of ``text``."""
    return _expression(pattern).fullmatch(text) is not None


@lru_cache(maxsize=KEPT)
def _expression(pattern: bytes) -> re.Pattern[bytes]:
    parts: list[bytes] = []
    at = 0
    while at < len(pattern):
        one = pattern[at : at + 1]
        at += 1
        if one == b"*":
            if parts[-1:] != [b".*"]:
                parts.append(b".*")
        elif one == b"?":
            parts.append(b".")
        elif one == b"[":
            part, at = _class(pattern, at)
            parts.append(part)
        else:
            if one == b"\\" and at < len(pattern):
                one = pattern[at : at + 1]
                at += 1
            parts.append(re.escape(one))
    return re.compile(b"".join(parts), re.DOTALL)


def _class(pattern: bytes, at: int) -> tuple[bytes, int]:
    """Translate one of ``[abc]``, ``[a-z]``, ``[^x]``, and return where it ends.

    Without an end it extends to that of the pattern; a range takes the character behind the dash, also
    a closing bracket.
    """
    negated = pattern[at : at + 1] == b"^"
    at += negated
    ranges: list[tuple[int, int]] = []
    while at < len(pattern):
        one = pattern[at]
        if one == ord("\\") and at + 1 < len(pattern):
            ranges.append((pattern[at + 1], pattern[at + 1]))
            at += 2
        elif one == ord("]"):
            at += 1
            break
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            ranges.append((min(one, pattern[at + 2]), max(one, pattern[at + 2])))
            at += 3
        else:
            ranges.append((one, one))
            at += 1
    if not ranges:
        return (b"." if negated else b"(?!)"), at
    inside = b"".join(b"\\x%02x-\\x%02x" % ends for ends in ranges)
    return b"[%b%b]" % (b"^" if negated else b"", inside), at
