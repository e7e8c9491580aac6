"""Publishing for the channels: batches, their replies, and backpressure of the bus.

One read brings many pushes. They are handed to the bus as one batch and replied to as one batch, so that the
cost of the way to Redis and back is paid once for a read and not once for a push.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tangram.channels.frames import ReplyTo, SocketMessage
from tangram.channels.socket import Socket
from tangram.pieces import Pieces

__all__ = ["Backpressure", "Batch", "Done", "PublishAll"]

Done = Callable[[Mapping[int, Exception]], None]
"""Called with the positions of the messages that Redis has not taken, and why; empty if it has all."""
PublishAll = Callable[[Sequence[tuple[str, bytes | Pieces]], Done | None], None]
"""Hands messages to the bus without blocking; raises BrokerUnavailable if it takes none."""


class Backpressure(Protocol):
    """The bounded buffer of the bus, as far as it slows down its callers."""

    @property
    def congested(self) -> bool: ...
    async def wait_uncongested(self) -> None: ...


class Batch:
    """The publications of the frames of one read, with the replies that they need."""

    __slots__ = ("_socket", "messages", "replies")

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self.messages: list[tuple[str, bytes | Pieces]] = []
        self.replies: list[ReplyTo | SocketMessage | None] = []
        """One entry for each message: the frame to reply to, or None."""

    def done(self, failures: Mapping[int, Exception]) -> None:
        """Reply to the pushes in order: ``ok`` if Redis has taken the message, else an error."""
        if not failures:
            self._socket.published(self.replies)
            return
        taken: list[ReplyTo | SocketMessage | None] = []
        for at, reply in enumerate(self.replies):
            if at not in failures:
                taken.append(reply)
            elif reply is not None:
                self._socket.published(taken)
                taken = []
                self._socket.unpublished(reply)
        self._socket.published(taken)
