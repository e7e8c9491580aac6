"""Heads and chunked bodies of HTTP/1.1; the referee is h11."""

from __future__ import annotations

import re
from collections.abc import Hashable

from tangram.http.native.body import ChunkedBody
from tangram.http.native.head import RejectedRequest, parse_head, premature_fault
from tests.fuzz.pieces import cut
from tests.http.native.referee import read_by_h11, read_natively
from tests.http.native.test_head import told

__all__ = ["check_chunks", "check_head"]

DIGITS = re.compile(r"[0-9]+")
REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def check_head(data: bytes) -> Hashable:
    """Requests are rejected, or are the first of those that h11 reads; early faults are final."""
    ours = read_natively(data)
    assert ours.refused is None or isinstance(ours.refused, RejectedRequest), ours.refused
    if ours.requests:
        assert told(ours) == told(read_by_h11(data))[: len(ours.requests)]
    end = data.find(b"\r\n\r\n")
    for piece in cut(data[: end + 3])[:1] if end >= 0 else ():
        if premature_fault(piece) is not None:
            _expect_rejection(data[: end + 4])
    return len(ours.requests), _kind(ours.refused), tuple(read.method for read in ours.requests[:2])


def _expect_rejection(head: bytes) -> None:
    try:
        parse_head(head, 100)
    except RejectedRequest:
        return
    raise AssertionError("a head was refused before its end, and is accepted as a whole")


def check_chunks(data: bytes) -> Hashable:
    """A body does not depend on how its bytes are cut, and h11 reads the same one."""
    whole = _read([data])
    assert _read(cut(data)) == whole
    body, rest, fault = whole
    if fault is None and rest is not None:
        (request, *_) = read_by_h11(REQUEST + data).requests
        assert request.body == body
    return fault, body is not None and len(body).bit_length(), rest is None


def _read(pieces: list[bytes]) -> tuple[bytes | None, bytes | None, str | None]:
    """Return the body, the bytes behind it (None if it has not ended), and the fault."""
    reader, body, left = ChunkedBody(), b"", b""
    try:
        for piece in pieces:
            left += piece
            if not reader.done:
                part, left = reader.feed(left)
                body += part
    except RejectedRequest as error:
        return None, None, f"{error.status} {error.reason}"
    return body, left if reader.done else None, None


def _kind(refused: Exception | None) -> str | None:
    return DIGITS.sub("", f"{refused.args}") if refused is not None else None
