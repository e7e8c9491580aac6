"""What travels: the message both ends speak of, and the bytes that every member of a topic shares.

1. This file knows no JSON and no byte layout: that is ``codec``.
2. A payload is never parsed into Python objects on its way: it stays the bytes it came as.
3. One ``Encoded`` is put into many outboxes. Whoever frames it for the wire keeps the result in ``wire``,
   so that a broadcast is framed once, whatever the number of members.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, overload

__all__ = [
    "BINARY",
    "CLOSE",
    "ERROR",
    "HEARTBEAT",
    "JOIN",
    "LEAVE",
    "MAX_FIELD",
    "PHOENIX",
    "PRESENCE_DIFF",
    "PRESENCE_STATE",
    "REPLY",
    "TEXT",
    "Encoded",
    "FrameError",
    "Message",
    "Run",
]

TEXT: Final = 1
"""Opcode of a text frame (RFC 6455, section 5.2)."""
BINARY: Final = 2
"""Opcode of a binary frame."""

MAX_FIELD: Final = 255
"""Bytes of a topic or an event: binary frames carry their lengths in one byte."""

JOIN: Final = "phx_join"
LEAVE: Final = "phx_leave"
REPLY: Final = "phx_reply"
ERROR: Final = "phx_error"
CLOSE: Final = "phx_close"
HEARTBEAT: Final = "heartbeat"
PRESENCE_STATE: Final = "presence_state"
PRESENCE_DIFF: Final = "presence_diff"
PHOENIX: Final = "phoenix"
"""The topic of heartbeats."""


class FrameError(ValueError):
    """A frame that is no message of the protocol: dropped and counted, and the connection lives on."""


class Message(NamedTuple):
    """One message, in either direction."""

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: bytes
    """The payload's JSON text, or raw bytes if ``binary``."""
    binary: bool = False


class Encoded:
    """One frame's payload, ready for the wire, the same object for everybody who gets it."""

    __slots__ = ("data", "key", "opcode", "wire")

    def __init__(self, opcode: int, data: bytes, key: str | None = None) -> None:
        self.opcode = opcode
        """``TEXT`` or ``BINARY``."""
        self.data = data
        """The frame's payload, unframed."""
        self.key = key
        """Set if only the newest of the backlog with this key needs to be kept."""
        self.wire: bytes | None = None
        """The whole frame, header included, once a transport has framed it."""

    def __repr__(self) -> str:
        return f"Encoded({self.opcode}, {self.data!r})"


class Run(Sequence[Encoded]):
    """Messages that follow one another, the same object for everybody who gets all of them: the transport
    that joins their frames keeps the result in ``wire``, so that this too is done once.
    """

    __slots__ = ("_items", "first", "length", "size", "texts", "wire")

    def __init__(self, items: Iterable[Encoded] = (), *, texts: list[bytes] | None = None) -> None:
        """Of ``items``; or of the ``texts`` of messages without keys, of which each is made an ``Encoded``
        when somebody asks for it.
        """
        self._items = tuple(items) if texts is None else None
        self.texts = texts
        datas = texts if texts is not None else [item.data for item in self.items]
        self.length = len(datas)
        self.size = sum(map(len, datas))
        """Bytes of the messages' ``data``."""
        self.first = len(datas[0]) if datas else 0
        """Bytes of the first one's."""
        self.wire: bytes | None = None

    @property
    def items(self) -> tuple[Encoded, ...]:
        """The messages."""
        items = self._items
        if items is None:
            assert self.texts is not None
            items = self._items = tuple([Encoded(TEXT, text) for text in self.texts])
        return items

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Encoded]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | Sequence[Encoded]:
        return self.items[index]
