"""Read payloads into declared types, with the place of every fault; write messages.

A payload of JSON is decoded by msgspec straight into the type. A payload that does not fit is read again by
the converter of the routes, which accepts more ("3" is an integer) and collects all faults. A type that only
that converter can read (validators of attrs, for example) goes there at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec

from tangram.routing.convert import problems_of, structurer
from tangram.routing.exceptions import InvalidRequest, Problem
from tangram.routing.plain_types import is_plain_type
from tangram.routing.responses import encode_json

__all__ = [
    "BINARY_FAULT",
    "PLACE",
    "TOO_LONG",
    "PayloadReader",
    "encode_message",
    "payload_reader",
    "too_large",
]

PLACE: Final = "payload"
"""The first word of the place of a fault in a payload."""

BINARY_FAULT: Final = Problem((PLACE,), "expected JSON, not a binary message", "json_invalid")
_TEXT_FAULT: Final = Problem((PLACE,), "expected a binary message, not JSON", "binary_type")
SLOW_AT_ONCE: Final = 4096
"""Bytes that the converter may read at once: 10 ms at most, because it takes 7 microseconds for an item."""
FAST_AT_ONCE: Final = 65_536
"""Bytes that msgspec may read at once: 5 ms at most."""
TOO_LONG: Final[Any] = type("_TooLong", (), {})()
"""Stands for a value that is not read at once."""
_decode_any: Final = msgspec.json.Decoder().decode


class PayloadReader(NamedTuple):
    """Reads payloads of one type."""

    binary: bool
    """The type is ``bytes``: the payload of a binary message, unread."""
    fast: Callable[[bytes], Any] | None
    """Reads most payloads that fit, and raises for the others; None if the type needs the converter."""
    structure: Callable[[object], object]

    def read_at_once(self, payload: bytes) -> Any:
        """Return the value of a JSON payload, or ``TOO_LONG`` for a call of ``read``.

        Raises:
            InvalidRequest: the payload does not fit; it lists every fault.
        """
        if len(payload) <= SLOW_AT_ONCE:
            return self.read(payload)
        if self.fast is not None and len(payload) <= FAST_AT_ONCE:
            with suppress(Exception):  # also of a __post_init__
                return self.fast(payload)
        return TOO_LONG

    def read(self, payload: bytes) -> Any:
        """Return the value of a JSON payload.

        Raises:
            InvalidRequest: the payload does not fit; it lists every fault.
        """
        if self.fast is not None:
            try:
                return self.fast(payload)
            except Exception:  # noqa: BLE001, S110 - also of a __post_init__: the converter finds the place
                pass
        if self.binary:
            raise InvalidRequest([_TEXT_FAULT])
        try:
            return self.structure(_decode_any(payload))
        except Exception as error:  # noqa: BLE001 - the author's class and its validators may raise anything
            raise InvalidRequest(dict.fromkeys(problems_of(error, (PLACE,)))) from None


def too_large(size: int, bound: int) -> InvalidRequest:
    """Return the refusal of a payload with too many bytes."""
    return InvalidRequest([Problem((PLACE,), f"expected at most {bound} bytes, not {size}", "too_large")])


def payload_reader(kind: Any) -> PayloadReader:
    """Return the reader of a type.

    Raises:
        Exception: no converter can read the type.
    """
    if kind is bytes:
        return PayloadReader(binary=True, fast=None, structure=structurer(bytes))
    structure = structurer(kind)
    fast = msgspec.json.Decoder(kind).decode if is_plain_type(kind) else None
    return PayloadReader(binary=False, fast=fast, structure=structure)


def encode_message(message: object) -> bytes:
    """Return a message as JSON; bytes are sent unchanged, as a binary message."""
    return bytes(message) if isinstance(message, bytes | bytearray | memoryview) else encode_json(message)
