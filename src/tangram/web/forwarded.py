"""Parser of the ``Forwarded`` header (RFC 7239) that reads from the end; no I/O.

1. The nearest proxy writes the last element. Text that a client put in front of it, for example an open
   quote, must not change how that element is read. Therefore the parser splits from the right.
2. Nothing raises. A malformed element yields ``UNKNOWN_HOP`` and ends the iteration, because elements before
   it cannot be told apart safely.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

__all__ = ["UNKNOWN_HOP", "Hop", "read_forwarded"]

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR: Final = re.compile(rf'(?:({_WORD})=({_WORD}|"(?:[^"\\]|\\.)*"))?(?:[ \t]*;[ \t]*|\Z)', re.DOTALL)
_NODE: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
_QUOTE: Final = re.compile(r'(?<!\\)"')


class Hop(NamedTuple):
    """One proxy's description of the request that it received; unknown fields are empty."""

    address: str = ""
    """The IP address of the proxy's client, without brackets and port.

    Also empty for ``unknown`` and for obfuscated identifiers (``_secret``).
    """
    proto: str = ""
    """The scheme, in lower case."""
    host: str = ""
    """The ``Host`` of the request."""


UNKNOWN_HOP: Final = Hop()


def read_forwarded(values: Sequence[str]) -> Iterator[Hop]:
    """Yield the elements of the header, the nearest proxy first.

    Example: ``["for=10.0.0.1, for=10.0.0.2"]`` yields the hop of 10.0.0.2, then the hop of 10.0.0.1.

    Args:
        values: The lines of the header in the order of the request.
    """
    for element in _elements(", ".join(values)):
        text = element.strip(" \t")
        if not text:
            continue  # lists may have empty members
        hop = _hop(text)
        yield hop or UNKNOWN_HOP
        if hop is None:
            return


def _elements(text: str) -> Iterator[str]:
    """Split at commas outside of quotes; yield the last element first."""
    tail: list[str] = []
    for distance, piece in enumerate(reversed(_QUOTE.split(text))):
        if distance % 2:
            # With an odd number of quotes, the text before the first quote is read as quoted. It then fails
            # to parse as a pair, which is the safe reading.
            tail.append(f'"{piece}"')
            continue
        first, *others = piece.split(",")
        for other in reversed(others):
            yield "".join([other, *reversed(tail)])
            tail.clear()
        tail.append(first)
    yield "".join(reversed(tail))


def _hop(element: str) -> Hop | None:
    pairs: dict[str, str] = {}
    at = 0
    while at < len(element):
        match = _PAIR.match(element, at)
        if match is None:
            return None
        at = match.end()
        if match[1] is not None:
            if match[1].lower() in pairs:
                return None
            pairs[match[1].lower()] = _unquoted(match[2])
    return Hop(_address(pairs.get("for", "")), pairs.get("proto", "").lower(), pairs.get("host", ""))


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL) if value.startswith('"') else value


def _address(node: str) -> str:
    match = _NODE.fullmatch(node)
    try:
        return str(ipaddress.ip_address(match[1] or match[2])) if match is not None else ""
    except ValueError:
        return ""
