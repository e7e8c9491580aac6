"""Helpers of the targets: cut an input as a network may do, and read JSON."""

from __future__ import annotations

import json
import zlib
from typing import Any, Final

__all__ = ["TOO_LARGE", "cut", "read_json"]

TOO_LARGE: Final = object()
"""Stands for a document that Python's parser refuses because of its depth or of an integer's digits."""


def cut(data: bytes) -> list[bytes]:
    """Return up to four pieces, at places that depend on the bytes."""
    dice = zlib.crc32(data)
    places = sorted({dice % (len(data) + 1), (dice >> 8) % (len(data) + 1), (dice >> 16) % (len(data) + 1)})
    return [
        data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True) if begin < end
    ]


def read_json(data: bytes | str) -> Any:
    """Return a document as Python's parser reads it, or ``TOO_LARGE``."""
    try:
        return json.loads(data)
    except RecursionError:
        return TOO_LARGE
    except ValueError as error:
        if "Exceeds the limit" in str(error):
            return TOO_LARGE
        raise
