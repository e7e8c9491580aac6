"""Messages of the protocol, and encoded messages that all members of a topic share.

1. This file knows no JSON and no byte layout: those are in ``codec``.
2. A payload is never parsed into Python objects on its way: it stays the bytes that were received.
3. One ``Encoded`` is put into many outboxes. The transport that frames it first stores the frame in
   ``wire``, so that a broadcast is framed once for any number of members.
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
    "PRESENCE_COUNT",
    "PRESENCE_DIFF",
    "PRESENCE_STATE",
    "REPLY",
    "TEXT",
    "Encoded",
    "FrameError",
    "ReplyTo",
    "Run",
    "SocketMessage",
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
PRESENCE_COUNT: Final = "presence_count"
PHOENIX: Final = "phoenix"
"""The topic of heartbeats."""


class ReplyTo(NamedTuple):
    """The fields of a frame that its reply repeats."""

    join_ref: str | None
    ref: str | int | None
    """A string, but for malformed frames any number that the client may wait for."""
    topic: str


class FrameError(ValueError):
    """A frame that is not a message of the protocol; the connection goes on without it."""

    def __init__(self, text: str, reply_to: ReplyTo | None = None) -> None:
        super().__init__(text)
        self.reply_to = reply_to
        """The fields for an error reply, if the frame has a ``ref`` and a topic."""


class SocketMessage(NamedTuple):
    """One message in either direction; the same fields as ``Phoenix.Socket.Message``."""

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: bytes
    """The JSON text of the payload, or raw bytes if ``binary``."""
    binary: bool = False


class Encoded:
    """The payload of one WebSocket frame, shared by all members that receive it."""

    __slots__ = ("key", "opcode", "parts", "size", "wire")

    def __init__(self, opcode: int, *parts: bytes, key: str | None = None) -> None:
        self.opcode = opcode
        """``TEXT`` or ``BINARY``."""
        self.parts = parts
        """The frame's payload in parts. A transport that joins them with its frame header copies a large
        message once."""
        self.size = sum(map(len, parts))
        """Bytes of the frame's payload."""
        self.key = key
        """If set, a newer message with the same key replaces this one while it waits."""
        self.wire: bytes | None = None
        """The whole frame with its header, once a transport has framed it."""

    @property
    def data(self) -> bytes:
        """The frame's payload in one piece, without the frame header."""
        parts = self.parts
        if len(parts) > 1:
            self.parts = parts = (b"".join(parts),)
        return parts[0]

    def __repr__(self) -> str:
        return f"Encoded({self.opcode}, {self.data!r})"


class Run(Sequence[Encoded]):
    """Consecutive messages, shared by all members that receive all of them.

    The transport that joins their frames first stores the result in ``wire``, so that this is done once.
    """

    __slots__ = ("_items", "first", "length", "only", "size", "texts", "wire")

    def __init__(self, items: Iterable[Encoded] = (), *, texts: list[bytes] | None = None) -> None:
        """Make a run of ``items``, or of the ``texts`` of messages without keys.

        Texts are turned into ``Encoded`` objects only when ``items`` is read.
        """
        self._items = found = tuple(items) if texts is None else None
        self.texts = texts
        self.wire: bytes | None = None
        self.only = found[0] if found is not None and len(found) == 1 else None
        """The only message; None if there are several, or ``texts``."""
        if self.only is not None:
            self.length, self.size, self.first = 1, self.only.size, self.only.size
            return
        sizes = list(map(len, texts)) if texts is not None else [item.size for item in self.items]
        self.length = len(sizes)
        self.size = sum(sizes)
        """Bytes of the ``data`` of all messages."""
        self.first = sizes[0] if sizes else 0
        """Bytes of the ``data`` of the first message."""

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
