"""The channels' side of the bus: what is published together, who is answered, and when to wait.

A read brings many pushes. They are handed over as one batch and answered as one, so that the way through the
bus and back is paid for once a read and not once a push.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tangram.channels.frames import SocketMessage
from tangram.channels.socket import ReplyTo, Socket

__all__ = ["Backpressure", "Batch", "Done", "PublishAll"]

Done = Callable[[Mapping[int, Exception]], None]
"""Hears which messages, by position, Redis has not taken; empty: it has all."""
PublishAll = Callable[[Sequence[tuple[str, bytes]], Done | None], None]


class Backpressure(Protocol):
    """Whoever takes what is published, in a bounded buffer."""

    @property
    def congested(self) -> bool: ...
    async def wait_uncongested(self) -> None: ...


class Batch:
    """What the frames of one read publish: handed over together, and answered together."""

    __slots__ = ("_socket", "messages", "replies")

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self.messages: list[tuple[str, bytes]] = []
        self.replies: list[ReplyTo | SocketMessage | None] = []
        """Whom to answer: one for each message."""

    def done(self, failures: Mapping[int, Exception]) -> None:
        """The outcome."""
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
