"""The brackets of JSON text outside of its strings; no I/O here.

Every function takes time in proportion to the length of the text. A text need not be valid JSON: then the
results mean nothing, and the parser finds the fault.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["ARRAY", "CLOSERS", "ESCAPED", "STRINGS", "outer_brackets", "unescape"]

ARRAY: Final = 0x5B
"""The bracket that opens an array."""
CLOSERS: Final = {0x5B: 0x5D, 0x7B: 0x7D}
"""Each opening bracket with the one that closes it."""
ESCAPED: Final = b"\x00\x01"
"""Takes the place of an escaped quote or backslash. Neither byte may be in JSON text."""
STRINGS: Final = re.compile(rb'"[^"]*"')
"""The strings of an unescaped text."""
_NOT_STRUCTURE: Final = bytes(byte for byte in range(256) if byte not in b'[]{}"')


def unescape(text: bytes) -> bytes:
    """Return the text without escaped quotes and backslashes; it keeps its length."""
    if b"\\" not in text:
        return text
    return text.replace(b"\\\\", ESCAPED).replace(b'\\"', ESCAPED)


def outer_brackets(unescaped: bytes) -> bytes:
    """Return the brackets of an unescaped text that are outside of its strings."""
    structure = unescaped.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    return STRINGS.sub(b"", structure) if b'"' in structure else structure
