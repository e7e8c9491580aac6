"""RESP: replies as the bus reads them, and requests as the broker in memory reads them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import trio.testing

from tangram.bus.listener import Listener
from tangram.bus.resp import LOST, Link, pack
from tangram.redis_url import parse_redis_url
from tangram.testing.fakes.valkey.wire import ProtocolFault, Requests
from tests.fuzz.pieces import cut

__all__ = ["check_replies", "check_requests"]

PINNED = b"to:*"

HUGE = re.compile(rb"[*%~>|][+-]?[0-9]{7}")
"""Arrays of a million and more: hiredis allocates the announced number at once. Redis is trusted."""


def _message(channel: bytes, payload: bytes) -> bytes:
    return pack(("pmessage", PINNED, channel, payload))


class _CheckReplies:
    """Replies are delivered or end the connection, and do not depend on how the bytes are cut."""

    corpus = (
        _message(b"to:a:b", b"{}"),
        _message(b"to:a:b", b"") + _message(b"\xff", b"\r\n") + b"*2\r\n$4\r\npong\r\n$0\r\n\r\n",
        b"*3\r\n$10\r\npsubscribe\r\n$4\r\nto:*\r\n:1\r\n",
        b"+OK\r\n-NOPERM no\r\n:5\r\n$-1\r\n*-1\r\n",
        b"*4\r\n$8\r\npmessage\r\n$4\r\nto:*\r\n$1\r\na\r\n$-1\r\n",
    )

    def __call__(self, data: bytes) -> Hashable:
        if HUGE.search(data):
            return "huge"
        whole = self._read([data])
        pieces = self._read(cut(data))
        # By repr: an error reply as the payload is equal to no other.
        assert repr(pieces) == repr(whole)
        messages, lost = whole
        return min(len(messages), 3), lost

    def _read(self, pieces: list[bytes]) -> tuple[list[tuple[bytes, bytes]], str]:
        messages: list[tuple[bytes, bytes]] = []

        def sink(batch: Sequence[tuple[bytes, bytes]]) -> None:
            messages.extend(batch)

        listener = Listener(parse_redis_url("redis://h"), pinned=PINNED, sink=sink)
        listener._expected.extend([None, None])
        link = Link(STREAM)
        try:
            for piece in pieces:
                link.reader.feed(piece)
                listener._deliver_received(link)
        except LOST as error:
            return messages, type(error).__name__
        return messages, ""


STREAM = trio.testing.memory_stream_pair()[0]
check_replies = _CheckReplies()


def check_requests(data: bytes) -> Hashable:
    """Requests are read or are a fault, and do not depend on how the bytes are cut."""
    whole = _requests([data])
    assert _requests(cut(data)) == whole
    read, fault = whole
    if not fault and data[:1] == b"*" and all(words and data.find(b"*") == 0 for words in read):
        packed = b"".join(pack(tuple(words)) for words in read)
        assert _requests([packed]) == (read, "")
    return min(len(read), 3), fault[:24]


def _requests(pieces: list[bytes]) -> tuple[list[list[bytes]], str]:
    parser = Requests()
    found: list[list[bytes]] = []
    try:
        for piece in pieces:
            parser.feed(piece)
            found.extend(parser)
    except ProtocolFault as error:
        return found, str(error)
    return found, ""
