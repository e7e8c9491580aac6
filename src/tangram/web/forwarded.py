"""The ``Forwarded`` header of RFC 7239, read from its end: a pure function of the header's text.

1. Whoever is nearest to us wrote last. What a client put in front, an open quote for example, must not change
   what our own proxy says behind it; so elements are told apart from the right.
2. Nothing raises. What is malformed says nothing, and neither does what stands before it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

__all__ = ["NOTHING", "Hop", "read_forwarded"]

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR: Final = re.compile(rf'(?:({_WORD})=({_WORD}|"(?:[^"\\]|\\.)*"))?(?:[ \t]*;[ \t]*|\Z)', re.DOTALL)
_NODE: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
_QUOTE: Final = re.compile(r'(?<!\\)"')


class Hop(NamedTuple):
    """What one proxy says of the request that it got; empty where it does not say."""

    address: str = ""
    """Who asked it: an IP address, without brackets and port. Empty, too, for ``unknown`` and for obfuscated
    identifiers (``_secret``)."""
    proto: str = ""
    """In lower case."""
    host: str = ""
    """The ``Host`` that it was asked for."""


NOTHING: Final = Hop()


def read_forwarded(values: Sequence[str]) -> Iterator[Hop]:
    """What the proxies say, the nearest first; ``values`` are the header's lines in their order.

    A malformed element is `NOTHING`, and the last one.
    """
    for element in _elements(", ".join(values)):
        text = element.strip(" \t")
        if not text:
            continue  # lists may have empty members
        hop = _hop(text)
        yield hop or NOTHING
        if hop is None:
            return


def _elements(text: str) -> Iterator[str]:
    """Split at the commas outside of quotes, the last element first."""
    tail: list[str] = []
    for distance, piece in enumerate(reversed(_QUOTE.split(text))):
        if distance % 2:
            # Where the number of quotes is odd, this is the text before the first: no pair begins like that.
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
